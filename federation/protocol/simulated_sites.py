"""Simulated sites: one machine plays the nodes of several site folders, which an environment variable lists."""

import os
from pathlib import Path

SIMULATED = "FEDTHORAX_SIMULATED_SITES"  # folders joined by os.pathsep; a node plays the one of its partition-id


def simulated_folders() -> list[Path]:
    """The folders, in the order of Flower's partitions; none where the nodes are real."""
    listed = os.environ.get(SIMULATED, "")
    return [Path(folder) for folder in listed.split(os.pathsep)] if listed else []
