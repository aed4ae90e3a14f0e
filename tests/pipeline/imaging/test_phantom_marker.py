"""Tests of the phantom mark: a series is a synthetic phantom only if each of its files has the complete mark."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ImplicitVRLittleEndian

from pipeline.imaging.discovery import Series, find_series
from pipeline.imaging.phantom_marker import CREATOR, mark
from pipeline.imaging.readers import find_scans
from pipeline.phantom.hospitals import HOSPITALS
from tests.helpers import phantoms, volume_images
from tests.helpers.dicom_files import anything_goes, body, write_series


def series_of(folder: Path, edit: Callable[[Dataset, int], None], **options: object) -> Series:
    write_series(folder, body(slices=4), edit=edit, **options)  # type: ignore[arg-type]
    (series,), findings = find_series(folder)
    assert findings == []
    return series


def test_written_phantoms_have_the_mark(tmp_path: Path) -> None:
    phantoms.scan(HOSPITALS[0], tmp_path)
    (series,), _ = find_series(tmp_path)
    assert series.is_phantom
    first = dcmread(series.files[0])
    assert first.QualityControlImage == "YES"
    assert first.private_block(0x0FED, CREATOR)[0x10].value == "SYNTHETIC"


@pytest.mark.parametrize("without", [(0,), (3,), (1, 2), (0, 1, 2, 3)])
def test_series_with_unmarked_slices_is_not_a_phantom(without: tuple[int, ...], tmp_path: Path) -> None:
    series = series_of(tmp_path, lambda image, index: None if index in without else mark(image))
    assert not series.is_phantom


def test_mark_is_found_in_implicit_vr(tmp_path: Path) -> None:
    series = series_of(tmp_path, lambda image, _: mark(image), transfer_syntax=ImplicitVRLittleEndian)
    assert series.is_phantom


def of_another_creator(image: Dataset) -> None:
    image.QualityControlImage = "YES"
    image.private_block(0x0FED, "SOMEBODY ELSE", create=True).add_new(0x10, "LO", "SYNTHETIC")


def of_another_kind(image: Dataset) -> None:
    mark(image)
    image.private_block(0x0FED, CREATOR)[0x10].value = "MEASURED"


FORGED: dict[str, Callable[[Dataset], object]] = {
    "the standard attribute alone": lambda image: setattr(image, "QualityControlImage", "YES"),
    "the private block alone": lambda image: (mark(image), setattr(image, "QualityControlImage", None)),
    "a phantom beside a patient": lambda image: (mark(image), setattr(image, "QualityControlImage", "BOTH")),
    "two values": lambda image: (mark(image), setattr(image, "QualityControlImage", ["YES", "YES"])),
    "the block of another creator": of_another_creator,
    "another kind": of_another_kind,
}


@pytest.mark.parametrize("how", FORGED)
@anything_goes()
def test_incomplete_mark_is_ignored(how: str, tmp_path: Path) -> None:
    assert not series_of(tmp_path, lambda image, _: (FORGED[how](image), None)[1]).is_phantom


def test_volume_file_is_not_a_phantom(tmp_path: Path) -> None:
    volume_images.save(volume_images.image(body()), tmp_path / "phantom.nii.gz")
    (series,), _ = find_scans(tmp_path)
    assert not series.is_phantom


@pytest.mark.parametrize(("clock", "has_clock"), [("", False), ("101112", True), ("000000", True)])
def test_scan_without_time_differs_from_scan_at_midnight(clock: str, has_clock: bool, tmp_path: Path) -> None:
    series = series_of(tmp_path, lambda image, _: setattr(image, "StudyTime", clock))
    assert series.has_clock is has_clock
    assert series.acquired is not None and series.acquired.date() == datetime(2021, 3, 4).date()
