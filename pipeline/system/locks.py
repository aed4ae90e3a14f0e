"""Locks a resource for one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.refusal import Reason, Refusal


@contextmanager
def alone(path: Path, reason: Reason) -> Iterator[None]:
    """Hold the lock `path`, or raise Refusal with `reason` if another process holds it.

    The system releases the lock when this process ends, also after a crash.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(reason) from None
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the lock `path`; wait while another process or thread holds it. For steps of some milliseconds."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock `path`; a file that does not exist is held by nobody."""
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
