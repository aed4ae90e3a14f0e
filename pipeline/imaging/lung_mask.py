"""Defines a lung mask that a hospital made itself: where the lungs are, on any grid; `mask_reader` reads it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging import reasons

RIGHT, LEFT = 1, 2
BOTH = RIGHT | LEFT
_SPACING_MM = (0.05, 20.0)
_LEAST_VOLUME = 0.1  # of a voxel, relative to a rectangular one: grids that are nearly flat cannot be inverted
_TIE = 1e-6  # a place between two voxels belongs to the higher one, whatever the last digits of the affine


@dataclass(frozen=True)
class LungMask:
    """Lungs on a grid of their own.

    `labels`: uint8, 3 axes; 0 outside, RIGHT, LEFT, or BOTH where the file does not tell the sides apart
    or says that a voxel is in both.
    `affine`: float64, shape (4, 4), maps the three indices and 1 to millimetres in RAS.
    """

    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]

    @property
    def ml(self) -> float:
        """Volume of the lungs."""
        return float(np.count_nonzero(self.labels) * abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    def on(self, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return the label of the nearest voxel for each voxel of another grid; 0 outside the mask's grid."""
        to_mask = np.linalg.inv(self.affine) @ affine
        rows, columns = np.arange(shape[1])[:, None], np.arange(shape[2])
        plane = to_mask[:3, 1, None, None] * rows + to_mask[:3, 2, None, None] * columns
        ends = np.array(self.labels.shape)[:, None, None]
        answer = np.zeros(shape, np.uint8)
        for index in range(shape[0]):  # slice by slice: the places of a whole volume would take a gigabyte
            start = to_mask[:3, 0] * index + to_mask[:3, 3]
            places = np.floor(plane + start[:, None, None] + 0.5 + _TIE)
            inside = ((places >= 0) & (places < ends)).all(axis=0)
            answer[index][inside] = self.labels[tuple(places[:, inside].astype(np.intp))]
        return answer


def checked(labels: NDArray[np.uint8], affine: NDArray[np.float64]) -> LungMask:
    """Return a mask that is not empty and whose grid is possible.

    Raises `Refusal`: E_MASK_FILE, E_MASK_EMPTY.
    """
    if not np.isfinite(affine).all():
        raise Refusal(reasons.MASK_FILE, private="the affine is not finite")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    is_spaced = bool(((steps >= _SPACING_MM[0]) & (steps <= _SPACING_MM[1])).all())
    if not is_spaced or abs(np.linalg.det(affine[:3, :3] / steps)) < _LEAST_VOLUME:
        raise Refusal(reasons.MASK_FILE, private="impossible grid")
    if not labels.any():
        raise Refusal(reasons.MASK_EMPTY)
    return LungMask(labels, affine)
