"""In simulated studies the released thresholds truly have the sensitivity and specificity that is claimed."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from models.operating_points import POINTS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark: a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("operating_points")


@pytest.mark.parametrize("pool", ["sums", "masked"])
@pytest.mark.parametrize("patients", [60, 100])
def test_three_small_hospitals_release_no_threshold(simulation: ModuleType, patients: int, pool: str) -> None:
    row = simulation.row(simulation.Setting(3, patients), pool=pool, studies=50, seed=1)
    assert [row[point]["released"] for point in POINTS] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["sums", "robust", "masked"])
@pytest.mark.parametrize("differences", [{}, {"shift": 0.6, "drift": 0.4}, {"scale": 3.0}])
def test_released_thresholds_truly_reach_the_floor(
    simulation: ModuleType, differences: dict[str, float], pool: str
) -> None:
    """With three hospitals of 300 patients, at least 95 % of the released thresholds have a rate of 0.80 or more."""
    setting = simulation.Setting(3, 300, prevalence=0.45, **differences)
    row = simulation.row(setting, pool=pool, studies=300, seed=2)
    for point in POINTS:
        assert row[point]["released"] > 0.2
        assert row[point]["reaches_floor"] >= 0.95
        assert row[point]["covered"] >= 0.9


@pytest.mark.slow
def test_hospitals_of_60_100_and_300_patients_do_not_use_the_threshold_of_the_largest_alone(
    simulation: ModuleType,
) -> None:
    """Only the largest has enough patients in most studies, and a threshold for all three would rest on it alone."""
    setting = simulation.Setting(3, (60, 100, 300), prevalence=0.5, shift=0.6, drift=0.4)
    row = simulation.row(setting, pool="sums", studies=800, seed=3)
    for point in POINTS:
        assert 0 < row[point]["released"] < 0.1, "those with enough patients at two hospitals"
        assert row[point]["reaches_floor"] >= 0.95
