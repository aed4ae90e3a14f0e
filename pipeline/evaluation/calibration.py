"""Calibration of probabilities, and the net benefit of decisions based on them.

Probabilities and labels have the shape (patients,); labels are 0 or 1, and known for all patients unless stated
otherwise.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

BINS = 10
LARGEST = 100.0  # larger slopes or intercepts come from classes that hardly overlap, and are meaningless


def calibration_slope(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the slope of the logistic regression of labels on logits: 1 is ideal, below 1 is too extreme.

    Cox, Biometrika 1958; 45:562; Van Calster et al., BMC Medicine 2019; 17:230. NaN if undefined: only one class,
    classes separated by a threshold, or identical logits.
    """
    from sklearn.linear_model import LogisticRegression

    positive, negative = logits[labels == 1], logits[labels == 0]
    if not (len(positive) and len(negative)):
        return math.nan
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        return math.nan
    centre, scale = logits.mean(), logits.std()  # the solver's stopping criterion is an absolute gradient
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit((logits[:, None] - centre) / scale, labels)
    return _within(float(fitted.coef_[0, 0] / scale))


def calibration_intercept(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the shift of all logits that makes the mean probability equal the prevalence: 0 is ideal.

    The intercept of the logistic regression with the slope fixed at 1 ("calibration in the large", Van Calster et al.
    2019). NaN if there is only one class.
    """
    from scipy.optimize import brentq

    if not 0 < labels.sum() < len(labels):
        return math.nan
    reach = float(np.abs(logits).max()) + 50  # beyond this, all probabilities are 0 or 1

    def excess(intercept: float) -> float:
        return float(np.mean(expit(logits + intercept)) - np.mean(labels))

    return _within(brentq(excess, -reach, reach, xtol=1e-10))


def _within(value: float) -> float:
    return value if abs(value) <= LARGEST else math.nan


def brier(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean squared difference of probability and label (Brier, Monthly Weather Review 1950; 78:1)."""
    return float(np.mean((probabilities - labels) ** 2))


@dataclass(frozen=True)
class Reliability:
    """By bins of equal width: patients, their mean probability, the share of positives; NaN in empty bins."""

    patients: NDArray[Any]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]


def bin_of(probabilities: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Return the index of each probability's bin, of `bins` with equal width; 1 is in the last bin."""
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """Compute the reliability curve."""
    where = bin_of(probabilities, bins)
    patients = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, weights=values, minlength=bins) for values in (probabilities, labels)]
    predicted, observed = (np.divide(each, patients, out=np.full(bins, math.nan), where=patients > 0) for each in sums)
    return Reliability(patients, predicted, observed)


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the mean absolute difference of predicted and observed, weighted by patients (Naeini et al., AAAI 2015).

    In small cohorts chance alone increases it, so read it together with slope and intercept.
    """
    curve = reliability(probabilities, labels)
    return float(np.nansum(curve.patients * np.abs(curve.predicted - curve.observed)) / len(labels))


def net_benefit(probabilities: NDArray[np.float64], labels: NDArray[np.int64], threshold: float) -> float:
    """Return true positives minus false positives weighted by the threshold's odds, as shares of the patients.

    A point of the decision curve (Vickers & Elkin, Med Decis Making 2006; 26:565). `threshold`: above 0, below 1;
    patients at or above it are treated. Treating nobody has the value 0.
    """
    treated = probabilities >= threshold
    true, false = np.mean(treated & (labels == 1)), np.mean(treated & (labels == 0))
    return float(true - false * threshold / (1 - threshold))
