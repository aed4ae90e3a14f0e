"""Kill a process with SIGKILL at every moment at which it changes a file or a database, or uses a connection.

    python -m tests.helpers.killed MODULE:FUNCTION FILE WORK

For each moment, the folder of FILE is copied to WORK/0, WORK/1, ... and a process calls the function with the file
there. It kills itself before its first, second, ... statement, flush, rename, or call of a socket. The last folder is
that of a process that came to its end. Prints how many folders there are.
"""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

MOST = 200


def killed_copies(function: str, file: Path, work: Path) -> list[Path]:
    """Return FILE in each folder. `function`: "module:function", called with a path."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.helpers.killed", function, str(file), str(work)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    return [work / str(number) / file.name for number in range(int(done.stdout))]


def _kill_before(moment: int) -> None:
    """Make this process kill itself before the call with this number: of a file, a database or a socket."""
    left = moment

    def step(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            step()
            return function(*args, **kwargs)

        return call

    def connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        database = of_sqlite(*args, **kwargs)
        database.set_trace_callback(step)
        return database

    of_sqlite = sqlite3.connect
    setattr(sqlite3, "connect", connect)  # noqa: B010 - types
    for name in ("fsync", "replace", "rename", "unlink"):
        setattr(os, name, watched(getattr(os, name)))
    for name in ("connect", "sendall", "recv", "recv_into", "close"):
        setattr(socket.socket, name, watched(getattr(socket.socket, name)))


def main(function: str, file: Path, work: Path) -> int:
    module, _, name = function.partition(":")
    called = getattr(import_module(module), name)
    for moment in range(MOST):
        shutil.copytree(file.parent, work / str(moment))
        if not (child := os.fork()):
            _kill_before(moment)
            called(work / str(moment) / file.name)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return moment + 1
        assert status == -signal.SIGKILL, status
    raise AssertionError("it does not end")


if __name__ == "__main__":
    sys.stdout.write(str(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
