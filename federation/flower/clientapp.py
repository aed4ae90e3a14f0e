"""Flower's program that runs one task of an app at a site."""

from functools import partial

from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp as program

from federation.flower.pauses import SHORT_PAUSES

__all__ = ["run_clientapp"]


def run_clientapp() -> None:
    """Run `flwr-clientapp` with the arguments of this process.

    It often starts before the node has all parts of the task. It asks for them again after shorter pauses than
    Flower's own of 1 s, 2 s, and so on.
    """
    soon = partial(pull_and_inflate_object_from_tree, **SHORT_PAUSES)
    program.pull_and_inflate_object_from_tree = soon  # type: ignore[attr-defined]
    flwr_clientapp()
