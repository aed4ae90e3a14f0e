"""Calibrates logits to probabilities with a slope and an intercept for each label (Platt scaling).

Each hospital fits its own pair, with a penalty towards the identity (slope 1, intercept 0). `pool` combines the pairs
of all hospitals, with a confidence band.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import expit, logit, ndtri

PENALTY = 2.0  # weight of the identity, in about this number of patients
LOWEST_SLOPE = 0.05  # positive, so that calibration never reverses the order of patients
# Prior for the differences between hospitals (standard deviations of slope and intercept), and its weight in hospitals.
# A few hospitals are not enough evidence: if three are similar by chance, the band would be far too narrow.
BETWEEN = (0.2, 0.4)
BETWEEN_WORTH = 2.0
_STEPS = 200  # of expectation-maximisation; each computes a few 2 x 2 matrices

_AS_IT_IS = np.array([1.0, 0.0])
_OF_PENALTY = 2 * PENALTY * np.eye(2)  # information of the penalty; a Bernoulli variance is at most 1/4
_ROUNDING = 1e-6
_REPORTED_DIGITS, _FINEST = 4, 1e-7  # significant digits of a covariance that hospitals report, and its smallest step


class Platt(BaseModel):
    """probability = sigmoid(slope * logit + intercept); Platt, Advances in Large Margin Classifiers, 1999.

    `covariance`: variance of the slope, covariance of slope and intercept, variance of the intercept, for a patient of
    one hospital. After `fit_platt` it reflects only the number of patients, after `pool` also the differences between
    hospitals. None if it is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: float = 1.0
    intercept: float = 0.0
    covariance: tuple[float, float, float] | None = None

    def probability(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)

    def band(self, logit: float, level: float = 0.95) -> tuple[float, float] | None:
        """Return the confidence band of the true probability of all patients with this `logit`, at a similar hospital.

        It uses the delta method on the scale of logits. It covers only the calibration (few validation patients,
        differences between hospitals), not that another training would give another model. None without a covariance.
        """
        if self.covariance is None:
            return None
        of_slope, of_both, of_intercept = self.covariance
        variance = of_slope * logit**2 + 2 * of_both * logit + of_intercept
        half = float(ndtri((1 + level) / 2)) * max(variance, 0.0) ** 0.5
        middle = self.slope * logit + self.intercept
        return float(expit(middle - half)), float(expit(middle + half))

    def logit_of(self, probability: float) -> float:
        """Return the logit that is calibrated to `probability`, which is above 0 and below 1; the slope is not 0."""
        return float((logit(probability) - self.intercept) / self.slope)

    def could_be_of(self, patients: float) -> bool:
        """Whether `fit_platt` could have given this result, with its covariance, for this number of patients.

        The covariance may be rounded to four significant digits; the first-order effect of rounding on the information
        is tolerated in both directions.
        """
        if self.covariance is None:
            return False
        own = _matrix(self.covariance)
        if np.linalg.eigvalsh(own).min() <= 0:
            return False
        inverse = np.linalg.inv(own)
        information = inverse - _OF_PENALTY
        rounding = _ROUNDING * (1 + np.abs(information).max())
        unsure = np.abs(inverse) @ _steps_of(own) @ np.abs(inverse)
        # The diagonal of the absolute row sums is an upper bound of the matrix in every direction (Gershgorin).
        is_information = np.linalg.eigvalsh(information + np.diag(unsure.sum(axis=1))).min() >= -rounding
        # With any rounding, the information must not exceed twice that of this number of patients.
        least = information[1, 1] - min(unsure[1, 1], inverse[1, 1] / 2)
        return bool(is_information and least <= patients / 4 + _ROUNDING * (1 + inverse[1, 1]))


