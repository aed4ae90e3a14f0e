"""The processes that we start: each with its log, a way to know when it is ready, and a certain end.

Between us and each process stands a small guard (guard.py) that holds a lifeline to us: when this Python
ends, however it ends, the process and all its descendants end too.
"""

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from federation.system import reasons
from models.refusal import Refusal

LOOPBACK = "127.0.0.1"
GUARD = Path(__file__).with_name("reaper.py")
# Flower gives itself 5 s for a graceful exit (FORCE_EXIT_TIMEOUT_SECONDS); its children a little more.
GRACE_SECONDS = 10.0
POLL_SECONDS = 0.2

T = TypeVar("T")


# For every process of ours: no library calls home, and MLflow unpickles nothing.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


class Process:
    """A command that runs from now on until `stop`, its own end, or ours.

    Use as a context manager. Everything the command prints goes to the end of `log`, which only its owner may
    read: a site's log may name what must not leave the site.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch(mode=0o600)
        self._log_start = log.stat().st_size
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), str(GRACE_SECONDS), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                # A terminal's Ctrl-C reaches us alone; the order in which things end is ours.
                start_new_session=True,
                # What it writes (database, caches, apps) is its owner's alone too.
                umask=0o077,
            )

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    def output(self) -> str:
        """What the command has printed since this start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def wait_until(self, ready: Callable[[], T | None], *, seconds: float) -> T:
        """The first true answer of `ready`, asked again and again for up to `seconds`.

        Raises Refusal E_NOT_STARTED if the command ends before or the time is over; it is stopped then.
        """
        deadline = time.monotonic() + seconds
        while True:
            running = self.running
            if answer := ready():
                return answer
            if not running or time.monotonic() > deadline:
                self.stop()
                raise Refusal(
                    reasons.NOT_STARTED,
                    private=f"{self.log}:\n" + "\n".join(self.output().splitlines()[-10:]),
                    process=self.name,
                    log=self.log.name,
                )
            time.sleep(POLL_SECONDS)

    def wait(self) -> int:
        """Wait for the command to end by itself; its exit code."""
        return self._guard.wait()

    def let_go(self) -> None:
        """Ask the whole family to end, without waiting for it: several can end side by side."""
        if self._guard.stdin and not self._guard.stdin.closed:
            self._guard.stdin.close()

    def stop(self) -> None:
        """End the whole family: asked first, killed after a grace. Returns when nothing is left."""
        self.let_go()
        self._guard.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def flower_command(name: str) -> str:
    """The path of one of Flower's programs, from the Python environment that we run in."""
    return str(Path(sys.executable).parent / name)


def flower_environment(flower_home: Path, **ours: str) -> dict[str, str]:
    """The environment of every Flower process that we start.

    Nothing calls home, Flower's files stay below `flower_home`, Flower finds its own programs by name, and a
    proxy that the machine uses for the outside is not asked for this machine itself.
    """
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "no_proxy": without_proxy(),
        "FLWR_HOME": str(flower_home),
        **QUIET,
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would hide every GPU from a worker that has not asked for one.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONUNBUFFERED": "1",
        # Seconds between two looks for a task: Flower's 1 s is felt in each round, 0.2 s as load.
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
        **ours,
    }


def without_proxy() -> str:
    """The hosts for which no proxy is asked: those that the machine names already, and the machine itself."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return ",".join(dict.fromkeys([*filter(None, named.split(",")), "localhost", LOOPBACK]))


def free_port() -> int:
    """A port of loopback that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def port_is_taken(host: str, port: int) -> bool:
    """Whether another process already listens there."""
    with socket.socket() as listener:
        # As servers do: a port that was only just given up is free.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False
