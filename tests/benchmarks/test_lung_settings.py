"""Bodies in settings that training never drew."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script: its folder is not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("lung_settings")


def test_fat_surrounds_the_body_and_does_not_fill_it(settings: ModuleType) -> None:
    hu = np.full((2, 40, 40), -1000, np.float32)
    hu[:, 15:25, 15:25] = 40
    hu[:, 18:22, 18:22] = -850
    fatter = settings.fattened(hu, 12)
    is_fat = fatter == settings.FAT_HU
    assert is_fat[0, 12, 20] and not is_fat[0, 11, 20], "three voxels of 4 mm"
    assert np.array_equal(fatter[~is_fat], hu[~is_fat])


@pytest.mark.slow
def test_bodies_of_a_setting_are_the_same_in_each_run(settings: ModuleType) -> None:
    for name in settings.SETTINGS:
        (first,), (again,) = settings.held_out(name, 1), settings.held_out(name, 1)
        assert np.array_equal(first.hu, again.hu)
        assert first.hu.shape == first.regions.shape == first.tissues.shape
