"""Flower's selection of replies by Krum, without the mean that follows it."""

from flwr.serverapp.strategy.multikrum import select_multikrum

__all__ = [
    "select_multikrum",
]
