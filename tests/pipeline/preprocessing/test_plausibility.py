"""Tests of plausibility: only an upright, whole, adult chest in HU gets a score. All scans but one are synthetic."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.scans import acquire
from pipeline.preprocessing.plausibility import Anatomy, look_at, require_chest
from pipeline.preprocessing.preprocess import orient, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers import phantoms

Hu = NDArray[np.float32]
NORTH = HOSPITALS[0]
GRID = NORTH.scanner.grid
Z, Y, X = GRID.axes_mm()


def found_in(scan: Volume) -> Anatomy:
    upright = orient(scan)
    return look_at(upright, prepare(upright, Preprocessing()))


def code(scan: Volume | Anatomy) -> str:
    try:
        require_chest(scan if isinstance(scan, Anatomy) else found_in(scan))
    except Refusal as refusal:
        assert "{" not in refusal.says
        return refusal.code
    return ""


@pytest.fixture(scope="module")
def hu() -> Hu:
    """A healthy scan from the scanner of the north hospital."""
    return acquire(phantoms.thorax(GRID).hu, NORTH.scanner, np.random.default_rng(8))


@pytest.fixture(scope="module")
def good(hu: Hu) -> Anatomy:
    return found_in(phantoms.volume(hu, GRID))


@pytest.fixture(scope="module")
def real(real_data: Path) -> Volume:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    return read_series(series)


@pytest.mark.parametrize("hospital", HOSPITALS, ids=lambda hospital: hospital.name)
def test_every_synthetic_scanner_gives_a_plausible_chest(hospital: Hospital) -> None:
    grid = hospital.scanner.grid
    seen = acquire(phantoms.thorax(grid).hu, hospital.scanner, np.random.default_rng(8))
    assert code(phantoms.volume(seen, grid)) == ""


def test_real_thorax_is_accepted_unless_pixels_contradict_the_header(real: Volume) -> None:
    assert code(real) == ""
    for axis, expected in ((0, "E_TURNED"), (1, "E_TURNED"), (2, "E_MIRRORED")):
        assert code(replace(real, hu=np.flip(real.hu, axis).copy())) == expected


@pytest.mark.parametrize(("axis", "expected"), [(0, "E_TURNED"), (1, "E_TURNED"), (2, "E_MIRRORED")])
def test_turned_and_mirrored_bodies_are_refused_unless_the_header_says_so(hu: Hu, axis: int, expected: str) -> None:
    scan = phantoms.volume(np.flip(hu, axis).copy(), GRID)
    assert code(scan) == expected
    consistent = scan.affine.copy()
    consistent[:, 3] += consistent[:, axis] * (hu.shape[axis] - 1)
    consistent[:, axis] *= -1
    assert code(replace(scan, affine=consistent)) == ""


def test_lungs_cut_too_much_are_refused(hu: Hu, real: Volume) -> None:
    lungs = np.flatnonzero(phantoms.thorax(GRID).lungs.any(axis=(1, 2)))
    gone = round(0.3 * len(lungs))
    for part in (hu[lungs[0] + gone :], hu[: lungs[-1] + 1 - gone]):
        assert code(phantoms.volume(part, GRID)) == "E_LUNGS_CUT"
    assert code(phantoms.volume(hu[: lungs[-1]], GRID)) == ""
    assert code(replace(real, hu=real.hu[:-5])) == "", "20 mm"
    assert code(replace(real, hu=real.hu[:-15])) == "E_LUNGS_CUT", "60 mm"


@pytest.mark.parametrize("value", [-1024, 0, 40])
@pytest.mark.parametrize("blank", [1, 2, 9])
def test_blank_slices_after_a_cut_do_not_hide_it(value: int, blank: int, hu: Hu) -> None:
    lungs = np.flatnonzero(phantoms.thorax(GRID).lungs.any(axis=(1, 2)))
    gone = round(0.3 * len(lungs))
    nothing = np.full((blank, *hu.shape[1:]), value, np.float32)
    for part in ((nothing, hu[lungs[0] + gone :]), (hu[: lungs[-1] + 1 - gone], nothing)):
        # Padding of AIR_HU can make all of the lungs that reach it air outside the body.
        assert code(phantoms.volume(np.concatenate(part), GRID)) in {"E_LUNGS_CUT", "E_NO_LUNGS"}
    if value == -1024:  # padding, as of a scan that was turned; tissue at the ends would be no chest
        assert code(phantoms.volume(np.concatenate([nothing, hu, nothing]), GRID)) == ""


def within(inside: NDArray[np.bool_], value: float) -> Callable[[Hu], Hu]:
    return lambda hu: np.where(inside, value, hu).astype(np.float32)


ROD = (np.abs(X - 15) < 5) & (np.abs(Y - 75) < 5) & (np.abs(Z) < 120)
SPOILT: dict[str, tuple[str, Callable[[Hu], Hu]]] = {
    "gas for lung": ("E_NOT_LUNG", lambda hu: np.where((hu < -600) & (hu > -980), -1000, hu)),
    "a rod": ("E_METAL", within(ROD, 3071)),
    "a valve": ("", within(Z**2 + (Y + 20) ** 2 + (X - 20) ** 2 < 9**2, 3071)),
    "a pacemaker": ("", within((np.abs(Z - 60) < 20) & (np.abs(Y + 105) < 7) & (np.abs(X - 70) < 25), 3071)),
    "noise": ("E_NOISE", lambda hu: hu + np.random.default_rng(1).normal(0, 200, hu.shape)),
    "stored values doubled": ("E_TISSUE_HU", lambda hu: (hu + 1024) * 2 - 1024),
    "a scale of 0.85": ("E_AIR_HU", lambda hu: hu * 0.85),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_hu_that_are_implausible_for_a_chest_are_refused(spoilt: str, hu: Hu) -> None:
    expected, spoil = SPOILT[spoilt]
    assert code(phantoms.volume(spoil(hu).clip(-1024, 3071), GRID)) == expected


@pytest.mark.parametrize(("share", "expected"), [(0.3, ""), (0.6, "E_NOT_LUNG")])
def test_gas_of_the_bowel_is_told_from_lungs_with_bullae(share: float, expected: str, hu: Hu) -> None:
    # The lower part of both lungs is air, and the rest so dense that the median is usual.
    lungs = phantoms.thorax(GRID).lungs
    low = np.flatnonzero(np.cumsum(lungs.sum(axis=(1, 2))) > share * lungs.sum())[0]
    seen = np.where(lungs, -750.0, hu)
    seen[:low][lungs[:low]] = -1000.0
    assert code(phantoms.volume(seen.astype(np.float32), GRID)) == expected


def test_metal_is_measured_in_millilitres(hu: Hu) -> None:
    voxel_ml = np.prod(GRID.spacing_mm) / 1000
    found = found_in(phantoms.volume(within(ROD, 3071)(hu), GRID))
    in_the_chest = ROD & phantoms.thorax(GRID).lungs.any(axis=(1, 2))[:, None, None]
    assert found.metal_ml == pytest.approx(in_the_chest.sum() * voxel_ml, rel=0.25)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"air_hu": None, "noise_hu": None, "spine_behind_mm": None}, ""),
        ({"heart_left": -0.3, "stomach_left": 0.9}, ""),  # the heart only: displaced, not mirrored
        ({"heart_left": -0.05, "stomach_left": -0.9}, "E_MIRRORED"),
        ({"heart_left": 0.2, "stomach_left": -0.9}, ""),
        ({"heart_left": -0.05, "stomach_left": None}, ""),
        ({"heart_left": -0.3, "stomach_left": None}, "E_MIRRORED"),
        ({"muscle": 0.05}, "E_TISSUE_HU"),
        ({"lung_hu": -480.0}, "E_NOT_LUNG"),
        ({"windpipe_above_mm2": -50.0}, "E_TURNED"),
    ],
    ids=str,
)
def test_single_sign_against_the_others_is_weighed(changed: dict[str, Any], expected: str, good: Anatomy) -> None:
    assert code(replace(good, **changed)) == expected


def test_anatomy_of_a_healthy_scan_is_plausible(good: Anatomy) -> None:
    assert good.air_hu == pytest.approx(-1000, abs=15)
    assert good.soft_tissue > 0.75 and good.muscle > 0.3
    assert good.noise_hu is not None and 5 < good.noise_hu < 40
    assert good.metal_ml == good.cut_low == good.cut_high == 0
    assert good.heart_left > 0.1 and good.stomach_left is not None and good.stomach_left > 0.9
    assert 0.4 < good.smaller_lung <= 0.5
