"""How well scores separate two classes and are calibrated, from counts of patients by class and by bin of the score.

The order of patients within a bin is not known, and neither are their exact scores. So each figure has the smallest and
the largest value that the counts allow (`possible`). Its 95 % interval begins below the smallest and ends above the
largest by the sampling error over patients: it holds wherever between them the figure is (Horowitz & Manski, J Am Stat
Assoc 2000; 95:77). Coverage is measured in benchmarks/results/coverage.md.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from pipeline.evaluation.calibration import LARGEST
from pipeline.evaluation.discrimination import logit_interval

Numbers = NDArray[np.float64]
POINTS = 10  # most points of a calibration curve
LEAST_IN_POINT = 10  # patients behind a point of it
_NEAR = 1e-4  # AUROCs nearer to 0 or 1 have no useful logit
_Z = float(ndtri(0.975))
_STEPS, _TINY = 100, 1e-10  # of Newton's method


@dataclass(frozen=True)
class Grouped:
    """Numbers of patients without and with a label, shape (bins,), from the lowest bin of the score to the highest."""

    negative: NDArray[np.int64]
    positive: NDArray[np.int64]

    @property
    def has_both(self) -> bool:
        return bool(self.negative.sum() and self.positive.sum())

    @property
    def patients(self) -> int:
        return int(self.negative.sum() + self.positive.sum())

    @property
    def rarer(self) -> int:
        """The number of patients of the rarer class."""
        return int(min(self.negative.sum(), self.positive.sum()))


class Binned(NamedTuple):
    """A figure with its 95 % interval. `possible`: the smallest and the largest value that the counts allow."""

    value: float
    low: float
    high: float
    possible: tuple[float, float]


class Point(NamedTuple):
    """Some adjacent bins: patients, their mean probability, and how many of them have the label."""

    patients: int
    predicted: float
    positive: int


@dataclass(frozen=True)
class Scale:
    """The calibrated logits that belong to the bins, shape (bins,): their lower ends, middles and upper ends.

    The first bin reaches down to minus infinity and the last one up to infinity; their middle is their inner end.
    """

    lower: Numbers
    middle: Numbers
    upper: Numbers

    @classmethod
    def of(cls, inner: Numbers, *, slope: float, intercept: float) -> "Scale":
        """Make the scale of the bins between `inner` edges, shape (bins - 1,); `slope` above 0."""
        edges = slope * np.asarray(inner, dtype=np.float64) + intercept
        middle = np.concatenate([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])
        return cls(np.concatenate([[-np.inf], edges]), middle, np.concatenate([edges, [np.inf]]))


# --- discrimination -----------------------------------------------------------------------------------------


def auroc(counts: Grouped) -> Binned:
    """Return the area under the ROC curve by trapezoids: a pair within one bin counts half.

    `possible`: all pairs within bins in the wrong order, or in the right one. The interval is DeLong's on the logit
    scale, as `discrimination.auroc` has it, with the largest of the variances of these three orders. NaN where a class
    is missing.
    """
    if not counts.has_both:
        return Binned(math.nan, math.nan, math.nan, (math.nan, math.nan))
    orders = [_placements(counts, ties) for ties in (0.0, 0.5, 1.0)]
    smallest, value, largest = (float(counts.positive @ below / counts.positive.sum()) for below, _ in orders)
    variance = max(_delong(counts, below, above) for below, above in orders)
    low = logit_interval(_inside(smallest), variance, rarer=counts.rarer)[0]
    high = logit_interval(_inside(largest), variance, rarer=counts.rarer)[1]
    return Binned(value, low, high, (smallest, largest))


def auroc_variance(counts: Grouped) -> float:
    """Return DeLong's variance of the AUROC over patients, pairs within bins counting half; both classes are there."""
    return _delong(counts, *_placements(counts, 0.5))


def _placements(counts: Grouped, ties: float) -> tuple[Numbers, Numbers]:
    """Return by bin the share of negatives below a positive, and of positives above a negative.

    `ties`: the share of a bin's own patients of the other class that counts.
    """
    negative, positive = counts.negative / counts.negative.sum(), counts.positive / counts.positive.sum()
    below = negative.cumsum() - negative * (1 - ties)
    above = positive[::-1].cumsum()[::-1] - positive * (1 - ties)
    return below, above


