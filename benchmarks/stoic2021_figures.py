"""The figures of stoic2021.py: AUROCs over patients and seeds, ratios on the same patients, and calibration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t

from pipeline.evaluation.calibration import calibration_intercept, calibration_slope, expected_calibration_error
from pipeline.evaluation.combining import LEAST_REPEATS
from pipeline.evaluation.discrimination import logit_interval

Floats = NDArray[np.floating]
_Z = 1.959963984540054


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval over patients and seeds; NaN where it is not defined.

    `by_seed`: the value of each seed. Below three seeds the interval is over patients. `patients`, `positives`: with a
    known label.
    """

    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    patients: int
    positives: int

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        if math.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"

    def to_json(self) -> dict[str, Any]:
        value, low, high = (None if math.isnan(each) else each for each in (self.value, self.low, self.high))
        counts = {"patients": self.patients, "positives": self.positives}
        return {"value": value, "low": low, "high": high, "by_seed": list(self.by_seed), **counts}


@dataclass(frozen=True)
class _Placed:
    """The scores of all seeds against labels, as DeLong's placements.

    `of_positives`, `of_negatives`: shape (seeds, patients of the class), the share of the other class that is on the
    right side of each patient. Their means are the AUROC.
    """

    of_positives: Floats
    of_negatives: Floats
    patients: int

    @property
    def areas(self) -> Floats:
        """The AUROC of each seed."""
        return np.asarray(self.of_positives.mean(axis=1))

    @property
    def classes(self) -> tuple[int, int]:
        return self.of_positives.shape[1], self.of_negatives.shape[1]


def _placed(scores: Floats, labels: Floats) -> _Placed | None:
    """Return placements for `scores` (seeds, patients); None if a class is missing."""
    known = ~np.isnan(labels)
    x, y = np.asarray(scores, np.float64)[:, known], labels[known] == 1
    positives, negatives = x[:, y], x[:, ~y]
    if not (positives.shape[1] and negatives.shape[1]):
        return None
    # Midranks among all, less those within the class, count the other class below; a tie counts half.
    among = rankdata(x, axis=1)
    below_positive = among[:, y] - rankdata(positives, axis=1)
    below_negative = among[:, ~y] - rankdata(negatives, axis=1)
    return _Placed(below_positive / negatives.shape[1], 1 - below_negative / positives.shape[1], int(known.sum()))


def _variance_over_patients(of_positives: Floats, of_negatives: Floats) -> float:
    """Return DeLong's variance of a mean over seeds: the patients of all seeds are the same."""
    parts = [
        float(np.var(each, ddof=1)) / len(each) if len(each) > 1 else math.nan for each in (of_positives, of_negatives)
    ]
    return sum(parts)


def _variance_over_seeds(values: Floats) -> float:
    """Return the variance of the mean over seeds, larger for few seeds as Student's t is; 0 below three seeds."""
    seeds = len(values)
    if seeds < LEAST_REPEATS:
        return 0.0
    widening = float(t.ppf(0.975, seeds - 1)) / _Z
    return float(np.var(values, ddof=1)) / seeds * widening**2


def area(scores: Floats, labels: Floats) -> Figure:
    """Return the mean AUROC over seeds.

    The interval covers other patients (DeLong, Biometrics 1988; 44:837, for the mean over seeds) and other seeds
    (Student's t), added as variances on the logit scale.

    Parameters
    ----------
    scores : array
        Shape (seeds, patients).
    labels : array
        Shape (patients,): 0, 1 or NaN where unknown.
    """
    placed = _placed(scores, labels)
    if placed is None:
        known = ~np.isnan(labels)
        return Figure(math.nan, math.nan, math.nan, (), int(known.sum()), int((labels == 1).sum()))
    areas = placed.areas
    variance = _variance_over_patients(placed.of_positives.mean(axis=0), placed.of_negatives.mean(axis=0))
    value = round(float(areas.mean()), 12)
    low, high = logit_interval(value, variance + _variance_over_seeds(areas), rarer=min(placed.classes))
    return Figure(value, low, high, tuple(map(float, areas)), placed.patients, placed.classes[0])


def ratio(scores: Floats, others: Floats, labels: Floats) -> Figure:
    """Return the mean AUROC of one model divided by that of another, on the same patients with the same seeds.

    The interval is on the log scale: DeLong's for paired models, over patients, and Student's t over the seeds' ratios.
    """
    one, other = _placed(scores, labels), _placed(others, labels)
    if one is None or other is None or not (one.areas.all() and other.areas.all()):
        return Figure(math.nan, math.nan, math.nan, (), int((~np.isnan(labels)).sum()), int((labels == 1).sum()))
    a, b = float(one.areas.mean()), float(other.areas.mean())
    over_patients = _variance_over_patients(
        one.of_positives.mean(axis=0) / a - other.of_positives.mean(axis=0) / b,
        one.of_negatives.mean(axis=0) / a - other.of_negatives.mean(axis=0) / b,
    )
    by_seed = one.areas / other.areas
    half = _Z * math.sqrt(over_patients + _variance_over_seeds(np.log(by_seed)))
    value = a / b
    ends = value * math.exp(-half), value * math.exp(half)
    return Figure(value, *ends, tuple(map(float, by_seed)), one.patients, one.classes[0])


@dataclass(frozen=True)
class Calibration:
    """Slope, intercept and ECE of probabilities on test patients: means over seeds, NaN where undefined."""

    slope: float
    intercept: float
    ece: float

    def to_json(self) -> dict[str, float | None]:
        return {name: None if math.isnan(value) else value for name, value in vars(self).items()}

    def __str__(self) -> str:
        return " / ".join("–" if math.isnan(each) else f"{each:.2f}" for each in vars(self).values())


def calibration(logits: Sequence[Floats], platt: Sequence[Floats], labels: Floats) -> Calibration:
    """Judge calibrated probabilities. `logits`: of each seed, shape (patients,); `platt`: slope and intercept.

    NaN without both classes, or if a seed's model has no calibration.
    """
    known = ~np.isnan(labels)
    y = labels[known].astype(np.int64)
    if len(set(y.tolist())) < 2 or np.isnan(platt).any():
        return Calibration(math.nan, math.nan, math.nan)
    found = []
    for each, (slope, intercept) in zip(logits, platt, strict=True):
        calibrated = slope * np.asarray(each, np.float64)[known] + intercept
        chances = 1 / (1 + np.exp(-calibrated))
        found.append(
            (
                calibration_slope(calibrated, y),
                calibration_intercept(calibrated, y),
                expected_calibration_error(chances, y),
            )
        )
    return Calibration(*(float(each) for each in np.mean(found, axis=0)))
