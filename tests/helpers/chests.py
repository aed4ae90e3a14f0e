"""Synthetic chest scans as volume files, for the tests of importers."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.scans import acquire
from tests.helpers.phantoms import thorax
from tests.helpers.volume_images import image, save

THICK = Grid((36, 96, 96), (8.0, 3.9, 3.9))  # same slice spacing as MosMedData


@cache
def _chest() -> NDArray[np.float32]:
    return acquire(thorax(THICK).hu, HOSPITALS[0].scanner, np.random.default_rng(8))


def write_chest(path: Path, *, slice_mm: float = THICK.spacing_mm[0], noise_seed: int = 0, **tags: str) -> None:
    """Write a whole chest with 8 mm slices; `slice_mm` changes the header only. Each seed gives a different scan."""
    hu = _chest() + np.random.default_rng(noise_seed).integers(-3, 4, THICK.shape)
    save(image(hu, spacing_mm=(slice_mm, *THICK.spacing_mm[1:]), **tags), path)


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of all paths in a folder, to check that nothing changed."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}
