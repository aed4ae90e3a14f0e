"""How well scores separate two classes, with 95 % intervals over patients.

Scores and labels have the shape (patients,); a label is 0, 1 or NaN where missing, and who has none is left out.
scikit-learn and scipy.stats take a second to import: only what judges a model does it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from pipeline.evaluation.combining import Interval, difference_at_site

Scores = NDArray[np.floating]
Labels = NDArray[Any]
BOOTSTRAPS = 2000
_Z = float(ndtri(0.975))
_DIGITS = 12  # beyond them a sum of shares that should be 1 is not
_NEAR_0 = 1e-3  # nearer to 0 or 1 a resample's logit is not followed
_NO_VARIANCE = 1e-28  # a variance below is an error of rounding
_TABLE = 2**21  # numbers of a table of resamples that are held at once


@dataclass(frozen=True)
class Estimate:
    """A figure of a model with its 95 % interval over patients.

    Parameters
    ----------
    value : float
        The figure; NaN where it is not defined.
    low, high : float
        Ends of the interval.
    patients : int
        Number of patients with a known label.
    """

    value: float
    low: float
    high: float
    patients: int

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"

    @classmethod
    def undefined(cls, patients: int) -> Self:
        return cls(math.nan, math.nan, math.nan, patients)


class Auroc(Estimate):
    """Area under the ROC curve: the share of pairs of a positive and a negative patient in the right order."""


def known_of(scores: Scores, labels: Labels) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores and labels of those whose label is known."""
    known = ~np.isnan(labels)
    return np.asarray(scores, dtype=np.float64)[known], labels[known].astype(np.int64)


def classes_of(labels: Labels) -> tuple[int, int]:
    """Return how many patients have the label 0 and the label 1; NaN counts in neither."""
    return int((labels == 0).sum()), int((labels == 1).sum())


def has_both(labels: NDArray[np.int64]) -> bool:
    return 0 < labels.sum() < len(labels)


def auroc(scores: Scores, labels: Labels) -> Auroc:
    """Area under the ROC curve, by scikit-learn, with DeLong's interval on the logit scale.

    DeLong, DeLong & Clarke-Pearson, Biometrics 1988; 44:837. On the logit scale (Pepe, The Statistical Evaluation of
    Medical Tests for Classification and Prediction, 2003, 5.2.5) the interval stays within 0 to 1. It also covers in
    small cohorts, where the percentile bootstrap is too narrow (benchmarks/results/coverage.md).

    Parameters
    ----------
    scores : array of float, shape (patients,)
        Higher means more likely positive.
    labels : array, shape (patients,)
        0, 1 or NaN where missing; patients without a label are left out.

    Returns
    -------
    Auroc
        The estimate; NaN where a class is missing.
    """
    from sklearn.metrics import roc_auc_score

    x, y = known_of(scores, labels)
    if not has_both(y):
        return Auroc.undefined(len(y))
    value = round(float(roc_auc_score(y, x)), _DIGITS)
    low, high = logit_interval(value, delong_variance(x, y), rarer=min(y.sum(), len(y) - y.sum()))
    return Auroc(value, low, high, len(y))


