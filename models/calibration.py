"""Calibration: a logit becomes a probability through slope and intercept, one pair for each label (Platt scaling)."""

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.optimize import minimize
from scipy.special import expit

PENALTY = 2.0  # pulls towards "as it is" by about this many patients' worth of evidence
LOWEST_SLOPE = 0.05  # calibration never turns the order of patients round


class Platt(BaseModel):
    """probability = sigmoid(slope * logit + intercept); Platt, Advances in Large Margin Classifiers, 1999."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: float = 1.0
    intercept: float = 0.0

    def probability(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)


def fit_platt(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> Platt:
    """Fit slope and intercept to `labels` (0, 1 or NaN where missing), shape (patients,).

    Penalised towards slope 1 and intercept 0, so that a handful of patients cannot turn the answer; without any
    known label the result is "as it is".
    """
    known = ~np.isnan(labels)
    x, y = np.asarray(logits, dtype=np.float64)[known], labels[known]

    def loss(parameters: NDArray[np.float64]) -> float:
        slope, intercept = parameters
        z = slope * x + intercept
        return float(np.sum(np.logaddexp(0, z) - y * z) + PENALTY * ((slope - 1) ** 2 + intercept**2))

    bounds = [(LOWEST_SLOPE, None), (None, None)]
    slope, intercept = minimize(loss, x0=np.array([1.0, 0.0]), method="L-BFGS-B", bounds=bounds).x
    return Platt(slope=float(slope), intercept=float(intercept))
