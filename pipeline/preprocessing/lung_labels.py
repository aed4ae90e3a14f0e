"""Labels of the lungs on the working grid, and the table of dense lung that follows from them. Imports no torch.

A label is one byte for each voxel: side + 4 x counting + 16 x density. It holds all that the table depends on, so
that the table can be computed again from labels that a person corrected.

side      0 outside the lungs, RIGHT, LEFT
counting  how a voxel of a lung counts (`Counting`); 0 outside
density   the band of its HU (`Opacity`), as in `bands`, also outside the lungs; nobody can correct it
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.preprocessing.opacity import CONSOLIDATION_HU, GROUND_GLASS_HU, Opacity

RIGHT, LEFT = 1, 2
SIDES = ("both", "right", "left")
PARTS = ("whole", "upper", "middle", "lower")
_COUNTING, _DENSITY = 2, 4  # bits to the right
DENSITY_BITS = 3 << _DENSITY


class Counting(IntEnum):
    """Whether a voxel of a lung counts as dense if its density is in a band."""

    BY_DENSITY = 0  # unless it is in the outermost layer, where a voxel may be half chest wall
    ALSO_AT_EDGE = 1  # somebody, or the segmenter, saw disease in it
    NEVER = 2  # vessel, bronchus, something as thin, or what a person left out


OUTSIDE = frozenset({0})
INSIDE = frozenset(side + (how << _COUNTING) for side in (RIGHT, LEFT) for how in Counting)
KNOWN = OUTSIDE | INSIDE  # labels without their density


@dataclass(frozen=True)
class Region:
    """A part of the lungs. `ground_glass`, `consolidation`: shares of its volume, 0 to 1; None if it is empty."""

    ml: float
    ground_glass: float | None
    consolidation: float | None


def bands(at_least: Callable[[float], NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Return the band of each voxel, values of `Opacity`. `at_least`: where the density is at least some HU."""
    is_glass, is_solid, is_denser = map(at_least, (*GROUND_GLASS_HU, CONSOLIDATION_HU[1]))
    density = np.where(is_glass, np.uint8(Opacity.GROUND_GLASS), np.uint8(Opacity.NONE))
    density[is_solid] = Opacity.CONSOLIDATION
    density[is_denser] = Opacity.NONE
    return density


def make_labels(density: NDArray[np.uint8], sides: NDArray[np.uint8], counting: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return labels, shape (slices, rows, columns).

    `density`: from `bands`; `sides`: 0, RIGHT or LEFT; `counting`: values of `Counting`.
    """
    how = np.where(sides > 0, counting, np.uint8(Counting.BY_DENSITY))
    return (sides | (how << _COUNTING) | (density << _DENSITY)).astype(np.uint8)


def sides_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return 0, RIGHT or LEFT for each voxel."""
    return labels & np.uint8(3)


def count(labels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return what each voxel is counted as, values of `Opacity`, and the voxels that shares refer to.

    In the outermost layer of a lung, a voxel that is part lung and part chest wall is as dense as ground glass. Such a
    voxel is left out unless disease was seen in it, so that disease at the pleura is not lost.
    """
    lungs, how = sides_of(labels) > 0, (labels >> _COUNTING) & 3
    measured = lungs & (ndimage.binary_erosion(lungs) | (how == Counting.ALSO_AT_EDGE))
    opacities = np.where(measured & (how != Counting.NEVER), labels >> _DENSITY, np.uint8(Opacity.NONE))
    return opacities.astype(np.uint8), measured


def without_thin(labels: NDArray[np.uint8], thinnest: int) -> NDArray[np.uint8]:
    """Return labels in which dense tissue counts only where it fills a cube of `thinnest` voxels a side."""
    dense = count(labels)[0] > 0
    filled = ndimage.binary_opening(dense, np.ones((thinnest,) * 3))
    never = (sides_of(labels) | (labels & DENSITY_BITS) | (Counting.NEVER << _COUNTING)).astype(np.uint8)
    return np.where(dense & ~filled, never, labels)


def measure(
    labels: NDArray[np.uint8], opacities: NDArray[np.uint8], measured: NDArray[np.bool_], voxel_ml: float
) -> dict[str, dict[str, Region]]:
    """Return the table by side (SIDES) and part (PARTS): thirds of the height of each lung, or of both together.

    `opacities`, `measured`: from `count`. `voxel_ml`: volume of a voxel.
    """
    sides = sides_of(labels)
    lungs = {"both": sides > 0, "right": sides == RIGHT, "left": sides == LEFT}
    return {
        side: {
            part: _region(opacities[slab][(lung & measured)[slab]], lung[slab].sum() * voxel_ml)
            for part, slab in _thirds(lung).items()
        }
        for side, lung in lungs.items()
    }


def _thirds(lung: NDArray[np.bool_]) -> dict[str, slice]:
    """Return the slices of each of PARTS."""
    heights = np.flatnonzero(lung.any(axis=(1, 2)))
    bottom, top = (int(heights[0]), int(heights[-1]) + 1) if heights.size else (0, 0)
    first, second = round(bottom + (top - bottom) / 3), round(bottom + 2 * (top - bottom) / 3)
    slabs = (slice(None), slice(second, None), slice(first, second), slice(first))
    return dict(zip(PARTS, slabs, strict=True))


def _region(opacities: NDArray[np.uint8], ml: float) -> Region:
    def share(opacity: Opacity) -> float | None:
        return round(float(np.mean(opacities == opacity)), 4) if opacities.size else None

    return Region(round(float(ml), 1), share(Opacity.GROUND_GLASS), share(Opacity.CONSOLIDATION))
