"""Defines a CT volume in HU with its geometry: the output of every reader and the input of every later step."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_VOXELS = 2**29  # 1024 x 1024 x 512: 1 GB
HU_ENDS = np.iinfo(np.int16)  # far outside the HU that are accepted in a scan
_PLACES = 3  # decimals of a millimetre in which two geometries must agree
LUNG_WINDOW_HU = (-1350.0, 150.0)  # width 1500, level -600: the window in which radiologists read lungs


@dataclass(frozen=True)
class Grid:
    """The voxels of a scan: `shape` (slices, rows, columns), and `affine` as that of `Volume`."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class Volume:
    """A CT scan in HU with its full geometry.

    Scanners store no other HU than whole ones from -1024 to 3071. A volume of int16 takes half the memory and half the
    time of one in float32.

    Parameters
    ----------
    hu : array of int16, shape (slices, rows, columns)
        Hounsfield units.
    affine : array of float64, shape (4, 4)
        Takes (slice, row, column, 1) to millimetres in RAS (right, anterior, superior positive).
    flags : tuple of str
        Codes of `W_` reasons met while reading.
    stored : Grid or None
        The scan's own grid, where its slices were moved: those of a tilted gantry. Its axes are not perpendicular.

    Raises
    ------
    TypeError
        For HU of another type than int16.
    """

    hu: NDArray[np.int16]
    affine: NDArray[np.float64]
    flags: tuple[str, ...] = ()
    stored: Grid | None = None

    def __post_init__(self) -> None:
        if self.hu.dtype != np.int16:
            raise TypeError("HU must be int16: sums of other types would be truncated without an error")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbours along (slices, rows, columns)."""
        steps = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(steps[0]), float(steps[1]), float(steps[2])

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Size of the box along (slices, rows, columns)."""
        s = self.spacing_mm
        return s[0] * self.hu.shape[0], s[1] * self.hu.shape[1], s[2] * self.hu.shape[2]

    @property
    def geometry_sha256(self) -> str:
        """SHA-256 of all that is known but the HU: shape, affine to a micrometre, and flags."""
        affine = (np.round(self.affine, _PLACES) + 0.0).tolist()  # + 0.0: -0 and 0 are the same place
        known = [list(self.hu.shape), affine, sorted(self.flags)]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def whole_hu(hu: NDArray[np.floating]) -> NDArray[np.int16]:
    """Round HU to whole numbers and clip them to the range of int16. `hu` must not contain NaN."""
    return np.rint(hu).clip(HU_ENDS.min, HU_ENDS.max).astype(np.int16)


def voxel_ml(affine: NDArray[np.float64]) -> float:
    """Return the volume of a voxel of a grid whose affine, shape (4, 4), gives millimetres."""
    return float(abs(np.linalg.det(affine[:3, :3]))) / 1000


def is_blank(hu: NDArray[np.int16]) -> bool:
    """Whether a slice shows nothing: all its voxels have one value."""
    return bool(hu.min() == hu.max())


def filled_slices(hu: NDArray[np.int16]) -> tuple[int, int]:
    """Return the first slice that shows something, and the one after the last; all slices if none does."""
    filled = [index for index in range(len(hu)) if not is_blank(hu[index])]
    return (filled[0], filled[-1] + 1) if filled else (0, len(hu))
