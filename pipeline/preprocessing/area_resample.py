"""Averages a scan over the voxels of a coarser grid, which takes most of the time of its preprocessing."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

_FIT_INT16 = 10  # number of HU from -1024 to 3071 whose sum fits int16
_AT_ONCE = 4  # slices of the coarser grid in one step; their intermediate sums fit the processor's cache

Windows = list[slice]


def area_means(hu: NDArray[np.int16], shape: Sequence[int]) -> torch.Tensor:
    """Average over the voxels that each voxel of a grid of `shape` touches, in float32.

    An axis along which the new grid is finer keeps its length.

    `hu`: as in `pipeline.imaging.volume.Volume`, from -1024 to 3071; sums of larger values could overflow.

    The result equals `torch.nn.functional.interpolate(mode="area")` of the same values in float32 to the bit: float32
    holds whole numbers exactly up to 2^24, which suffices for sums of 5000 voxels. `interpolate` does not accept
    integers and takes twice as long.
    """
    slices, rows, columns = (_windows(old, min(old, new)) for old, new in zip(hu.shape, shape, strict=True))
    means = np.empty([len(slices), len(rows), len(columns)], np.float32)
    for at in range(0, len(slices), _AT_ONCE):
        some = slices[at : at + _AT_ONCE]
        sums = np.empty((len(some), *hu.shape[1:]), np.float32)
        for sum_, window in zip(sums, some, strict=True):
            kind = torch.int16 if window.stop - window.start <= _FIT_INT16 else torch.int32
            sum_[:] = torch.from_numpy(hu[window]).sum(0, dtype=kind).numpy()
        sums = _sums(sums, 1, rows)
        # Transpose first: along the last axis numpy adds voxel by voxel, along the first whole planes at once.
        sums = _sums(np.ascontiguousarray(sums.transpose(2, 0, 1)), 0, columns).transpose(1, 2, 0)
        means[at : at + _AT_ONCE] = sums / _sizes(some)[:, None, None] / _sizes(rows)[:, None] / _sizes(columns)
    return torch.from_numpy(means)


def _windows(old: int, new: int) -> Windows:
    """Return for each of `new` voxels the range of `old` voxels that it touches; neighbours may share one."""
    return [slice(at * old // new, -(-(at + 1) * old // new)) for at in range(new)]


def _sums(voxels: NDArray[np.float32], axis: int, windows: Windows) -> NDArray[np.float32]:
    before: tuple[slice | int, ...] = (slice(None),) * axis
    sums = np.empty((*voxels.shape[:axis], len(windows), *voxels.shape[axis + 1 :]), np.float32)
    for at, window in enumerate(windows):
        np.add.reduce(voxels[(*before, window)], axis=axis, out=sums[(*before, at)])
    return sums


def _sizes(windows: Windows) -> NDArray[np.float32]:
    return np.array([window.stop - window.start for window in windows], np.float32)
