"""Synthetic chests as volume files, for the tests of importers."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.scans import acquire
from tests.helpers.phantoms import thorax
from tests.helpers.volume_images import image, save

THICK = Grid((36, 96, 96), (8.0, 3.9, 3.9))  # as far apart as MosMedData's slices


@cache
def _chest() -> NDArray[np.float32]:
    return acquire(thorax(THICK).hu, HOSPITALS[0].scanner, np.random.default_rng(8))


def write_chest(path: Path, *, slice_mm: float = THICK.spacing_mm[0], noise_seed: int = 0, **tags: str) -> None:
    """A whole chest, 8 mm from slice to slice unless the header shall say otherwise; each seed makes another scan."""
    hu = _chest() + np.random.default_rng(noise_seed).integers(-3, 4, THICK.shape)
    save(image(hu, spacing_mm=(slice_mm, *THICK.spacing_mm[1:]), **tags), path)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder with size and time of change, to show that nothing was touched."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}
