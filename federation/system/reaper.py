"""Runs one command and takes its whole family of processes down when the parent lets go.

    python -I guard.py GRACE_SECONDS COMMAND [ARGUMENT...]

Our standard input is the lifeline: a pipe whose other end only the parent holds. However the parent ends
(return, Ctrl-C, kill -9), the kernel closes the pipe, and everything below us is first asked to end and,
after the grace, killed. Flower starts some children in sessions of their own, so no process group holds them
all; on Linux we adopt every orphan below us instead (PR_SET_CHILD_SUBREAPER), so that none gets away.
Elsewhere we end the command itself, and Flower's children end when they miss their parent.

Only the standard library is imported: this file runs as a program beside every process that we start.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

LINUX = sys.platform == "linux"
# From <linux/prctl.h>.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_SECONDS = 0.2
# After SIGKILL only the kernel can hold a process back, and not for long.
KILL_SECONDS = 5.0


class Family:
    """One command and all processes that descend from it."""

    def __init__(self, command: list[str]) -> None:
        libc = ctypes.CDLL(None) if LINUX else None
        if libc:
            libc.prctl(PR_SET_CHILD_SUBREAPER, 1)

        def die_with_guard() -> None:
            if libc:
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        # preexec_fn is safe here: this program has one thread.
        self.head = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_guard)  # noqa: PLW1509
        self.exit_code: int | None = None

    def reap(self) -> None:
        """Collect whoever has ended: a zombie would still count as alive for Flower's watch over parents."""
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.head.pid:
                    self.exit_code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            return

    def alive(self) -> list[int]:
        """The members that have not ended, the command itself first."""
        self.reap()
        if LINUX:
            return descendants(os.getpid(), read_parents())
        return [self.head.pid] if self.exit_code is None else []

    def end(self, grace_seconds: float) -> None:
        """Ask the command to end, then those it leaves behind; kill whoever is left after the grace."""
        deadline = time.monotonic() + grace_seconds
        asked: set[int] = set()
        while (members := self.alive()) and time.monotonic() < deadline:
            # While the command lives, it ends its own children in its own order.
            targets = {self.head.pid} if self.exit_code is None else set(members)
            send(signal.SIGTERM, targets - asked)
            asked |= targets
            time.sleep(POLL_SECONDS / 4)
        deadline = time.monotonic() + KILL_SECONDS
        while (members := self.alive()) and time.monotonic() < deadline:
            send(signal.SIGKILL, set(members))
            time.sleep(POLL_SECONDS / 4)


def descendants(root: int, parents: Mapping[int, int]) -> list[int]:
    """All processes below `root`, parents before their children, from a map of each process to its parent."""
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def read_parents() -> dict[int, int]:
    """The parent of every process on this machine (Linux)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent ...": the name may hold spaces and brackets.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it ended while we looked
    return parents


def send(signal_number: int, pids: set[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal_number)
        except ProcessLookupError:
            continue


def main(grace_seconds: float, command: list[str]) -> int:
    let_go = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal let_go
        let_go = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    try:
        family = Family(command)
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error}\n")
        return 127
    while family.exit_code is None and not let_go:
        if select.select([sys.stdin.buffer], [], [], POLL_SECONDS)[0]:
            let_go = True
        family.reap()
    family.end(grace_seconds)
    code = family.exit_code or 0
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
