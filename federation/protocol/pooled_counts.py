"""Calibration and thresholds from counts of patients by class and by bin of the raw logit, summed over the sites.

A patient's logit is known to a bin: 0.125 wide near 0, and wider outwards up to ±10. The two outer bins are open.

The calibration is fitted by maximum likelihood as on raw logits (`models.calibration.fit_platt`), with the expected
log-likelihood of the patients in a bin. For this, each class's logits are taken as normally distributed, with the mean
and variance that fit the counts best; within a bin only the part of that distribution which is there matters. This
also says where patients in an open bin are. The midpoint of a bin alone would make slopes too large or too small where
the logits spread little.

Thresholds are rungs, and the counts at rungs are exact. So the rule is that of `operating_points`, without its
allowance for steps. It cannot be required of the sums without any one site, as robust pooling does.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from federation.protocol.metric_allowlist import LABELS
from federation.protocol.operating_points import Chosen, lower_bound
from federation.protocol.summed_answers import CLASSES, LOGIT_BINS, Summed, logit_counts, sites_with
from models.calibration import Platt, fit_weighted, with_differences
from models.operating_points import AIM, FLOOR, LEAST_PATIENTS, POINTS, Evidence, MissingPoint
from pipeline.evaluation.ladder import RUNGS

Counts = NDArray[np.int64]  # shape (2, bins): negative patients, then positive ones
_PARTS = 8  # parts of equal probability of each bin's distribution
_STEPS = 50  # of expectation-maximisation
_LEAST_SD = 1e-3  # if all patients of a class are in one bin
_LEAST_SHARE = 1e-9  # of a class that the normal distribution expects in a bin; below it, its shape means nothing
_ROUNDING = 1e-9
_BELOW, _ABOVE = np.array(RUNGS[:-1]), np.array(RUNGS[1:])


def counts_of(summed: Summed, label: str) -> Counts | None:
    """Return the counts of a label's patients; None if too few hospitals are in them (`Summed.covers`)."""
    if not summed.covers(label):
        return None
    names = logit_counts(label)
    return np.array([[summed.counts[names[value, bin]] for bin in range(LOGIT_BINS)] for value in CLASSES])


def calibration(summed: Summed) -> dict[str, Platt]:
    """Return the calibration of each label with enough hospitals, with the band of a new hospital."""
    found = {label: counts_of(summed, label) for label in LABELS}
    return {label: with_differences(fit_counts(counts)) for label, counts in found.items() if counts is not None}


def fit_counts(counts: Counts) -> Platt:
    """Fit slope and intercept to counts of patients; the covariance reflects only their number."""
    logits, labels, weights = (list[NDArray[np.float64]]() for _ in range(3))
    for value in CLASSES:
        of_class = counts[int(value)]
        if not of_class.any():
            continue
        there = np.flatnonzero(of_class)
        positions = _positions(of_class)[there].ravel()
        logits.append(positions)
        labels.append(np.full(positions.shape, float(value)))
        weights.append(np.repeat(of_class[there] / _PARTS, _PARTS))
    if not logits:
        return Platt()
    return fit_weighted(np.concatenate(logits), np.concatenate(labels), np.concatenate(weights))


def thresholds(choices: Mapping[str, Mapping[str, Chosen | MissingPoint]]) -> dict[str, dict[str, float]]:
    """Return the chosen thresholds on raw logits, by label and point."""
    return {
        label: {point: at.logit for point, at in points.items() if isinstance(at, Chosen)}
        for label, points in choices.items()
    }


def choose_all(summed: Summed) -> dict[str, dict[str, Chosen | MissingPoint]]:
    """Return the threshold of each label and point of POINTS, or why there is none."""
    return {label: {point: choose(summed, label, point) for point in POINTS} for label in LABELS}


def choose(summed: Summed, label: str, point: str) -> Chosen | MissingPoint:
    """Return the threshold of a label, or why there is none.

    The highest rung (for ruling in: the lowest) at which the sensitivity (specificity) is at least AIM, and its lower
    bound at least FLOOR.
    """
    sites, counts = summed.counts.get(sites_with(label), 0), counts_of(summed, label)
    if counts is None:
        return MissingPoint(why="few_hospitals", sites=sites)
    negatives, positives = map(int, counts.sum(axis=1))
    counted = {"positives": positives, "negatives": negatives, "sites": sites}
    if min(positives, negatives) < LEAST_PATIENTS:
        return MissingPoint(why="too_few", **counted)
    # The class that must not be missed, from its missed end; the inner rungs are the thresholds that may be chosen.
    side = -1 if point == "rule_in" else 1
    missed = np.cumsum(counts[0][::-1] if point == "rule_in" else counts[1])[:-1]
    size = negatives if point == "rule_in" else positives
    low = lower_bound(size - missed, size)
    accepted = (missed <= (1 - AIM) * size + _ROUNDING) & (low >= FLOOR)
    if not accepted.any():
        return MissingPoint(why="not_reached", **counted)
    at = int(np.flatnonzero(accepted)[-1])
    evidence = Evidence(
        value=1 - int(missed[at]) / size, low=float(low[at]), high=1 - float(lower_bound(missed[at], size)), **counted
    )
    return Chosen(RUNGS[1:-1][::side][at], evidence)


def _positions(counts: Counts) -> NDArray[np.float64]:
    """Return where the patients of a class in each bin are, shape (bins, parts), given its counts, shape (bins,).

    The parts have equal probability in the normal distribution that is fitted to the counts.
    """
    inner = np.clip((_BELOW + _ABOVE) / 2, _ABOVE[0], _BELOW[-1])  # of an open bin its only edge
    positions = np.repeat(inner[:, None], _PARTS, axis=1)
    for _ in range(_STEPS):
        weights = np.repeat(counts, _PARTS)
        mean = float(np.average(positions.ravel(), weights=weights))
        sd = max(_LEAST_SD, float(np.average((positions.ravel() - mean) ** 2, weights=weights)) ** 0.5)
        positions = _within_bins(mean, sd, inner)
    return positions


def _within_bins(mean: float, sd: float, inner: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the positions in each bin under a normal distribution; `inner` where it expects nobody."""
    low, high = (_BELOW - mean) / sd, (_ABOVE - mean) / sd
    low[0], high[-1] = -np.inf, np.inf
    turned = low > 0  # the upper tail as the lower one, where small shares are exact
    low, high = np.where(turned, -high, low), np.where(turned, -low, high)
    share = ndtr(high) - ndtr(low)
    parts = (np.arange(_PARTS) + 0.5) / _PARTS
    z = ndtri(ndtr(low)[:, None] + share[:, None] * parts)
    positions: NDArray[np.float64] = mean + sd * np.where(turned[:, None], -z[:, ::-1], z)
    return np.where((share > _LEAST_SHARE)[:, None], positions, inner[:, None])
