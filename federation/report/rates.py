"""Sensitivity, specificity and predictive values at a threshold, with intervals from the counts that a site released.

A site reports a share over L patients in steps of 1/L', so that no single patient is visible (`protocol.grids`). The
intervals allow for this rounding: the true number of patients may be half a step less or more.
"""

import math
from collections.abc import Mapping

from federation.comparison.class_sizes import ClassSizes, class_sizes
from federation.protocol.grids import MAX_PARTS, Shares, parts_of
from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.operating_points import lower_bound
from federation.report.estimates import Estimate, as_estimate, number
from pipeline.evaluation.combining import Interval

_TAIL = 0.025
_EXACT = 1e-6  # of a multiple; results are stored as floats


def half_step(figures: Mapping[str, float], label: str) -> float:
    """Return half the step of the shares that cover all test patients with a known label.

    Without counts the number of these patients is not known. The step is then the longest of which all shares that the
    site released are multiples: never shorter than the true one.
    """
    if sizes := class_sizes(figures, label):
        return 0.5 / parts_of(sum(sizes))
    names = [name for name, each in FIGURES["evaluate.test"].items() if each.label == label and each.grid == Shares()]
    shares = [share for name in names if (share := number(figures, name)) is not None]
    fitting = (parts for parts in range(1, MAX_PARTS + 1) if all(_is_multiple(share, parts) for share in shares))
    return 0.5 / next(fitting, MAX_PARTS)


def _is_multiple(share: float, parts: int) -> bool:
    return math.isclose(share * parts, round(share * parts), rel_tol=0, abs_tol=_EXACT)


def rate(value: float, patients: int) -> Estimate:
    """Return a share of `patients` patients, as a site rounded it, with its interval (`_clopper_pearson`)."""
    return as_estimate(_clopper_pearson(value, value * patients, patients, _half_step(patients)))


def predictive_value(value: float, right: float, wrong: float, sizes: ClassSizes) -> Estimate:
    """Return a predictive value with its interval. `right` and `wrong`: the patients with this answer, computed.

    Both numbers carry the rounding of a rate: half a step of the smaller class, which has the longer steps in shares.
    """
    half = max(_half_step(patients) for patients in sizes)
    return as_estimate(_clopper_pearson(value, right, right + wrong, half) if right + wrong > 0 else None, value)


def _half_step(patients: int) -> float:
    """Return half the step of a share, in patients."""
    return patients / parts_of(patients) / 2


def _clopper_pearson(value: float, count: float, patients: float, half: float) -> Interval:
    """Return the exact binomial interval (Clopper & Pearson, Biometrika 1934; 26:404) for counts within `half`."""
    least, most = max(0.0, count - half), min(patients, count + half)
    low = float(lower_bound(least, patients, tail=_TAIL))
    high = 1 - float(lower_bound(patients - most, patients, tail=_TAIL))
    return Interval(value, min(value, low), max(value, high))
