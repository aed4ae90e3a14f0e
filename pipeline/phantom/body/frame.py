"""Coordinates of one synthetic body on a voxel grid, bent by smooth random fields.

Shapes are analytic functions of (z, y, x) in millimetres: z to the head with 0 at the carina, y to the back, x to the
patient's left. Bending the coordinates once bends all shapes together, and no label map needs to be resampled.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Point = tuple[float, float, float]
SIDES = (-1, 1)  # right, left: the sign of x


def smooth_field(shape: tuple[int, ...], sigma: float, rng: Generator) -> Field:
    """Return a smooth random field of zero mean and unit variance.

    `sigma`: its length in voxels. Random values on a coarse grid are enlarged with cubic B-splines, axis by axis, which
    takes a thirtieth of the time of a Gaussian filter with a large sigma.
    """
    step = max(1.0, sigma)
    fine = rng.standard_normal(tuple(int(np.ceil(n / step)) + 4 for n in shape)).astype(np.float32)
    for axis, size in enumerate(shape):
        weights = _spline_weights(size, fine.shape[axis], step, rng.uniform(0, 1))
        fine = np.moveaxis(np.tensordot(weights, fine, axes=(1, axis)), 0, axis)
    return np.asarray((fine - fine.mean()) / (fine.std() + 1e-6), dtype=np.float32)


def _spline_weights(size: int, knots: int, step: float, start: float) -> Field:
    """Return the weights of cubic B-splines `step` voxels apart, shape (size, knots)."""
    away = np.abs((np.arange(size)[:, None] / step + 1 + start) - np.arange(knots)[None])
    return cubic_b_spline(away).astype(np.float32)


def cubic_b_spline(away: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of a cubic B-spline at distances from its middle, in knots."""
    near = 2 / 3 - away**2 + away**3 / 2
    far = np.clip(2 - away, 0, None) ** 3 / 6
    return np.where(away < 1, near, far)


@dataclass(frozen=True)
class Frame:
    """A body's own coordinates of every voxel.

    `z`, `y`, `x`: millimetres, shape (slices, rows, columns), slice 0 lowest. `step_mm`: the grid's spacing.
    """

    z: Field
    y: Field
    x: Field
    step_mm: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        slices, rows, columns = self.z.shape
        return slices, rows, columns

    @cached_property
    def _lines(self) -> list[Field]:
        """The mean coordinate of each slice, row and column."""
        return [self.z.mean(axis=(1, 2)), self.y.mean(axis=(0, 2)), self.x.mean(axis=(0, 1))]

    def ellipsoid(self, centre: Point, radii: Point) -> Field:
        """Return the normalised radius around `centre`; below 1 inside. Both as (z, y, x) in millimetres."""
        return np.sqrt(
            ((self.z - centre[0]) / radii[0]) ** 2
            + ((self.y - centre[1]) / radii[1]) ** 2
            + ((self.x - centre[2]) / radii[2]) ** 2
        )

    def noise(self, length_mm: float, rng: Generator) -> Field:
        """Return a smooth random field of unit variance, `length_mm` from hill to hill and more."""
        return smooth_field(self.shape, length_mm / self.step_mm, rng)

    def tube(self, path: NDArray[np.float64], radius_mm: float | NDArray[np.float64]) -> Mask:
        """Return the voxels within `radius_mm` of a path of points (z, y, x), shape (points, 3)."""
        inside = np.zeros(self.shape, bool)
        radii = np.broadcast_to(radius_mm, len(path))
        for point, radius in zip(path, radii, strict=True):
            box = self._box(point, float(radius))
            near = (
                (self.z[box] - point[0]) ** 2 + (self.y[box] - point[1]) ** 2 + (self.x[box] - point[2]) ** 2
            ) < radius**2
            inside[box] |= near
        return inside

    def _box(self, point: NDArray[np.float64], radius_mm: float) -> tuple[slice, ...]:
        """Return a box of voxels that holds a ball; bending moves a voxel by less than the box's margin."""
        reach = radius_mm * 1.5 + 45
        sides = []
        for axis, line in enumerate(self._lines):
            near = np.flatnonzero(np.abs(line - point[axis]) < reach)
            sides.append(slice(int(near[0]), int(near[-1]) + 1) if near.size else slice(0, 0))
        return tuple(sides)


def draw_frame(
    shape: tuple[int, int, int], step_mm: float, centre_mm: Point, rng: Generator, turn_deg: Point = (0.0, 0.0, 0.0)
) -> Frame:
    """Draw a bent, turned and scaled frame.

    `centre_mm`: body coordinates of the grid's centre. The turn is at most some 12 degrees about each axis, and
    `turn_deg` about (z, y, x) comes on top; bending has lengths of about 90 and 35 mm.
    """
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * step_mm + c for n, c in zip(shape, centre_mm, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij", copy=True)
    around_z, around_y, around_x = np.radians(rng.normal(turn_deg, (5.0, 3.0, 4.0)))
    x, y = x * np.cos(around_z) - y * np.sin(around_z), x * np.sin(around_z) + y * np.cos(around_z)
    x, z = x * np.cos(around_y) - z * np.sin(around_y), x * np.sin(around_y) + z * np.cos(around_y)
    y, z = y * np.cos(around_x) - z * np.sin(around_x), y * np.sin(around_x) + z * np.cos(around_x)
    size = rng.normal(1.0, 0.07)
    scales = np.clip(size * rng.normal(1.0, 0.05, 3), 0.78, 1.28)
    bent = []
    for values, scale in zip((z, y, x), scales, strict=True):
        large, small = rng.uniform(2, 9), rng.uniform(0.5, 3)
        bend = large * smooth_field(shape, 90 / step_mm, rng) + small * smooth_field(shape, 35 / step_mm, rng)
        bent.append((values / scale + bend).astype(np.float32))
    return Frame(bent[0], bent[1], bent[2], step_mm)


def joined(masks: list[Mask], frame: Frame, reach_mm: float) -> Mask:
    """Return the union of masks with gaps narrower than about `reach_mm` filled, as connective tissue does."""
    union = np.logical_or.reduce(masks)
    soft = ndimage.gaussian_filter(union.astype(np.float32), reach_mm / 2 / frame.step_mm, truncate=2.0)
    return union | (soft > 0.5)
