"""Pneumonia planted in the real thorax: the same for the same seed, inside the lungs, with true labels."""

import sys
from pathlib import Path

import numpy as np
import pytest

from models.lung_segmenter import Tissue

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the benchmarks folder on `sys.path`: it is a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_planted_pneumonia_changes_only_the_lungs(real_data: Path) -> None:
    from lungs_real import SOME_LUNG, RealThorax, planted

    thorax = RealThorax.read(real_data / "real-thorax-64")
    lungs = thorax.right + thorax.left
    seeds = (1000, 1001, 1012)
    scans = list(planted(thorax, seeds))
    for (hu, truth), (again, _) in zip(scans, planted(thorax, seeds), strict=True):
        assert np.array_equal(hu, again)
        assert np.array_equal(hu[lungs <= SOME_LUNG], thorax.hu[lungs <= SOME_LUNG])
        assert np.array_equal(truth.lungs, lungs > 0.5)
        ill = np.isin(truth.tissues, (Tissue.GROUND_GLASS, Tissue.CONSOLIDATION))
        assert np.median(hu[ill] - thorax.hu[ill]) > 150
        solid = truth.tissues == Tissue.CONSOLIDATION
        assert not solid.any() or -100 < np.median(hu[solid]) < 100
    assert any((truth.tissues == Tissue.CONSOLIDATION).any() for _, truth in scans)
