"""Begins each ClientApp as a fork of this process, which has imported already what all of them import.

    python -I -m federation.node.clientapp_forks COMMAND [ARGUMENT...]

COMMAND is Flower's SuperExec. For each message it starts the program `flwr-clientapp` anew, which would spend four
processor seconds on importing Flower, PyTorch and MONAI; Flower's own warm executors are for Kubernetes, and not for
ClientApps. So SuperExec finds another program by that name, which hands its arguments over to this process and ends.
The fork runs Flower's own `flwr-clientapp` with them: a new process for each message, as ever, that knows nothing of
the ones before, with the same rights behind the same walls.

When COMMAND ends, this ends with its exit code; SIGTERM ends both.
"""

import gc
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from models.import_lean import import_lean

PROGRAM = "flwr-clientapp"
NAME = "ClientApp"  # of a fork, as `ps` shows it
_LOOK_SECONDS = 0.5
_PIPE_BYTES = 2**20  # the most that Linux lets a pipe hold (pipe(7))


def imported() -> Callable[[], None]:
    """What every ClientApp needs, imported; Flower's program that runs one. No thread of Python's may be left by it."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

    import_lean("monai")
    import_lean("sklearn.metrics")
    import_module("federation.client.client_app")
    return flwr_clientapp


def write_program(folder: Path) -> Path:
    """Put PROGRAM into `folder`; the pipe into which it writes its arguments, a line each time it is run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pipe, program = folder / "tasks", folder / PROGRAM
    for path in (pipe, program):
        path.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    program.write_text(f'#!/bin/sh\necho "$*" > {shlex.quote(str(pipe))}\n')
    program.chmod(0o700)
    return pipe


def serve(command: list[str], folder: Path) -> int | list[str]:
    """Run the command, forking for each task; its exit code, or in a fork the arguments of its task.

    Where the program may not be executed, on a file system of data alone, the command finds Flower's own.
    """
    tasks = os.open(write_program(folder), os.O_RDWR)  # a writer of our own, so that the pipe never comes to an end
    way = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    superexec = subprocess.Popen(command, env={**os.environ, "PATH": way})
    signal.signal(signal.SIGTERM, lambda *_: superexec.terminate())
    forks: set[int] = set()
    while superexec.poll() is None:
        if select.select([tasks], [], [], _LOOK_SECONDS)[0]:
            # A line is written at once, being far shorter than PIPE_BUF, and all that a pipe holds is read at once.
            for line in os.read(tasks, _PIPE_BYTES).decode().splitlines():
                if not (fork := os.fork()):
                    os.close(tasks)
                    return line.split()
                forks.add(fork)
        forks -= {fork for fork in forks if os.waitpid(fork, os.WNOHANG)[0]}
    return superexec.returncode


def run(program: Callable[[], None], arguments: list[str]) -> None:
    """Be the program, in a fork."""
    import numpy as np
    import torch

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.seed()  # or all forks would draw the same; Python's own generator sees to it itself
    np.random.seed()
    with suppress(OSError):  # not Linux
        Path("/proc/self/comm").write_text(NAME)
    sys.argv = [PROGRAM, *arguments]
    program()


def main(command: list[str]) -> int:
    program = imported()
    gc.freeze()  # or each fork would look through all of it for garbage, and copy it by that
    match serve(command, Path(os.environ["FLWR_HOME"]) / "programs"):
        case int(code):
            return code if code >= 0 else 128 - code
        case arguments:
            run(program, arguments)
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
