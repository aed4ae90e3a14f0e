"""Calibration: a logit becomes a probability through slope and intercept, one pair for each label (Platt scaling).

Each hospital fits its own pair, penalised towards "as it is"; `pool` makes one of them all, with a band for it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import expit, logit, ndtri

PENALTY = 2.0  # pulls towards "as it is" by about this many patients' worth of evidence
LOWEST_SLOPE = 0.05  # calibration never turns the order of patients round
# How hospitals are taken to differ, as standard deviations of slope and intercept, and how many hospitals' worth of
# evidence that is. A few cannot tell by themselves: where three are alike by chance the band would be far too narrow.
BETWEEN = (0.2, 0.4)
BETWEEN_WORTH = 2.0
_STEPS = 200  # of expectation and maximisation; each is some matrices of 2 x 2

_AS_IT_IS = np.array([1.0, 0.0])
_OF_PENALTY = 2 * PENALTY * np.eye(2)  # its information: a variance is at most 1/4
_ROUNDING = 1e-6
_TOLD_DIGITS, _FINEST = 4, 1e-7  # significant digits of a covariance as hospitals tell it, and its finest step


class Platt(BaseModel):
    """probability = sigmoid(slope * logit + intercept); Platt, Advances in Large Margin Classifiers, 1999.

    `covariance`: variance of the slope, covariance of slope and intercept, variance of the intercept, as they are
    uncertain for a patient of one hospital: after `fit_platt` by the number of patients alone, after `pool` also by
    how hospitals differ. None where that is not known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: float = 1.0
    intercept: float = 0.0
    covariance: tuple[float, float, float] | None = None

    def probability(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return expit(self.slope * np.asarray(logits, dtype=np.float64) + self.intercept)

    def band(self, logit: float, level: float = 0.95) -> tuple[float, float] | None:
        """Between which probabilities the true one of all patients with this `logit` lies, at a hospital of this kind.

        By the delta method on the scale of logits. It covers the calibration alone: that validation patients are few
        and hospitals differ; not that another training would have given another model. None without a covariance.
        """
        if self.covariance is None:
            return None
        of_slope, of_both, of_intercept = self.covariance
        variance = of_slope * logit**2 + 2 * of_both * logit + of_intercept
        half = float(ndtri((1 + level) / 2)) * max(variance, 0.0) ** 0.5
        middle = self.slope * logit + self.intercept
        return float(expit(middle - half)), float(expit(middle + half))

    def logit_of(self, probability: float) -> float:
        """The logit that is calibrated to `probability`, which is above 0 and below 1; the slope is not 0."""
        return float((logit(probability) - self.intercept) / self.slope)

    def could_be_of(self, patients: float) -> bool:
        """Whether `fit_platt` could have found this, with its covariance, on so many patients.

        The covariance may have been rounded to four significant digits; what that changes in the information, to first
        order and in either direction, is allowed for.
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
        # A diagonal of the sums of absolute rows is no less than the matrix in any direction (Gershgorin).
        is_information = np.linalg.eigvalsh(information + np.diag(unsure.sum(axis=1))).min() >= -rounding
        # Whatever is rounded, nobody is believed to know more than twice as much as so many patients tell.
        least = information[1, 1] - min(unsure[1, 1], inverse[1, 1] / 2)
        return bool(is_information and least <= patients / 4 + _ROUNDING * (1 + inverse[1, 1]))


def fit_platt(logits: NDArray[np.float32], labels: NDArray[np.float32]) -> Platt:
    """Fit slope and intercept to `labels` (0, 1 or NaN where missing), shape (patients,).

    Penalised towards slope 1 and intercept 0, so that a handful of patients cannot turn the answer; without any
    known label the result is "as it is". The covariance is the inverse of the Fisher information, the penalty's
    included.
    """
    from scipy.optimize import minimize  # a third of a second, and who scores fits nothing

    known = ~np.isnan(labels)
    if not known.any():
        return Platt()
    x, y = np.asarray(logits, dtype=np.float64)[known], labels[known]

    def loss(parameters: NDArray[np.float64]) -> float:
        slope, intercept = parameters
        z = slope * x + intercept
        return float(np.sum(np.logaddexp(0, z) - y * z) + PENALTY * ((slope - 1) ** 2 + intercept**2))

    bounds = [(LOWEST_SLOPE, None), (None, None)]
    slope, intercept = minimize(loss, x0=_AS_IT_IS, method="L-BFGS-B", bounds=bounds).x
    p = expit(slope * x + intercept)
    design = np.stack([x, np.ones_like(x)])
    information = (design * (p * (1 - p))) @ design.T + _OF_PENALTY
    return Platt(slope=float(slope), intercept=float(intercept), covariance=_three(np.linalg.inv(information)))


def pool(fits: Sequence[Platt]) -> Platt:
    """One calibration of several hospitals' fits, each with its covariance; for no fit "as it is".

    Each hospital's true pair is taken to be normal about a common one (random effects; DerSimonian & Laird, Controlled
    Clin Trials 1986; 7:177). Its likelihood is known by a parabola at its own fit, so the common pair is one Newton
    step from the hospitals' fits to that of all patients together, with the penalty counted once; the better a fit is
    known, the more it counts. How hospitals differ is estimated by expectation and maximisation, from BETWEEN on. The
    covariance is that of a further hospital's pair: the common one's and that between hospitals.
    """
    if not fits:
        return Platt()
    own = np.linalg.inv(np.stack([_matrix(fit.covariance) for fit in fits]))
    away = np.array([[fit.slope, fit.intercept] for fit in fits]) - _AS_IT_IS
    known = own - _OF_PENALTY  # information of the patients alone
    pull = own @ away[..., None]
    prior = np.diag(np.square(BETWEEN))
    between = prior
    for _ in range(_STEPS):
        common, of_common = _common(known, pull, between)
        # A hospital's own deviation, given its patients, and how uncertain it is.
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
    """As `pool`, but so that no single hospital can carry it away: by medians; for no fit "as it is".

    The common pair is the median's, and no better known than a middling hospital's own: the penalty pulls each fit the
    same way. How hospitals differ, of either number, is the median deviation from it, and BETWEEN.
    """
    if not fits:
        return Platt()
    pairs = np.array([[fit.slope, fit.intercept] for fit in fits])
    common = np.median(pairs, axis=0)
    typical = sorted((_matrix(fit.covariance) for fit in fits), key=np.linalg.det)[len(fits) // 2]
    spread = 1.4826 * np.median(np.abs(pairs - common), axis=0)  # of a normal distribution's deviations
    between = (BETWEEN_WORTH * np.square(BETWEEN) + len(fits) * spread**2) / (BETWEEN_WORTH + len(fits))
    return Platt(slope=float(common[0]), intercept=float(common[1]), covariance=_three(typical + np.diag(between)))


def _common(
    known: NDArray[np.float64], pull: NDArray[np.float64], between: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The common pair's deviation from "as it is", shape (2, 1), and its covariance, given how hospitals differ."""
    less = np.linalg.inv(np.eye(2) + known @ between)
    covariance = np.linalg.inv((less @ known).sum(axis=0) + _OF_PENALTY)
    return covariance @ (less @ pull).sum(axis=0), covariance


def _matrix(covariance: tuple[float, float, float] | None) -> NDArray[np.float64]:
    """Raises ValueError where there is none."""
    if covariance is None:
        raise ValueError("a fit without its covariance cannot be pooled")
    of_slope, of_both, of_intercept = covariance
    return np.array([[of_slope, of_both], [of_both, of_intercept]])


def _steps_of(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much rounding can have changed each number."""
    exponents = np.floor(np.log10(np.maximum(np.abs(matrix), _FINEST)))
    steps: NDArray[np.float64] = np.maximum(10.0 ** (exponents + 1 - _TOLD_DIGITS), _FINEST)
    return steps


def _three(matrix: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(matrix[0, 0]), float((matrix[0, 1] + matrix[1, 0]) / 2), float(matrix[1, 1])


def _turned(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.swapaxes(matrices, -1, -2)
