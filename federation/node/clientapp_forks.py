"""Start each ClientApp as a fork of this process, which has already imported the common libraries.

    python -I -m federation.node.clientapp_forks COMMAND [ARGUMENT...]

COMMAND is Flower's SuperExec. It starts the program `flwr-clientapp` for each message, which would need four processor
seconds to import Flower, PyTorch and MONAI. Flower's own warm executors are for Kubernetes and do not run ClientApps.
Therefore SuperExec finds a replacement program of that name, which passes its arguments to this process and ends. A
fork then runs Flower's own `flwr-clientapp` with these arguments. As in Flower, each message gets a new process that
shares no state with earlier ones. It has the same rights in the same sandbox.

When COMMAND ends, this process ends with its exit code. SIGTERM ends both.
"""

import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path

from models.import_lean import import_lean
from pipeline.system.garbage import uncollected

PROGRAM = "flwr-clientapp"
NAME = "ClientApp"  # name of a fork in `ps`
_LOOK_SECONDS = 0.5
_PIPE_BYTES = 2**20  # default capacity of a pipe on Linux (pipe(7))


def imported() -> Callable[[], None]:
    """Import what every ClientApp needs; return Flower's program that runs one. No Python thread may remain."""
    from federation.flower.clientapp import run_clientapp

    import_lean("monai")
    import_lean("sklearn.metrics")
    import_module("federation.client.client_app")
    return run_clientapp


@cache
def ready_to_train() -> None:
    """Import what torch imports for the first optimiser of a process: its compiler, a second of processor time."""
    import torch

    with uncollected():  # as in `main`
        torch.optim.SGD([torch.zeros(1, requires_grad=True)])


def write_program(folder: Path) -> Path:
    """Write PROGRAM to `folder`; return the pipe to which it writes its arguments, one line for each run."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pipe, program = folder / "tasks", folder / PROGRAM
    for path in (pipe, program):
        path.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    program.write_text(f'#!/bin/sh\necho "$*" > {shlex.quote(str(pipe))}\n')
    program.chmod(0o700)
    return pipe


def serve(command: list[str], folder: Path) -> int | list[str]:
    """Run the command and fork for each task. Return its exit code or, in a fork, the arguments of its task.

    If the replacement program cannot be executed (file system mounted noexec), the command uses Flower's own program.
    """
    tasks = os.open(write_program(folder), os.O_RDWR)  # keep one writer open, so that the pipe never reaches its end
    way = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    superexec = _start(command, {**os.environ, "PATH": way})
    forks: set[int] = set()
    while superexec.poll() is None:
        if select.select([tasks], [], [], _LOOK_SECONDS)[0]:
            # A line is much shorter than PIPE_BUF and is therefore written atomically. One read empties the whole pipe.
            for line in os.read(tasks, _PIPE_BYTES).decode().splitlines():
                if not (fork := os.fork()):
                    os.close(tasks)
                    return line.split()
                forks.add(fork)
            # Only now: a run's first task, the handshake, trains nothing. A node without a run does not need it.
            ready_to_train()
        forks -= {fork for fork in forks if os.waitpid(fork, os.WNOHANG)[0]}
    return superexec.returncode


def _start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start the command, and pass SIGTERM on to it, also one that arrives during the start."""
    started: list[subprocess.Popen[bytes]] = []
    asked_to_end: list[int] = []

    def end(number: int, _: object) -> None:
        asked_to_end.append(number)
        for each in started:
            each.terminate()

    signal.signal(signal.SIGTERM, end)  # before the start: else this process alone would end, and the command go on
    started.append(subprocess.Popen(command, env=environment))
    if asked_to_end:
        started[0].terminate()
    return started[0]


def run(program: Callable[[], None], arguments: list[str]) -> None:
    """Run the program in a fork."""
    import numpy as np
    import torch

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.seed()  # otherwise all forks would draw the same numbers; Python's own generator reseeds itself
    np.random.seed()
    with suppress(OSError):  # not Linux
        Path("/proc/self/comm").write_text(NAME)
    sys.argv = [PROGRAM, *arguments]
    program()


def main(command: list[str]) -> int:
    with uncollected():  # otherwise each fork's garbage collection would touch, and so copy, all of this memory
        program = imported()
    match serve(command, Path(os.environ["FLWR_HOME"]) / "programs"):
        case int(code):
            return code if code >= 0 else 128 - code
        case arguments:
            run(program, arguments)
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
