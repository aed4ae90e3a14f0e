"""Choose the planes of a scan that are shown first: those with the most disease."""

import numpy as np
from numpy.typing import NDArray

LEAST_DENSE = 0.02  # share of the lungs that must be counted for planes to be chosen by it


def best_planes(lungs: NDArray[np.generic], dense: NDArray[np.generic]) -> tuple[int, int, int]:
    """Return the index along each axis with the most dense lung, or with the most lung where hardly any is dense.

    `lungs`, `dense`: not zero where a voxel is lung, and where it is counted as dense; the same shape, three axes. The
    middle plane would show the mediastinum in the sagittal view.
    """
    is_lung, is_dense = np.asarray(lungs) != 0, np.asarray(dense) != 0
    enough = np.count_nonzero(is_dense) > LEAST_DENSE * np.count_nonzero(is_lung)
    return strongest_planes(is_dense if enough else is_lung)


def strongest_planes(weight: NDArray[np.generic]) -> tuple[int, int, int]:
    """Return the index along each axis of the plane with the largest sum."""
    first, second, third = (int(weight.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1)))
    return first, second, third
