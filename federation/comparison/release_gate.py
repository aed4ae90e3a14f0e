"""Looks for reasons to doubt a model before it is released. A release that has any must state why it was made.

Beside the flags of the shortcut audit: an audit that was not made or that no hospital answered, a label that was not
calibrated and judged, an AUROC that may be that of chance, calibration slopes that are far from 1 or not known, and
hospitals that differ more than by chance. A masked study is judged by its sums, and its audit counts as made in part.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from federation.comparison import reasons
from federation.comparison.hospital_areas import HospitalAreas, areas_of
from federation.comparison.hospital_difference import chance_of_difference
from federation.comparison.hospital_mean import hospital_mean
from federation.comparison.hospital_slopes import Slopes, chance_of_slopes, factor_from_one, mean_slope, slopes_of
from federation.comparison.pooled import pool
from federation.runs.figures_from_counts import of_label, summed_of
from federation.runs.results import FEDERATED, Audit, Flag, Results
from models.network_settings import LABELS
from models.refusal import Reason

CHANCE = 0.5
SLOPES = (0.5, 2.0)  # of the calibration on test patients; 1 is ideal
UNUSUAL = 0.01  # chance of as large a difference between hospitals that have the same AUROC, or slope

Figures = Mapping[str, float]


def doubts(results: Results) -> list[Flag]:
    """Return the reasons to doubt the model of a run: those of the audit first, then those of each label.

    A reason about all hospitals has an empty `site`.
    """
    audit = results.audit if results.audit and _was_made(results.audit) else None
    found = list(audit.flags) if audit else [_flag(reasons.NOT_AUDITED)]
    federated = results.model(FEDERATED)
    if summed_of(results):
        found += [_flag(reasons.AUDIT_IN_PART)] if audit else []
        return found + [doubt for label in LABELS for doubt in _of_sums(results, label)]
    sites = federated.figures if federated else {}
    for label in LABELS:
        found += _of_label(results, sites, label)
    return found


def _was_made(audit: Audit) -> bool:
    """Whether a hospital answered the audit with an AUROC, for only an AUROC can be flagged."""
    return any(name.startswith("auroc_") for table in (audit.means, *audit.sites.values()) for name in table)


def _of_sums(results: Results, label: str) -> Iterator[Flag]:
    """Judge a label of a masked study: AUROC and slope over all patients, and how far the hospitals' AUROCs differ."""
    found = of_label(results, label)
    if label not in results.calibration or found is None or found.calibration is None:
        yield _flag(reasons.NOT_JUDGED, label=label)
        return
    spread = found.hospitals
    intervals = [(found.auroc.low, found.auroc.high), *([spread.here] if spread else [])]
    yield from _against_chance(label, intervals)
    yield from _far_slope(results, label, found.calibration.slope.value)
    if spread and spread.chance < UNUSUAL:
        numbers = {"deviation": spread.deviation, "mean": spread.mean.value, "by_chance": spread.by_chance}
        shown = {name: f"{number:.2f}" for name, number in numbers.items()}
        yield _flag(reasons.SITES_SPREAD, label=label, chance=f"{spread.chance:.1g}", **shown)


def _of_label(results: Results, sites: Mapping[str, Figures], label: str) -> Iterator[Flag]:
    areas = areas_of(sites, label)
    if label not in results.calibration or not areas:
        yield _flag(reasons.NOT_JUDGED, label=label)
        return
    yield from _against_chance(label, _intervals(sites, areas, label))
    slopes = slopes_of(sites, label)
    yield from list(_far_slope(results, label, mean_slope(slopes, sites))) or _far_slopes(label, slopes, sites)
    if (chance := chance_of_difference(areas)) < UNUSUAL:
        lowest, highest = (f"{found:.2f}" for found in (areas.values.min(), areas.values.max()))
        numbers = {"lowest": lowest, "highest": highest, "chance": f"{chance:.1g}"}
        yield _flag(reasons.SITES_DIFFER, label=label, **numbers)


def _against_chance(label: str, intervals: Sequence[tuple[float, float]]) -> Iterator[Flag]:
    """Judge by the interval that reaches lowest.

    A model that tells hospitals of different prevalence apart, and no patients within any, has a high AUROC over all
    patients; only the mean of the hospitals' AUROCs shows it.
    """
    doubtful = [each for each in intervals if not each[0] > CHANCE]  # one that is not a number proves nothing
    if doubtful:
        low, high = min(doubtful)
        yield _flag(reasons.AT_CHANCE, label=label, low=f"{low:.2f}", high=f"{high:.2f}")


def _far_slope(results: Results, label: str, slope: float) -> Iterator[Flag]:
    """Judge the slope on test patients; NaN if it is not known. No hospital reports one beyond ±100."""
    if results.calibration[label].slope <= 0:
        yield _flag(reasons.SLOPE_FAR, label=label, slope="not positive")
    elif not SLOPES[0] <= slope <= SLOPES[1]:
        yield _flag(reasons.SLOPE_FAR, label=label, slope=f"{slope:.2f}" if math.isfinite(slope) else "not known")


def _far_slopes(label: str, slopes: Slopes, sites: Mapping[str, Figures]) -> Iterator[Flag]:
    """Judge slopes whose mean is near 1: too flat at one hospital and too steep at another cancel in it."""
    if factor_from_one(slopes, sites) > SLOPES[1] and chance_of_slopes(slopes, sites, label) < UNUSUAL:
        shown = f"{min(slopes.values()):.2f} to {max(slopes.values()):.2f} by hospital"
        yield _flag(reasons.SLOPE_FAR, label=label, slope=shown)


def _flag(reason: Reason, **numbers: str) -> Flag:
    return Flag(code=reason.code, site="", says=reason.says.format(**numbers))


def _intervals(sites: Mapping[str, Figures], areas: HospitalAreas, label: str) -> list[tuple[float, float]]:
    """Return the 95 % intervals of the mean over hospitals and, if it is known, of the AUROC over all test patients."""
    pooled, mean = pool(sites, label), hospital_mean(areas)
    intervals = [mean.here] if mean else [(math.nan, math.nan)]
    if pooled and math.isfinite(pooled.auroc.low):
        intervals.append((pooled.auroc.low, pooled.auroc.high))
    return intervals
