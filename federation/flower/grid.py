"""How Flower's grid fetches a reply of which the SuperLink does not have all parts yet."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from flwr.supercore.constant import PULL_MAX_TIME
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from federation.flower.pauses import SHORT_PAUSES

__all__ = ["missing_parts"]


@contextmanager
def missing_parts(until: float | None) -> Iterator[None]:
    """Let the grid of this process ask for missing parts again soon, and until a time of the monotonic clock.

    Flower's own pauses of 1 s to 10 s would delay almost every round. It also waits for two hours while it fetches no
    other reply: a site that sends its parts very slowly would stop the study. After `until`, the grid returns an error
    in place of the reply. None: as long as Flower does.
    """
    before = http_grid.pull_objects  # type: ignore[attr-defined]
    limit_s = PULL_MAX_TIME if until is None else max(until - time.monotonic(), 0.0)
    http_grid.pull_objects = partial(pull_objects, **SHORT_PAUSES, max_time=limit_s)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        http_grid.pull_objects = before  # type: ignore[attr-defined]
