"""Simulated runs continue after their terminal closes, and can be followed, stopped and resumed."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest

from federation.runs.listing import summaries
from tests.e2e.conftest import FEDTHORAX, Command, ok, run_command
from tests.e2e.test_federation import STUDY

pytestmark = pytest.mark.e2e


class Terminal:
    """A pseudo-terminal with a command in the foreground, as in a terminal window."""

    def __init__(self, *arguments: str | Path) -> None:
        self.master, inside = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", FEDTHORAX, *map(str, arguments)],
            **dict.fromkeys(("stdin", "stdout", "stderr"), inside),
            env={**os.environ, "TERM": "xterm", "COLUMNS": "140"},
        )
        os.close(inside)
        self.text, self._is_open = "", True
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        """Read the output continuously, as a terminal window does: otherwise the command would block on output."""
        while self._is_open:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the command has ended
                    return

    def wait_for(self, pattern: str, *, seconds: float) -> str:
        deadline = time.monotonic() + seconds
        while True:
            is_alive = self._reader.is_alive()
            if found := re.search(pattern, self.text):
                return found[0]
            assert is_alive and time.monotonic() < deadline, f"no {pattern!r}:\n{self.text}"
            time.sleep(0.2)

    def press_ctrl_c(self) -> None:
        os.write(self.master, b"\x03")

    def close(self) -> None:
        """Close the terminal: the kernel sends a hangup (SIGHUP) to the command."""
        if self._is_open:
            self._is_open = False
            self._reader.join()
            os.close(self.master)

    def end(self) -> None:
        self.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(*arguments: str | Path) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_one
    for each in opened:
        each.end()


def listed(server: Path) -> dict[str, str]:
    """Return the state of each run by name, in start order."""
    return {run["run"]: run["state"] for run in summaries(server)}


def second_run(server: Path, *, seconds: float) -> str:
    """Wait until the second run has started and return its name."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        runs = listed(server)
        if len(runs) == 2 and list(runs.values())[1] in ("waiting", "running"):
            return list(runs)[1]
        time.sleep(1)
    raise AssertionError(f"no second run: {runs}")


def test_runs_continue_after_their_terminal_is_closed(
    two_sites: Path, tmp_path: Path, terminal: Callable[..., Terminal], start: Callable[..., Command]
) -> None:
    server, study = tmp_path / "server", tmp_path / "study.toml"
    sites = [option for name in ("north", "south") for option in ("--simulate", two_sites / name)]
    text = STUDY.replace("sites = 3", "sites = 2").replace("rounds = 4", "rounds = 2\nseeds = [1, 2]")
    study.write_text(text + "\n[evaluation]\nshortcut_audit = false\n")  # not needed by this test
    window = terminal("study", "run", study, "--server", server, "--group", "seeds", *sites)
    first = window.wait_for(r"end-to-end-[0-9a-f]{8}", seconds=300)
    window.wait_for("waiting for the first round to end", seconds=300)
    watched = start("study", "follow", first, "--server", server)
    watched.wait_for("round 1 of 2 · 2 of 2 sites", seconds=300)
    window.close()
    watched.wait_for("round 2 of 2", seconds=300)
    assert watched.wait(seconds=300) == 0, watched.text()
    assert f"Run {first} is complete" in watched.text()
    assert window.process.poll() is None, "the command continues with the second seed"

    second = second_run(server, seconds=300)
    ok("study", "stop", second, "--server", server)
    assert window.process.wait(timeout=120) == 1, "a stopped run is not complete"
    told = json.loads(ok("study", "list", "--server", server, "--json"))
    assert [(run["run"], run["state"]) for run in told] == [(first, "completed"), (second, "stopped")]
    over = run_command("study", "follow", second, "--server", server, "--json")
    assert over.returncode == 1
    assert "was stopped" in json.loads(over.stdout)["refused"]["says"]
    assert_nested(server, first)

    again = terminal("study", "resume", second, "--server", server, *sites)
    again.wait_for(r"waiting for the first round|round \d of 2", seconds=300)
    again.press_ctrl_c()
    again.wait_for(rf"study resume {second} --server \S+ with the same --simulate goes on with it", seconds=300)
    assert again.process.wait(timeout=120) != 0
    assert listed(server)[second] == "stopped"


def assert_nested(server: Path, run: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{server / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("end-to-end").experiment_id])
    by_name = {each.info.run_name: each for each in runs}
    assert by_name[run].data.tags["mlflow.parentRunId"] == by_name["seeds"].info.run_id
    assert by_name[run].data.params["study.seed"] == "1"
    assert by_name[run].info.status == "FINISHED"
