"""Figures from counts of patients by class and bin, compared with those of the same patients' scores."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm

from pipeline.evaluation import calibration, discrimination, grouped
from pipeline.evaluation.grouped import Binned, Grouped, Scale
from pipeline.evaluation.ladder import RUNGS

INNER = np.array(RUNGS[1:-1])
AS_IT_IS = Scale.of(INNER, slope=1.0, intercept=0.0)
Patients = tuple[NDArray[np.float64], NDArray[np.int64]]


def drawn(seed: int, positive: int = 40, negative: int = 80, distance: float = 1.2) -> Patients:
    """Draw logits of patients, those with the label first."""
    labels = np.repeat([1, 0], [positive, negative])
    return np.random.default_rng(seed).normal(0, 1, len(labels)) + distance * labels - 1, labels


def counted(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Grouped:
    places = np.digitize(logits, INNER)
    return Grouped(*(np.bincount(places[labels == value], minlength=len(INNER) + 1) for value in (0, 1)))


def has(found: Binned, exact: float) -> bool:
    """Whether a figure of the scores is among those that the counts allow, and these in the interval."""
    return found.low <= found.possible[0] <= exact + 1e-9 and exact - 1e-9 <= found.possible[1] <= found.high


@pytest.mark.parametrize("seed", range(5))
def test_bounds_of_each_figure_contain_that_of_the_scores(seed: int) -> None:
    logits, labels = drawn(seed)
    counts, p = counted(logits, labels), expit(logits)
    assert has(grouped.auroc(counts), discrimination.auroc(logits, labels.astype(float)).value)
    assert has(grouped.slope(counts, AS_IT_IS), calibration.calibration_slope(logits, labels))
    assert has(grouped.intercept(counts, AS_IT_IS), calibration.calibration_intercept(logits, labels))
    assert has(grouped.brier(counts, AS_IT_IS), calibration.brier(p, labels))
    for threshold in (0.1, 0.2, 0.3, 0.5):
        exact = calibration.net_benefit(p, labels, threshold)
        assert has(grouped.net_benefit(counts, AS_IT_IS, threshold), exact)


def test_scores_that_are_bins_lose_nothing() -> None:
    """With one score in each bin the AUROC with ties is exact, and so is its variance."""
    logits, labels = drawn(1)
    counts = counted(logits, labels)
    middles = np.concatenate([[-11.0], (INNER[:-1] + INNER[1:]) / 2, [11.0]])[np.digitize(logits, INNER)]
    exact = discrimination.auroc(middles, labels.astype(float))
    assert grouped.auroc(counts).value == pytest.approx(exact.value)
    assert grouped.auroc_variance(counts) == pytest.approx(discrimination.delong_variance(middles, labels))
    slope = calibration.calibration_slope(middles.clip(INNER[0], INNER[-1]), labels)
    assert grouped.slope(counts, AS_IT_IS).value == pytest.approx(slope, abs=1e-4)


def test_curve_has_the_area_of_the_auroc() -> None:
    counts = counted(*drawn(2))
    points = grouped.roc(counts)
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]
    assert (np.diff(points, axis=0) >= 0).all()
    assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(grouped.auroc(counts).value)


def test_auroc_of_one_bin_is_not_known() -> None:
    nowhere = Grouped(np.array([0, 30, 0]), np.array([0, 20, 0]))
    assert grouped.auroc(nowhere) == Binned(0.5, 0.0, 1.0, (0.0, 1.0))


def test_separated_classes_have_an_auroc_and_no_slope() -> None:
    apart = Grouped(np.array([30, 0, 0]), np.array([0, 0, 20]))
    scale = Scale.of(np.array([-1.0, 1.0]), slope=1.0, intercept=0.0)
    found = grouped.auroc(apart)
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(0.025 ** (1 / 20))
    assert math.isnan(grouped.slope(apart, scale).value)


@pytest.mark.parametrize("positive", [True, False])
def test_single_class_has_no_figure(positive: bool) -> None:
    there, absent = np.array([3, 4]), np.array([0, 0])
    counts = Grouped(absent, there) if positive else Grouped(there, absent)
    scale = Scale.of(np.array([0.0]), slope=1.0, intercept=0.0)
    for found in (grouped.auroc(counts), grouped.slope(counts, scale), grouped.intercept(counts, scale)):
        assert math.isnan(found.value)


def test_all_patients_in_the_outermost_bins_have_finite_figures() -> None:
    ends = Grouped(np.array([25, 5]), np.array([4, 16]))
    scale = Scale.of(np.array([0.3]), slope=2.0, intercept=-0.1)
    for found in (grouped.auroc(ends), grouped.intercept(ends, scale), grouped.brier(ends, scale)):
        assert all(map(math.isfinite, (*found[:3], *found.possible)))


def test_net_benefit_at_the_edge_of_a_bin_is_exact() -> None:
    logits, labels = drawn(3)
    found = grouped.net_benefit(counted(logits, labels), AS_IT_IS, 0.5)  # the logit 0 is a rung
    assert found.possible[0] == found.possible[1] == pytest.approx(calibration.net_benefit(expit(logits), labels, 0.5))


@pytest.mark.parametrize("positive", [4, 40, 400])
def test_calibration_curve_covers_all_patients_in_points_of_enough(positive: int) -> None:
    counts = counted(*drawn(4, positive, 2 * positive))
    points = grouped.curve(counts, AS_IT_IS)
    assert sum(point.patients for point in points) == counts.patients
    assert sum(point.positive for point in points) == positive
    assert len(points) <= grouped.POINTS
    assert all(point.patients >= min(grouped.LEAST_IN_POINT, counts.patients) for point in points)
    assert [point.predicted for point in points] == sorted(point.predicted for point in points)


def test_interval_of_the_auroc_covers_with_few_patients() -> None:
    true = float(norm.cdf(1.2 / math.sqrt(2)))
    found = [grouped.auroc(counted(*drawn(seed, 36, 60))) for seed in range(150)]
    assert np.mean([each.low <= true <= each.high for each in found]) >= 0.93
    assert np.mean([each.high - each.low for each in found]) < 0.3
