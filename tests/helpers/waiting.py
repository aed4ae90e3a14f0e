"""Wait for what another thread or process does. A busy machine may stand still for many seconds."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], *, seconds: float = 60.0) -> Found:
    """Call `look` until it returns something true, or the time is over; return its last result."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found
