"""Measures how much of each lung is dense, in figures that a radiologist can check against the images.

The bands of `opacity` hold for the HU of the scan, without any shift. Vessels, bronchi, hila and mediastinum do not
count. A voxel of the working grid has the density of the median of the scan's own voxels in it: a thin vessel raises
their mean, above all with contrast agent, and so does the rim of a consolidation, but neither is ground glass. What is
thinner than THINNEST_MM does not count either: most of it is vessels that the segmenter missed. The bands do not
distinguish causes: scars, lung at the back that is dense because the patient lies, and lung after an incomplete breath
count too.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.lung_segmenter import Region as Organ
from models.lung_segmenter import Tissue
from pipeline.preprocessing.body_sides import middle_column
from pipeline.preprocessing.external_lungs import regions_from
from pipeline.preprocessing.lung_labels import (
    LEFT,
    PARTS,
    RIGHT,
    SIDES,
    Counting,
    Region,
    bands,
    count,
    make_labels,
    measure,
    without_thin,
)
from pipeline.preprocessing.lung_regions import LungRegions
from pipeline.preprocessing.opacity import CONSOLIDATION_HU, GROUND_GLASS_HU
from pipeline.preprocessing.preprocess import Prepared
from pipeline.preprocessing.share_ranges import Ranges, ranges

__all__ = [
    "PARTS",
    "SIDES",
    "Burden",
    "Region",
    "burden",
    "labels_of",
    "median_density",
    "middle_of_body",
    "unsure_share",
]
THINNEST_MM = 8.0  # two voxels of the usual working grid; vessels inside a lung are seldom thicker
SEGMENTER, EXTERNAL_MASK = "segmenter", "external mask"  # where the lungs come from


@dataclass(frozen=True)
class Burden:
    """Lesion burden by side (SIDES) and part (PARTS): thirds of the height of each lung, or of both together.

    `found`: the lungs that were measured. `opacities`: uint8, values of `Opacity`, on the working grid.
    `labels`: uint8, from which both follow (`lung_labels`). `voxel_ml`: volume of a voxel.
    `lungs_from`: SEGMENTER or EXTERNAL_MASK. `ranges`: where the true shares of both lungs lie, see `share_ranges`;
    empty for an external mask, which is taken as certain.
    """

    regions: dict[str, dict[str, Region]]
    found: LungRegions
    opacities: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    voxel_ml: float
    lungs_from: str = SEGMENTER
    ranges: Ranges = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "bands_hu": {"ground_glass": list(GROUND_GLASS_HU), "consolidation": list(CONSOLIDATION_HU)},
            "regions": {
                side: {part: asdict(region) for part, region in parts.items()} for side, parts in self.regions.items()
            },
            "ranges": {share: list(limits) for share, limits in self.ranges.items()},
            "are_marked": True,
            "voxel_ml": self.voxel_ml,
            "lungs_from": self.lungs_from,
        }


def burden(
    hu: NDArray[np.float32],
    found: LungRegions,
    spacing_mm: float,
    mask: NDArray[np.uint8] | None = None,
    density: NDArray[np.uint8] | None = None,
    *,
    voxel_ml: float | None = None,
) -> Burden:
    """Measure the lungs of one scan on the working grid.

    Parameters
    ----------
    hu : NDArray
        As scanned, shape of `found.regions`.
    found : LungRegions
        The lungs, from the segmenter.
    spacing_mm : float
        Length of a voxel's side.
    mask : NDArray or None
        An external mask on the working grid (see `external_lungs.sides_on_grid`), whose lungs are measured.
    density : NDArray or None
        The band of each voxel, from `median_density`. None for a scan on the working grid: that of `hu`.
    voxel_ml : float or None
        Volume of a voxel, `Prepared.voxel_ml`. None: that of a cube with this side.
    """
    found = found if mask is None else regions_from(mask, found)
    density = bands(lambda least: hu >= least) if density is None else density
    labels = without_thin(labels_of(density, found), max(1, round(THINNEST_MM / spacing_mm)))
    opacities, measured = count(labels)
    voxel_ml = spacing_mm**3 / 1000 if voxel_ml is None else voxel_ml
    regions = measure(labels, opacities, measured, voxel_ml)
    if mask is not None:
        return Burden(regions, found, opacities, labels, voxel_ml, EXTERNAL_MASK)
    within = ranges(hu, found, opacities, measured, regions["both"]["whole"])
    return Burden(regions, found, opacities, labels, voxel_ml, SEGMENTER, within)


def median_density(scan: NDArray[np.int16], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the band (`Opacity`) of the median of the scan's voxels in each voxel of a grid of `shape`.

    It is the median of eight, two along each side: all of them would take ten times as long.

    `scan`: upright, in HU, as `pipeline.preprocessing.preprocess.orient` gives it.
    """
    places = ((2 * np.arange(2 * new) + 1) * old // (4 * new) for old, new in zip(scan.shape, shape, strict=True))
    slices, rows, columns = places
    some = np.stack([scan[slice_][rows][:, columns] for slice_ in slices])  # a copy of all rows would take longer

    def at_least(least: float) -> NDArray[np.bool_]:
        count = (some >= least).view(np.uint8)
        count = count[::2] + count[1::2]
        count = count[:, ::2] + count[:, 1::2]
        return np.asarray(count[:, :, ::2] + count[:, :, 1::2] >= 4)

    return bands(at_least)


def labels_of(density: NDArray[np.uint8], found: LungRegions) -> NDArray[np.uint8]:
    """Return the labels (`lung_labels`) of what was found. Vessels and bronchi never count as dense lung.

    `density`: the band of each voxel.
    """
    sides, counting = np.zeros(density.shape, np.uint8), np.zeros(density.shape, np.uint8)
    for side, region in ((RIGHT, Organ.RIGHT_LUNG), (LEFT, Organ.LEFT_LUNG)):
        sides[found.regions == region] = side
    counting[np.isin(found.tissues, (Tissue.GROUND_GLASS, Tissue.CONSOLIDATION))] = Counting.ALSO_AT_EDGE
    counting[np.isin(found.tissues, (Tissue.VESSEL, Tissue.AIRWAY))] = Counting.NEVER
    return make_labels(density, sides, counting)


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
    """Return the column that divides right from left; it uses the trunk, because one lung may be small."""
    return middle_column(prepared.image_hu, prepared.lungs)
