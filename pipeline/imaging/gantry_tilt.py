"""Moves the slices of a tilted gantry to their true places.

The table moves along the body, but the slices are tilted: each one lies beside the perpendicular through the one before
(DICOM PS3.3, C.7.6.2.1.1). Each slice is shifted within its own plane, so that no voxel is mixed with another slice.
"""

import math

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging import reasons
from pipeline.imaging.geometry import sideways_pixels
from pipeline.imaging.volume import MAX_VOXELS, Grid, Volume, whole_hu

_AIR_HU = -1024


def straightened(volume: Volume) -> Volume:
    """Return the scan on a grid with perpendicular axes, large enough for all slices; air fills the rest.

    It keeps the grid that it had.

    Between pixels it is interpolated linearly. Flags: W_TILT. Raises `Refusal`: E_DIMENSIONS.
    """
    slices, rows, columns = volume.hu.shape
    per_slice = sideways_pixels(volume.affine)
    shifts = np.outer(np.arange(slices), per_slice)
    first = np.floor(shifts.min(axis=0)).astype(int)
    added = np.ceil(shifts.max(axis=0)).astype(int) - first
    shape = slices, rows + int(added[0]) + 1, columns + int(added[1]) + 1
    if math.prod(shape) > MAX_VOXELS:
        raise Refusal(reasons.DIMENSIONS, rows=shape[1], columns=shape[2], slices=slices)
    hu = np.full(shape, _AIR_HU, np.int16)
    for index, (stored, shift) in enumerate(zip(volume.hu, shifts - first, strict=True)):
        _put(stored, shift, hu[index])
    affine = volume.affine.copy()
    affine[:3, 0] -= volume.affine[:3, 1:3] @ per_slice
    affine[:3, 3] += volume.affine[:3, 1:3] @ first
    flags = tuple(sorted({*volume.flags, reasons.TILT_FLAGGED.code}))
    return Volume(hu=hu, affine=affine, flags=flags, stored=Grid((slices, rows, columns), volume.affine))


def _put(stored: NDArray[np.int16], shift: NDArray[np.float64], out: NDArray[np.int16]) -> None:
    """Write one slice to `out`, shifted by a number of rows and columns, which are not negative."""
    whole = np.floor(shift).astype(int)
    moved = np.pad(stored.astype(np.float32), 1, constant_values=_AIR_HU)
    for axis, part in enumerate(shift - whole):
        before = moved[tuple(slice(0, -1) if each == axis else slice(None) for each in (0, 1))]
        here = moved[tuple(slice(1, None) if each == axis else slice(None) for each in (0, 1))]
        moved = here * np.float32(1 - part) + before * np.float32(part)
    rows, columns = moved.shape  # one more than stored: the last pixel reaches into the next one
    out[whole[0] : whole[0] + rows, whole[1] : whole[1] + columns] = whole_hu(moved)
