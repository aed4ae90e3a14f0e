"""Flower's SuperLink program, with middleware of ours around and behind its own."""

from collections.abc import Sequence
from functools import partial

import uvicorn
from flwr.superlink import extensions
from flwr.superlink import main as application
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware

__all__ = ["run_superlink"]

CLOSE_SECONDS = 4  # less than the grace period of a process
IDLE_SECONDS = 60  # aiohttp closes an idle connection after 15 s, httpx after 5 s


def run_superlink(*, outermost: Sequence[Middleware], innermost: Sequence[Middleware]) -> None:
    """Run `flower-superlink` with the options of this process until it ends.

    When it is asked to end, it closes connections that are still in use, such as that of `study follow`, after
    CLOSE_SECONDS. Flower waits for them without limit. It closes idle connections later than its clients do. After
    Flower's 5 s it could do so just when a client sends its next request, which would then fail.
    `outermost` sees a request before Flower's own middleware, `innermost` after Flower has parsed and authenticated it.
    """
    extensions.get_middleware = lambda: tuple(outermost)
    if innermost:
        of_flower = application._get_middleware
        application._get_middleware = lambda: [*of_flower(), *innermost]
    uvicorn.run = partial(uvicorn.run, timeout_graceful_shutdown=CLOSE_SECONDS, timeout_keep_alive=IDLE_SECONDS)
    flower_superlink()
