"""The mean of the hospitals' AUROCs: its value, its intervals and their coverage in small cohorts."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

from federation.comparison.hospital_areas import areas_of
from federation.comparison.hospital_mean import HospitalMean, hospital_mean
from federation.protocol.figure_rounding import rounded
from federation.protocol.patient_counts import Patients
from pipeline.evaluation.discrimination import auroc


def figures(value: float, low: float, high: float, positive: int = 50, negative: int = 50) -> dict[str, float]:
    ends = {"auroc_severe": value, "auroc_severe_low": low, "auroc_severe_high": high}
    patients = positive + negative
    return ends | {"num-examples": float(patients), "prevalence_severe": positive / patients}


def mean_of(*sites: dict[str, float]) -> HospitalMean:
    found = hospital_mean(areas_of({f"site {number}": each for number, each in enumerate(sites)}, "severe"))
    assert found is not None
    return found


def test_mean_of_one_hospital_is_its_own_auroc_and_interval() -> None:
    found = mean_of(figures(0.8, 0.7, 0.87))
    assert found.value == 0.8
    assert (found.low, found.high) == found.here == (0.7, 0.87)


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


def test_hospitals_that_are_all_perfect_have_an_interval_of_their_sizes() -> None:
    few = mean_of(*[figures(1.0, 0.69, 1.0, 10, 40)] * 3)
    many = mean_of(*[figures(1.0, 0.96, 1.0, 100, 400)] * 3)
    assert (few.value, few.high, many.high) == (1.0, 1.0, 1.0)
    assert 0.8 < few.low < many.low < 0.995


def test_small_perfect_hospital_does_not_outweigh_the_others() -> None:
    """One of ten positives without a wrong pair reports 1.00; by its own variance it would have all the weight."""
    found = mean_of(figures(1.0, 0.99, 1.0, 10, 40), *[figures(0.9, 0.85, 0.94, 100, 100)] * 3)
    assert 0.9 < found.value < 0.93


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
    for number in range(cohorts):
        rng = np.random.default_rng([number, positive])
        mean = mean_of(*[hospital(draw(positive, negative, rng), positive, negative) for _ in range(3)])
        held += mean.low <= truth <= mean.high
    assert held >= 0.93 * cohorts


@pytest.mark.parametrize(("area", "positive", "negative"), [(0.98, 10, 40), (0.995, 25, 75), (0.95, 5, 20)])
@pytest.mark.parametrize("hospitals", [3, 20])
def test_interval_covers_near_an_auroc_of_1(area: float, positive: int, negative: int, hospitals: int) -> None:
    held, studies = np.zeros(2), 40
    distance = math.sqrt(2) * norm.ppf(area)
    for number in range(studies):
        rng = np.random.default_rng([number, positive, hospitals])
        scores = [rng.normal(np.repeat([distance, 0], [positive, negative]), 1) for _ in range(hospitals)]
        mean = mean_of(*[hospital(each, positive, negative) for each in scores])
        held += [low <= area <= high for low, high in ((mean.low, mean.high), mean.here)]
    assert held.min() >= 0.92 * studies


def hospital(scores: NDArray[np.float64], positive: int, negative: int) -> dict[str, float]:
    """What a hospital with these scores, positives first, releases."""
    found = auroc(scores, np.repeat([1.0, 0.0], [positive, negative]))
    told = figures(found.value, found.low, found.high, positive, negative)
    return rounded(told, "evaluate.test", Patients())
