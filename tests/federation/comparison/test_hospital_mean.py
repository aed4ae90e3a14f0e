"""The mean of the hospitals' AUROCs: its value, its intervals and their coverage in small cohorts."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from federation.comparison.hospital_mean import HospitalMean, areas_of, hospital_mean
from federation.protocol.figure_rounding import rounded
from federation.protocol.patient_counts import Patients
from pipeline.evaluation.discrimination import auroc


def figures(value: float, low: float, high: float) -> dict[str, float]:
    return {"auroc_severe": value, "auroc_severe_low": low, "auroc_severe_high": high}


def mean_of(*sites: dict[str, float]) -> HospitalMean:
    found = hospital_mean(areas_of({f"site {number}": each for number, each in enumerate(sites)}, "severe"))
    assert found is not None
    return found


def test_mean_of_one_hospital_is_its_own_auroc_and_interval() -> None:
    found = mean_of(figures(0.8, 0.7, 0.87))
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high) == found.here == pytest.approx((0.7, 0.87), abs=0.01)


def test_equal_hospitals_give_a_shorter_interval() -> None:
    found = mean_of(*[figures(0.8, 0.7, 0.87)] * 4)
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high) == found.here
    assert found.high - found.low == pytest.approx((0.87 - 0.7) / 2, rel=0.1)


def test_hospitals_that_differ_say_less_about_others_than_about_themselves() -> None:
    found = mean_of(figures(0.9, 0.85, 0.94), figures(0.7, 0.64, 0.76), figures(0.8, 0.74, 0.85))
    assert found.low < found.here[0] < found.value < found.here[1] < found.high


def test_two_hospitals_that_differ_give_no_interval_for_others() -> None:
    found = mean_of(figures(0.9, 0.85, 0.94), figures(0.7, 0.64, 0.76))
    assert math.isnan(found.low) and math.isnan(found.high)
    assert found.here[0] < found.value < found.here[1]


def test_no_mean_without_an_auroc_and_its_interval() -> None:
    assert hospital_mean(areas_of({}, "severe")) is None
    nan = figures(0.8, math.nan, 0.9)
    assert hospital_mean(areas_of({"a": {"auroc_severe": 0.8}, "b": nan}, "severe")) is None


def binormal(positive: int, negative: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.concatenate([rng.normal(1.2, 1, positive), rng.normal(0, 1, negative)])


def mixture(positive: int, negative: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Half of the positives look like negatives."""
    return np.concatenate([rng.normal(3 * (rng.random(positive) < 0.5), 1), rng.normal(0, 1, negative)])


@pytest.mark.slow
@pytest.mark.parametrize(("positive", "negative"), [(12, 20), (25, 50)])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [(binormal, norm.cdf(1.2 / math.sqrt(2))), (mixture, (0.5 + norm.cdf(3 / math.sqrt(2))) / 2)],
    ids=["binormal", "mixture"],
)
def test_interval_covers_at_three_small_hospitals(draw, truth: float, positive: int, negative: int) -> None:  # type: ignore[no-untyped-def]
    held, cohorts = 0, 200
    labels = np.repeat([1.0, 0.0], [positive, negative])
    for number in range(cohorts):
        rng = np.random.default_rng([number, positive])
        told = []
        for _ in range(3):
            found = auroc(draw(positive, negative, rng), labels)
            told.append(rounded(figures(found.value, found.low, found.high), "evaluate.test", Patients()))
        mean = mean_of(*told)
        held += mean.low <= truth <= mean.high
    assert held >= 0.93 * cohorts
