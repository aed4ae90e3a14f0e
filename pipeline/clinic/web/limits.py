"""Limits of the request rate, and of the scans that are uploaded at the same time.

Why not `limits` 5.8: its memory storage has no upper bound on keys, so a flood of new addresses (a client with IPv6 has
2^64) fills the memory. Measured with 100,000 addresses: 31 MiB and growing with each more; at most 2 MiB here. It has
no token bucket, counts with the system's clock, which can be set back, and starts a thread to remove old keys.
"""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.concurrency import run_in_threadpool

from models.refusal import Refusal
from pipeline.clinic.reasons import QUEUE_FULL


class Buckets:
    """A token bucket for each key: `burst` requests at once, then `per_minute` requests.

    `clock`: seconds since any fixed moment. `most_keys`: remembered addresses and tokens; full buckets are dropped
    first.
    """

    def __init__(
        self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic, *, most_keys: int = 10_000
    ) -> None:
        self._per_second, self._burst, self._clock, self._most_keys = per_minute / 60, burst, clock, most_keys
        self._levels: dict[str, tuple[float, float]] = {}  # by key: level, and its time

    def wait_seconds(self, key: str) -> int:
        """Return the seconds until the next request is allowed, rounded up; 0: now. Takes no token."""
        return math.ceil(max(0.0, 1 - self._level(key)) / self._per_second)

    def take(self, key: str) -> int:
        """Take one token and return 0; if none is left, return the seconds to wait."""
        if wait := self.wait_seconds(key):
            return wait
        if len(self._levels) >= self._most_keys:
            self._levels = {each: kept for each, kept in self._levels.items() if self._level(each) < self._burst}
            if len(self._levels) >= self._most_keys:
                self._levels.clear()  # thousands of addresses at once: current limits are dropped
        self._levels[key] = (self._level(key) - 1, self._clock())
        return 0

    def _level(self, key: str) -> float:
        now = self._clock()
        left, at = self._levels.get(key, (self._burst, now))
        return min(self._burst, left + (now - at) * self._per_second)


class Room:
    """Limits the sum of waiting scans and running uploads to `most`.

    For a single event loop. `waiting`: returns the number of waiting scans.
    """

    def __init__(self, most: int, waiting: Callable[[], int]) -> None:
        self._most, self._waiting, self._coming = most, waiting, 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Reserve a place during an upload. Raises Refusal E_QUEUE_FULL."""
        self._coming += 1
        try:
            waiting = await run_in_threadpool(self._waiting)
            if waiting + self._coming > self._most:
                raise Refusal(QUEUE_FULL, waiting=waiting)
            yield
        finally:
            self._coming -= 1
