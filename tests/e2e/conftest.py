"""Real processes for end-to-end tests: the command line, a server, nodes; all ended by their ids."""

import contextlib
import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.node import sandbox
from federation.system.reaper import descendants, read_parents
from models.refusal import Refusal
from pipeline.site.folder import Site

FEDTHORAX = str(Path(sys.executable).parent / "fedthorax")


class Command:
    """One running `fedthorax ...`, its output in a file."""

    def __init__(self, log: Path, *arguments: str | Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [FEDTHORAX, *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str, *, seconds: float) -> str:
        """Wait until a line matches; fails with the output when the command ends or time is over."""
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
        """kill -9, this command and all that it started."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def interrupt(self) -> None:
        """Ctrl-C; it must end by itself then."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=180)
            except subprocess.TimeoutExpired:
                self.kill()
                raise


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `fedthorax ...` to its end."""
    return subprocess.run([FEDTHORAX, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


def ok(*arguments: str | Path) -> str:
    """What `fedthorax ...` prints when all goes well."""
    done = run_command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def enter(site: Path, server: Path, name: str) -> None:
    """Let a site join the study of the running server, as hospital IT and the study's office do it."""
    code = json.loads(ok("server", "enrol", server, name, "--json"))["code"]
    ok("node", "join", site, code)
    try:
        sandbox.available(Site.open(site))
    except Refusal:  # a machine without bubblewrap: the sandbox has tests of its own, which say that they are skipped
        with (site / "site.toml").open("a") as settings:
            settings.write('\n[sandbox]\nkind = "none"\naccepted_by = "a test with synthetic patients"\n')


def allow(site: Path, study: Path) -> None:
    """Let a study that is none of the release's run at a site."""
    ok("node", "approve-study", site, study, "--yes")


def for_few_patients(site: Path) -> None:
    """Let a site with a handful of patients take part: figures over two of them leave, and rounds of one step.

    Its key is set before it ingests, for the key decides who is a training patient: with a key drawn by chance, one
    site in six hundred has fewer than two. With these keys, each site of the tests has two patients in every split.
    """
    (site / "keys" / "pseudonym.key").write_bytes(hashlib.sha256(f"synthetic 50 {site.name}".encode()).digest())
    settings = site / "site.toml"
    text = settings.read_text().replace("[site]\n", "[site]\nmin_patients = 2\n", 1)
    settings.write_text(text.replace("[gateway]\n", "[gateway]\nmin_local_steps = 1\n", 1))


def ingest(site: Path) -> None:
    """Ingest a synthetic hospital; each split has patients enough for a study, whatever failed on this machine."""
    ok("node", "ingest", site)
    with sqlite3.connect(site / "cohort" / "cohort.sqlite") as cohort:
        splits = dict(cohort.execute("SELECT split, count(*) FROM patients GROUP BY split"))
    assert all(splits.get(split, 0) >= 2 for split in ("train", "validation", "test")), (site.name, splits)


@pytest.fixture(scope="session")
def two_sites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two ingested synthetic hospitals, north and south. Copy it before you change anything."""
    folder = tmp_path_factory.mktemp("two")
    ok("phantom", folder / "hospitals", "--sites", "2", "--patients", "10", "--no-defects")
    for name in ("north", "south"):
        site = folder / "sites" / name
        ok("node", "init", site, "--from", folder / "hospitals" / name)
        for_few_patients(site)
        ingest(site)
    return folder / "sites"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Start `fedthorax ...` in the background; every one of them is ended after the module."""
    folder = tmp_path_factory.mktemp("output")
    started: list[Command] = []

    def begin(*arguments: str | Path) -> Command:
        command = Command(folder / f"{len(started)}.log", *arguments)
        started.append(command)
        return command

    yield begin
    with contextlib.ExitStack() as ends:  # each of them, whatever happens to another
        for command in started:
            ends.callback(command.interrupt)
