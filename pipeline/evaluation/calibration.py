"""How far probabilities can be trusted, and what deciding by them is worth.

Probabilities and labels have the shape (patients,); labels are 0 or 1 and known of all, unless it says otherwise.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

BINS = 10
LARGEST = 100.0  # a slope or intercept beyond is that of classes that hardly overlap, and says nothing


def calibration_slope(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Slope of the logistic regression of the labels on the logits, by scikit-learn: 1 is right, below 1 too extreme.

    Cox, Biometrika 1958; 45:562; Van Calster et al., BMC Medicine 2019; 17:230. NaN where it is not defined: one class
    alone, classes that a threshold separates, logits that are all the same.
    """
    from sklearn.linear_model import LogisticRegression

    positive, negative = logits[labels == 1], logits[labels == 0]
    if not (len(positive) and len(negative)):
        return math.nan
    if positive.min() >= negative.max() or positive.max() <= negative.min():
        return math.nan
    centre, scale = logits.mean(), logits.std()  # the solver stops by an absolute gradient
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit((logits[:, None] - centre) / scale, labels)
    return _within(float(fitted.coef_[0, 0] / scale))


def calibration_intercept(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """What must be added to every logit for the mean probability to be the prevalence: 0 is right.

    The intercept of the logistic regression with the slope fixed at 1 ("calibration in the large", Van Calster et al.
    2019). NaN where one class is alone.
    """
    from scipy.optimize import brentq

    if not 0 < labels.sum() < len(labels):
        return math.nan
    reach = float(np.abs(logits).max()) + 50  # beyond, all probabilities are 0, or 1

    def excess(intercept: float) -> float:
        return float(np.mean(expit(logits + intercept)) - np.mean(labels))

    return _within(brentq(excess, -reach, reach, xtol=1e-10))


def _within(value: float) -> float:
    return value if abs(value) <= LARGEST else math.nan


def brier(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean squared distance of probability and label (Brier, Monthly Weather Review 1950; 78:1)."""
    return float(np.mean((probabilities - labels) ** 2))


@dataclass(frozen=True)
class Reliability:
    """By bins of equal width: patients, their mean probability, the share of positives; NaN where nobody is."""

    patients: NDArray[Any]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]


def bin_of(probabilities: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """In which of so many bins of equal width each probability is; 1 is in the last."""
    return np.minimum((probabilities * bins).astype(np.int64), bins - 1)


def reliability(probabilities: NDArray[np.float64], labels: NDArray[np.int64], bins: int = BINS) -> Reliability:
    """The reliability curve."""
    where = bin_of(probabilities, bins)
    patients = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, weights=values, minlength=bins) for values in (probabilities, labels)]
    predicted, observed = (np.divide(each, patients, out=np.full(bins, math.nan), where=patients > 0) for each in sums)
    return Reliability(patients, predicted, observed)


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean distance of predicted and observed over the patients' bins (Naeini et al., AAAI 2015).

    It grows with chance alone in small cohorts, so it is read beside slope and intercept.
    """
    curve = reliability(probabilities, labels)
    return float(np.nansum(curve.patients * np.abs(curve.predicted - curve.observed)) / len(labels))


def net_benefit(probabilities: NDArray[np.float64], labels: NDArray[np.int64], threshold: float) -> float:
    """True positives less false positives at the threshold's odds, each as a share of the patients.

    A point of the decision curve (Vickers & Elkin, Med Decis Making 2006; 26:565). `threshold`: above 0, below 1;
    who reaches it is treated. Treating nobody is worth 0.
    """
    treated = probabilities >= threshold
    true, false = np.mean(treated & (labels == 1)), np.mean(treated & (labels == 0))
    return float(true - false * threshold / (1 - threshold))
