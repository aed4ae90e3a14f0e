"""Whether hospitals differ: those of equal AUROC are rarely called different, those that differ often."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from federation.comparison.hospital_areas import areas_of
from federation.comparison.hospital_difference import chance_of_difference
from federation.protocol.figure_rounding import rounded
from federation.protocol.patient_counts import Patients
from pipeline.evaluation.discrimination import auroc

UNUSUAL = 0.01


def hospital(area: float, positive: int, negative: int, rng: np.random.Generator) -> dict[str, float]:
    """What a hospital with this true AUROC releases of so many test patients."""
    labels = np.repeat([1.0, 0.0], [positive, negative])
    found = auroc(rng.normal(math.sqrt(2) * norm.ppf(area) * labels, 1), labels)
    told = {"auroc_severe": found.value, "auroc_severe_low": found.low, "auroc_severe_high": found.high}
    patients = positive + negative
    return {
        **rounded(told, "evaluate.test", Patients()),
        "prevalence_severe": round(positive / patients, 2),
        "num-examples": float(patients),
    }


def called_different(areas: list[float], positive: int, negative: int, studies: int) -> int:
    found = 0
    for number in range(studies):
        rng = np.random.default_rng([number, positive, negative])
        sites = {str(place): hospital(area, positive, negative, rng) for place, area in enumerate(areas)}
        found += chance_of_difference(areas_of(sites, "severe")) < UNUSUAL
    return found


@pytest.mark.parametrize(
    ("area", "positive", "negative"), [(0.95, 10, 40), (0.98, 25, 75), (0.95, 40, 10), (0.9, 5, 20), (0.6, 5, 20)]
)
def test_equal_hospitals_are_rarely_called_different(area: float, positive: int, negative: int) -> None:
    assert called_different([area] * 5, positive, negative, studies=80) <= 3


def test_hospital_that_differs_much_is_mostly_found() -> None:
    assert called_different([0.95, 0.95, 0.95, 0.95, 0.7], 25, 75, studies=40) >= 30
    assert called_different([0.8, 0.8, 0.6], 50, 150, studies=40) >= 25


def test_small_hospital_that_is_perfect_by_chance_differs_from_no_other() -> None:
    """A bound of 10 of 10 patients is 0.69; one wrong pair of 400 gives 1.00 from 0.96, rounded."""
    others = {"north": (0.93, 0.83, 0.98), "south": (0.9, 0.79, 0.96), "east": (0.94, 0.85, 0.98)}
    for perfect in ((1.0, 0.69, 1.0), (1.0, 0.96, 1.0)):
        sites = {
            name: {
                **dict(zip(("auroc_severe", "auroc_severe_low", "auroc_severe_high"), each, strict=True)),
                "num-examples": 50.0,
                "prevalence_severe": 0.2,
            }
            for name, each in {**others, "west": perfect}.items()
        }
        assert chance_of_difference(areas_of(sites, "severe")) > 0.1


def test_counts_of_a_histogram_take_the_place_of_the_prevalence() -> None:
    """Patients without a known label are in `num-examples`, but in no histogram."""
    rng = np.random.default_rng(1)
    sites = {str(place): hospital(area, 30, 60, rng) for place, area in enumerate((0.9, 0.7, 0.75))}
    expected = chance_of_difference(areas_of(sites, "severe"))
    counted = {
        name: {**figures, "num-examples": 5000.0, "count_severe_1_19": 30.0, "count_severe_0_19": 60.0}
        for name, figures in sites.items()
    }
    assert chance_of_difference(areas_of(counted, "severe")) == pytest.approx(expected)


def test_fewer_than_two_hospitals_with_an_interval_do_not_differ() -> None:
    told = {"auroc_severe": 0.9, "auroc_severe_low": 0.8, "auroc_severe_high": 0.95, "num-examples": 50.0}
    for other in ({}, {**told, "auroc_severe_low": math.nan}, {"auroc_severe": 0.1}):
        assert chance_of_difference(areas_of({"north": told, "south": other}, "severe")) == 1.0
    assert chance_of_difference(areas_of({}, "severe")) == 1.0


def test_difference_needs_no_prevalence() -> None:
    """Figures of earlier versions may lack it, or it may be rounded to none or all."""
    far = [(0.95, 0.9, 0.98), (0.7, 0.62, 0.77)]
    for prevalence in ({}, {"prevalence_severe": 0.0}, {"prevalence_severe": 1.0}, {"prevalence_severe": math.nan}):
        sites = {
            str(number): {
                **dict(zip(("auroc_severe", "auroc_severe_low", "auroc_severe_high"), each, strict=True)),
                "num-examples": 2000.0,
                **prevalence,
            }
            for number, each in enumerate(far)
        }
        assert 0 <= chance_of_difference(areas_of(sites, "severe")) <= 1
    assert chance_of_difference(areas_of(sites | {"2": sites["0"]}, "severe")) < UNUSUAL
