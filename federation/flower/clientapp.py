"""Flower's program that runs one task of an app at a site."""

from flwr.supernode.cli.flwr_clientapp import flwr_clientapp

__all__ = [
    "flwr_clientapp",
]