def _delong(counts: Grouped, below: Numbers, above: Numbers) -> float:
    return _variance_of_mean(counts.positive, below) + _variance_of_mean(counts.negative, above)


def _variance_of_mean(patients: NDArray[np.int64], values: Numbers) -> float:
    total = int(patients.sum())
    if total < 2:
        return math.nan
    mean = float(patients @ values) / total
    return float(patients @ (values - mean) ** 2) / (total - 1) / total


def _inside(value: float) -> float:
    return min(max(value, _NEAR), 1 - _NEAR) if 0 < value < 1 else round(value)


def roc(counts: Grouped) -> Numbers:
    """Return the points (false-positive rate, sensitivity) from (0, 0) to (1, 1), one for each edge of a bin.

    Shape (points, 2); both classes are there. Between two points the curve may run anywhere in their rectangle.
    """
    rates = [np.concatenate([[0], each[::-1].cumsum()]) / each.sum() for each in (counts.negative, counts.positive)]
    return np.unique(np.stack(rates, axis=1), axis=0)


# --- calibration --------------------------------------------------------------------------------------------


def slope(counts: Grouped, scale: Scale) -> Binned:
    """Return the calibration slope (`calibration.calibration_slope`) with each patient in the middle of the bin.

    `possible`: all patients with the label at the lower and all others at the upper end of their bins, and the reverse.
    These are not the ends of all that is possible, but of what matters: a patient far out can have a small effect in
    the other direction. The outermost bins count at their inner end. The interval is Wald's around these two. NaN where
    no bin of the negatives is above one of the positives.
    """
    lower, upper = (np.where(np.isfinite(at), at, scale.middle) for at in (scale.lower, scale.upper))
    fits = [_fit(counts, *ends) for ends in ((upper, lower), (scale.middle, scale.middle), (lower, upper))]
    (smallest, below), (value, _), (largest, above) = fits
    if math.isnan(value):
        return Binned(math.nan, math.nan, math.nan, (math.nan, math.nan))
    smallest, below = (-LARGEST, 0.0) if math.isnan(smallest) else (smallest, below)
    largest, above = (LARGEST, 0.0) if math.isnan(largest) else (largest, above)
    return Binned(value, smallest - _Z * below, largest + _Z * above, (smallest, largest))


def _fit(counts: Grouped, of_negative: Numbers, of_positive: Numbers) -> tuple[float, float]:
    """Return slope and standard error of the logistic regression of labels on the bins' logits; NaN if undefined."""
    x = np.concatenate([of_negative, of_positive])
    patients = np.concatenate([counts.negative, counts.positive]).astype(np.float64)
    has_label = np.repeat([0.0, 1.0], len(of_negative))
    negative, positive = of_negative[counts.negative > 0], of_positive[counts.positive > 0]
    if not counts.has_both or positive.min() >= negative.max() or positive.max() <= negative.min():
        return math.nan, math.nan
    design = np.stack([x - patients @ x / patients.sum(), np.ones_like(x)])
    fitted = np.array([0.0, float(logit(counts.positive.sum() / patients.sum()))])
    for _ in range(_STEPS):
        p = expit(fitted @ design)
        information = (design * (patients * p * (1 - p))) @ design.T
        step = np.linalg.solve(information, design @ (patients * (has_label - p)))
        fitted = fitted + np.clip(step, -2, 2)
        if np.abs(step).max() < _TINY:
            break
    value = float(fitted[0])
    error = math.sqrt(float(np.linalg.inv(information)[0, 0]))
    return (value, error) if abs(value) <= LARGEST else (math.nan, math.nan)


def intercept(counts: Grouped, scale: Scale) -> Binned:
    """Return the calibration in the large (`calibration.calibration_intercept`); NaN where a class is missing.

    `possible`: all patients at the upper, or at the lower end of their bins.
    """
    if not counts.has_both:
        return Binned(math.nan, math.nan, math.nan, (math.nan, math.nan))
    patients = counts.negative + counts.positive
    smallest, value, largest = (
        _shift(patients, at, int(counts.positive.sum())) for at in (scale.upper, scale.middle, scale.lower)
    )
    p = expit(scale.middle + value)
    half = _Z / math.sqrt(max(float(patients @ (p * (1 - p))), _TINY))
    return Binned(value, smallest - half, largest + half, (smallest, largest))


