"""Tests of means over the voxels of a coarser grid: sums are exact, so they do not depend on library or order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.preprocessing.area_resample import area_means


@pytest.mark.parametrize("shape", [(7, 9, 11), (21, 30, 25), (10, 30, 8), (1, 1, 1)])
def test_means_equal_torch_bit_for_bit(shape: tuple[int, int, int]) -> None:
    hu = np.random.default_rng(1).integers(-1024, 3072, (21, 30, 25)).astype(np.int16)
    expected = F.interpolate(torch.from_numpy(hu.astype(np.float32))[None, None], size=shape, mode="area")[0, 0]
    assert torch.equal(area_means(hu, shape), expected)


def test_axis_is_unchanged_where_the_grid_is_finer() -> None:
    hu = np.random.default_rng(1).integers(-1024, 3072, (21, 30, 25)).astype(np.int16)
    assert torch.equal(area_means(hu, (40, 9, 11)), area_means(hu, (21, 9, 11)))


@pytest.mark.parametrize("together", [1, 10, 11, 200])
@pytest.mark.parametrize("hu", [-1024, 3071])
def test_sums_of_extreme_slices_do_not_overflow(together: int, hu: int) -> None:
    assert area_means(np.full((2 * together, 2, 2), hu, np.int16), (2, 1, 1)).unique().tolist() == [float(hu)]
