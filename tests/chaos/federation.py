"""A server and hospitals as real processes, each hospital with its own network link, for tests that inject faults.

Synthetic hospitals with fourteen patients each and the smallest network: a round takes seconds. The results say
nothing about the quality of a model.
"""

import contextlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.superlink.control import read_server_config
from federation.system.process import GUARD, free_port
from tests.chaos.network import Link
from tests.e2e.conftest import Command, allow, enter, for_few_patients, ingest, ok, run_command

Start = Callable[..., Command]
NAMES = ("north", "south", "west", "east", "coast")
STUDY = """
[study]
name = "chaos"
rounds = {rounds}
local_epochs = 1
sites = {sites}
quorum = {quorum}
wait_s = {wait_s}
round_timeout_s = {timeout_s}
synthetic = true

[network]
architecture = "resnet10"
widen_factor = 0.125

[strategy]
name = "{strategy}"
"""


@dataclass
class Federation:
    """A running server with enrolled hospitals. Each hospital connects through its own `links[name]`."""

    folder: Path
    names: Sequence[str]
    start: Start
    links: dict[str, Link]
    nodes: dict[str, Command] = field(default_factory=dict)
    studies: int = 0

    @property
    def server_folder(self) -> Path:
        return self.folder / "server"

    def site(self, name: str) -> Path:
        return self.folder / "sites" / name

    def start_server(self) -> None:
        self.server = self.start("server", "start", self.server_folder)
        self.server.wait_for("The server is up", seconds=120)

    def start_node(self, name: str) -> None:
        """Start a node. Retry while the server still counts the previous one as online."""
        for _ in range(4):
            node = self.nodes[name] = self.start("node", "start", self.site(name))
            with contextlib.suppress(AssertionError):
                node.wait_for("is online", seconds=120)
                return
            node.interrupt()
            time.sleep(20)
        raise AssertionError(f"{name} did not come online:\n{node.text()}")

    def restore(self) -> None:
        """Undo what the previous test may have left, so that one failure does not cause others."""
        for link in self.links.values():
            link.delay_s, link.jitter_s, link.bytes_per_s = 0.0, 0.0, math.inf
            link.mend()
        if self.server.process.poll() is not None:
            self.start_server()
        for name in self.names:
            if self.nodes[name].process.poll() is not None:
                self.start_node(name)
        self.wait_online()

    def end(self) -> None:
        """End all processes: the nodes first, while their links are up."""
        with ExitStack() as ends:
            ends.callback(self.server.interrupt)
            for node in self.nodes.values():
                ends.callback(node.interrupt)

    def online(self) -> set[str]:
        answer = run_command("server", "sites", self.server_folder, "--json")
        found = json.loads(answer.stdout) if answer.returncode == 0 else []
        return {site["site"] for site in found if site["online"]}

    def wait_online(self, *, seconds: float = 180) -> None:
        wait_until(lambda: self.online() >= set(self.names), f"all of {self.names} online", seconds=seconds)

    def run_study(
        self, *, rounds: int = 3, quorum: int = 2, wait_s: int = 120, timeout_s: int = 120, strategy: str = "FedAvg"
    ) -> Command:
        self.studies += 1
        path = self.folder / f"study-{self.studies}.toml"
        path.write_text(
            STUDY.format(
                rounds=rounds,
                sites=len(self.names),
                quorum=quorum,
                wait_s=wait_s,
                timeout_s=timeout_s,
                strategy=strategy,
            )
        )
        for name in self.names:
            allow(self.site(name), path)
        return self.start("study", "run", path, "--server", self.server_folder)

    def resume(self, run: Command) -> Command:
        return self.start("study", "resume", run_name(run), "--server", self.server_folder)

    def run_folder(self, run: Command) -> Path:
        return self.server_folder / "runs" / run_name(run)

    def rounds(self, run: Command) -> list[dict[str, Any]]:
        """Return the entries of history.json, one per round."""
        history = json.loads((self.run_folder(run) / "history.json").read_text())
        return [entry for entry in history if "round" in entry]


def run_name(run: Command) -> str:
    return run.wait_for(r"chaos-[0-9a-f]{8}", seconds=60)


def finished(run: Command, *, seconds: float = 600) -> str:
    """Wait until a run is complete. Return its output."""
    assert run.wait(seconds=seconds) == 0, run.text()
    return run.text()


def wait_until(is_so: Callable[[], Any], what: str, *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(1)


def member(command: Command, pattern: str) -> int | None:
    """Return the descendant process whose name and command line match, or None. Skips its reaper process."""
    for pid in command.family():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/comm").read_text() + Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            if re.search(pattern, line) and GUARD.name not in line:
                return pid
    return None


def kill_member(command: Command, pattern: str, *, seconds: float = 90) -> None:
    """kill -9 one descendant process of a command as soon as it exists."""
    wait_until(lambda: member(command, pattern), f"a process like {pattern}", seconds=seconds)
    pid = member(command, pattern)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def federation(folder: Path, start: Start, names: Sequence[str]) -> Iterator[Federation]:
    """Generate, ingest and enrol hospitals, and bring them online."""
    ok("phantom", folder / "hospitals", "--sites", str(len(names)), "--patients", "14", "--no-defects")
    made = sorted(path for path in (folder / "hospitals").iterdir() if path.is_dir())
    ok("server", "init", folder / "server", "--port", str(free_port()))
    with ExitStack() as lines:
        port = read_server_config(folder / "server").port
        links = {name: lines.enter_context(Link(port, seed=k)) for k, name in enumerate(names)}
        here = Federation(folder, names, start, links)
        here.start_server()
        for name, hospital in zip(names, made, strict=True):
            site = here.site(name)
            ok("node", "init", site, "--from", hospital)
            for_few_patients(site)
            ingest(site)
            enter(site, folder / "server", name)
            settings = (site / "site.toml").read_text()
            (site / "site.toml").write_text(settings.replace(f"localhost:{port}", f"localhost:{links[name].port}"))
            here.start_node(name)
        try:
            yield here
        finally:
            here.end()