def logit_interval(value: float, variance: float, *, rarer: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC. `rarer`: the number of patients of the rarer class.

    At 0 and 1 the variance is zero and not informative. The bound is then that of `rarer` of `rarer` patients (Clopper
    & Pearson, Biometrika 1934; 26:404). If the variance is zero elsewhere, because of one patient or of ties, the
    largest possible variance of an AUROC is used, value (1 - value) / rarer (Birnbaum & Klose, Ann Math Stat 1957;
    28:933).
    """
    bound = 0.025 ** (1 / rarer)
    if value in (0.0, 1.0):
        return (bound, 1.0) if value else (0.0, 1 - bound)
    if not variance > 0:
        variance = value * (1 - value) / rarer
    return _around(value, math.sqrt(variance) / (value * (1 - value)))


def _around(value: float, spread: float) -> tuple[float, float]:
    """95 % interval of a value between 0 and 1 that has this standard error on the logit scale."""
    return float(expit(logit(value) - _Z * spread)), float(expit(logit(value) + _Z * spread))


def _placements(x: NDArray[np.float64], y: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each positive the share of negatives below, for each negative the share of positives above; ties are half.

    By mid-ranks: Sun & Xu, IEEE Signal Process Lett 2014; 21:1389.
    """
    from scipy.stats import rankdata

    positive, negative = x[y == 1], x[y == 0]
    ranks = rankdata(x)
    below = (ranks[y == 1] - rankdata(positive)) / len(negative)
    above = 1 - (ranks[y == 0] - rankdata(negative)) / len(positive)
    return below, above


def _variance_of_mean(values: NDArray[np.float64]) -> float:
    return float(np.var(values, ddof=1) / len(values)) if len(values) > 1 else math.nan


def delong_variance(x: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """Variance of the AUROC over patients, both classes being there; NaN where one of them is a single patient."""
    return sum(map(_variance_of_mean, _placements(x, y)))


def auroc_difference(scores: Scores, others: Scores, labels: Labels) -> Estimate:
    """AUROC of `scores` minus AUROC of `others` on the same patients, with DeLong's paired interval.

    Its variance is zero, and not informative, if no patient's rank among those of the other class differs, as of two
    perfect models, or if all differ alike. The interval is then the widest that both models' own intervals allow
    (`combining.difference_at_site`). Only scores that rank all patients alike have a difference of exactly zero.

    Parameters
    ----------
    scores, others : array of float, shape (patients,)
        Scores of two models; higher means more likely positive.
    labels : array, shape (patients,)
        0, 1 or NaN where missing; patients without a label are left out.

    Returns
    -------
    Estimate
        The difference, its interval cut off at -1 and 1; NaN where a class has fewer than two patients.
    """
    from sklearn.metrics import roc_auc_score

    x, y = known_of(scores, labels)
    z, _ = known_of(others, labels)
    if min(y.sum(), len(y) - y.sum()) < 2:
        return Estimate.undefined(len(y))
    pairs = zip(_placements(x, y), _placements(z, y), strict=True)
    variance = sum(_variance_of_mean(ours - theirs) for ours, theirs in pairs)
    if variance < _NO_VARIANCE and not _rank_alike(x, z):
        found = difference_at_site(*(Interval(each.value, each.low, each.high) for each in (auroc(x, y), auroc(z, y))))
        return Estimate(found.value, max(-1.0, float(found.low)), min(1.0, float(found.high)), len(y))
    half = _Z * math.sqrt(variance)
    value = float(roc_auc_score(y, x) - roc_auc_score(y, z))
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half), len(y))


def _rank_alike(x: NDArray[np.float64], z: NDArray[np.float64]) -> bool:
    from scipy.stats import rankdata

    return bool(np.array_equal(rankdata(x), rankdata(z)))


# --- figures with bootstrap intervals -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Counts:
    """Positives and negatives at or above each threshold, from the highest on: (resamples, thresholds)."""

    true: NDArray[np.float64]
    false: NDArray[np.float64]

    @property
    def sensitivity(self) -> NDArray[np.float64]:
        return self.true / self.true[:, -1:]

    @property
    def specificity(self) -> NDArray[np.float64]:
        return 1 - self.false / self.false[:, -1:]


def _average_precision(counts: _Counts) -> NDArray[np.float64]:
    gains = np.diff(counts.sensitivity, prepend=0.0)
    found = counts.true + counts.false
    return (gains * np.divide(counts.true, found, out=np.zeros_like(found), where=found > 0)).sum(axis=1)


def _resampled(
    x: NDArray[np.float64], y: NDArray[np.int64], figure: Callable[[_Counts], NDArray[np.float64]], seed: int
) -> NDArray[np.float64]:
    """A figure of each of BOOTSTRAPS resamples of the patients, drawn within each class, all at once.

    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13. A resample is how often each patient was
    drawn, so that sorting once is enough.
    """
    order = np.argsort(-x, kind="stable")
    x, y = x[order], y[order]
    ends = np.flatnonzero(np.append(np.diff(x) != 0, True))  # ties are one threshold
    rng = np.random.default_rng(seed)
    values = []
    for some in np.array_split(np.arange(BOOTSTRAPS), math.ceil(BOOTSTRAPS * len(x) / _TABLE)):
        drawn = np.zeros((2, len(some), len(x)))
        for label in (0, 1):
            drawn[label][:, y == label] = _draws(int((y == label).sum()), len(some), rng)
        false, true = drawn.cumsum(axis=2)[:, :, ends]
        values.append(figure(_Counts(true, false)))
    return np.concatenate(values)


