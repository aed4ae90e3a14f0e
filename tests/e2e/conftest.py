"""Real processes for end-to-end tests: the command line, a server, nodes; all ended by their ids."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.guard import descendants, read_parents

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
        """Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=60)


def run_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `fedthorax ...` to its end."""
    return subprocess.run([FEDTHORAX, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)


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
    for command in reversed(started):
        command.interrupt()
