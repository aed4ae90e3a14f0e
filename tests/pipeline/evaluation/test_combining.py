"""Tests of means and differences of figures with intervals: coverage in simulation, and exact small cases."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from pipeline.evaluation.combining import (
    Interval,
    difference_at_site,
    difference_of_repeats,
    mean_at_site,
    mean_of_repeats,
    mean_of_sites,
)


def test_mean_of_sites_adds_squares_and_keeps_asymmetry() -> None:
    found = mean_of_sites([Interval(0.9, 0.8, 0.95), Interval(0.7, 0.4, 0.9)])
    assert found.value == pytest.approx(0.8)
    assert found.low == pytest.approx(0.8 - math.hypot(0.05, 0.15))
    assert found.high == pytest.approx(0.8 + math.hypot(0.025, 0.1))
    assert mean_of_sites([Interval(0.9, 0.8, 0.95)], [7]) == pytest.approx((0.9, 0.8, 0.95))


def test_weighted_mean_uses_the_weights_for_value_and_ends() -> None:
    found = mean_of_sites([Interval(0.9, 0.8, 1.0), Interval(0.5, 0.3, 0.7)], [3, 1])
    assert found == pytest.approx((0.8, 0.8 - math.hypot(0.075, 0.05), 0.8 + math.hypot(0.075, 0.05)))


def test_difference_is_as_wide_as_any_correlation_allows() -> None:
    found = difference_at_site(Interval(0.8, 0.7, 0.9), Interval(0.7, 0.5, 0.8))
    assert found == pytest.approx((0.1, 0.1 - 0.1 - 0.1, 0.1 + 0.1 + 0.2))
    same = Interval(0.8, 0.7, 0.9)
    assert difference_at_site(same, same).value == 0


def test_mean_over_seeds_at_one_site_does_not_get_narrower() -> None:
    assert mean_at_site([Interval(0.8, 0.7, 0.9)] * 5) == pytest.approx((0.8, 0.7, 0.9))


def test_repeats_have_the_interval_of_student() -> None:
    found = mean_of_repeats(np.array([0.01, 0.02, 0.06]))
    assert found is not None
    half = 4.302653 * np.std([0.01, 0.02, 0.06], ddof=1) / math.sqrt(3)
    assert found == pytest.approx((0.03, 0.03 - half, 0.03 + half), abs=1e-6)


@pytest.mark.parametrize("shape", [(0,), (2,), (2, 5), (5, 2), (0, 4)])
def test_too_few_repeats_have_no_interval(shape: tuple[int, ...]) -> None:
    assert mean_of_repeats(np.zeros(shape)) is None


def test_rounded_figures_that_agree_keep_a_least_width() -> None:
    assert mean_of_repeats(np.full(4, 0.02), least=0.01) == pytest.approx((0.02, 0.01, 0.03))


def test_repeats_with_different_seeds_have_the_interval_of_welch() -> None:
    one, other = np.array([0.81, 0.84, 0.90]), np.array([0.70, 0.71, 0.75, 0.72])
    found = difference_of_repeats(one, other)
    assert found is not None
    expected = ttest_ind(one, other, equal_var=False).confidence_interval()
    assert found == pytest.approx((one.mean() - other.mean(), expected.low, expected.high))
    assert difference_of_repeats(one[:2], other) is difference_of_repeats(one, other[:2]) is None
    same = difference_of_repeats(np.full(3, 0.8), np.full(3, 0.7), least=0.01)
    assert same == pytest.approx((0.1, 0.09, 0.11)), "figures that were rounded may agree by chance"


def test_seeds_and_sites_together_cover_the_true_difference() -> None:
    """Differences vary by seed, by site and by both; at least 95 % of intervals hold the truth, less chance."""
    rng = np.random.default_rng(5)
    held = []
    for _ in range(1000):
        by_seed, by_site = rng.normal(0, 0.02, (5, 1)), rng.normal(0, 0.03, (1, 4))
        found = mean_of_repeats(0.04 + by_seed + by_site + rng.normal(0, 0.02, (5, 4)))
        assert found is not None
        held.append(found.low <= 0.04 <= found.high)
    assert np.mean(held) >= 0.94


@pytest.mark.parametrize("correlation", [-1.0, 0.0, 0.9])
def test_difference_of_two_models_covers_whatever_their_correlation(correlation: float) -> None:
    """Three sites; the errors of two models' figures on the same patients are correlated."""
    rng = np.random.default_rng(11)
    errors = np.array([0.05, 0.08])
    root = np.array([[1, 0], [correlation, math.sqrt(1 - correlation**2)]])
    held = []
    for _ in range(2000):
        found = (rng.normal(size=(3, 2)) @ root.T) * errors + [0.8, 0.7]
        sites = [[Interval(v, v - 1.96 * e, v + 1.96 * e) for v, e in zip(at, errors, strict=True)] for at in found]
        together = mean_of_sites([difference_at_site(one, other) for one, other in sites])
        held.append(together.low <= 0.1 <= together.high)
    assert np.mean(held) >= 0.94
