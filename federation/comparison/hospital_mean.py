"""The mean of the hospitals' AUROCs with an interval: a random-effects form.

It never compares patients of different hospitals, so it is not the AUROC of all patients together (`pooled`).
"""

import math
from dataclasses import dataclass

from scipy.stats import t

from federation.comparison.hospital_areas import Combined, HospitalAreas, Z
from pipeline.evaluation.auroc_variance import score_interval


@dataclass(frozen=True)
class HospitalMean:
    """The mean AUROC with two 95 % intervals, and the number of hospitals that reported theirs.

    `here`: for the mean over other patients of these hospitals themselves. `low`, `high`: for the mean over all
    hospitals like these; NaN with two hospitals that differ, which do not tell by how much others would.
    """

    value: float
    low: float
    high: float
    here: tuple[float, float]
    sites: int


def hospital_mean(areas: HospitalAreas) -> HospitalMean | None:
    """Return the random-effects mean of the hospitals' AUROCs; None without any. One hospital has its own interval.

    The weights are those of DerSimonian & Laird (Controlled Clinical Trials 1986; 7:177), the intervals are score
    intervals. Where the hospitals differ by more than chance explains, the interval for hospitals like these has the
    standard error of Hartung & Knapp (Stat Med 2001; 20:3875) with Student's t, never less than the normal one: few
    hospitals hardly tell how much hospitals differ. The coverage of both is measured in benchmarks/results/coverage.md.
    """
    if not areas:
        return None
    if len(areas) == 1:
        (own,) = areas.by_site.values()
        return HospitalMean(own.value, own.low, own.high, (own.low, own.high), 1)
    freedom = len(areas) - 1
    between = _between(areas.combined(), freedom)
    combined = areas.combined(between)
    wider = 1.0
    if between > 0:
        student = float(t.ppf(0.975, freedom)) / Z if freedom > 1 else math.nan
        wider = student * math.sqrt(max(1.0, combined.q / freedom))
    shares = combined.weights / combined.weights.sum()
    here = score_interval(combined.mean, lambda area: float(shares**2 @ areas.variances(area)), Z)
    like = score_interval(combined.mean, lambda area: float(shares**2 @ (areas.variances(area) + between)), Z * wider)
    return HospitalMean(combined.mean, *like, here, len(areas))


def _between(combined: Combined, freedom: int) -> float:
    """Return DerSimonian & Laird's variance between hospitals."""
    total = combined.weights.sum()
    return max(0.0, (combined.q - freedom) / float(total - (combined.weights**2).sum() / total))
