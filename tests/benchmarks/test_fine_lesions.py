"""Scans with small faint spots, and the parts from which a network learns."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def lesions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the script: its folder is not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("fine_lesions")


@pytest.mark.slow
def test_only_the_spots_differ_between_classes(lesions: ModuleType) -> None:
    without, with_spots = (lesions.draw_scan(np.random.default_rng(1), has_spots=has) for has in (False, True))
    added = with_spots.hu.astype(int) - without.hu
    blur_and_rounding_hu = 1
    assert added.min() >= -blur_and_rounding_hu and added.max() <= max(lesions.ADDED_HU) + blur_and_rounding_hu
    assert added.max() > min(lesions.ADDED_HU) / 2
    assert 0.001 < np.mean(added > blur_and_rounding_hu) < 0.02, "most of the scan is the same"


def test_parts_of_both_grids_have_the_same_millimetres(lesions: ModuleType) -> None:
    shares = set()
    for preset in lesions.GRIDS.values():
        shape = lesions.preprocessing(preset).shape
        part = lesions.random_part(torch.ones(2, *shape), np.random.default_rng(1))
        shares.add(tuple(own / whole for own, whole in zip(part.shape[1:], shape, strict=True)))
    assert shares == {(1 / lesions.PARTS,) * 3}


def test_scan_is_divided_into_the_parts_with_enough_lung(lesions: ModuleType) -> None:
    scan = torch.zeros(2, 8, 8, 8)
    scan[1, :4] = 1
    scan[0] = torch.arange(8**3).reshape(8, 8, 8)
    parts = lesions.all_parts(scan)
    assert parts.shape == (lesions.PARTS**3 // 2, 2, 2, 2, 2)
    assert sorted(parts[:, 0].flatten().tolist()) == list(range(8**3 // 2)), "each voxel once"
    scan[1] = 0
    assert len(lesions.all_parts(scan)) == 1, "one part, if none has enough lung"


def test_half_of_the_scans_have_spots_and_no_seed_has_the_same(lesions: ModuleType) -> None:
    first, other = lesions.labels_of(40, 1), lesions.labels_of(40, 2)
    assert first.sum() == other.sum() == 20
    assert not np.array_equal(first, other)
