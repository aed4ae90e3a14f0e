"""Tests of small fields of view: lungs that the images cut are found whole, measured, and refused if much is cut."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.body.sample import Sample, draw_sample
from pipeline.preprocessing.air import air_around
from pipeline.preprocessing.field_of_view import (
    MOST_CUT,
    cut_share,
    padding,
    require_aerated,
    require_in_tissue,
    require_uncut,
)
from pipeline.preprocessing.lung_regions import are_lungs, dice, find_regions
from pipeline.preprocessing.measuring import measure
from pipeline.preprocessing.plausibility import look_at, require_chest
from pipeline.preprocessing.preprocess import orient, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers import phantoms

GRID = Grid((70, 90, 90), (4.0, 4.0, 4.0))
Hu = NDArray[np.float32]


@pytest.fixture(scope="module")
def body() -> tuple[Hu, NDArray[np.bool_]]:
    """A synthetic body on a grid of 4 mm, and its lungs."""
    sample: Sample = draw_sample(np.random.default_rng(20_006))
    return sample.hu, are_lungs(sample.regions)


@pytest.fixture(scope="module")
def real(real_data: Path) -> Volume:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    return orient(read_series(series))


def box_of(lungs: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first and last row and column of the lungs."""
    rows, columns = (np.flatnonzero(lungs.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def within_circle(hu: NDArray[np.integer], radius: float, row: float, column: float) -> NDArray[np.integer]:
    rows, columns = np.mgrid[: hu.shape[1], : hu.shape[2]]
    return np.where(np.hypot(rows - row, columns - column) < radius, hu, -1024).astype(hu.dtype)


def test_lungs_cut_at_a_corner_of_the_images_have_no_holes(body: tuple[Hu, NDArray[np.bool_]]) -> None:
    """There the chest is in the images on two sides of the lung only, as it is beside the air around a patient."""
    hu, lungs = body
    _, back, right, _ = box_of(lungs)
    part = np.s_[:, : back - 5, right + 6 :]
    assert lungs[part][:, -1].any() and lungs[part][:, :, 0].any()
    found = find_regions(np.ascontiguousarray(hu[part]), 4.0).lungs
    assert dice(found, lungs[part]) > 0.93
    assert cut_share(hu[part], found) > 0


def test_lungs_cut_by_a_round_field_of_view_are_found(body: tuple[Hu, NDArray[np.bool_]]) -> None:
    hu, lungs = body
    front, back, right, left = box_of(lungs)
    seen = within_circle(hu, 0.45 * (left - right), (front + back) / 2, (right + left) / 2)
    shown = lungs & ~padding(seen)
    assert shown.sum() < 0.97 * lungs.sum()
    found = find_regions(seen, 4.0).lungs
    assert dice(found, shown) > 0.93
    assert not found[padding(seen)].any()
    assert cut_share(seen, found) > 0


def test_share_grows_with_what_is_cut_and_is_none_in_whole_chests(body: tuple[Hu, NDArray[np.bool_]]) -> None:
    hu, lungs = body
    _, _, right, _ = box_of(lungs)
    shares = [cut_share(hu[:, :, column:], lungs[:, :, column:]) for column in range(right - 2, right + 8)]
    assert shares[:3] == [0, 0, shares[2]] and 0 < shares[2] < MOST_CUT < shares[-1] <= 1
    require_uncut(hu, lungs)
    with pytest.raises(Refusal) as caught:
        require_uncut(hu[:, :, right + 7 :], lungs[:, :, right + 7 :])
    assert caught.value.code == "E_LUNGS_CUT"


def test_padding_is_what_reaches_the_sides_of_the_images() -> None:
    hu = np.full((4, 20, 20), -1024, np.float32)
    hu[:, 4:16, 4:16] = 40
    hu[:, 8:12, 8:12] = -1024  # gas inside the body
    hu[:, 4:16, :4] = -1000  # air beside it
    expected = hu == -1024
    expected[:, 8:12, 8:12] = False
    assert np.array_equal(padding(hu), expected)


@pytest.mark.parametrize(("rows", "expected"), [(2, ""), (8, "E_LUNGS_CUT")])
def test_real_thorax_is_refused_if_much_of_it_lies_behind_the_images(real: Volume, rows: int, expected: str) -> None:
    cut = replace(real, hu=np.ascontiguousarray(real.hu[:, : -14 - rows]))
    if expected:
        with pytest.raises(Refusal) as caught:
            prepare(cut, Preprocessing())
        assert caught.value.code == expected
        return
    prepared = prepare(cut, Preprocessing())
    anatomy = look_at(cut, prepared)
    require_chest(anatomy)
    assert 0 < anatomy.cut_aside < MOST_CUT


def test_real_thorax_in_a_round_field_of_view_is_flagged(real: Volume, real_data: Path) -> None:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    seen = replace(real, hu=within_circle(real.hu, 28.3, 28.7, 31.6)[:, :, 3:61])
    prepared = prepare(seen, Preprocessing())
    whole = prepare(real, Preprocessing())
    assert 0.95 * whole.lungs_ml < prepared.lungs_ml < whole.lungs_ml
    require_chest(look_at(seen, prepared))
    assert measure(series, seen, prepared).is_cut
    assert not measure(series, real, whole).is_cut


def test_lung_at_the_border_of_the_images_is_not_taken_for_the_air_around_the_patient() -> None:
    hu = np.full((20, 64, 64), 40, np.int16)
    hu[:, 20:40, :10] = -880  # a lung at the patient's right, in images that end inside the body
    lungs = np.zeros((10, 32, 32), bool)
    assert air_around(hu, lungs) == -880
    lungs[:, 10:20, :5] = True
    assert air_around(hu, lungs) is None
    hu[:, :4] = -1000
    assert air_around(hu, lungs) == -1000


@pytest.mark.parametrize(("solid", "is_refused"), [(0.0, False), (0.65, False), (0.9, True)])
def test_lungs_without_air_are_refused(solid: float, is_refused: bool) -> None:
    body = phantoms.thorax(GRID)
    filled = body.lungs & (np.random.default_rng(0).random(GRID.shape) < solid)
    hu = np.where(filled, np.float32(30), body.hu)
    if not is_refused:
        require_aerated(hu, body.lungs)
        return
    with pytest.raises(Refusal) as caught:
        require_aerated(hu, body.lungs)
    assert caught.value.code == "E_NO_LUNGS"


def test_air_outside_the_patient_is_not_that_of_lungs() -> None:
    body = phantoms.thorax(GRID)
    outside = np.zeros(GRID.shape, bool)
    outside[20:50, :12, 10:-10] = True
    with pytest.raises(Refusal):
        require_aerated(body.hu, outside)


def test_mask_of_all_air_outside_the_patient_is_refused_as_cut() -> None:
    """An inverted mask: most of the air at the sides is in it."""
    body = phantoms.thorax(GRID)
    with pytest.raises(Refusal) as caught:
        require_uncut(body.hu, (body.hu < -900) & ~body.lungs)
    assert caught.value.code == "E_LUNGS_CUT"


def test_lungs_in_a_chest_are_in_tissue() -> None:
    body = phantoms.thorax(GRID)
    require_in_tissue(body.hu, body.lungs, 4.0)


@pytest.mark.parametrize(("mean", "sigma"), [(-300, 100), (-300, 400), (0, 700), (-500, 1000)])
def test_lungs_in_noise_are_refused(mean: float, sigma: float) -> None:
    """Their shape is right, but neither air nor tissue is where it should be."""
    noise = np.random.default_rng(0).normal(mean, sigma, GRID.shape).astype(np.float32)
    with pytest.raises(Refusal) as caught:
        require_in_tissue(noise, phantoms.thorax(GRID).lungs, 4.0)
    assert caught.value.code == "E_NO_LUNGS"
