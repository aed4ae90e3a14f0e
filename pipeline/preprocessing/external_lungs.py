"""Brings a hospital's own lung mask onto the working grid, and refuses one that does not fit the scan."""

import numpy as np
from numpy.typing import NDArray

from models.lung_segmenter import Region, Tissue
from models.refusal import Refusal
from pipeline.imaging.lung_mask import BOTH, LEFT, RIGHT, LungMask
from pipeline.imaging.volume import voxel_ml
from pipeline.preprocessing import reasons
from pipeline.preprocessing.body_sides import divide_lungs, mean_column
from pipeline.preprocessing.field_of_view import require_aerated, require_uncut
from pipeline.preprocessing.lung_regions import LungRegions, are_lungs, dice
from pipeline.preprocessing.lungs import find_lungs, require_lungs

LEAST_INSIDE = 0.95  # share of the mask's volume; sampling on the working grid changes it by less than 1 %


def sides_on_grid(
    mask: LungMask, hu: NDArray[np.float32], affine: NDArray[np.float64], spacing_mm: float
) -> NDArray[np.uint8]:
    """Return the mask on the working grid: uint8, RIGHT, LEFT, and 0 outside the lungs.

    Each voxel has the label of the nearest voxel of the mask. Where the mask does not tell the sides apart, see
    `divide_lungs`. `hu`, `affine`: as in `Prepared`.

    Raises Refusal E_MASK_GRID, E_MASK_SIDES, E_NO_LUNGS, E_LUNGS_CUT, E_NOT_A_WHOLE_CHEST.
    """
    sides = mask.on(hu.shape, affine)
    lungs = sides > 0
    inside = np.count_nonzero(lungs) * voxel_ml(affine) / mask.ml
    if inside < LEAST_INSIDE:
        raise Refusal(reasons.MASK_GRID, percent=round(100 * inside))
    require_aerated(hu, lungs)
    require_uncut(hu, lungs)
    require_lungs(lungs, (spacing_mm, spacing_mm, spacing_mm))
    if (sides == BOTH).any():
        sides = np.where(sides == BOTH, divide_lungs(lungs, hu, spacing_mm), sides)
    if {RIGHT, LEFT} <= set(np.unique(sides)) and mean_column(sides == RIGHT) >= mean_column(sides == LEFT):
        raise Refusal(reasons.MASK_SIDES)
    return sides


def regions_from(sides: NDArray[np.uint8], found: LungRegions) -> LungRegions:
    """Return the lungs of a mask, with the vessels, bronchi and diseased tissue that the segmenter found in them.

    `sides`: from `sides_on_grid`. Where the mask is lung and the segmenter found none, it counts as lung without
    vessels, unless the segmenter found an airway there.
    """
    lungs = sides > 0
    regions = np.where(are_lungs(found.regions), np.uint8(Region.BACKGROUND), found.regions)
    tissues = np.where(lungs, found.tissues, np.uint8(Tissue.PARENCHYMA))
    tissues[lungs & (found.regions == Region.AIRWAY)] = Tissue.AIRWAY
    for side, region in ((RIGHT, Region.RIGHT_LUNG), (LEFT, Region.LEFT_LUNG)):
        regions[sides == side] = region
    return LungRegions.of_labels(regions, tissues)


def agreement_with_threshold(hu: NDArray[np.float32], lungs: NDArray[np.bool_], spacing_mm: float) -> float:
    """Return the Dice coefficient of lungs and those by threshold; 0 if the threshold finds none."""
    try:
        return dice(lungs, find_lungs(hu, (spacing_mm, spacing_mm, spacing_mm)))
    except Refusal:
        return 0.0
