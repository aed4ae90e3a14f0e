"""Run one command, and end it with all its descendants when the parent process ends.

    python -I reaper.py GRACE_SECONDS COMMAND [ARGUMENT...]

Standard input is a pipe whose other end only the parent holds. When the parent ends for any reason (return, Ctrl-C,
kill -9), the kernel closes the pipe. This program then asks all its descendants to end, and kills them after the grace
period. Flower starts some children in their own sessions, so no process group contains all of them. On Linux this
program instead adopts every orphaned descendant (PR_SET_CHILD_SUBREAPER), so that none is missed. On other systems it
ends the command itself, and Flower's children end when they notice that their parent is gone.

It imports only the standard library, because it runs beside every process that we start.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

LINUX = sys.platform == "linux"
# From <linux/prctl.h>.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
POLL_SECONDS = 0.2
# After SIGKILL only the kernel can delay the end of a process, and not for long.
KILL_SECONDS = 5.0


class Family:
    """One command and all its descendants."""

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
        """Collect ended processes: Flower's check of parent processes would count a zombie as alive."""
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
        """Return the processes that have not ended, the command itself first."""
        self.reap()
        if LINUX:
            return descendants(os.getpid(), read_parents())
        return [self.head.pid] if self.exit_code is None else []

    def end(self, grace_seconds: float) -> None:
        """Ask the command to end, then any remaining descendants; kill what is left after the grace period."""
        deadline = time.monotonic() + grace_seconds
        asked: set[int] = set()
        while (members := self.alive()) and time.monotonic() < deadline:
            # While the command runs, it ends its own children in its own order.
            targets = {self.head.pid} if self.exit_code is None else set(members)
            send(signal.SIGTERM, targets - asked)
            asked |= targets
            time.sleep(POLL_SECONDS / 4)
        if members:
            with suppress(OSError):  # a full disk
                sys.stderr.write(f"not ended {grace_seconds:g} s after SIGTERM, killed: processes {members}\n")
                sys.stderr.flush()
        deadline = time.monotonic() + KILL_SECONDS
        while (members := self.alive()) and time.monotonic() < deadline:
            send(signal.SIGKILL, set(members))
            time.sleep(POLL_SECONDS / 4)


def descendants(root: int, parents: Mapping[int, int]) -> list[int]:
    """Return all processes below `root`, parents before children; `parents` maps each process to its parent."""
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]


def read_parents() -> dict[int, int]:
    """Return the parent of every process on this machine (Linux)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state parent ...": the name may hold spaces and brackets.
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue  # it ended in the meantime
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
