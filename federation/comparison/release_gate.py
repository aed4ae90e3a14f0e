"""Looks for reasons to doubt a model before it is released. A release that has any must state why it was made.

Beside the flags of the shortcut audit: an audit that was not made, a label that was not calibrated and judged, an AUROC
that may be that of chance, a calibration slope far from 1, and hospitals that differ more than by chance.
"""

import math
from collections.abc import Iterator, Mapping

from scipy.stats import chi2, norm

from federation.comparison import reasons
from federation.comparison.pooled import pool
from federation.protocol.metric_allowlist import EXAMPLES
from federation.runs.results import FEDERATED, Flag, Results
from models.network import LABELS
from models.refusal import Reason

CHANCE = 0.5
SLOPES = (0.5, 2.0)  # of the calibration on test patients; 1 is ideal
UNUSUAL = 0.01  # chance of as large a difference between hospitals that have the same AUROC
_Z = float(norm.ppf(0.975))
_ENDS = (1e-4, 1 - 1e-4)  # AUROCs nearer to 0 or 1 have no useful logit

Figures = Mapping[str, float]


def doubts(results: Results) -> list[Flag]:
    """Return the reasons to doubt the model of a run: those of the audit first, then those of each label.

    A reason about all hospitals has an empty `site`.
    """
    found = list(results.audit.flags) if results.audit else [_flag(reasons.NOT_AUDITED)]
    federated = results.model(FEDERATED)
    sites = federated.figures if federated else {}
    for label in LABELS:
        found += _of_label(results, sites, label)
    return found


def _of_label(results: Results, sites: Mapping[str, Figures], label: str) -> Iterator[Flag]:
    areas = {site: area for site, figures in sorted(sites.items()) if (area := _area(figures, label))}
    if label not in results.calibration or not areas:
        yield _flag(reasons.NOT_JUDGED, label=label)
        return
    low, high = _interval(sites, areas, label)
    if not low > CHANCE:  # an interval that is not a number proves nothing
        yield _flag(reasons.AT_CHANCE, label=label, low=f"{low:.2f}", high=f"{high:.2f}")
    slope = _slope(sites, label)
    if results.calibration[label].slope <= 0 or (slope is not None and not SLOPES[0] <= slope <= SLOPES[1]):
        shown = "not positive" if results.calibration[label].slope <= 0 else f"{slope:.2f}"
        yield _flag(reasons.SLOPE_FAR, label=label, slope=shown)
    if (chance := _chance_of_difference(areas)) < UNUSUAL:
        worst, best = (extreme(areas, key=lambda site: areas[site][0]) for extreme in (min, max))
        worst_auroc, best_auroc = (f"{_from_logit(areas[site][0]):.2f}" for site in (worst, best))
        numbers = {"lowest": worst_auroc, "highest": best_auroc, "chance": f"{chance:.1g}"}
        yield _flag(reasons.SITES_DIFFER, label=label, **numbers)


def _flag(reason: Reason, **numbers: str) -> Flag:
    return Flag(code=reason.code, site="", says=reason.says.format(**numbers))


def _area(figures: Figures, label: str) -> tuple[float, float] | None:
    """Return a site's AUROC as a logit, with its standard error; None if it gave no interval."""
    names = (f"auroc_{label}", f"auroc_{label}_low", f"auroc_{label}_high")
    if not all(math.isfinite(figures.get(name, math.nan)) for name in names):
        return None
    value, low, high = (_logit(figures[name]) for name in names)
    return value, max((high - low) / (2 * _Z), 1e-6)


def _interval(
    sites: Mapping[str, Figures], areas: Mapping[str, tuple[float, float]], label: str
) -> tuple[float, float]:
    """Return the 95 % interval of the AUROC over all test patients, or of the sites' weighted mean without histograms.

    The mean is that of a random-effects model (DerSimonian & Laird, Controlled Clinical Trials 1986; 7:177).
    """
    if pooled := pool(sites, label):
        return pooled.auroc.low, pooled.auroc.high
    q, weights = _cochran(areas)
    total = math.fsum(weights.values())
    shrunk = total - math.fsum(weight**2 for weight in weights.values()) / total
    between = max(0.0, (q - (len(areas) - 1)) / shrunk) if shrunk > 0 else 0.0
    weights = {site: 1 / (error**2 + between) for site, (_, error) in areas.items()}
    total = math.fsum(weights.values())
    mean = math.fsum(weights[site] * value for site, (value, _) in areas.items()) / total
    return _from_logit(mean - _Z / math.sqrt(total)), _from_logit(mean + _Z / math.sqrt(total))


def _cochran(areas: Mapping[str, tuple[float, float]]) -> tuple[float, dict[str, float]]:
    """Return Cochran's Q of the sites' AUROCs on the logit scale, and the weight of each site."""
    weights = {site: 1 / error**2 for site, (_, error) in areas.items()}
    mean = math.fsum(weights[site] * value for site, (value, _) in areas.items()) / math.fsum(weights.values())
    return math.fsum(weights[site] * (value - mean) ** 2 for site, (value, _) in areas.items()), weights


def _chance_of_difference(areas: Mapping[str, tuple[float, float]]) -> float:
    """Return how likely hospitals with the same AUROC differ as much: the chi-squared test of Cochran's Q."""
    return float(chi2.sf(_cochran(areas)[0], len(areas) - 1)) if len(areas) > 1 else 1.0


def _slope(sites: Mapping[str, Figures], label: str) -> float | None:
    """Return the mean calibration slope over sites, weighted by test patients."""
    name = f"calibration_slope_{label}"
    given = [(figures[name], figures[EXAMPLES]) for figures in sites.values() if name in figures]
    total = math.fsum(patients for _, patients in given)
    return math.fsum(slope * patients for slope, patients in given) / total if total else None


def _logit(share: float) -> float:
    share = min(max(share, _ENDS[0]), _ENDS[1])
    return math.log(share / (1 - share))


def _from_logit(value: float) -> float:
    return 1 / (1 + math.exp(-value))
