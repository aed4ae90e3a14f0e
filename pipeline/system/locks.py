"""Locks a resource for one process at a time."""

import fcntl
import os
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


@contextmanager
def folder_in_turn(folder: Path) -> Iterator[bool]:
    """Hold a folder itself, without a file in it; wait while another process or thread holds it.

    Yield whether it is held: some file systems, as of network drives, cannot lock a folder. Raises OSError if it cannot
    be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            is_mine = False
        else:
            is_mine = True
        yield is_mine
    finally:
        os.close(handle)


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
