"""Whether hospitals' calibration slopes are away from 1 in ways that their mean hides, and by more than chance.

A mean over hospitals can hide that a model is badly calibrated at each (Riley et al., BMJ 2016; 353:i3140): a slope of
0.2 at one and of 1.8 at another have the mean 1.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import expit, ndtri
from scipy.stats import chi2

from federation.comparison.class_sizes import ClassSizes, about_sizes
from federation.protocol.metric_allowlist import EXAMPLES

FARTHEST = 10.0  # largest factor by which a hospital's slope counts as away from 1
AUROCS = (0.55, 0.995)  # beyond them the variance of a slope is not followed
_NODES = 60

Figures = Mapping[str, float]
Slopes = dict[str, float]  # by hospital


def slopes_of(sites: Mapping[str, Figures], label: str) -> Slopes:
    """Return the calibration slope on test patients of each hospital that reported it."""
    name = f"calibration_slope_{label}"
    return {site: figures[name] for site, figures in sites.items() if name in figures}


def mean_slope(slopes: Slopes, sites: Mapping[str, Figures]) -> float:
    """Return the mean slope over hospitals, weighted by test patients; NaN without any."""
    return _mean(slopes, sites)


def factor_from_one(slopes: Slopes, sites: Mapping[str, Figures]) -> float:
    """Return the factor by which slopes are away from 1, upwards or downwards: the geometric mean over hospitals.

    Hospitals are weighted by test patients. A slope of a small hospital may be near 0 or negative by chance, so a
    factor counts as at most FARTHEST.
    """
    return math.exp(_mean({site: math.log(_factor(slope)) for site, slope in slopes.items()}, sites))


def chance_of_slopes(slopes: Slopes, sites: Mapping[str, Figures], label: str) -> float:
    """Return how likely the slopes of equally calibrated hospitals differ as much; 1 with fewer than two.

    Cochran's Q around the mean slope, with the variances of hospitals that all have this slope. A site releases no
    interval of its slope.
    """
    mean = mean_slope(slopes, sites)
    if len(slopes) < 2 or mean <= 0:
        return 1.0
    aurocs = {site: sites[site].get(f"auroc_{label}", math.nan) for site in slopes}
    auroc = _mean({site: value for site, value in aurocs.items() if math.isfinite(value)}, sites)
    variances = {site: slope_variance(auroc, about_sizes(sites[site], label)) for site in slopes}
    q = math.fsum((slope / mean - 1) ** 2 / variances[site] for site, slope in slopes.items())
    return float(chi2.sf(q, len(slopes) - 1))


def slope_variance(auroc: float, sizes: ClassSizes) -> float:
    """Return the variance of a calibration slope that is 1, from Fisher's information of the logistic regression.

    Within each class, logits are normal with the same variance, and calibrated: the binormal model of `auroc`.
    The variance of another slope is this one times its square, for a slope has the unit of 1 / logit. It holds for many
    patients: of 50 in each class, the variance is about 1.4 times as large at an AUROC of 0.85.
    """
    low, high = AUROCS
    distance = math.sqrt(2) * float(ndtri(min(max(auroc if math.isfinite(auroc) else low, low), high)))
    points, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    x = np.concatenate([distance**2 / 2 + distance * points, -(distance**2) / 2 + distance * points])
    patients = np.concatenate([weights * sizes.positive, weights * sizes.negative])
    p = expit(x + math.log(sizes.positive / sizes.negative))
    information = patients * p * (1 - p)
    mean = (information * x).sum() / information.sum()
    return float(1 / (information * (x - mean) ** 2).sum())


def _factor(slope: float) -> float:
    return min(max(slope, 1 / slope), FARTHEST) if slope > 0 else FARTHEST


def _mean(values: Mapping[str, float], sites: Mapping[str, Figures]) -> float:
    patients = {site: sites[site][EXAMPLES] for site in values}
    total = math.fsum(patients.values())
    return math.fsum(value * patients[site] for site, value in values.items()) / total if total else math.nan
