"""Measures how much of each lung is dense, in figures that a radiologist can check against the images.

The bands of `opacity` hold for the HU of the scan, without any shift. Vessels, bronchi, hila and mediastinum do not
count. The bands do not distinguish causes: scars, lung at the back that is dense because the patient lies, and lung
after an incomplete breath count too.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.lung_segmenter import Region as Organ
from models.lung_segmenter import Tissue
from pipeline.preprocessing.external_lungs import regions_from
from pipeline.preprocessing.lung_regions import LungRegions
from pipeline.preprocessing.lungs import middle_column
from pipeline.preprocessing.opacity import CONSOLIDATION_HU, GROUND_GLASS_HU, Opacity
from pipeline.preprocessing.preprocess import Prepared

SIDES = ("both", "right", "left")
PARTS = ("whole", "upper", "middle", "lower")
SEGMENTER, EXTERNAL_MASK = "segmenter", "external mask"  # where the lungs come from


@dataclass(frozen=True)
class Region:
    """A part of the lungs. `ground_glass`, `consolidation`: shares of its volume, 0 to 1; None if it is empty."""

    ml: float
    ground_glass: float | None
    consolidation: float | None


@dataclass(frozen=True)
class Burden:
    """Lesion burden by side (SIDES) and part (PARTS): thirds of the height of each lung, or of both together.

    `found`: the lungs that were measured. `opacities`: uint8, values of `Opacity`, on the working grid.
    `lungs_from`: SEGMENTER or EXTERNAL_MASK.
    """

    regions: dict[str, dict[str, Region]]
    found: LungRegions
    opacities: NDArray[np.uint8]
    lungs_from: str = SEGMENTER

    def to_json(self) -> dict[str, Any]:
        return {
            "bands_hu": {"ground_glass": list(GROUND_GLASS_HU), "consolidation": list(CONSOLIDATION_HU)},
            "regions": {
                side: {part: asdict(region) for part, region in parts.items()} for side, parts in self.regions.items()
            },
            "are_marked": True,
            "lungs_from": self.lungs_from,
        }


def burden(
    hu: NDArray[np.float32], found: LungRegions, spacing_mm: float, mask: NDArray[np.uint8] | None = None
) -> Burden:
    """Measure the lungs of one scan on the working grid; `hu`: as scanned, shape of `found.regions`.

    `mask`: an external mask on the working grid (see `external_lungs.sides_on_grid`), whose lungs are measured.
    """
    found = found if mask is None else regions_from(mask, found)
    opacities, measured = counted(hu, found)
    right, left = found.regions == Organ.RIGHT_LUNG, found.regions == Organ.LEFT_LUNG
    voxel_ml = spacing_mm**3 / 1000
    sides = {"both": right | left, "right": right, "left": left}
    regions = {
        side: {
            part: _region(opacities[slab][(lung & measured)[slab]], lung[slab].sum() * voxel_ml)
            for part, slab in _thirds(lung).items()
        }
        for side, lung in sides.items()
    }
    return Burden(regions, found, opacities, SEGMENTER if mask is None else EXTERNAL_MASK)


def counted(hu: NDArray[np.float32], found: LungRegions) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return what each voxel is counted as, values of `Opacity`, and the voxels that shares refer to.

    In the outermost layer of a lung, a voxel that is part lung and part chest wall is as dense as ground glass. Such a
    voxel is left out unless the segmenter sees disease in it, so that disease at the pleura is not lost.
    """
    lungs = found.lungs
    is_diseased = np.isin(found.tissues, (Tissue.GROUND_GLASS, Tissue.CONSOLIDATION))
    measured = lungs & (ndimage.binary_erosion(lungs) | is_diseased)
    may_count = measured & ~np.isin(found.tissues, (Tissue.VESSEL, Tissue.AIRWAY))
    opacities = np.zeros(hu.shape, np.uint8)
    for opacity, (low, high) in ((Opacity.GROUND_GLASS, GROUND_GLASS_HU), (Opacity.CONSOLIDATION, CONSOLIDATION_HU)):
        opacities[may_count & (hu >= low) & (hu < high)] = opacity
    return opacities, measured


def unsure_share(hu: NDArray[np.float32], found: LungRegions) -> float:
    """Return how much dense tissue probably lies on the wrong side of the lungs' border, as a share of the lungs.

    Solid lung beside fluid, chest wall or diaphragm has no visible border. Each voxel with the density of consolidation
    is wrong with the probability that the segmenter gives to the side on which it is not. Their sum is the volume that
    is wrong on average. It is 0 for lungs whose labels are certain.
    """
    low, high = CONSOLIDATION_HU
    inside = found.chances.sum(axis=0)[(hu >= low) & (hu < high)]
    wrong = np.clip(np.minimum(inside, 1 - inside), 0, None)
    return float(wrong.sum() / max(1, np.count_nonzero(found.lungs)))


def middle_of_body(prepared: Prepared) -> float:
    """Return the column that divides right from left; it uses the body, because one lung may be small."""
    return middle_column(prepared.image_hu)


def _thirds(lung: NDArray[np.bool_]) -> dict[str, slice]:
    """Return the slices of each of PARTS."""
    heights = np.flatnonzero(lung.any(axis=(1, 2)))
    bottom, top = (int(heights[0]), int(heights[-1]) + 1) if heights.size else (0, 0)
    first, second = round(bottom + (top - bottom) / 3), round(bottom + 2 * (top - bottom) / 3)
    slabs = (slice(None), slice(second, None), slice(first, second), slice(first))
    return dict(zip(PARTS, slabs, strict=True))


def _region(opacities: NDArray[np.uint8], ml: float) -> Region:
    def share(opacity: Opacity) -> float | None:
        return round(float(np.mean(opacities == opacity)), 4) if opacities.size else None

    return Region(round(float(ml), 1), share(Opacity.GROUND_GLASS), share(Opacity.CONSOLIDATION))
