"""A CT volume in HU with its full geometry: what every reader makes and every later step takes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LUNG_WINDOW_HU = (-1350.0, 150.0)  # width 1500, level -600: what a radiologist reads lungs in


@dataclass(frozen=True)
class Volume:
    """A CT scan.

    `hu`: float32, shape (slices, rows, columns), Hounsfield units.
    `affine`: float64, shape (4, 4), takes (slice, row, column, 1) to millimetres in RAS (right, anterior,
    superior positive).
    `flags`: codes of `W_` reasons met while reading.
    """

    hu: NDArray[np.float32]
    affine: NDArray[np.float64]
    flags: tuple[str, ...] = ()

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
