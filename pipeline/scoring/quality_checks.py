"""Makes the quality checks of one scan that are shown beside its score: the value found, and flags for review."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.refusal import Reason
from pipeline.imaging.discovery import Series
from pipeline.imaging.lung_mask import RIGHT
from pipeline.imaging.missing_slices import Stated, remark
from pipeline.imaging.volume import Volume
from pipeline.preprocessing import reasons as preprocessing_reasons
from pipeline.preprocessing.external_lungs import agreement_with_threshold
from pipeline.preprocessing.field_of_view import cut_share, end_shares
from pipeline.preprocessing.lesion_burden import unsure_share
from pipeline.preprocessing.lung_regions import LungRegions, dice
from pipeline.preprocessing.lungs import are_flat, lungs_size_mm
from pipeline.preprocessing.measures import AIR_BETWEEN_HU
from pipeline.preprocessing.plausibility import LEAST_SMALLER_LUNG, SOME_METAL_ML, Anatomy
from pipeline.preprocessing.preprocess import Prepared
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring import reasons
from pipeline.scoring.single_scan import OneScan
from pipeline.system.codes import BY_CODE

ADULT_YEARS = 18
# Dice coefficient of two methods. Measured for threshold and segmenter: 0.96 and more where both are right.
LEAST_AGREEMENT = 0.85
CUT_AT = ("lowest", "highest", "side")
MOST_UNSURE = 0.02  # share of the lungs; two points of consolidation are what counts as an error in the benchmark


@dataclass(frozen=True)
class Check:
    """One check. `reason` is the `W_` reason of a flag; None if the check is passed."""

    name: str
    value: float | str
    unit: str = ""
    reason: Reason | None = None

    @property
    def verdict(self) -> str:
        return "flag" if self.reason else "ok"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "verdict": self.verdict,
            "code": self.reason and self.reason.code,
            "says": self.reason and self.reason.says,
            "remedy": self.reason and self.reason.remedy,
        }


def checks(
    scan: OneScan,
    prepared: Prepared,
    found: Anatomy,
    settings: Preprocessing,
    regions: LungRegions,
    sides: NDArray[np.uint8] | None = None,
) -> tuple[Check, ...]:
    """Return all checks of one scan, in the order of display.

    `regions`: from the segmenter. `sides`: an external mask, if there is one (see `external_lungs.sides_on_grid`).
    """
    return (
        *_of_files(scan, settings),
        *checks_of_lungs(prepared, found, settings, regions, sides),
        *_of_patient(scan.series),
    )


def checks_of_lungs(
    prepared: Prepared,
    found: Anatomy,
    settings: Preprocessing,
    regions: LungRegions,
    sides: NDArray[np.uint8] | None = None,
) -> tuple[Check, ...]:
    """Return the checks of the lungs and of their density, which hold without a model too; arguments: see `checks`."""
    return (*_of_lungs(prepared, found, regions, sides), *_of_density(prepared, found, settings))


def checks_of_reading(volume: Volume, stated: Stated, unread: int) -> tuple[Check, ...]:
    """Return the checks of a scan as it was read, which hold without a model too; arguments: see `OneScan`."""
    slice_mm = volume.spacing_mm[0]
    return (
        Check("slices", len(volume.hu)),
        Check("slice_distance", round(slice_mm, 2), "mm", remark(stated, slice_mm)),
        Check("unreadable_files", unread, "", reasons.FILES_UNREADABLE if unread else None),
        *[Check("reader", flag, "", BY_CODE[flag]) for flag in volume.flags],
    )


def _of_files(scan: OneScan, settings: Preprocessing) -> list[Check]:
    slices, distance, *others = checks_of_reading(scan.volume, scan.stated, scan.unread)
    pixel_mm = max(scan.volume.spacing_mm[1:])
    is_coarse = pixel_mm > settings.working_spacing_mm
    return [
        slices,
        distance,
        Check("pixel_spacing", round(pixel_mm, 2), "mm", reasons.COARSE if is_coarse else None),
        Check("other_series", scan.other_series, "", reasons.SERIES_TWICE if scan.has_copy else None),
        *others,
    ]


def _of_lungs(prepared: Prepared, found: Anatomy, regions: LungRegions, sides: NDArray[np.uint8] | None) -> list[Check]:
    """Return the checks of the lungs that the table shows: those of the mask, if there is one."""
    mask = None if sides is None else sides > 0
    lungs = prepared.lungs if mask is None else mask
    cut = _cut(prepared, found, mask)
    smaller = found.smaller_lung if sides is None else _smaller_lung(sides)
    agreed = _agreement(prepared, regions, mask)
    unsure = unsure_share(prepared.image_hu, regions) if mask is None else 0.0
    height_mm, width_mm = lungs_size_mm(lungs, prepared.spacing_mm)
    flat = preprocessing_reasons.LUNGS_FLAT if are_flat(height_mm, width_mm) else None
    return [
        Check("lungs", round(np.count_nonzero(lungs) * prepared.voxel_ml), "mL"),
        Check("lungs_height", round(height_mm), "mm", flat),
        Check("smaller_lung", round(100 * smaller), "%", reasons.ONE_LUNG if smaller < LEAST_SMALLER_LUNG else None),
        Check("lungs_agree", round(100 * agreed), "%", reasons.LUNGS_UNSURE if agreed < LEAST_AGREEMENT else None),
        Check("unsure_border", round(100 * unsure, 1), "%", reasons.BORDER_UNSURE if unsure > MOST_UNSURE else None),
        Check("lungs_cut", " and ".join(cut) or "no", "", preprocessing_reasons.LUNGS_CUT if cut else None),
    ]


def _cut(prepared: Prepared, found: Anatomy, mask: NDArray[np.bool_] | None) -> list[str]:
    """Return where the scan cuts the lungs that are used, for the input or the table."""
    shares = [(found.cut_low, found.cut_high, found.cut_aside)]
    if mask is not None:
        shares.append((*end_shares(mask, found.ends), cut_share(prepared.image_hu, mask)))
    return [place for place, of_place in zip(CUT_AT, zip(*shares, strict=True), strict=True) if max(of_place) > 0]


def _smaller_lung(sides: NDArray[np.uint8]) -> float:
    """Return the share of the smaller lung of a mask in the volume of both."""
    right = float(np.mean(sides[sides > 0] == RIGHT))
    return min(right, 1 - right)


def _agreement(prepared: Prepared, regions: LungRegions, mask: NDArray[np.bool_] | None) -> float:
    """Return the least agreement of the lungs that are used, for the input or the table, with those of another method.

    Lungs of the segmenter are compared with those by threshold, all others with those of the segmenter.
    """
    if prepared.found is None:
        of_input = dice(prepared.lungs, regions.lungs)
    else:
        of_input = agreement_with_threshold(prepared.image_hu, prepared.lungs, prepared.spacing_mm)
    return of_input if mask is None else min(of_input, dice(mask, regions.lungs))


def _of_density(prepared: Prepared, found: Anatomy, settings: Preprocessing) -> list[Check]:
    low, high = AIR_BETWEEN_HU
    is_air = found.air_hu is None or low <= found.air_hu <= high
    is_shift_spent = abs(prepared.shift_hu) >= settings.largest_shift_hu
    return [
        Check(
            "air",
            "not seen" if found.air_hu is None else round(found.air_hu),
            "HU" if found.air_hu else "",
            None if is_air else preprocessing_reasons.AIR_HU,
        ),
        Check("hu_shift", round(prepared.shift_hu), "HU", preprocessing_reasons.HU_SHIFT if is_shift_spent else None),
        Check("metal", round(found.metal_ml, 1), "mL", reasons.METAL if found.metal_ml > SOME_METAL_ML else None),
    ]


def _of_patient(series: Series) -> list[Check]:
    age, sex = series.age_years, series.sex
    age_reason = reasons.AGE_MISSING if age is None else reasons.NOT_ADULT if age < ADULT_YEARS else None
    return [
        Check("age", "missing" if age is None else "known", "", age_reason),
        Check("sex", "known" if sex else "missing", "", None if sex else reasons.SEX_MISSING),
    ]
