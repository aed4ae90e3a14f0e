"""Combine figures that have 95 % intervals: means over sites, and differences of two models.

Only the value and the ends of an interval of each figure are known, not the patients' scores. What two models have in
common on the same patients is then not known, so their difference gets the widest interval that any correlation allows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST_REPEATS = 3  # with two, Student's t is 12.7, and two equal figures would give an interval without width


class Interval(NamedTuple):
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def mean_of_sites(figures: Sequence[Interval], weights: Sequence[float] | None = None) -> Interval:
    """Return the mean of figures over different patients, with the interval over the patients of these sites.

    The distances from values to ends are added as squares (Zou & Donner, Stat Med 2008; 27:1693), so an interval may be
    longer on one side, as near an AUROC of 1. The mean is about these sites; it says nothing about others.

    Parameters
    ----------
    figures : sequence of Interval
        One for each site; at least one.
    weights : sequence of float or None
        Weights of the sites; equal where None.
    """
    shares = _shares(len(figures), weights)
    value = math.fsum(share * each.value for share, each in zip(shares, figures, strict=True))
    down = math.hypot(*(share * (each.value - each.low) for share, each in zip(shares, figures, strict=True)))
    up = math.hypot(*(share * (each.high - each.value) for share, each in zip(shares, figures, strict=True)))
    return Interval(value, value - down, value + up)


def mean_at_site(figures: Sequence[Interval]) -> Interval:
    """Return the mean of several models' figures over the same patients.

    Its ends are the means of the ends: a mean's standard error is at most the mean of the standard errors.
    """
    low, high = (math.fsum(ends) / len(figures) for ends in ([f.low for f in figures], [f.high for f in figures]))
    return Interval(math.fsum(each.value for each in figures) / len(figures), low, high)


def difference_at_site(one: Interval, other: Interval) -> Interval:
    """Return `one` minus `other`, two models' figures over the same patients, for any correlation of the two.

    The distances to the ends are added: a difference's standard error is at most the sum of the two standard errors.
    The true interval is narrower where both models err on the same patients, but how much cannot be known from these
    figures.
    """
    value = one.value - other.value
    low = value - (one.value - one.low) - (other.high - other.value)
    return Interval(value, low, value + (one.high - one.value) + (other.value - other.low))


def mean_of_repeats(differences: NDArray[np.float64], *, least: float = 0.0) -> Interval | None:
    """Return the mean of paired differences with the interval by Student's t; None with too few of them.

    Parameters
    ----------
    differences : array of float
        Shape (repeats,): one difference for each seed, or for each site. Or shape (seeds, sites): both then count as
        draws, and the variances of their means are added, which counts the rest twice and so is not too small (Cameron,
        Gelbach & Miller, J Bus Econ Stat 2011; 29:238). The degrees of freedom are those of the shorter side.
    least : float
        The least distance from the mean to an end: figures that were rounded may agree by chance.
    """
    from scipy.stats import t

    if not differences.size or min(differences.shape) < LEAST_REPEATS:
        return None
    ways = range(differences.ndim)
    means = [differences.mean(axis=tuple(other for other in ways if other != way)) for way in ways]
    variance = sum(float(np.var(each, ddof=1)) / len(each) for each in means)
    freedom = min(differences.shape) - 1
    half = max(float(t.ppf(0.975, freedom)) * math.sqrt(variance), least)
    value = float(differences.mean())
    return Interval(value, value - half, value + half)


def difference_of_repeats(
    one: NDArray[np.float64], other: NDArray[np.float64], *, least: float = 0.0
) -> Interval | None:
    """Return the mean of `one` minus that of `other`, of repeats with different seeds, with Welch's interval.

    None with too few repeats of either. `least`: as in `mean_of_repeats`. Source: Welch, Biometrika 1947; 34:28.
    """
    from scipy.stats import t

    if min(len(one), len(other)) < LEAST_REPEATS:
        return None
    value = float(one.mean() - other.mean())
    parts = [float(np.var(each, ddof=1)) / len(each) for each in (one, other)]
    half = least
    if variance := sum(parts):
        freedom = variance**2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (one, other), strict=True))
        half = max(float(t.ppf(0.975, freedom)) * math.sqrt(variance), least)
    return Interval(value, value - half, value + half)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    weights = weights or [1.0] * count
    total = math.fsum(weights)
    return [weight / total for weight in weights]
