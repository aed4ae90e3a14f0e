"""Measures how much of each lung is dense, in figures that a radiologist can check against the images.

Densities of lung in Covid-19 pneumonia: well aerated from -950 to -700 HU (Colombi et al., Radiology 2020; 296:E86,
https://doi.org/10.1148/radiol.2020201433); -300 HU separates ground glass and consolidation best (Quantitative CT for
detecting COVID-19 pneumonia, BMC Infect Dis 2021; 21:836, https://doi.org/10.1186/s12879-021-06556-z).

The bands do not distinguish causes: vessels and density from other diseases count too. In a healthy lung this is
about 5 %. Consolidation at the chest wall that is not in the lung mask does not count.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.preprocessing.preprocess import Prepared

GROUND_GLASS_HU = (-700.0, -300.0)
CONSOLIDATION_HU = (-300.0, 100.0)  # above: calcium, contrast in vessels
SIDES = ("both", "right", "left")
PARTS = ("whole", "upper", "middle", "lower")
TISSUE_ABOVE_HU = -500.0


@dataclass(frozen=True)
class Region:
    """A part of the lungs. `ground_glass`, `consolidation`: shares of its volume, 0 to 1; None if it is empty.

    The shares exclude the outermost layer of voxels, which is part lung, part chest wall and as dense as ground glass.
    """

    ml: float
    ground_glass: float | None
    consolidation: float | None


@dataclass(frozen=True)
class Burden:
    """Lesion burden by side (SIDES) and part (PARTS): thirds of the height of each lung, or of both together."""

    regions: dict[str, dict[str, Region]]

    def to_json(self) -> dict[str, Any]:
        return {
            "bands_hu": {"ground_glass": list(GROUND_GLASS_HU), "consolidation": list(CONSOLIDATION_HU)},
            "regions": {
                side: {part: asdict(region) for part, region in parts.items()} for side, parts in self.regions.items()
            },
        }


def burden(prepared: Prepared) -> Burden:
    """Measure the lungs on the working grid, with the same HU shift as for the model."""
    hu = prepared.image_hu + prepared.shift_hu
    inner = ndimage.binary_erosion(prepared.lungs)
    voxel_ml = prepared.lungs_ml / prepared.lungs.sum()
    left = np.arange(prepared.lungs.shape[2]) > middle_of_body(prepared)
    sides = {"both": prepared.lungs, "right": prepared.lungs & ~left, "left": prepared.lungs & left}
    return Burden(
        {
            side: {
                part: _region(hu[slab][lung[slab] & inner[slab]], lung[slab].sum() * voxel_ml)
                for part, slab in _thirds(lung).items()
            }
            for side, lung in sides.items()
        }
    )


def middle_of_body(prepared: Prepared) -> float:
    """Return the column that divides right from left; it uses the body, because one lung may be small."""
    return float(ndimage.center_of_mass(prepared.image_hu > TISSUE_ABOVE_HU)[2])


def _thirds(lung: NDArray[np.bool_]) -> dict[str, slice]:
    """Return the slices of each of PARTS."""
    heights = np.flatnonzero(lung.any(axis=(1, 2)))
    bottom, top = (int(heights[0]), int(heights[-1]) + 1) if heights.size else (0, 0)
    first, second = round(bottom + (top - bottom) / 3), round(bottom + 2 * (top - bottom) / 3)
    slabs = (slice(None), slice(second, None), slice(first, second), slice(first))
    return dict(zip(PARTS, slabs, strict=True))


def _region(hu: NDArray[np.float32], ml: float) -> Region:
    def share(band: tuple[float, float]) -> float | None:
        return round(float(np.mean((hu >= band[0]) & (hu < band[1]))), 4) if hu.size else None

    return Region(round(float(ml), 1), share(GROUND_GLASS_HU), share(CONSOLIDATION_HU))
