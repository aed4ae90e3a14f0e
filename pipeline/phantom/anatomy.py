"""A synthetic thorax without lesions: body, bones, heart, diaphragm, lungs with vessels, in HU.

Coordinates are LPS millimetres, as in DICOM: x to the patient's left, y to the back, z to the head; the origin is in
the middle of the chest. Shapes are analytic, so each hospital samples the same body on its own grid.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Typical attenuations (HU) of the tissues at 120 kV.
AIR_HU, FAT_HU, MUSCLE_HU, BLOOD_HU, LIVER_HU, BONE_HU, AERATED_LUNG_HU = -1000, -100, 45, 40, 60, 300, -900

RIB_CAGE_INNER = 0.95  # normalised radius of the inner side of the ribs
VESSELS_OF_A_SIDE, VESSEL_STEPS = 34, 26


@dataclass(frozen=True)
class Grid:
    """A voxel grid: `shape` (slices, rows, columns), `spacing_mm` in the same order; slice 0 is the lowest."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """LPS (x, y, z) of voxel (0, 0, 0); the grid's centre is the origin."""
        dz, dy, dx = (-(n - 1) / 2 * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return dx, dy, dz

    def axes_mm(self) -> tuple[Field, Field, Field]:
        """(z, y, x) coordinates, each shaped to broadcast over the grid."""
        x0, y0, z0 = self.origin_mm
        starts = (z0, y0, x0)
        z, y, x = (
            (start + np.arange(n) * s).astype(np.float32)
            for start, n, s in zip(starts, self.shape, self.spacing_mm, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]


@dataclass(frozen=True)
class Build:
    """Parameters of one body; sizes are factors of the template."""

    width: float
    depth: float
    lung_height: float
    fat_mm: float
    inflation_hu: float  # attenuation of aerated lung, which depends on the breath
    gravity_hu_per_mm: float  # increase of lung density towards the back
    dependent_hu: float  # density of the band of collapsed lung at the back, 0 in most
    dependent_mm: float  # its thickness

    @classmethod
    def draw(cls, rng: Generator, *, female: bool) -> "Build":
        size = (0.94 if female else 1.0) * rng.normal(1.0, 0.04)
        return cls(
            width=size * rng.normal(1.0, 0.03),
            depth=size * rng.normal(1.0, 0.05),
            lung_height=size * rng.normal(0.98, 0.06),
            fat_mm=float(np.clip(rng.normal(14, 5), 4, 30)),
            inflation_hu=float(rng.normal(AERATED_LUNG_HU, 22)),
            gravity_hu_per_mm=float(rng.uniform(0.2, 0.8)),
            dependent_hu=float(rng.uniform(120, 350)) if rng.random() < 0.4 else 0.0,
            dependent_mm=float(rng.uniform(5, 16)),
        )


@dataclass(frozen=True)
class Thorax:
    """A thorax: `hu` without noise; `lungs` is true inside either lung, including vessels."""

    hu: Field
    lungs: Mask


def _ellipsoid(axes: tuple[Field, Field, Field], centre: tuple[float, ...], radii: tuple[float, ...]) -> Field:
    """Return the squared normalised radius around `centre` in (z, y, x) order; values below 1 are inside."""
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True))  # type: ignore[return-value]


