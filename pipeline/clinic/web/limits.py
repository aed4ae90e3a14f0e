"""How often somebody may ask, and how many scans may come in at once."""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.concurrency import run_in_threadpool

from models.refusal import Refusal
from pipeline.clinic.reasons import QUEUE_FULL

_MOST_KEYS = 10_000  # addresses and tokens that are remembered; a full bucket need not be


class Buckets:
    """A token bucket for each key: `burst` requests at once, and then `per_minute` of them.

    `clock`: seconds, from any moment on.
    """

    def __init__(self, per_minute: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_minute / 60, burst, clock
        self._levels: dict[str, tuple[float, float]] = {}  # by key: what was left, and when

    def wait_seconds(self, key: str) -> int:
        """After how many whole seconds the next request may come; 0: now. Nothing is taken."""
        return math.ceil(max(0.0, 1 - self._level(key)) / self._per_second)

    def take(self, key: str) -> int:
        """Take one request, if one is left; else after how many whole seconds the next may come."""
        if wait := self.wait_seconds(key):
            return wait
        if len(self._levels) >= _MOST_KEYS:
            self._levels = {each: kept for each, kept in self._levels.items() if self._level(each) < self._burst}
            if len(self._levels) >= _MOST_KEYS:
                self._levels.clear()  # some thousand addresses at once: whoever is limited then is let off
        self._levels[key] = (self._level(key) - 1, self._clock())
        return 0

    def _level(self, key: str) -> float:
        now = self._clock()
        left, at = self._levels.get(key, (self._burst, now))
        return min(self._burst, left + (now - at) * self._per_second)


class Room:
    """Room for scans: those that wait and those that are still coming in together are never more than `most`.

    For one event loop alone. `waiting`: how many wait now.
    """

    def __init__(self, most: int, waiting: Callable[[], int]) -> None:
        self._most, self._waiting, self._coming = most, waiting, 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place while a scan comes in. Raises Refusal E_QUEUE_FULL."""
        self._coming += 1
        try:
            waiting = await run_in_threadpool(self._waiting)
            if waiting + self._coming > self._most:
                raise Refusal(QUEUE_FULL, waiting=waiting)
            yield
        finally:
            self._coming -= 1