def _shift(patients: NDArray[np.int64], logits: Numbers, positive: int) -> float:
    """Return by how much all logits must move for `positive` expected patients with the label; infinite logits stay."""
    from scipy.optimize import brentq

    finite = logits[np.isfinite(logits)]
    reach = float(np.abs(finite).max()) + 50

    def excess(shift: float) -> float:
        return float(patients @ expit(logits + shift)) - positive

    if excess(-reach) >= 0 or excess(reach) <= 0:  # so many are in the outermost bin that no shift is enough
        return -reach if excess(-reach) >= 0 else reach
    return float(brentq(excess, -reach, reach, xtol=1e-10))


def brier(counts: Grouped, scale: Scale) -> Binned:
    """Return the Brier score. `possible`: each patient at the end of the bin that is right, or at the other one."""
    lower, middle, upper = (expit(at) for at in (scale.lower, scale.middle, scale.upper))
    patients = counts.patients
    smallest, value, largest = (
        float(counts.negative @ of_negative**2 + counts.positive @ (1 - of_positive) ** 2) / patients
        for of_negative, of_positive in ((lower, upper), (middle, middle), (upper, lower))
    )
    squares = float(counts.negative @ middle**4 + counts.positive @ (1 - middle) ** 4) / patients
    half = _Z * math.sqrt(max(squares - value**2, 0.0) / patients)
    return Binned(value, max(0.0, smallest - half), min(1.0, largest + half), (smallest, largest))


def curve(counts: Grouped, scale: Scale) -> list[Point]:
    """Return the calibration curve: adjacent bins together, each point over about as many patients.

    At most POINTS points, each over LEAST_IN_POINT patients or more, if there are as many. A patient's probability is
    that of the middle of the bin.
    """
    patients, p = counts.negative + counts.positive, expit(scale.middle)
    wanted = max(LEAST_IN_POINT, counts.patients / POINTS)
    points: list[Point] = []
    waiting = np.zeros(len(p), dtype=bool)
    for place in range(len(p)):
        waiting[place] = True
        rest = int(patients[place + 1 :].sum())
        if patients[waiting].sum() >= wanted and (rest == 0 or rest >= min(wanted, LEAST_IN_POINT)):
            points.append(_point(counts, p, waiting))
            waiting = np.zeros(len(p), dtype=bool)
    if patients[waiting].sum():
        points.append(_point(counts, p, waiting))
    return points


def _point(counts: Grouped, p: Numbers, here: NDArray[np.bool_]) -> Point:
    patients = (counts.negative + counts.positive)[here]
    return Point(int(patients.sum()), float(patients @ p[here] / patients.sum()), int(counts.positive[here].sum()))


def net_benefit(counts: Grouped, scale: Scale, threshold: float) -> Binned:
    """Return the net benefit (`calibration.net_benefit`) of treating from a probability `threshold` on.

    It lies within a bin, unless it is an edge. `possible`: of this bin all patients with the label and none without it
    are treated, or the reverse. The value is in the middle of both: half of the bin's patients are treated.
    """
    at, odds, patients = float(logit(threshold)), threshold / (1 - threshold), counts.patients
    above, within = scale.lower >= at, (scale.lower < at) & (scale.upper > at)
    true, false = int(counts.positive[above].sum()), int(counts.negative[above].sum())
    open_true, open_false = int(counts.positive[within].sum()), int(counts.negative[within].sum())
    smallest, largest = (true - odds * (false + open_false)) / patients, (true + open_true - odds * false) / patients
    value = (smallest + largest) / 2
    squares = (true + open_true / 2 + odds**2 * (false + open_false / 2)) / patients
    half = _Z * math.sqrt(max(squares - value**2, 0.0) / patients)
    return Binned(value, smallest - half, largest + half, (smallest, largest))
