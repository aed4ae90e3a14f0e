"""Tests of the planes that are shown first."""

import numpy as np

from pipeline.scoring.best_planes import LEAST_DENSE, best_planes

LUNGS = np.zeros((10, 12, 14), np.uint8)
LUNGS[1:9, 2:10, 2:6] = 1
LUNGS[5, 6, 7:10] = 1  # the planes with most lung: 5, 6, and one of the wide part


def test_planes_with_most_disease_are_shown_and_not_those_with_most_lung() -> None:
    dense = np.zeros_like(LUNGS)
    dense[2:4, 8:10, 3:5] = 2
    dense[2, 8, 3] = 1
    dense[3, 8:10, 2:6] = 1
    assert dense.astype(bool).sum() > LEAST_DENSE * LUNGS.sum()
    assert best_planes(LUNGS, dense) == (3, 8, 3)


def test_planes_with_most_lung_are_shown_if_hardly_any_is_dense() -> None:
    dense = np.zeros_like(LUNGS)
    dense[2, 8, 3] = 1
    assert best_planes(LUNGS, dense) == (5, 6, 2)
    assert best_planes(LUNGS, np.zeros_like(LUNGS)) == (5, 6, 2)
