"""Detects missing slices of a series from the headers of the slices that are there.

If slices are missing regularly, for example every second one, the distances stay regular. Two signs remain: distances
larger than SpacingBetweenSlices or SliceThickness, and gaps in InstanceNumber, which counts the images of a series
(DICOM PS3.3, C.7.6.2 and C.7.6.1). One sign alone is no proof: reconstructions with gaps are made on purpose, slices
often overlap, and the parts of a split series keep their numbers. If both signs indicate the same missing share, slices
are missing.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

from pydicom import Dataset

from models.refusal import Reason, Refusal
from pipeline.imaging import reasons
from pipeline.imaging.dicom_header import tags, text
from pipeline.imaging.discovery import Series
from pipeline.imaging.multiframe import read_first_header
from pipeline.imaging.nifti_reader import is_volume_file
from pipeline.imaging.pydicom_silence import quiet_pydicom

_MUCH_FURTHER = 1.5  # times
_SAME_SHARE = 0.1
_LEAST_MM = 0.05  # some scanners write 0 for an unknown value
_HEADER = tags("SpacingBetweenSlices", "SliceThickness")


@dataclass(frozen=True)
class Stated:
    """Values from the headers; None if absent.

    `number_step`: step of InstanceNumber from one image to the next, if it is constant.
    `spacing_mm`, `thickness_mm`: SpacingBetweenSlices (centre to centre) and SliceThickness of one slice.
    """

    number_step: int | None = None
    spacing_mm: float | None = None
    thickness_mm: float | None = None


@quiet_pydicom()
def stated(series: Series) -> Stated:
    """Read the values from the first file of a DICOM series; unreadable values are None."""
    first = series.files[0]
    if is_volume_file(first.name):
        return Stated()
    steps = {after - before for before, after in pairwise(sorted(set(series.numbers)))}
    try:
        header = read_first_header(first, _HEADER)
    except Refusal:
        header = Dataset()
    return Stated(
        steps.pop() if len(steps) == 1 else None, _mm(header, "SpacingBetweenSlices"), _mm(header, "SliceThickness")
    )


def require_whole(found: Stated, apart_mm: float) -> None:
    """Refuse a scan with slices `apart_mm` apart if both signs indicate missing slices.

    Raises Refusal E_SLICES_MISSING.
    """
    step = found.number_step or 1
    usual_mm = [each for each in (found.spacing_mm, found.thickness_mm) if each is not None]
    if step > 1 and any(abs(apart_mm / each - step) <= _SAME_SHARE * step for each in usual_mm):
        raise Refusal(reasons.SLICES_MISSING, step=step, apart_mm=round(apart_mm, 2))


def remark(found: Stated, apart_mm: float) -> Reason | None:
    """Return the flag for slices that are `apart_mm` apart: W_SLICES_MISSING, W_SLICES_APART or None."""
    if (found.number_step or 1) > 1 or apart_mm > _MUCH_FURTHER * (found.spacing_mm or apart_mm):
        return reasons.SLICES_MISSING_FLAGGED
    return reasons.SLICES_APART if apart_mm > _MUCH_FURTHER * (found.thickness_mm or apart_mm) else None


def _mm(header: Dataset, keyword: str) -> float | None:
    try:
        value = float(text(header, keyword))
    except (Refusal, ValueError):
        return None
    return value if _LEAST_MM <= value < math.inf else None