def smooth_noise(shape: tuple[int, ...], sigma: tuple[float, ...], rng: Generator) -> Field:
    """Return a Gaussian random field of unit variance; `sigma` in voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma, truncate=2.5)
    return field / field.std()


def _cage(axes: tuple[Field, Field, Field], build: Build) -> Field:
    """Return the normalised radius of the rib cage; the ribs lie around 1. It is a dome over the lungs."""
    z, y, x = axes
    radius = np.abs(x / (140 * build.width)) ** 2.2 + np.abs(y / (95 * build.depth)) ** 2.2
    dome = np.sqrt(1 - np.clip((z + 10) / (145 * build.lung_height), 0, 0.9) ** 2)
    return np.asarray(radius ** (1 / 2.2) / dome, np.float32)


def _lungs(axes: tuple[Field, Field, Field], build: Build) -> Mask:
    z, y, x = axes
    dome = -95 * build.lung_height + 34 * np.exp(-(((np.abs(x) - 75) / 60) ** 2) - ((y + 5) / 75) ** 2)
    inside = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), dtype=bool)
    for side in (-1, 1):
        radii = (132 * build.lung_height, 84 * build.depth, 62 * build.width)
        inside |= _ellipsoid(axes, (-10.0, 2.0, side * 72.0 * build.width), radii) < 1
        # Beside the spine, lung reaches back to the ribs.
        radii = (128 * build.lung_height, 42 * build.depth, 44 * build.width)
        inside |= _ellipsoid(axes, (-10.0, 44.0 * build.depth, side * 58.0 * build.width), radii) < 1
    spine = (x / 25) ** 2 + ((y - 78 * build.depth) / 27) ** 2 < 1
    inside &= ~spine & (_cage(axes, build) < RIB_CAGE_INNER)
    inside &= z > dome + np.where(x < 0, 8, 0)  # the liver lifts the right dome
    inside &= np.abs(x) > 20 + 8 * np.cos(z / 60)
    heart = _ellipsoid(axes, (-55.0, -28.0, 28.0), (52.0, 46.0, 56.0))
    return inside & (heart > 1)


def _soft_tissue(axes: tuple[Field, Field, Field], build: Build) -> tuple[Field, Mask]:
    """Return the body without lungs: fat, muscle, liver, heart, spine, ribs, trachea, a gas bubble, the table."""
    z, y, x = axes
    radius = (np.abs(x / (168 * build.width)) ** 2.4 + np.abs(y / (118 * build.depth)) ** 2.4) ** (1 / 2.4)
    radius = radius / (1 - 0.25 * np.clip((z - 105) / 90, 0, 1))
    body = np.broadcast_to(radius < 1, np.broadcast_shapes(z.shape, y.shape, x.shape))
    hu = np.full(body.shape, AIR_HU, dtype=np.float32)
    hu[body] = MUSCLE_HU
    hu[body & (radius > 1 - build.fat_mm / (118 * build.depth))] = FAT_HU
    below = z < -95 * build.lung_height + 30
    hu[body & below & (radius < 0.8) & (x < 20)] = LIVER_HU
    hu[_ellipsoid(axes, (-55.0, -28.0, 28.0), (52.0, 46.0, 56.0)) < 1] = BLOOD_HU
    cage = _cage(axes, build)
    ribs = (np.abs(cage - 1) < 0.045) & (np.cos(2 * np.pi * (z + 0.45 * y) / 27) > 0.35)
    hu[body & ribs] = BONE_HU
    spine = ((x / 19) ** 2 + ((y - 78 * build.depth) / 21) ** 2) < 1
    hu[body & np.broadcast_to(spine, body.shape)] = BONE_HU * 0.75
    hu[body & ((x / 9) ** 2 + ((y - 22) / 9) ** 2 < 1) & (z > 5)] = AIR_HU
    hu[_ellipsoid(axes, (-125.0, -45.0, 70.0), (16.0, 22.0, 26.0)) < 1] = AIR_HU
    table = (y > 118 * build.depth + 12 - (x / 60) ** 2) & (y < 118 * build.depth + 20 - (x / 60) ** 2)
    hu[np.broadcast_to(table & (np.abs(x) < 190), body.shape) & ~body] = -300
    return hu, body


def _vessels(grid: Grid, build: Build, rng: Generator) -> Field:
    """Return the share of lung vessels in each voxel: random walks from both hila, tapering outwards."""
    sides, radii_mm, headings, turns = [], [], [], []
    for side in (-1, 1):
        for _ in range(VESSELS_OF_A_SIDE):
            sides.append(side)
            headings.append(rng.normal(0, 1, 3) * (1.0, 0.7, 0.6) + (0, 0.1, side * 0.6))
            radii_mm.append(np.linspace(4.2, 1.2, VESSEL_STEPS) * rng.uniform(0.7, 1.1))
            turns.append(rng.normal(0, 0.22, (VESSEL_STEPS, 3)))
    # All vessels grow together, step by step: one by one would take half of the time that a simple body takes.
    position = np.array([(0.0, 12.0, side * 28.0) for side in sides])
    heading, path = np.array(headings), []
    for turn in np.array(turns).swapaxes(0, 1):
        heading = heading / np.linalg.norm(heading, axis=1, keepdims=True) + turn
        position = position + 5.0 * heading / np.linalg.norm(heading, axis=1, keepdims=True)
        path.append(position)
    points = np.stack(path, axis=1).reshape(-1, 3)
    volumes = np.pi * np.array(radii_mm).ravel() ** 2 * 5.0
    x0, y0, z0 = grid.origin_mm
    spacing = np.array(grid.spacing_mm)
    index = np.rint((points - (z0, y0, x0)) / spacing).astype(int)
    inside = np.all((index >= 0) & (index < grid.shape), axis=1)
    share = np.zeros(grid.shape, dtype=np.float32)
    np.add.at(share, tuple(index[inside].T), volumes[inside] / spacing.prod())
    return np.minimum(ndimage.gaussian_filter(share, 2.2 / spacing, truncate=2.5), 1.0)


def _distance_to_back(lungs: Mask, grid: Grid) -> Field:
    """Return the distance in mm from each lung voxel to the end of the lung behind it."""
    behind = np.cumsum(lungs[:, ::-1], axis=1, dtype=np.float32)[:, ::-1]
    return behind * grid.spacing_mm[1]


def make_thorax(grid: Grid, build: Build, rng: Generator) -> Thorax:
    """Create a healthy synthetic thorax on `grid`.

    Lung attenuation increases towards the back (gravity) and varies smoothly. Some bodies have a band of collapsed lung
    at the back. Vessels fill voxels partially.
    """
    axes = grid.axes_mm()
    hu, body = _soft_tissue(axes, build)
    lungs = _lungs(axes, build) & body
    sigma = tuple(9.0 / s for s in grid.spacing_mm)
    parenchyma = build.inflation_hu + build.gravity_hu_per_mm * axes[1] + 14 * smooth_noise(grid.shape, sigma, rng)
    if build.dependent_hu:
        # Gravity-dependent density resembles ground glass in healthy people in supine position.
        back_mm = _distance_to_back(lungs, grid)
        parenchyma = parenchyma + build.dependent_hu * np.exp(-((back_mm / build.dependent_mm) ** 2))
    parenchyma = parenchyma + (BLOOD_HU - parenchyma) * _vessels(grid, build, rng)
    hu[lungs] = parenchyma[lungs]
    return Thorax(hu=hu, lungs=lungs)
