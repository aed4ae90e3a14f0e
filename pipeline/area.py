"""Means of a scan over the voxels of a coarser grid: where nearly all of the time of its preparation goes."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Windows = list[slice]


def area_means(hu: NDArray[np.int16], shape: Sequence[int]) -> torch.Tensor:
    """Means over the voxels that each one of a grid of `shape`, nowhere finer, touches; float32, of that shape.

    To the bit what `torch.nn.functional.interpolate(mode="area")` makes of the same in float32: sums of whole numbers
    are exact there up to 2^24, so of 5000 voxels. But that takes no integers, and half as long again.
    """
    slices, rows, columns = (_windows(old, new) for old, new in zip(hu.shape, shape, strict=True))
    sums = np.empty((len(slices), *hu.shape[1:]), np.float32)
    for sum_, window in zip(sums, slices, strict=True):
        sum_[:] = torch.from_numpy(hu[window]).sum(0, dtype=torch.int32).numpy()
    sums = _sums(sums, 1, rows)
    # Along the last axis numpy adds voxel by voxel, along the first whole planes.
    sums = _sums(np.ascontiguousarray(sums.transpose(2, 0, 1)), 0, columns).transpose(1, 2, 0)
    means = sums / _sizes(slices)[:, None, None] / _sizes(rows)[:, None] / _sizes(columns)
    return torch.from_numpy(np.ascontiguousarray(means))


def _windows(old: int, new: int) -> Windows:
    """What each of `new` voxels touches of `old` ones over the same length; neighbours may share one."""
    return [slice(at * old // new, -(-(at + 1) * old // new)) for at in range(new)]


def _sums(voxels: NDArray[np.float32], axis: int, windows: Windows) -> NDArray[np.float32]:
    before: tuple[slice | int, ...] = (slice(None),) * axis
    sums = np.empty((*voxels.shape[:axis], len(windows), *voxels.shape[axis + 1 :]), np.float32)
    for at, window in enumerate(windows):
        np.add.reduce(voxels[(*before, window)], axis=axis, out=sums[(*before, at)])
    return sums


def _sizes(windows: Windows) -> NDArray[np.float32]:
    return np.array([window.stop - window.start for window in windows], np.float32)
