"""Checks that a scan shows an upright, whole, adult chest in Hounsfield units; otherwise it gets no score.

Each limit comes from anatomy or physics, with its source beside it, and is far from the values of patients. Unusual
values are flagged, not refused (`scoring.quality_checks`). `lungs` refuses scans without lungs of adult size earlier.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.refusal import Refusal
from pipeline.imaging.volume import Volume
from pipeline.preprocessing import reasons
from pipeline.preprocessing.air import air_around, gas_share
from pipeline.preprocessing.field_of_view import MOST_CUT, cut_share, cut_slices, end_shares
from pipeline.preprocessing.lesion_burden import middle_of_body
from pipeline.preprocessing.lungs import TISSUE_ABOVE_HU, at_sides, bounding_box
from pipeline.preprocessing.measures import is_turned
from pipeline.preprocessing.measuring import body_pose
from pipeline.preprocessing.preprocess import Prepared

# Air is -1000 HU by definition. W_AIR_HU is flagged at a difference of 50 HU; no calibration has twice this error.
AIR_HU = (-1100.0, -880.0)
# Fat is near -100 HU, water at 0, muscle, blood and organs between 20 and 80, with contrast agent seldom above 200.
# Bone is about a tenth of a body. DenOtter & Schubert, Hounsfield Unit, StatPearls 2023.
SOFT_TISSUE_HU, LEAST_SOFT_TISSUE = (-200.0, 200.0), 0.6
MUSCLE_HU, LEAST_MUSCLE = (-20.0, 130.0), 0.1
# Inflated lung has a mean near -850 HU (Cheng et al., Int J COPD 2019; 14:1657), with emphysema about -930. Gas in the
# bowel has the HU of air.
LUNG_HU = (-960.0, -500.0)
# Noise of one voxel of the working grid, including edges of tissues. Fat and water differ by 100 HU.
MOST_NOISE_HU = 60.0
# The 12-bit range ends at 3071, far above bone. Boas & Fleischmann, Imaging Med 2012; 4:229. Sternal wires and a heart
# valve have 1 to 5 mL; spinal rods or a heart pump have more than MOST_METAL_ML.
METAL_ABOVE_HU, METAL_MARGIN_MM, SOME_METAL_ML, MOST_METAL_ML = 2500, 10.0, 1.0, 10.0
# Side of heart and stomach, from -1 (right) to 1 (left). The sides are exchanged in about 1 of 10,000 people (Lin et
# al., Am J Med Genet A 2014; 164:2581). Disease can pull only the heart to the right. So a scan is taken as mirrored
# if the stomach is on the right too; without a visible stomach, the heart must be clearly on the right.
HEART_RIGHT = -0.1
LEAST_GAS_ML, BESIDE_MIDLINE_MM = 5.0, 24.0
# The left lung has about 45 % of the volume of both.
LEAST_SMALLER_LUNG = 0.25


@dataclass(frozen=True)
class Anatomy:
    """Measured anatomy of one scan. None where a value cannot be measured.

    `air_hu`: around the patient. `soft_tissue`, `muscle`: shares of the body at the height of the lungs, without the
    lungs. `noise_hu`: standard deviation in soft tissue on the working grid. `lung_hu`: median. `gas`: see
    `air.gas_share`. `metal_ml`: in and beside the chest. `ends`: see `field_of_view.cut_slices`. `cut_low`, `cut_high`:
    see `field_of_view.end_shares`. `cut_aside`: see `field_of_view.cut_share`.
    `spine_behind_mm`, `windpipe_above_mm2`, `heart_left`: see `measures.Measures`. `stomach_left`: -1 to 1, the side of
    the gas below the lungs. `smaller_lung`: share of the smaller lung in the volume of both.
    """

    air_hu: float | None
    soft_tissue: float
    muscle: float
    noise_hu: float | None
    lung_hu: float
    gas: float
    metal_ml: float
    ends: tuple[int, int]
    cut_low: float
    cut_high: float
    cut_aside: float
    spine_behind_mm: float | None
    windpipe_above_mm2: float
    heart_left: float
    stomach_left: float | None
    smaller_lung: float


def look_at(volume: Volume, prepared: Prepared) -> Anatomy:
    """Measure one scan. `volume`: upright, as `pipeline.preprocessing.preprocess.orient` gives it."""
    hu, lungs = prepared.image_hu, prepared.lungs
    ends = cut_slices(volume, len(lungs))
    cut_low, cut_high = end_shares(lungs, ends)
    tissue = _tissue(prepared)
    spine, trachea, heart = body_pose(prepared)
    air_hu = air_around(volume.hu, lungs)
    right = float(lungs[:, :, : round(middle_of_body(prepared)) + 1].sum() / lungs.sum())
    return Anatomy(
        air_hu=air_hu,
        soft_tissue=_share(hu[tissue], SOFT_TISSUE_HU),
        muscle=_share(hu[tissue], MUSCLE_HU),
        noise_hu=_noise(hu, tissue),
        lung_hu=float(np.median(hu[lungs])),
        gas=gas_share(hu, lungs, air_hu),
        metal_ml=_metal_ml(volume, prepared),
        ends=ends,
        cut_low=cut_low,
        cut_high=cut_high,
        cut_aside=cut_share(hu, lungs),
        spine_behind_mm=spine,
        windpipe_above_mm2=trachea,
        heart_left=heart,
        stomach_left=_stomach_left(prepared),
        smaller_lung=min(right, 1 - right),
    )


def require_chest(found: Anatomy) -> None:
    """Refuse a scan that does not show an upright, whole, adult chest in HU.

    Raises Refusal E_AIR_HU, E_TISSUE_HU, E_NOISE, E_NOT_LUNG, E_METAL, E_LUNGS_CUT, E_TURNED, E_MIRRORED.
    """
    if found.air_hu is not None and not AIR_HU[0] <= found.air_hu <= AIR_HU[1]:
        raise Refusal(reasons.AIR_HU_REFUSED, air_hu=round(found.air_hu))
    if found.soft_tissue < LEAST_SOFT_TISSUE or found.muscle < LEAST_MUSCLE:
        raise Refusal(reasons.TISSUE_HU, soft=round(100 * found.soft_tissue), muscle=round(100 * found.muscle))
    if found.noise_hu is not None and found.noise_hu > MOST_NOISE_HU:
        raise Refusal(reasons.NOISE, noise_hu=round(found.noise_hu))
    if not LUNG_HU[0] <= found.lung_hu <= LUNG_HU[1]:
        raise Refusal(reasons.NOT_LUNG, lung_hu=round(found.lung_hu), gas=round(100 * found.gas))
    if found.metal_ml > MOST_METAL_ML:
        raise Refusal(reasons.METAL_REFUSED, metal_ml=round(found.metal_ml))
    if (cut := max(found.cut_low, found.cut_high)) > MOST_CUT:
        raise Refusal(reasons.LUNGS_CUT_REFUSED, percent=round(100 * cut))
    if is_turned(found.spine_behind_mm, found.windpipe_above_mm2):
        raise Refusal(reasons.TURNED_REFUSED)
    if _is_mirrored(found.heart_left, found.stomach_left):
        raise Refusal(reasons.MIRRORED_REFUSED)


def require_upright(prepared: Prepared, spine_behind_mm: float | None, trachea_mm2: float, heart_left: float) -> None:
    """Refuse a body that is not oriented as the header says, as `require_chest` does; for scans that train.

    `spine_behind_mm`, `trachea_mm2`, `heart_left`: of `body_pose`.

    Raises Refusal E_TURNED, E_MIRRORED.
    """
    if is_turned(spine_behind_mm, trachea_mm2):
        raise Refusal(reasons.TURNED_REFUSED)
    # Where the heart is on the left, the stomach decides nothing.
    if heart_left < 0 and _is_mirrored(heart_left, _stomach_left(prepared)):
        raise Refusal(reasons.MIRRORED_REFUSED)


def _is_mirrored(heart_left: float, stomach_left: float | None) -> bool:
    return heart_left < HEART_RIGHT if stomach_left is None else heart_left < 0 and stomach_left < 0


def _stomach_left(prepared: Prepared) -> float | None:
    """Return the side of gas outside the lungs, from the lower third of the lungs downwards."""
    heights = np.flatnonzero(prepared.lungs.any(axis=(1, 2)))
    below = slice(heights[0] + len(heights) // 3)
    pieces, _ = ndimage.label(prepared.image_hu < TISSUE_ABOVE_HU)
    gas = (pieces > 0) & ~np.isin(pieces, at_sides(pieces)) & ~prepared.lungs
    columns = np.arange(gas.shape[2]) - middle_of_body(prepared)
    aside = BESIDE_MIDLINE_MM / prepared.spacing_mm
    right, left = (int(gas[below][..., beside].sum()) for beside in (columns < -aside, columns > aside))
    if (right + left) * prepared.voxel_ml < LEAST_GAS_ML:
        return None
    return (left - right) / (left + right)


def _tissue(prepared: Prepared) -> NDArray[np.bool_]:
    """Return the patient without the lungs, at their height: the largest region denser than lung, without the table."""
    pieces, _ = ndimage.label(prepared.image_hu > TISSUE_ABOVE_HU)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    tissue = (pieces == sizes.argmax()) & ~prepared.lungs
    tissue[~prepared.lungs.any(axis=(1, 2))] = False
    return tissue


def _share(hu: NDArray[np.float32], band: tuple[float, float]) -> float:
    return float(np.mean((hu >= band[0]) & (hu <= band[1]))) if hu.size else 0.0


def _noise(hu: NDArray[np.float32], tissue: NDArray[np.bool_]) -> float | None:
    """Estimate noise from the differences between voxels and the mean of their neighbourhood.

    The median of the differences is used, because few voxels are at edges.
    """
    around = ndimage.uniform_filter(hu, 3)
    inner = ndimage.binary_erosion(tissue) & (around > SOFT_TISSUE_HU[0]) & (around < SOFT_TISSUE_HU[1])
    if not inner.any():
        return None
    own_share = 26 / 27  # the voxel itself is part of its neighbourhood
    return float(1.4826 * np.median(np.abs(hu - around)[inner]) / np.sqrt(own_share))


def _metal_ml(volume: Volume, prepared: Prepared) -> float:
    """Measure the metal (mL) within the rectangle around the lungs in each slice; a pacemaker is in front of it."""
    margin = round(METAL_MARGIN_MM / prepared.spacing_mm)
    lungs = ndimage.maximum_filter1d(prepared.lungs, 2 * margin + 1, axis=0)
    finer = np.divide(volume.hu.shape, lungs.shape)
    voxels = 0
    for index, hu in enumerate(volume.hu):
        section = lungs[int((index + 0.5) / finer[0])]
        if section.any():
            rectangle = bounding_box(section, margin)
            fine = [slice(int(s.start * f), int(s.stop * f)) for s, f in zip(rectangle, finer[1:], strict=True)]
            voxels += int(np.count_nonzero(hu[tuple(fine)] > METAL_ABOVE_HU))
    return voxels * float(np.prod(volume.spacing_mm)) / 1000
