"""One process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.refusal import Reason, Refusal


@contextmanager
def alone(path: Path, reason: Reason) -> Iterator[None]:
    """Hold the lock `path`, or raise Refusal with `reason` where another process holds it.

    The system lets go of it when this process ends, however it does.
    """
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refusal(reason) from None
        yield
