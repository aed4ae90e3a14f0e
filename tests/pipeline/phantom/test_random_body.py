"""Tests of random bodies of synthetic patients: each is a whole chest, and its label maps match the planted lesions."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from scipy import ndimage

from models.lung_segmenter import Region
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.lesions import Pattern
from pipeline.phantom.random_body import RandomBody, draw_body, sampled
from tests.helpers import phantoms

pytestmark = pytest.mark.slow

GRID = HOSPITALS[0].scanner.grid
ILL: tuple[Pattern, ...] = ("covid", "other")


@lru_cache
def body(pattern: Pattern, seed: int = 1, grid: Grid = GRID) -> RandomBody:
    patient = replace(phantoms.SOMEBODY, pattern=pattern, load=0.2 if pattern != "none" else 0.0, consolidated=0.4)
    return draw_body(patient, grid, np.random.default_rng(seed), has_contrast=False)


def test_same_seed_gives_the_same_body() -> None:
    first = body("covid")
    again = draw_body(
        replace(phantoms.SOMEBODY, pattern="covid", load=0.2, consolidated=0.4),
        GRID,
        np.random.default_rng(1),
        has_contrast=False,
    )
    for name in ("hu", "regions", "tissues", "ground_glass", "consolidation"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.regions, body("other", 2).regions)


@pytest.mark.parametrize("pattern", ILL)
def test_label_maps_contain_the_planted_shares(pattern: Pattern) -> None:
    found = body(pattern)
    assert found.planted.load == pytest.approx(0.2, abs=1e-3)
    assert found.planted.consolidation == pytest.approx(0.08, abs=1e-3)
    lungs = found.regions != Region.BACKGROUND
    ill = found.ground_glass + found.consolidation
    assert ill.sum() / lungs.sum() == pytest.approx(0.2, abs=0.02)
    near = ndimage.binary_dilation(lungs, iterations=3)  # B-splines reach 8 mm
    assert ill[~near].max() < 0.05, "no lesion outside the lungs"
    assert ill[~lungs].sum() < 0.1 * ill.sum()


def test_diseased_lung_is_denser_than_healthy_lung() -> None:
    found = body("covid")
    inside = ndimage.binary_erosion(found.regions != Region.BACKGROUND)
    solid, clear = found.consolidation > 0.8, found.ground_glass + found.consolidation < 0.02
    assert np.median(found.hu[inside & solid]) > -200
    assert np.median(found.hu[inside & clear]) < -650


def test_faint_pneumonia_has_the_same_load_and_adds_less_density() -> None:
    usual = body("covid")
    patient = replace(phantoms.SOMEBODY, pattern="covid", load=0.2, consolidated=0.4)
    faint = draw_body(patient, GRID, np.random.default_rng(1), has_contrast=False, density=0.5)
    assert (faint.planted.load, faint.planted.consolidation) == (usual.planted.load, usual.planted.consolidation)
    assert np.array_equal(faint.regions, usual.regions)
    healthy = usual.hu[(usual.regions != Region.BACKGROUND) & (usual.ground_glass + usual.consolidation < 0.01)]
    ill = usual.consolidation > 0.8
    usual_step, faint_step = (each.hu[ill].mean() - np.median(healthy) for each in (usual, faint))
    assert 0.3 * usual_step < faint_step < 0.8 * usual_step


def test_healthy_patient_has_no_planted_disease() -> None:
    found = body("none")
    assert (found.planted.load, found.planted.consolidation) == (0, 0)
    assert not found.ground_glass.any() and not found.consolidation.any()


@pytest.mark.parametrize("at", HOSPITALS, ids=lambda at: at.name)
def test_every_scanner_shows_a_whole_chest(at: Hospital) -> None:
    found = body("other", 1, at.scanner.grid)
    assert found.hu.shape == at.scanner.grid.shape
    lungs = found.regions != Region.BACKGROUND
    assert not lungs[0].any() and not lungs[-1].any()
    voxel_ml = np.prod(at.scanner.grid.spacing_mm) / 1000
    assert 1500 < lungs.sum() * voxel_ml < 9000
    right, left = (np.argwhere(found.regions == side)[:, 2].mean() for side in (1, 2))
    assert left > right, "columns run to the patient's left"


def test_sampling_on_the_same_grid_smooths_and_keeps_the_mean() -> None:
    field = np.random.default_rng(1).normal(size=(12, 13, 14)).astype(np.float32)
    same = sampled(field, tuple(np.arange(n, dtype=float) for n in field.shape))
    assert same.shape == field.shape
    assert same.std() < 0.5 * field.std()
    flat = sampled(np.full((8, 8, 8), 7, np.float32), (np.linspace(0, 7, 5),) * 3)
    np.testing.assert_allclose(flat, 7, rtol=1e-5)
