"""How Flower's grid fetches a reply of which the SuperLink does not have all parts yet."""

from functools import partial

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from federation.flower.pauses import SHORT_PAUSES

__all__ = ["fetch_missing_parts_soon"]


def fetch_missing_parts_soon() -> None:
    """Let the grid of this process ask for missing parts again after shorter pauses than Flower's own of 1 s to 10 s.

    These would delay almost every round.
    """
    soon = partial(pull_objects, **SHORT_PAUSES)
    http_grid.pull_objects = soon  # type: ignore[attr-defined]
