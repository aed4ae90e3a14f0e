"""Calibration slopes of hospitals: away from 1 in both directions, and by more than chance."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from federation.comparison.class_sizes import ClassSizes
from federation.comparison.hospital_slopes import (
    chance_of_slopes,
    factor_from_one,
    mean_slope,
    slope_variance,
    slopes_of,
)

Sites = dict[str, dict[str, float]]


def sites(*slopes: float, positive: int = 25, negative: int = 75, auroc: float = 0.8) -> Sites:
    counts = {"positives_severe": positive, "negatives_severe": negative, "num-examples": float(positive + negative)}
    return {
        f"hospital-{number}": {"calibration_slope_severe": slope, "auroc_severe": auroc, **counts}
        for number, slope in enumerate(slopes)
    }


@pytest.mark.parametrize(("auroc", "positive", "negative"), [(0.7, 100, 300), (0.85, 300, 300)])
def test_variance_of_a_slope_is_that_of_logistic_regressions(auroc: float, positive: int, negative: int) -> None:
    rng, distance = np.random.default_rng(0), math.sqrt(2) * norm.ppf(auroc)
    labels = np.repeat([1, 0], [positive, negative])
    slopes = []
    for _ in range(300):
        logits = rng.normal((labels - 0.5) * distance**2, distance)
        slopes.append(LogisticRegression(penalty=None).fit(logits[:, None], labels).coef_[0, 0])
    assert np.var(slopes) == pytest.approx(slope_variance(auroc, ClassSizes(positive, negative)), rel=0.25)


def test_opposite_slopes_are_far_from_one_and_differ_by_more_than_chance() -> None:
    found = sites(0.2, 1.8)
    slopes = slopes_of(found, "severe")
    assert mean_slope(slopes, found) == pytest.approx(1.0)
    assert factor_from_one(slopes, found) == pytest.approx(3.0)
    assert chance_of_slopes(slopes, found, "severe") < 1e-3


def test_the_same_slopes_of_few_patients_may_differ_by_chance() -> None:
    few = sites(0.2, 1.8, positive=4, negative=16, auroc=0.65)
    assert chance_of_slopes(slopes_of(few, "severe"), few, "severe") > 0.05


def test_a_negative_slope_counts_as_far_away_as_the_largest_factor() -> None:
    found = sites(-3.0)
    assert factor_from_one(slopes_of(found, "severe"), found) == pytest.approx(10.0)


@pytest.mark.parametrize("slopes", [(), (1.3,), (0.9, 0.9, 0.9)])
def test_without_a_difference_there_is_no_doubt(slopes: tuple[float, ...]) -> None:
    found = sites(*slopes)
    assert chance_of_slopes(slopes_of(found, "severe"), found, "severe") == pytest.approx(1.0)
