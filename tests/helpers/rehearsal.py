"""A server and nodes as real processes, each of version N or N-1.

Version N is the source of the tests, which takes itself for the next series. Version N-1 is a revision of this
repository's history, unpacked as it was: the last tag, or before the first tag the revision below. Nothing of it is
changed, so the tests show that this source still understands what was written and sent then.
"""

import json
import re
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from federation.protocol.versions import series
from federation.runs.listing import last_versions
from federation.strategy.checkpoint import State, load_latest
from federation.system.process import free_port
from tests.e2e.conftest import Command, end_all, for_few_patients, wait_online
from tests.helpers.other_version import ROOT, has_revision, last_tag, make_environment, of_revision

# Before the first tag. Its nodes do not tell the server their version when they connect, and its folders are not
# stamped.
BEFORE = "4d06caa078a1787ae22d15b405cb0328f1e95d53"
NAMES = ("north", "south", "west")
# Both versions have preprocessing method 1: their lung segmenters differ.
STUDY = """
[study]
name = "upgrade"
rounds = {rounds}
local_epochs = 1
sites = {sites}
quorum = {sites}
wait_s = 300
round_timeout_s = 300
synthetic = true

[network]
architecture = "resnet10"
widen_factor = 0.125

[preprocessing]
method = 1

[strategy]
name = "FedAvg"
"""


@dataclass(frozen=True)
class Version:
    """A version in an environment of its own."""

    number: str
    python: Path

    def command(self, *arguments: str | Path) -> list[str]:
        return [str(self.python.parent / "fedthorax"), *map(str, arguments)]

    def ok(self, *arguments: str | Path) -> str:
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass
class Rehearsal:
    """A server of version N, and nodes that can be of either version."""

    folder: Path
    older: Version
    newer: Version
    names: Sequence[str]
    nodes: dict[str, Command] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)

    @property
    def server(self) -> Path:
        return self.folder / "server"

    def site(self, name: str) -> Path:
        return self.folder / "sites" / name

    def start(self, version: Version, *arguments: str | Path) -> Command:
        command = Command(self.folder / f"{len(self.commands)}.log", *arguments, program=version.command()[0])
        self.commands.append(command)
        return command

    def start_node(self, name: str, version: Version) -> None:
        """Start a node, or replace it by one of another version, as the documentation says."""
        if name in self.nodes:
            self.nodes[name].interrupt()
        self.nodes[name] = self.start(version, "node", "start", self.site(name))
        wait_online([self.nodes[name]])

    def study(self, rounds: int) -> Path:
        """Write a study file."""
        file = self.folder / f"study-{len(self.commands)}.toml"
        file.write_text(STUDY.format(rounds=rounds, sites=len(self.names)))
        return file

    def run(self, rounds: int, swaps: dict[int, dict[str, Version]]) -> tuple[State, list[dict[str, str]]]:
        """Run a study; after the rounds named in `swaps`, stop it, exchange nodes and resume it.

        Returns the last checkpoint, and the versions that took part each time, by site.
        """
        study = self.study(rounds)
        for name in self.names:
            self.older.ok("node", "approve-study", self.site(name), study, "--yes")
        command, told = self.start(self.newer, "study", "run", study, "--server", self.server), []
        run = command.wait_for(r"upgrade-[0-9a-f]{8}", seconds=300)
        for number, versions in sorted(swaps.items()):
            command.wait_for(rf"round {number} of {rounds}", seconds=600)
            command.process.send_signal(signal.SIGINT)
            command.wait(seconds=600)
            told.append(last_versions(self.server))
            for name, version in versions.items():
                self.start_node(name, version)
            command = self.start(self.newer, "study", "resume", run, "--server", self.server)
        assert command.wait(seconds=1800) == 0, command.text()
        told.append(last_versions(self.server))
        history = json.loads((self.server / "runs" / run / "history.json").read_text())
        rounds_of = [entry for entry in history if "round" in entry and "sites" in entry]
        assert [entry["sites"] for entry in rounds_of] == [list(self.names)] * rounds
        return load_latest(self.server / "runs" / run / "checkpoints").state, told


def leave_out_new_studies(settings: Path, source: Path) -> None:
    """Leave out of a site.toml the studies that an earlier version does not have: it refuses names unknown to it."""
    known = {path.stem for path in (source / "configs").rglob("*.toml")}
    text = settings.read_text()
    names = tomllib.loads(text)["gateway"]["studies"]
    kept = ", ".join(f'"{name}"' for name in names if name in known)
    settings.write_text(re.sub(r"(?m)^studies = \[[^]]*\]", f"studies = [{kept}]", text))


@contextmanager
def rehearsal_in(
    folder: Path, hospitals: Path, *, names: Sequence[str] = NAMES, upgraded: Sequence[str] = ()
) -> Iterator[Rehearsal]:
    """Run a server of version N and a node of version N-1 for each name, from the tests' source and from history.

    `hospitals`: holds the files of a synthetic hospital for each of `names`. `upgraded`: the names of nodes that
    version N starts with the site's folder that version N-1 made.
    """
    before = last_tag() or BEFORE
    if not has_revision(before):
        pytest.skip("this is no full clone: the earlier version is not here")
    source = of_revision(before, folder / "before")
    number = tomllib.loads((source / "pyproject.toml").read_text())["project"]["version"]
    of = series(number)
    next_series = f"{of.major}.{of.minor + 1}.0"
    older = Version(number, make_environment(folder / f"fedthorax-{number}", source, number))
    newer = Version(next_series, make_environment(folder / f"fedthorax-{next_series}", ROOT, next_series))
    here = Rehearsal(folder, older, newer, names)
    with ExitStack() as ends:
        # Each version imports its own source, whatever this process was told to import.
        ends.enter_context(pytest.MonkeyPatch.context()).delenv("PYTHONPATH", raising=False)
        ends.callback(end_all, here.commands)
        here.older.ok("server", "init", here.server, "--port", str(free_port()))
        server = here.start(newer, "server", "start", here.server)
        for name in names:
            site = here.site(name)
            hospital = shutil.copytree(hospitals / name, folder / "hospitals-before" / name)
            leave_out_new_studies(hospital / "site.toml", source)
            older.ok("node", "init", site, "--from", hospital)
            for_few_patients(site)
            older.ok("node", "ingest", site, "--study", here.study(rounds=1))
            server.wait_for("The server is up", seconds=300)
            code = json.loads(newer.ok("server", "enrol", here.server, name, "--json"))["code"]
            older.ok("node", "join", site, code, "--as", name)
            with (site / "site.toml").open("a") as settings:  # the sandbox does not show two sources to a node
                settings.write('\n[sandbox]\nkind = "none"\naccepted_by = "a test with synthetic patients"\n')
                # On a CPU with AMX, a node of the earlier version fails in bfloat16, which "auto" means there.
                settings.write('\n[compute]\nprecision = "fp32"\n')
            here.nodes[name] = here.start(newer if name in upgraded else older, "node", "start", site)
        wait_online(here.nodes.values())
        yield here


def assert_same_model(one: State, other: State) -> None:
    assert one.round == other.round
    for group in ("arrays", "buffers"):
        mine, theirs = getattr(one, group), getattr(other, group)
        assert mine.keys() == theirs.keys() and mine
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name], strict=True)
