"""Tests of the measures of one scan: plausible on every synthetic scanner, flagged where something is wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.scans import acquire, write_series
from pipeline.preprocessing.measures import Measures, flags
from pipeline.preprocessing.measuring import measure
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.phantoms import SOMEBODY, thorax, volume
from tests.helpers.scan_list import measures, series

SETTINGS = Preprocessing()
NORTH = HOSPITALS[0]


@pytest.fixture(scope="module")
def hu() -> NDArray[np.float32]:
    """A healthy scan from the scanner of the north hospital."""
    return acquire(thorax(NORTH.scanner.grid).hu, NORTH.scanner, np.random.default_rng(8))


def measured(hu: NDArray[np.float32], grid: Grid = NORTH.scanner.grid) -> Measures:
    scan = volume(hu, grid)
    return measure(series(files=(Path("p.nii"),)), scan, prepare(scan, SETTINGS))


def flagged(found: Measures) -> set[str]:
    return flags(found, SETTINGS)


@pytest.mark.parametrize("hospital", HOSPITALS, ids=lambda hospital: hospital.name)
def test_no_flag_on_any_synthetic_scanner(hospital: Hospital, tmp_path: Path) -> None:
    hu = acquire(thorax(hospital.scanner.grid).hu, hospital.scanner, np.random.default_rng(8))
    write_series(hu, hospital.scanner, SOMEBODY, tmp_path)
    (found,), _ = find_series(tmp_path)
    scan = read_series(found)
    result = measure(found, scan, prepare(scan, SETTINGS))
    assert flagged(result) == set()
    assert result.slice_mm == result.thickness_mm == hospital.scanner.grid.spacing_mm[0]
    assert result.pixel_mm == hospital.scanner.grid.spacing_mm[1]
    assert result.slices == hospital.scanner.grid.shape[0]
    assert result.air_hu == pytest.approx(-1000 + hospital.scanner.offset_hu, abs=15)
    assert result.spine_behind_mm is not None and result.spine_behind_mm > 10
    assert result.windpipe_above_mm2 > 50
    assert result.heart_left > 0.1
    assert (result.position, result.manufacturer, bool(result.sharpness)) == ("HFS", "SYNTHETIC", True)


def test_no_flag_on_a_real_thorax(real_data: Path) -> None:
    (found,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    scan = read_series(found)
    result = measure(found, scan, prepare(scan, SETTINGS))
    assert flagged(result) == set()
    assert result.air_hu == pytest.approx(-1000, abs=20)
    assert result.spine_behind_mm is not None and result.spine_behind_mm > 25
    assert result.windpipe_above_mm2 > 200
    assert result.heart_left > 0.1


def test_body_turned_by_a_conversion_is_flagged(hu: NDArray[np.float32]) -> None:
    assert flagged(measured(hu[:, ::-1].copy())) == {"W_TURNED"}, "front and back are swapped"
    assert flagged(measured(hu[::-1].copy())) >= {"W_TURNED"}, "head and feet are swapped"
    mirrored = measured(hu[:, :, ::-1].copy())
    assert flagged(mirrored) == set(), "one scan is not enough to detect mirroring"
    assert mirrored.heart_left < -0.1


def test_lungs_that_reach_the_first_or_last_slice_are_flagged(hu: NDArray[np.float32]) -> None:
    lower, upper = hu[16:], hu[:-14]
    for part in (lower, upper):
        slices = part.shape[0]
        grid = Grid((slices, *NORTH.scanner.grid.shape[1:]), NORTH.scanner.grid.spacing_mm)
        assert "W_LUNGS_CUT" in flagged(measured(part.copy(), grid))


def test_wrong_hu_of_air_are_flagged(hu: NDArray[np.float32]) -> None:
    assert flagged(measured(hu + 80)) >= {"W_AIR_HU"}
    assert flagged(measured(hu + 30)) == set()


def test_padding_is_not_air_and_full_image_has_no_air_value(hu: NDArray[np.float32]) -> None:
    padded = hu.copy()
    padded[:, :6] = padded[:, -6:] = padded[:, :, :6] = padded[:, :, -6:] = -1024
    assert measured(padded).air_hu is None
    padded[:, :3, 10:-10] = -960
    assert measured(padded).air_hu == -960


def test_hu_shift_beyond_the_preprocessing_limit_is_flagged() -> None:
    assert flagged(measures(aerated_hu=-920)) == set()
    assert flagged(measures(aerated_hu=-841)) == set()
    assert flagged(measures(aerated_hu=-839)) == {"W_HU_SHIFT"}


def test_unknown_measures_are_not_flagged() -> None:
    assert flagged(measures(air_hu=None, spine_behind_mm=None, windpipe_above_mm2=0.0)) == set()


def test_free_text_of_headers_is_not_stored(hu: NDArray[np.float32], tmp_path: Path) -> None:
    """Position, manufacturer and kernel never contain text of the header itself."""
    scanner = replace(NORTH.scanner, manufacturer="CANARY^JANE", kernel="CANARY JANE")
    for path in write_series(hu, scanner, SOMEBODY, tmp_path):
        _rewrite(path)
    (found,), _ = find_series(tmp_path)
    scan = read_series(found)
    result = measure(found, scan, prepare(scan, SETTINGS))
    assert (result.position, result.manufacturer, result.kernel, result.sharpness) == ("", "OTHER", "", "")
    assert result.thickness_mm is None
    assert "CANARY" not in result.to_json()


def _rewrite(path: Path) -> None:
    from pydicom import dcmread

    ds = dcmread(path)
    ds.PatientPosition = "CANARY JANE"
    del ds.SliceThickness
    ds.save_as(path)


def test_measures_survive_a_json_round_trip(hu: NDArray[np.float32]) -> None:
    found = measured(hu)
    assert Measures.from_json(found.to_json()) == found


def test_volume_without_bone_has_no_spine() -> None:
    scan = volume(np.full((40, 60, 60), -1000, np.float32), Grid((40, 60, 60), (5.0, 5.0, 5.0)))
    lungs = np.zeros((50, 75, 75), bool)
    lungs[10:40, 20:50, 20:50] = True
    image = np.full(lungs.shape, -900, np.float32)
    from pipeline.preprocessing.preprocess import Prepared

    whole = (slice(None),) * 3
    prepared = Prepared(np.zeros((2, 8, 8, 8), np.float16), image, lungs, 4.0, 2000.0, 0.0, np.eye(4), whole)
    found = measure(series(files=(Path("p.nii"),)), Volume(scan.hu, scan.affine), prepared)
    assert (found.spine_behind_mm, found.windpipe_above_mm2, found.heart_left) == (None, 0.0, 0.0)
