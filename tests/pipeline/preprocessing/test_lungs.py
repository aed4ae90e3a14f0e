"""Tests of finding lungs by threshold: lungs of a chest are found, and nothing else is accepted as lungs."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.lesions import add_lesions
from pipeline.preprocessing.lungs import bounding_box, crop_box, find_lungs, grown
from tests.helpers import phantoms
from tests.helpers.nrrd import read_nrrd

GRID = Grid((70, 90, 90), (4.0, 4.0, 4.0))
SPACING_MM = (4.0, 4.0, 4.0)


def dice(found: NDArray[np.bool_], true: NDArray[np.bool_]) -> float:
    return float(2 * (found & true).sum() / (found.sum() + true.sum()))


def code_of(hu: NDArray[np.floating], spacing_mm: tuple[float, float, float] = SPACING_MM) -> str:
    with pytest.raises(Refusal) as caught:
        find_lungs(hu.astype(np.float32), spacing_mm)
    return caught.value.code


def test_healthy_lungs_are_found_without_airways_bowel_gas_and_room_air() -> None:
    body = phantoms.thorax(GRID)
    mask = find_lungs(body.hu, SPACING_MM)
    assert dice(mask, body.lungs) > 0.95
    z, y, x = GRID.axes_mm()
    trachea = ((x / 9) ** 2 + ((y - 22) / 9) ** 2 < 1) & (z > 100) & ~body.lungs
    assert (body.hu[trachea] < -900).all() and trachea.sum() > 50
    assert mask[trachea].mean() < 0.6, "closing may include a part of it between the lungs"
    assert not mask[:, :3].any() and not mask[:, -3:].any()


@pytest.mark.parametrize(("pattern", "load"), [("covid", 0.2), ("covid", 0.45), ("other", 0.2)])
def test_most_of_a_diseased_lung_is_kept(pattern: str, load: float) -> None:
    body = phantoms.thorax(GRID)
    sick = add_lesions(body, GRID, pattern=pattern, load=load, consolidated=0.5, rng=np.random.default_rng(3))  # type: ignore[arg-type]
    assert dice(find_lungs(sick.hu, SPACING_MM), body.lungs) > 0.85


def test_unequal_spacing_gives_the_same_lungs() -> None:
    grid = Grid((40, 120, 100), (7.0, 3.0, 3.6))
    body = phantoms.thorax(grid)
    assert dice(find_lungs(body.hu, grid.spacing_mm), body.lungs) > 0.95


def test_dense_lesion_inside_a_lung_is_part_of_it() -> None:
    body = phantoms.thorax(GRID)
    z, y, x = GRID.axes_mm()
    lesion = (x + 72) ** 2 + (y - 5) ** 2 + (z - 20) ** 2 < 22**2
    hu = np.where(lesion, 40.0, body.hu).astype(np.float32)
    assert find_lungs(hu, SPACING_MM)[lesion].all()


@pytest.mark.parametrize(("thickness_mm", "least", "most"), [(24, 0.6, 1.0), (48, 0.0, 0.25)])
def test_cleft_of_dense_lung_is_closed_up_to_its_width(thickness_mm: float, least: float, most: float) -> None:
    """The limit is twice CLOSING_MM, in millimetres for any voxel size. The cleft is open to the front."""
    grid = Grid((94, 60, 100), (3.0, 6.0, 3.6))
    body = phantoms.thorax(grid)
    z, y, x = grid.axes_mm()
    cleft = body.lungs & (z >= 10) & (z < 10 + thickness_mm) & (y < 25) & (x < 0)
    hu = np.where(cleft, 40.0, body.hu).astype(np.float32)
    assert least <= find_lungs(hu, grid.spacing_mm)[cleft].mean() <= most


@pytest.mark.parametrize("spacing_mm", [(4.0, 4.0, 4.0), (8.0, 2.5, 3.0), (20.0, 1.0, 30.0)])
@pytest.mark.parametrize("reach_mm", [2.0, 14.0])
def test_mask_grows_by_its_reach_in_millimetres(spacing_mm: tuple[float, float, float], reach_mm: float) -> None:
    mask = np.random.default_rng(1).random((20, 30, 25)) > 0.999
    expected = ndimage.distance_transform_edt(~mask, sampling=spacing_mm) <= reach_mm
    assert np.array_equal(grown(mask, spacing_mm, reach_mm), expected)
    assert not grown(np.zeros((3, 3, 3), bool), spacing_mm, reach_mm).any()


def test_trachea_in_the_neck_is_not_lung() -> None:
    body = phantoms.thorax(GRID)
    z, y, x = GRID.axes_mm()
    branch = (np.abs(x) < 45) & (np.abs(y - 22) < 5) & (np.abs(z - 20) < 5)
    chest = np.where(branch, -900.0, body.hu).astype(np.float32)
    neck = np.where((x[0] / 9) ** 2 + ((y[0] - 22) / 9) ** 2 < 1, -1000.0, 40.0)
    neck = np.where((x[0] / 70) ** 2 + (y[0] / 70) ** 2 < 1, neck, -1000.0)
    mask = find_lungs(np.concatenate([chest, np.repeat(neck[None], 25, axis=0)]).astype(np.float32), SPACING_MM)
    assert not mask[len(chest) + 1 :].any()
    assert dice(mask[: len(chest)], body.lungs) > 0.9


def test_real_lungs_match_their_label_map(real_data: Path) -> None:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    volume = read_series(series)
    labels, _, _ = read_nrrd(real_data / "real-thorax-64" / "lm-64.nrrd")
    lungs = (labels & 0xFF) > 0  # the low byte is the region, the high byte the tissue; 0 is outside
    assert dice(find_lungs(volume.hu, volume.spacing_mm), lungs) > 0.95


def test_volume_without_lungs_is_refused() -> None:
    rng = np.random.default_rng(0)
    shape = (40, 50, 50)
    assert code_of(np.full(shape, -1000.0)) == "E_NO_LUNGS"
    assert code_of(np.full(shape, 40.0)) == "E_NO_LUNGS"
    assert code_of(rng.uniform(-1000, 1000, shape)) == "E_NO_LUNGS"
    assert code_of(rng.normal(0, 40, shape)) == "E_NO_LUNGS"
    assert code_of(np.full((1, 1, 1), -900.0)) == "E_NO_LUNGS"
    ball = np.full(shape, 40.0)
    ball[15:20, 20:25, 20:25] = -900  # 8 mL
    assert code_of(ball) == "E_NO_LUNGS"


def test_part_of_a_chest_is_refused_with_its_numbers() -> None:
    hu = phantoms.thorax(GRID).hu
    with pytest.raises(Refusal) as caught:
        find_lungs(hu[30:55], SPACING_MM)
    assert caught.value.code == "E_NOT_A_WHOLE_CHEST"
    assert caught.value.numbers["length_mm"] == 100
    assert 500 < float(caught.value.numbers["lungs_ml"]) < 4000


def test_lungs_of_impossible_size_are_refused() -> None:
    hu = phantoms.thorax(GRID).hu
    assert code_of(hu, (10.0, 8.0, 8.0)) == "E_NOT_A_WHOLE_CHEST"
    assert code_of(hu, (2.5, 2.0, 2.0)) in ("E_NO_LUNGS", "E_NOT_A_WHOLE_CHEST")


def test_few_voxels_at_the_edge_do_not_change_the_crop() -> None:
    lungs = phantoms.thorax(GRID).lungs.copy()
    expected = crop_box(lungs, 2)
    assert all(
        abs(a.start - b.start) <= 2 and abs(a.stop - b.stop) <= 2
        for a, b in zip(expected, bounding_box(lungs, 2), strict=True)
    )
    top = np.flatnonzero(lungs.any(axis=(1, 2)))[-1]
    lungs[top + 1 : top + 4, 40, 40] = True
    assert crop_box(lungs, 2) == expected
