"""Child processes, each with a log, a check for readiness, and a guaranteed end.

Between this process and each child runs a small guard (reaper.py) that holds a pipe to this process. When this Python
process ends for any reason, the child and all its descendants end too.
"""

import errno
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from federation.system import reasons
from federation.system.reaper import KILL_SECONDS, descendants, read_parents, send
from models.refusal import Refusal

LOOPBACK = "127.0.0.1"
GUARD = Path(__file__).with_name("reaper.py")
# Flower allows itself 5 s to end (FORCE_EXIT_TIMEOUT_SECONDS), and its children a little more.
GRACE_SECONDS = 10.0
# The guard asks, waits and kills. The rest is for a busy machine.
STOP_SECONDS = GRACE_SECONDS + KILL_SECONDS + 5.0
POLL_SECONDS = 0.2
PORTS = range(10_240, 30_000)
_given: set[int] = set()  # ports of `free_port`: a second caller may ask before the first one listens

T = TypeVar("T")

_log = logging.getLogger("fedthorax")

# For all our processes: no library sends telemetry, and MLflow loads no pickles. NumPy and SciPy multiply only small
# matrices; by default each starts a thread of OpenBLAS for every core, which waits busily while other code needs it.
QUIET = {
    "OPENBLAS_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


class Process:
    """A command that runs until `stop`, until it ends itself, or until this process ends.

    Use it as a context manager. The command's output is appended to `log`, which only its owner may read, because a
    site's log may contain data that must not leave the site.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch(mode=0o600)
        self._log_start = log.stat().st_size
        self._stop_by: float | None = None
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), str(GRACE_SECONDS), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # Only this process receives a terminal's Ctrl-C, and then ends its children in the right order.
                start_new_session=True,
                # The files that it writes (database, caches, apps) are also accessible only to their owner.
                umask=0o077,
            )

    @property
    def pid(self) -> int:
        """The process that started the command; it ends with all its descendants when this one ends."""
        return self._guard.pid

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    def output(self) -> str:
        """Return what the command has printed since this start, or since its log was cut."""
        with self.log.open("rb") as log:
            is_cut = os.fstat(log.fileno()).st_size < self._log_start
            log.seek(0 if is_cut else self._log_start)
            return log.read().decode(errors="replace")

    def wait_until(self, ready: Callable[[], T | None], *, seconds: float) -> T:
        """Call `ready` repeatedly for up to `seconds`, and return its first true answer.

        The command is stopped before any exception leaves, also that of a signal: who waits does not hold it yet.
        Raises Refusal E_NOT_STARTED if the command ends first or the time is over.
        """
        deadline = time.monotonic() + seconds
        try:
            while True:
                running = self.running
                if answer := ready():
                    return answer
                if not running or time.monotonic() > deadline:
                    raise Refusal(
                        reasons.NOT_STARTED,
                        private=f"{self.log}:\n" + "\n".join(self.output().splitlines()[-10:]),
                        process=self.name,
                        log=self.log.name,
                    )
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Wait until the command ends by itself, and return its exit code."""
        return self._guard.wait()

    def let_go(self) -> None:
        """Ask the command and its descendants to end, without waiting, so that several can end at the same time."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + STOP_SECONDS
            if self._guard.stdin:
                self._guard.stdin.close()
            self._guard.terminate()  # a fork of this process may still hold the pipe open

    def stop(self) -> None:
        """End the command and its descendants: ask first, kill after a grace period. Returns when all have ended.

        It takes at most STOP_SECONDS from `let_go` on, and KILL_SECONDS if the guard itself has to be killed.
        """
        self.let_go()
        assert self._stop_by is not None
        try:
            self._guard.wait(max(0.0, self._stop_by - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill()

    def _kill(self) -> None:
        """Kill the guard, and before it all its descendants, which nothing would find without it."""
        members = [*descendants(self.pid, read_parents()), self.pid]
        _log.warning("%s has not ended within %.0f s; killed: processes %s", self.name, STOP_SECONDS, members)
        for pid in members:
            send(signal.SIGKILL, {pid})
        with suppress(subprocess.TimeoutExpired):
            self._guard.wait(KILL_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def flower_command(name: str) -> str:
    """Return the path of one of Flower's programs in the current Python environment."""
    return str(Path(sys.executable).parent / name)


def flower_environment(flower_home: Path, **ours: str) -> dict[str, str]:
    """Return the environment of every Flower process that we start.

    No telemetry is sent, Flower's files stay below `flower_home`, Flower finds its own programs by name, and the
    machine's proxy is not used for the machine itself.
    """
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "no_proxy": without_proxy(),
        "FLWR_HOME": str(flower_home),
        **QUIET,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Otherwise Ray hides every GPU from a worker that did not request one.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONUNBUFFERED": "1",
        # Seconds between two checks for a task. Flower's 1 s delays each round noticeably; 0.2 s causes too much load.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        **ours,
    }


def without_proxy() -> str:
    """Return the hosts to reach without a proxy: those that the machine already names, and the machine itself."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return ",".join(dict.fromkeys([*filter(None, named.split(",")), "localhost", LOOPBACK]))


def free_port() -> int:
    """Return a loopback port on which nobody listens at the moment, at random and only once in this process.

    It is below the ephemeral ports of Linux (32768 to 60999). The kernel gives one of those to each outgoing connection
    and to each program that binds port 0, possibly before the caller of this function listens. It is also below the
    node ports of Kubernetes (30000 to 32767).
    Raises OSError if this machine does not let it bind.
    """
    while True:
        port = secrets.choice(PORTS)  # no seed: processes that start together draw different ports
        with socket.socket() as listener:
            try:
                listener.bind((LOOPBACK, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        if port not in _given:
            _given.add(port)
            return port


def port_is_taken(host: str, port: int) -> bool:
    """Tell whether another process already listens there."""
    with socket.socket() as listener:
        # As servers do: a port that was just released counts as free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
