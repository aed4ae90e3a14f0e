"""How Flower packs the files of an app."""

from flwr.cli.build import build_fab_from_disk

__all__ = [
    "build_fab_from_disk",
]