def fit_platt(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> Platt:
    """Fit slope and intercept to `labels` (0, 1 or NaN where missing), shape (patients,).

    A penalty towards slope 1 and intercept 0 prevents large changes from a few patients; without any known label the
    result is the identity. The covariance is the inverse of the Fisher information, including the penalty.
    """
    known = ~np.isnan(labels)
    if not known.any():
        return Platt()
    x, y = np.asarray(logits, dtype=np.float64)[known], labels[known]
    return fit_weighted(x, y, np.ones_like(x))


def fit_weighted(x: NDArray[np.float64], y: NDArray[np.floating], weights: NDArray[np.float64]) -> Platt:
    """Fit as `fit_platt` does, to logits `x` and labels `y` (0 or 1) of `weights` patients each; shape (n,)."""
    from scipy.optimize import minimize  # imported here: it takes a third of a second, and scoring does not need it

    def loss(parameters: NDArray[np.float64]) -> float:
        slope, intercept = parameters
        z = slope * x + intercept
        return float(np.sum(weights * (np.logaddexp(0, z) - y * z)) + PENALTY * ((slope - 1) ** 2 + intercept**2))

    bounds = [(LOWEST_SLOPE, None), (None, None)]
    slope, intercept = minimize(loss, x0=_AS_IT_IS, method="L-BFGS-B", bounds=bounds).x
    p = expit(slope * x + intercept)
    design = np.stack([x, np.ones_like(x)])
    information = (design * (weights * p * (1 - p))) @ design.T + _OF_PENALTY
    return Platt(slope=float(slope), intercept=float(intercept), covariance=_three(np.linalg.inv(information)))


def with_differences(fit: Platt) -> Platt:
    """Return a fit to the patients of several hospitals with the covariance of a new hospital's pair.

    How far the hospitals differ cannot be known from their sum, so the differences are those of BETWEEN.
    """
    return fit.model_copy(update={"covariance": _three(_matrix(fit.covariance) + np.diag(np.square(BETWEEN)))})


def pool(fits: Sequence[Platt]) -> Platt:
    """Combine the fits of several hospitals, each with its covariance; without fits the result is the identity.

    The model is random effects: each hospital's true pair is normally distributed around a common pair (DerSimonian &
    Laird, Controlled Clin Trials 1986; 7:177). A parabola at each fit approximates its likelihood. The common pair is
    therefore one Newton step from the hospitals' fits to the fit of all patients, with the penalty counted once; more
    certain fits weigh more. Expectation-maximisation, starting from BETWEEN, estimates the differences between
    hospitals. The covariance is that of a new hospital's pair: of the common pair plus between hospitals.
    """
    if not fits:
        return Platt()
    own = np.linalg.inv(np.stack([_matrix(fit.covariance) for fit in fits]))
    away = np.array([[fit.slope, fit.intercept] for fit in fits]) - _AS_IT_IS
    known = own - _OF_PENALTY  # information from the patients, without the penalty
    pull = own @ away[..., None]
    prior = np.diag(np.square(BETWEEN))
    between = prior
    for _ in range(_STEPS):
        common, of_common = _common(known, pull, between)
        # Deviation of each hospital from the common pair, given its patients, and its uncertainty.
        of_own = np.linalg.inv(np.eye(2) + between @ known) @ between
        deviation = of_own @ (pull - known @ common)
        through = of_own @ known
        seen = deviation @ _turned(deviation) + of_own + through @ of_common @ _turned(through)
        between = (BETWEEN_WORTH * prior + seen.sum(axis=0)) / (BETWEEN_WORTH + len(fits))
    slope, intercept = _AS_IT_IS + common[:, 0]
    return Platt(
        slope=max(LOWEST_SLOPE, float(slope)), intercept=float(intercept), covariance=_three(of_common + between)
    )


def middle(fits: Sequence[Platt]) -> Platt:
    """Combine fits as `pool` does, but with medians, so that no single hospital can dominate; identity without fits.

    The common pair is the median. Its covariance is that of a typical single hospital, because the penalty biases all
    fits in the same direction. The differences between hospitals are estimated from the median deviation and BETWEEN.
    """
    if not fits:
        return Platt()
    pairs = np.array([[fit.slope, fit.intercept] for fit in fits])
    common = np.median(pairs, axis=0)
    typical = sorted((_matrix(fit.covariance) for fit in fits), key=np.linalg.det)[len(fits) // 2]
    spread = 1.4826 * np.median(np.abs(pairs - common), axis=0)  # factor for a normal distribution
    between = (BETWEEN_WORTH * np.square(BETWEEN) + len(fits) * spread**2) / (BETWEEN_WORTH + len(fits))
    return Platt(slope=float(common[0]), intercept=float(common[1]), covariance=_three(typical + np.diag(between)))


def _common(
    known: NDArray[np.float64], pull: NDArray[np.float64], between: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the common pair's deviation from the identity, shape (2, 1), and its covariance, given `between`."""
    less = np.linalg.inv(np.eye(2) + known @ between)
    covariance = np.linalg.inv((less @ known).sum(axis=0) + _OF_PENALTY)
    return covariance @ (less @ pull).sum(axis=0), covariance


def _matrix(covariance: tuple[float, float, float] | None) -> NDArray[np.float64]:
    """Return the covariance as a matrix. Raises ValueError if there is none."""
    if covariance is None:
        raise ValueError("a fit without its covariance cannot be pooled")
    of_slope, of_both, of_intercept = covariance
    return np.array([[of_slope, of_both], [of_both, of_intercept]])


def _steps_of(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how much rounding can have changed each number."""
    exponents = np.floor(np.log10(np.maximum(np.abs(matrix), _FINEST)))
    steps: NDArray[np.float64] = np.maximum(10.0 ** (exponents + 1 - _REPORTED_DIGITS), _FINEST)
    return steps


def _three(matrix: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(matrix[0, 0]), float((matrix[0, 1] + matrix[1, 0]) / 2), float(matrix[1, 1])


def _turned(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.swapaxes(matrices, -1, -2)
