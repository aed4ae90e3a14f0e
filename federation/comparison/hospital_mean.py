"""The mean of the hospitals' AUROCs with an interval, which needs no counts of patients: a random-effects form.

It is the AUROC of a typical hospital. It never compares patients of different hospitals, so it is not the AUROC of all
patients together (`pooled`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy.special import expit, logit
from scipy.stats import norm, t

Figures = Mapping[str, float]
_Z = float(norm.ppf(0.975))
ENDS = (1e-4, 1 - 1e-4)  # AUROCs nearer to 0 or 1 have no useful logit
Areas = Mapping[str, tuple[float, float]]  # by site: AUROC as a logit, and its standard error


@dataclass(frozen=True)
class HospitalMean:
    """The mean AUROC with two 95 % intervals, and the number of hospitals that reported theirs.

    `here`: for the mean over these hospitals themselves. `low`, `high`: for hospitals like these; NaN with two
    hospitals that differ, which do not tell by how much others would.
    """

    value: float
    low: float
    high: float
    here: tuple[float, float]
    sites: int


def areas_of(sites: Mapping[str, Figures], label: str) -> dict[str, tuple[float, float]]:
    """Return each site's AUROC of a label as a logit, with its standard error; without sites that gave no interval."""
    return {site: area for site, figures in sorted(sites.items()) if (area := _area(figures, label))}


def hospital_mean(areas: Areas) -> HospitalMean | None:
    """Return the random-effects mean of the sites' AUROCs; None without any.

    The weights are those of DerSimonian & Laird (Controlled Clinical Trials 1986; 7:177) on the logit scale. Where the
    hospitals differ by more than their own intervals explain, the interval for hospitals like these is that of Hartung
    & Knapp (Stat Med 2001; 20:3875) with Student's t, never shorter than the normal one: few hospitals hardly tell how
    much hospitals differ. The coverage of both is measured in benchmarks/results/coverage.md.
    """
    if not areas:
        return None
    q, weights = _cochran(areas)
    freedom, total = len(areas) - 1, math.fsum(weights.values())
    shrunk = total - math.fsum(weight**2 for weight in weights.values()) / total
    between = max(0.0, (q - freedom) / shrunk) if shrunk > 0 else 0.0
    apart = {site: (value, math.sqrt(error**2 + between)) for site, (value, error) in areas.items()}
    q, weights = _cochran(apart)
    total = math.fsum(weights.values())
    mean = math.fsum(weights[site] * value for site, (value, _) in areas.items()) / total
    half = wider = _Z / math.sqrt(total)
    if between > 0:
        wider = float(t.ppf(0.975, freedom)) * math.sqrt(max(1.0, q / freedom) / total) if freedom > 1 else math.nan
    value, low, high, *here = (float(expit(mean + by)) for by in (0, -wider, wider, -half, half))
    return HospitalMean(value, low, high, (here[0], here[1]), len(areas))


def _area(figures: Figures, label: str) -> tuple[float, float] | None:
    names = (f"auroc_{label}", f"auroc_{label}_low", f"auroc_{label}_high")
    if not all(math.isfinite(figures.get(name, math.nan)) for name in names):
        return None
    value, low, high = (_logit(figures[name]) for name in names)
    return value, max((high - low) / (2 * _Z), 1e-6)


def _cochran(areas: Areas) -> tuple[float, dict[str, float]]:
    """Return Cochran's Q of the sites' AUROCs on the logit scale, and the weight of each site."""
    weights = {site: 1 / error**2 for site, (_, error) in areas.items()}
    mean = math.fsum(weights[site] * value for site, (value, _) in areas.items()) / math.fsum(weights.values())
    return math.fsum(weights[site] * (value - mean) ** 2 for site, (value, _) in areas.items()), weights


def _logit(share: float) -> float:
    return float(logit(min(max(share, ENDS[0]), ENDS[1])))
