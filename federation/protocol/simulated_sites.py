"""Simulated sites: one machine runs the nodes of several site folders, listed in an environment variable."""

import os
from pathlib import Path

SIMULATED = "FEDTHORAX_SIMULATED_SITES"  # folders joined by os.pathsep; a node's partition-id is its index


def simulated_folders() -> list[Path]:
    """Return the folders in the order of Flower's partitions; empty if the nodes are real."""
    listed = os.environ.get(SIMULATED, "")
    return [Path(folder) for folder in listed.split(os.pathsep)] if listed else []
