"""Platt scaling: it finds a distortion that is there, and believes a handful of patients little."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from models.calibration import Platt, fit_platt


def drawn(count: int, slope: float, intercept: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits of a model, and labels drawn from what the logits ought to have been."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, count).astype(np.float32)
    return logits, (rng.random(count) < expit(slope * logits + intercept)).astype(np.float32)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -1.0), (2.5, 1.5)])
def test_a_known_distortion_is_recovered_from_many_patients(slope: float, intercept: float) -> None:
    found = fit_platt(*drawn(20_000, slope, intercept, seed=1))
    assert found.slope == pytest.approx(slope, rel=0.08)
    assert found.intercept == pytest.approx(intercept, abs=0.1)


def test_few_patients_stay_near_as_it_is() -> None:
    logits, labels = np.array([2.0, -2.0, 1.0], dtype=np.float32), np.array([0, 1, 0], dtype=np.float32)
    few = fit_platt(logits, labels)
    many = fit_platt(np.tile(logits, 200), np.tile(labels, 200))
    assert abs(few.slope - 1) < 0.8 and abs(few.intercept) < 0.5
    assert many.slope < few.slope, "the same evidence from more patients counts for more"


@pytest.mark.parametrize("labels", [[], [np.nan, np.nan]])
def test_without_a_known_label_nothing_changes(labels: list[float]) -> None:
    logits = np.linspace(-1, 1, len(labels), dtype=np.float32)
    assert fit_platt(logits, np.array(labels, dtype=np.float32)) == Platt()


def test_missing_labels_are_left_out() -> None:
    logits, labels = drawn(200, 0.5, -1, seed=2)
    with_missing = np.concatenate([logits, [50, -50]]).astype(np.float32)
    known = np.concatenate([labels, [np.nan, np.nan]]).astype(np.float32)
    assert fit_platt(with_missing, known) == fit_platt(logits, labels)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4, 1e6])
@pytest.mark.parametrize("truth", ["separable", "the wrong way round", "one class"])
def test_awkward_data_give_finite_numbers_that_keep_the_order(scale: float, truth: str) -> None:
    logits = (scale * np.linspace(-1, 1, 50)).astype(np.float32)
    labels = {
        "separable": logits > 0,
        "the wrong way round": logits < 0,
        "one class": np.zeros(50),
    }[truth].astype(np.float32)
    found = fit_platt(logits, labels)
    assert np.isfinite([found.slope, found.intercept]).all()
    probability = found.probability(logits)
    assert np.isfinite(probability).all() and (probability >= 0).all() and (probability <= 1).all()
    assert (np.diff(probability) >= 0).all(), "calibration must not turn the ranking round"


@pytest.mark.filterwarnings("error")
def test_probability_by_hand_and_at_the_ends() -> None:
    assert Platt(slope=2, intercept=-1).probability(np.array([0.5], dtype=np.float32))[0] == pytest.approx(0.5)
    ends = Platt().probability(np.array([-1e5, 1e5], dtype=np.float32))
    assert ends.tolist() == [0.0, 1.0]
