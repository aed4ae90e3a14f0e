"""Sides of lungs whose mask does not tell them apart: beside arms, on a table, off the centre, with one lung."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.imaging.discovery import find_series
from pipeline.imaging.lung_mask import BOTH, LEFT, RIGHT, LungMask
from pipeline.imaging.series_reader import read_series
from pipeline.phantom.anatomy import Grid
from pipeline.preprocessing.preprocess import mask_of, orient, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers import phantoms
from tests.helpers.nrrd import read_nrrd

GRID = Grid((70, 90, 90), (4.0, 4.0, 4.0))
WIDE = Grid((70, 100, 150), (4.0, 4.0, 4.0))  # with room for arms and table
ARM = 11  # voxels: its radius
Hu, Sides = NDArray[np.float32], NDArray[np.uint8]


def wide(values: NDArray, fill: float, columns: int) -> NDArray:
    """Put a phantom on the wide grid, with this number of columns to the right of it."""
    rest = WIDE.shape[2] - GRID.shape[2] - columns
    return np.pad(values, ((0, 0), (0, 10), (columns, rest)), constant_values=fill)


def phantom(columns: int = 30) -> tuple[Hu, Sides]:
    """Return a chest on the wide grid and its lungs."""
    thorax = phantoms.thorax(GRID)
    sides = np.where(np.arange(GRID.shape[2]) < GRID.shape[2] / 2, RIGHT, LEFT) * thorax.lungs
    return wide(thorax.hu, -1000, columns), wide(sides, 0, columns).astype(np.uint8)


def add_arm(hu: Hu, sides: Sides, side: int, gap: int) -> None:
    """Put an arm beside the trunk, at the middle of its depth; a negative gap presses it against the trunk."""
    rows, columns = (np.flatnonzero((hu > -500).any(axis=axes)) for axes in ((0, 2), (0, 1)))
    centre = columns[0] - ARM - gap if side == RIGHT else columns[-1] + ARM + gap
    y, x = np.mgrid[: hu.shape[1], : hu.shape[2]]
    hu[:, np.hypot(y - rows.mean(), x - centre) < ARM] = 40


def add_table(hu: Hu) -> None:
    """Put a table below the back that is wide, and lies to the left of the patient."""
    back = np.flatnonzero((hu > -500).any(axis=(0, 2)))[-1]
    hu[:, back : back + 8, 75:] = 60


def divided(hu: Hu, lungs: NDArray[np.bool_], grid: Grid = WIDE) -> Sides:
    volume = phantoms.volume(hu, grid)
    mask = LungMask(lungs * np.uint8(BOTH), volume.affine)
    found = mask_of(prepare(volume, Preprocessing(method=3), mask), mask)
    assert found is not None
    return found


def wrong(found: Sides, true: Sides) -> float:
    """Return the share of the lungs on the wrong side."""
    return float(np.count_nonzero(found != true) / np.count_nonzero(true))


@pytest.mark.parametrize("side", [RIGHT, LEFT])
@pytest.mark.parametrize("gap", [4, 0, -2])
def test_arm_and_table_at_one_side_move_no_lung(side: int, gap: int) -> None:
    hu, sides = phantom()
    add_arm(hu, sides, side, gap)
    add_table(hu if side == LEFT else hu[:, :, ::-1])
    assert wrong(divided(hu, sides > 0), sides) < 0.005


@pytest.mark.parametrize("columns", [5, 30, 55])
def test_table_and_place_in_the_images_do_not_matter(columns: int) -> None:
    hu, sides = phantom(columns)
    add_table(hu)
    assert wrong(divided(hu, sides > 0), sides) < 0.005


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("side", [RIGHT, LEFT])
def test_one_lung_has_one_side(side: int, is_dense: bool) -> None:
    """The other lung is solid, or it holds air and the mask lacks it. An arm lies beside the trunk."""
    hu, sides = phantom()
    if is_dense:
        hu[(sides > 0) & (sides != side)] = 30
    sides[sides != side] = 0
    add_arm(hu, sides, LEFT, 0)
    add_table(hu)
    assert wrong(divided(hu, sides > 0), sides) < 0.005


def test_lungs_that_touch_are_divided_where_they_touch() -> None:
    """A bridge joins the lungs, beside an arm."""
    hu, sides = phantom()
    bridge = np.zeros_like(sides, bool)
    inside = np.flatnonzero((sides > 0).any(axis=(0, 1)))
    bridge[40, 35:37, inside[0] + 15 : inside[-1] - 15] = True
    bridge &= sides == 0
    hu[bridge] = -850
    add_arm(hu, sides, LEFT, 0)
    add_table(hu)
    found = divided(hu, (sides > 0) | bridge)
    assert wrong(np.where(bridge, 0, found).astype(np.uint8), sides) < 0.005
    assert set(np.unique(found[bridge])) == {RIGHT, LEFT}


def test_joined_lungs_are_divided_at_the_middle_of_the_trunk() -> None:
    """The mask has the mediastinum too, so that no piece of it is one lung."""
    hu, sides = phantom()
    add_arm(hu, sides, LEFT, 0)
    add_table(hu)
    inside = np.flatnonzero((sides > 0).any(axis=(0, 1)))
    joined = sides > 0
    joined[25:45, 25:55, inside[0] + 15 : inside[-1] - 15] = True
    found = divided(hu, joined)
    assert wrong(np.where(sides > 0, found, 0).astype(np.uint8), sides) < 0.02


def test_voxels_in_both_lungs_are_divided_and_others_keep_their_side() -> None:
    """All of the right lung is in the left one too, and a part of the left one is said to be right."""
    hu, sides = phantom()
    stated = np.where(sides == RIGHT, BOTH, sides).astype(np.uint8)
    wrong_part = sides == LEFT
    wrong_part[36:] = False
    stated[wrong_part] = RIGHT
    volume = phantoms.volume(hu, WIDE)
    mask = LungMask(stated, volume.affine)
    found = mask_of(prepare(volume, Preprocessing(method=3), mask), mask)
    assert found is not None
    assert np.array_equal(found, np.where(wrong_part, RIGHT, sides))


def test_arm_beside_a_real_thorax_moves_no_lung(real_data: Path) -> None:
    folder = real_data / "real-thorax-64"
    (series,), _ = find_series(folder / "ct-64Dicom")
    volume = orient(read_series(series))
    parts = read_nrrd(folder / "lm-64.nrrd")[0] & 255  # thirds of the left lung, then of the right one
    sides = np.select([(parts >= 9) & (parts <= 11), (parts >= 12) & (parts <= 14)], [LEFT, RIGHT], 0).astype(np.uint8)
    hu, sides = (
        np.pad(each, ((0, 0), (0, 0), (30, 30)), constant_values=fill)
        for each, fill in ((volume.hu, -1000), (sides, 0))
    )
    add_arm(hu, sides, RIGHT, 0)
    grid = Grid(hu.shape, volume.spacing_mm)
    found = divided(hu, sides > 0, grid)
    scan = phantoms.volume(hu, grid)
    known = LungMask(sides, scan.affine)
    true = mask_of(prepare(scan, Preprocessing(method=3), known), known)
    assert true is not None and wrong(found, true) < 0.005
