"""Real processes for end-to-end tests: the command line, a server, nodes. All are ended by process id."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from federation.node import sandbox
from federation.system.reaper import descendants, read_parents
from models.refusal import Refusal
from pipeline.cohort.ingest import ingest as ingest_in_this_process
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site
from tests.helpers.shared_folder import shared_folder

FEDTHORAX = str(Path(sys.executable).parent / "fedthorax")


class Command:
    """One running `fedthorax ...` command with its output in a file."""

    is_node, _is_asked = False, False

    def __init__(self, log: Path, *arguments: str | Path, program: str = FEDTHORAX) -> None:
        self.log, self.is_node = log, arguments[:2] == ("node", "start")
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [program, *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str, *, seconds: float) -> str:
        """Wait until a line matches. Fails with the output when the command ends or after the timeout."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := re.search(pattern, self.text()):
                return found[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.3)
        if found := re.search(pattern, self.text()):
            return found[0]
        raise AssertionError(f"{pattern!r} did not appear within {seconds} s:\n{self.text()}")

    def wait(self, *, seconds: float) -> int:
        return self.process.wait(timeout=seconds)

    def family(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid, read_parents())]

    def kill(self) -> None:
        """kill -9 this command and all its descendants."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def let_go(self) -> None:
        """Send Ctrl-C (SIGINT), once: a second one would end the command before its children."""
        if self.process.poll() is None and not self._is_asked:
            self._is_asked = True
            self.process.send_signal(signal.SIGINT)

    def interrupt(self) -> None:
        """Send Ctrl-C. The command must then end by itself."""
        self.let_go()
        try:
            self.process.wait(timeout=180)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def end_all(commands: Sequence[Command]) -> None:
    """End each command even if another fails: nodes first and at the same time, the others from the last one on."""
    nodes = [command for command in commands if command.is_node]
    with contextlib.ExitStack() as ends:
        for command in [*(each for each in commands if not each.is_node), *nodes]:
            ends.callback(command.interrupt)
        for node in nodes:
            node.let_go()


def wait_online(nodes: Iterable[Command]) -> None:
    """Wait for nodes that were started together: each spends most of the time with imports, on a core of its own."""
    for node in nodes:
        node.wait_for("is online", seconds=300)


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `fedthorax ...` until it ends."""
    return subprocess.run([FEDTHORAX, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False)


def ok(*arguments: str | Path) -> str:
    """Run `fedthorax ...`, which must succeed, and return its output."""
    done = run_command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def enter(site: Path, server: Path, name: str) -> None:
    """Let a site join the study of the running server, with the commands of study office and hospital IT."""
    code = json.loads(ok("server", "enrol", server, name, "--json"))["code"]
    ok("node", "join", site, code, "--as", name)
    try:
        sandbox.available(Site.open(site))
    except Refusal:  # no bubblewrap on this machine: the sandbox tests report that they are skipped
        with (site / "site.toml").open("a") as settings:
            settings.write('\n[sandbox]\nkind = "none"\naccepted_by = "a test with synthetic patients"\n')


def allow(site: Path, study: Path) -> None:
    """Approve a study file that is not part of the release at a site."""
    ok("node", "approve-study", site, study, "--yes")


def for_few_patients(site: Path) -> None:
    """Configure a site with few patients: metrics over two patients may leave, and rounds may have one step.

    The key is set before the ingest because it determines the split of each patient. With a random key, one site in
    600 has fewer than two training patients. With these keys, each site has at least two patients in every split.
    """
    (site / "keys" / "pseudonym.key").write_bytes(hashlib.sha256(f"synthetic 50 {site.name}".encode()).digest())
    settings = site / "site.toml"
    text = settings.read_text().replace("min_patients = 3\n", "min_patients = 2\n", 1)
    settings.write_text(text.replace("[gateway]\n", "[gateway]\nmin_local_steps = 1\n", 1))


def ingest(site: Path) -> None:
    """Ingest a synthetic hospital, and check that each split has enough patients for a study."""
    ok("node", "ingest", site)
    enough_in_each_split(site)


def enough_in_each_split(site: Path) -> None:
    with sqlite3.connect(site / "cohort" / "cohort.sqlite") as cohort:
        splits = dict(cohort.execute("SELECT split, count(*) FROM patients GROUP BY split"))
    assert all(splits.get(split, 0) >= 2 for split in ("train", "validation", "test")), (site.name, splits)


@pytest.fixture(scope="session")
def three_hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of three synthetic hospitals of 14 patients: north, south and west. Do not modify them."""

    def make(folder: Path) -> None:
        ok("phantom", folder / "made", "--sites", "3", "--patients", "14", "--no-defects", "--anatomy", "template")

    return shared_folder(tmp_path_factory, "three_hospitals", make) / "made"


@pytest.fixture(scope="session")
def three_sites(three_hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the three hospitals' sites, ingested. Copy it before any change.

    One ingest is by the command. The others are in this process, which has already imported what takes a command half
    of its time.
    """

    def make(folder: Path) -> None:
        for name in ("north", "south", "west"):
            site = folder / name
            ok("node", "init", site, "--from", three_hospitals / name)
            for_few_patients(site)
            if name == "north":
                ok("node", "ingest", site)
            else:
                ingest_in_this_process(Site.open(site), Preprocessing(), lambda done, total: None)
            enough_in_each_split(site)

    return shared_folder(tmp_path_factory, "three_sites", make)


@pytest.fixture(scope="session")
def two_sites(three_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two ingested synthetic hospitals, north and south. Copy it before any change."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("north", "south"):
        shutil.copytree(three_sites / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Return a function that starts `fedthorax ...` in the background. All commands end after the module."""
    folder = tmp_path_factory.mktemp("output")
    started: list[Command] = []

    def begin(*arguments: str | Path) -> Command:
        command = Command(folder / f"{len(started)}.log", *arguments)
        started.append(command)
        return command

    yield begin
    end_all(started)
