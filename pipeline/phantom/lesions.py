"""Lesions of a synthetic lung: ground glass and consolidation, at the typical locations of their cause.

Covid-19 pneumonia: several peripheral foci in both lungs, mostly at the back and the base (Salehi et al., AJR
2020; 215:87-93). Other pneumonia: one focus in one lung, consolidation with a narrow ground-glass rim.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.phantom.anatomy import Field, Grid, Mask, Thorax, smooth_noise

Pattern = Literal["none", "covid", "other"]
GROUND_GLASS_HU = 330  # added to aerated lung at full strength
CONSOLIDATION_HU = 20
MOST_FOCI = 60

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Lesions:
    """The planted lesions: `hu` of the whole volume, and shares of the lung's volume (0 to 1)."""

    hu: Field
    ground_glass: float
    consolidation: float

    @property
    def load(self) -> float:
        """The share of abnormal lung."""
        return self.ground_glass + self.consolidation


def _box_of(lungs: Mask) -> Box:
    """Return the box of the lungs and one voxel around them, in which the distance to their edge is that in the whole.

    A third of a scan is in it.
    """
    axes = range(lungs.ndim)
    held = [np.flatnonzero(lungs.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(max(0, int(at[0]) - 1), int(at[-1]) + 2) for at in held)


def _likely_places(
    lungs: Mask, axes: tuple[Field, Field, Field], spacing_mm: tuple[float, ...], pattern: Pattern, rng: Generator
) -> Field:
    """Return the weight of each voxel as the centre of a focus."""
    z, y, x = axes
    depth_mm = ndimage.distance_transform_edt(lungs, sampling=spacing_mm)
    if pattern == "covid":
        weight = np.exp(-depth_mm / 9) * (1 + np.clip(y / 60, -0.8, 2)) * (1 + np.clip(-z / 80, -0.6, 1.5))
        weight = weight * np.where(x > 0, 1.0, rng.uniform(0.5, 1.6))
    else:
        side = 1 if rng.random() < 0.4 else -1
        weight = np.where(side * x > 0, np.clip(depth_mm - 6, 0, None), 0)
    return np.where(lungs, weight, 0).astype(np.float32)


def _around(
    shape: tuple[int, ...], spacing_mm: tuple[float, ...], centre: NDArray[np.int64], radii_mm: NDArray[np.float64]
) -> tuple[Box, Field]:
    """Return the box of one focus, and the normalised radius around its centre inside that box."""
    reach = np.ceil(1.9 * radii_mm / np.array(spacing_mm)).astype(int)
    low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach + 1, shape)
    z, y, x = (
        ((np.arange(a, b) - c) * s / r) ** 2
        for a, b, c, s, r in zip(low, high, centre, spacing_mm, radii_mm, strict=True)
    )
    radius = np.sqrt(z[:, None, None] + y[None, :, None] + x[None, None, :]).astype(np.float32)
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True)), radius


def add_lesions(
    thorax: Thorax,
    grid: Grid,
    *,
    pattern: Pattern,
    load: float,
    consolidated: float,
    rng: Generator,
    density: float = 1.0,
) -> Lesions:
    """Plant foci until they fill `load` of the lungs; `consolidated` is the solid share of each focus.

    `density`: which share of the usual density they add to the lungs; it does not change the load.
    """
    if pattern == "none" or load <= 0:
        return Lesions(hu=thorax.hu, ground_glass=0.0, consolidation=0.0)
    place = _box_of(thorax.lungs)
    lungs, (z, y, x) = thorax.lungs[place], grid.axes_mm()
    axes = z[place[0]], y[:, place[1]], x[:, :, place[2]]
    weight = _likely_places(lungs, axes, grid.spacing_mm, pattern, rng).ravel()
    centres = rng.choice(weight.size, size=MOST_FOCI, p=weight.astype(np.float64) / weight.sum(dtype=np.float64))
    rough = 0.22 * smooth_noise(grid.shape, tuple(7.0 / s for s in grid.spacing_mm), rng)[place]
    glass = np.zeros(lungs.shape, dtype=np.float32)
    solid = np.zeros(lungs.shape, dtype=np.float32)
    lung_voxels = int(lungs.sum())
    is_left = axes[2] > 0
    size_mm = (15.0, 26.0) if pattern == "covid" else (32.0, 46.0)
    for centre in np.array(np.unravel_index(centres, lungs.shape)).T:
        radii = rng.uniform(*size_mm) * rng.uniform(0.75, 1.25, 3)
        box, radius = _around(lungs.shape, grid.spacing_mm, centre, radii)
        inside = lungs[box] & (is_left[..., box[2]] == is_left[..., centre[2]])  # a focus stays in its lung
        edge = np.clip((1.0 - radius + rough[box]) / 0.25, 0, 1) * inside
        core = np.clip((1.0 - radius / max(consolidated, 1e-3) ** (1 / 3) + rough[box]) / 0.15, 0, 1) * inside
        glass[box], solid[box] = np.maximum(glass[box], edge), np.maximum(solid[box], core)
        if np.maximum(glass, solid).sum() / lung_voxels >= load:
            break
    # Shares of filled volume, not of affected voxels: soft edges count partially.
    consolidation = float(solid.sum() / lung_voxels)
    ground_glass = float(np.clip(glass - solid, 0, None).sum() / lung_voxels)
    healthy, hu = thorax.hu[place], thorax.hu.copy()
    sick = healthy + density * GROUND_GLASS_HU * glass * (healthy < -500)
    hu[place] = sick + density * solid * (CONSOLIDATION_HU - sick)
    return Lesions(hu=hu, ground_glass=ground_glass, consolidation=consolidation)