def _draws(patients: int, resamples: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often each patient is drawn, (resamples, patients); a multinomial, but five times as fast."""
    drawn = rng.integers(patients, size=(resamples, patients)) + patients * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)


def auprc(scores: Scores, labels: Labels, *, seed: int = 0) -> Estimate:
    """Average precision, by scikit-learn, with the bootstrap's standard error on the logit scale.

    The percentile interval has the same mean width, but covers by 0.02 to 0.07 less with 10 to 25 positives.

    Parameters
    ----------
    scores : array of float, shape (patients,)
        Higher means more likely positive.
    labels : array, shape (patients,)
        0, 1 or NaN where missing; patients without a label are left out.
    seed : int
        Seed of the bootstrap, 2000 resamples.

    Returns
    -------
    Estimate
        The estimate; NaN where a class is missing.
    """
    from sklearn.metrics import average_precision_score

    x, y = known_of(scores, labels)
    if not has_both(y):
        return Estimate.undefined(len(y))
    value = round(float(average_precision_score(y, x)), _DIGITS)
    if value == 1:
        return Estimate(value, *logit_interval(value, 0.0, rarer=min(y.sum(), len(y) - y.sum())), len(y))
    spread = np.std(logit(np.clip(_resampled(x, y, _average_precision, seed), _NEAR_0, 1 - _NEAR_0)))
    return Estimate(value, *_around(value, float(spread)), len(y))


def sensitivity_at(specificity: float, scores: Scores, labels: Labels, *, seed: int = 0) -> Estimate:
    """Highest sensitivity of a threshold with at least this specificity, with its percentile bootstrap interval.

    With ten patients in the class whose rate is held fixed, the interval is too narrow: it covers 0.80 to 0.87
    (benchmarks/results/coverage.md).

    Parameters
    ----------
    specificity : float
        Least specificity, 0 to 1.
    scores : array of float, shape (patients,)
        Higher means more likely positive.
    labels : array, shape (patients,)
        0, 1 or NaN where missing; patients without a label are left out.
    seed : int
        Seed of the bootstrap, 2000 resamples.

    Returns
    -------
    Estimate
        The sensitivity; NaN where a class is missing.
    """
    from sklearn.metrics import roc_curve

    def best(counts: _Counts) -> NDArray[np.float64]:
        return np.where(counts.specificity >= specificity - 1e-9, counts.sensitivity, 0).max(axis=1)

    x, y = known_of(scores, labels)
    if not has_both(y):
        return Estimate.undefined(len(y))
    alarms, found, _ = roc_curve(y, x, drop_intermediate=False)
    value = float(found[1 - alarms >= specificity - 1e-9].max())
    low, high = np.percentile(_resampled(x, y, best, seed), [2.5, 97.5]).tolist()
    if value in (0.0, 1.0):  # if all patients are classified correctly, every resample gives the same value
        bounds = logit_interval(value, 0.0, rarer=int(y.sum()))
        low, high = min(low, bounds[0]), max(high, bounds[1])
    return Estimate(value, low, high, len(y))


def specificity_at(sensitivity: float, scores: Scores, labels: Labels, *, seed: int = 0) -> Estimate:
    """Highest specificity of a threshold with at least this sensitivity, with its percentile bootstrap interval.

    Parameters
    ----------
    sensitivity : float
        Least sensitivity, 0 to 1.
    scores : array of float, shape (patients,)
        Higher means more likely positive.
    labels : array, shape (patients,)
        0, 1 or NaN where missing; patients without a label are left out.
    seed : int
        Seed of the bootstrap, 2000 resamples.

    Returns
    -------
    Estimate
        The specificity; NaN where a class is missing.
    """
    return sensitivity_at(sensitivity, -np.asarray(scores), 1 - np.asarray(labels), seed=seed)
