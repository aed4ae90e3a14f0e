"""The variance of an AUROC by its true value, and the interval of an AUROC that follows from it."""

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_NEAR = 1e-6

Count = TypeVar("Count", float, NDArray[np.float64])


def hanley_mcneil(area: float, positive: Count, negative: Count) -> Count:
    """Return the variance of an AUROC of so many patients with and without a label (Radiology 1982; 143:29)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    spread = area * (1 - area) + (positive - 1) * (q1 - area**2) + (negative - 1) * (q2 - area**2)
    return spread / (positive * negative)


def score_interval(value: float, variance: Callable[[float], float], errors: float) -> tuple[float, float]:
    """Return the ends of the true AUROCs from which an observed one is at most so many standard errors away.

    The standard error is that of the true AUROC, not of the observed one: near an AUROC of 1 an observed variance is
    almost 0 by chance (Newcombe, Stat Med 2006; 25:559, method 5).

    Parameters
    ----------
    value : float
        The observed AUROC, from 0 to 1.
    variance : callable
        Returns the variance of observed AUROCs by the true one.
    errors : float
        How many standard errors; 1.96 for 95 %. If it is NaN, both ends are.
    """
    from scipy.optimize import brentq

    def beyond(area: float) -> float:
        return abs(value - area) - errors * math.sqrt(variance(area))

    def end(limit: float) -> float:
        near = value + _NEAR * (limit - value)  # the variance of an AUROC of 1 is 0
        if beyond(limit) <= 0:
            return limit
        return float(brentq(beyond, near, limit)) if beyond(near) < 0 else value

    return (end(0.0), end(1.0)) if math.isfinite(errors) else (math.nan, math.nan)
