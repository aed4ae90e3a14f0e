"""Calibration figures: calibrated models, known miscalibration, and NaN for undefined values."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from pipeline.evaluation.calibration import (
    brier,
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
    net_benefit,
    reliability,
)

Cohort = tuple[NDArray[np.float64], NDArray[np.int64]]


def calibrated(patients: int, seed: int = 1) -> Cohort:
    """Logits, and labels drawn with the probabilities of these logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, patients)
    return logits, (rng.random(patients) < expit(logits)).astype(np.int64)


def test_calibrated_model_has_slope_1_intercept_0_and_small_error() -> None:
    logits, labels = calibrated(20_000)
    assert calibration_slope(logits, labels) == pytest.approx(1, abs=0.05)
    assert calibration_intercept(logits, labels) == pytest.approx(0, abs=0.05)
    assert expected_calibration_error(expit(logits), labels) < 0.02


def test_miscalibration_is_measured() -> None:
    logits, labels = calibrated(20_000)
    assert calibration_slope(2 * logits + 1, labels) == pytest.approx(0.5, abs=0.03)
    assert calibration_intercept(logits + 1, labels) == pytest.approx(-1, abs=0.05)
    assert expected_calibration_error(expit(logits + 1), labels) > 0.1


def test_slope_maximises_the_likelihood() -> None:
    logits, labels = calibrated(80)
    logits = 30 + 7 * logits  # badly scaled for a solver

    def loss(parameters: NDArray[np.float64]) -> float:
        z = parameters[0] * logits / 100 + parameters[1]
        return float(np.sum(np.logaddexp(0, z) - labels * z))

    expected = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}).x[0] / 100
    assert calibration_slope(logits, labels) == pytest.approx(expected, rel=1e-4)


def test_intercept_sets_the_mean_probability_to_the_prevalence() -> None:
    logits, labels = calibrated(60)
    moved = expit(logits + 3 + calibration_intercept(logits + 3, labels))
    assert moved.mean() == pytest.approx(labels.mean())


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1]),  # separated
        ([1, 2, 3, 4], [1, 1, 0, 0]),
        ([1, 2, 2, 4], [0, 0, 1, 1]),  # separated except for one tie
        ([1, 1, 1, 1], [0, 1, 0, 1]),
        ([1, 2, 3, 4], [1, 1, 1, 1]),
        ([], []),
    ],
)
def test_undefined_slope_is_nan(logits: list[int], labels: list[int]) -> None:
    assert math.isnan(calibration_slope(np.array(logits, dtype=float), np.array(labels, dtype=int)))


def test_intercept_of_one_class_or_extreme_logits_is_nan() -> None:
    assert math.isnan(calibration_intercept(np.arange(4.0), np.ones(4, dtype=int)))
    assert math.isnan(calibration_intercept(np.full(4, 500.0), np.array([0, 1, 0, 1])))


def test_brier_score_and_reliability_equal_scikit_learn() -> None:
    logits, labels = calibrated(300)
    probabilities = expit(logits)
    assert brier(probabilities, labels) == pytest.approx(brier_score_loss(labels, probabilities))
    observed, predicted = calibration_curve(labels, probabilities, n_bins=10)
    curve = reliability(probabilities, labels)
    assert curve.observed[curve.patients > 0] == pytest.approx(observed)
    assert curve.predicted[curve.patients > 0] == pytest.approx(predicted)
    assert curve.patients.sum() == 300


def test_calibration_error_is_the_patient_weighted_mean_over_bins() -> None:
    probabilities, labels = np.array([0.05, 0.05, 0.05, 0.05, 0.95, 1.0]), np.array([0, 0, 0, 1, 1, 1])
    expected = (4 * abs(0.25 - 0.05) + 2 * abs(1 - 0.975)) / 6
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_net_benefit_weights_false_positives_by_the_threshold_odds() -> None:
    """Vickers and Elkin's formula by hand. A threshold below all probabilities gives the benefit of treating all."""
    probabilities, labels = np.array([0.1, 0.3, 0.3, 0.6, 0.9]), np.array([0, 0, 1, 1, 1])
    assert net_benefit(probabilities, labels, 0.25) == pytest.approx(3 / 5 - 1 / 5 * 0.25 / 0.75)
    assert net_benefit(probabilities, labels, 0.05) == pytest.approx(3 / 5 - 2 / 5 * 0.05 / 0.95)
    assert net_benefit(probabilities, labels, 0.95) == 0
