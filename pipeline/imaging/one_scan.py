"""Checks that the slices of a series belong to one scan, and that their positions agree with what headers say.

Anonymised images of two patients may have the same identifiers, and software may change positions. What the headers
contain beside them then disagrees. One sign that may have a harmless cause is flagged, two that agree are refused.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from models.refusal import Refusal
from pipeline.imaging import reasons
from pipeline.imaging.ct_slice import OF_ONE_RECORDING, OF_ONE_SCAN, Slice

_LEAST_OF_A_FRAME = 4  # slices for each FrameOfReferenceUID; some de-identification gives each file another one
_MOST_DIFFERENCE = 0.2  # share; a tilt of 30 degrees makes 0.15
_AGREE = 0.05
_LEAST_MM = 0.05  # some scanners write 0 for an unknown value


def require_one_scan(slices: Sequence[Slice]) -> None:
    """Refuse slices that differ in what is the same for a patient, study, scanner or series.

    Raises `Refusal` E_SEVERAL_SCANS, with the keywords of the attributes.
    """
    found = []
    for keyword, values in zip(OF_ONE_SCAN, zip(*(each.scan for each in slices), strict=True), strict=True):
        different = len(set(values) - {""})
        is_noise = keyword == "FrameOfReferenceUID" and different * _LEAST_OF_A_FRAME > len(slices)
        if different > 1 and not is_noise:
            found.append(keyword)
    if found:
        raise Refusal(reasons.SEVERAL_SCANS, attributes=", ".join(found))


def require_one_recording(slices: Sequence[Slice]) -> None:
    """Refuse slices of several recordings that lie between each other, such as two phases half a slice apart.

    `slices`: sorted by position. A value may change along the body, which some scanners record piece by piece; it must
    not come back then. A single slice with a value of its own is no recording.

    Raises `Refusal` E_SEVERAL_SCANS, with the keywords of the attributes.
    """
    found = []
    for keyword, values in zip(OF_ONE_RECORDING, zip(*(each.recording for each in slices), strict=True), strict=True):
        counts = Counter(values)
        repeated = [value for value in values if value and counts[value] > 1]
        if sum(1 for _ in groupby(repeated)) > len(set(repeated)):
            found.append(keyword)
    if found:
        raise Refusal(reasons.SEVERAL_SCANS, attributes=", ".join(found))


def check_positions(slices: Sequence[Slice], apart_mm: float) -> set[str]:
    """Compare the distance of slices by their positions with SpacingBetweenSlices and SliceLocation; return flags.

    `slices`: sorted by position. SpacingBetweenSlices counts only if it is larger: some scanners write the gap there,
    and `missing_slices` judges distances that are larger than stated. If only one of both contradicts the positions, it
    may be wrong itself: W_POSITIONS. Raises `Refusal` E_POSITIONS if both contradict them in the same way.
    """
    spacing_mm = float(np.median([each.spacing_mm for each in slices]))
    steps_mm = np.abs(np.diff([each.location_mm for each in slices]))
    location_mm = float(np.median(steps_mm))
    is_steady = np.isfinite(steps_mm).all() and location_mm >= _LEAST_MM and np.ptp(steps_mm) <= _AGREE * location_mm
    by_spacing = spacing_mm >= _LEAST_MM and spacing_mm > (1 + _MOST_DIFFERENCE) * apart_mm
    by_location = bool(is_steady) and abs(location_mm - apart_mm) > _MOST_DIFFERENCE * apart_mm
    if by_spacing and by_location and math.isclose(spacing_mm, location_mm, rel_tol=_AGREE):
        raise Refusal(reasons.POSITIONS, apart_mm=round(apart_mm, 2), stated_mm=round(spacing_mm, 2))
    return {reasons.POSITIONS_FLAGGED.code} if by_spacing or by_location else set()
