"""Tests of the one scan of a source: what is said of files that could not be read when the scan is refused."""

from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.scoring.single_scan import read_one
from tests.helpers.dicom_files import body, write_series


def refused(folder: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_one(folder)
    return caught.value


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    write_series(tmp_path, body())
    return sorted(path for path in tmp_path.rglob("*") if path.is_file())


def test_gap_of_damaged_files_says_that_files_could_not_be_read(files: list[Path]) -> None:
    for path in files[6:8]:
        path.write_bytes(bytes(path.stat().st_size))  # as after a failed copy
    refusal = refused(files[0].parent)
    assert refusal.code == "E_SLICE_GAP"
    assert "slices that seem to be missing: 2" in refusal.says
    assert "could not be read: 2 (E_" in refusal.says
    assert refusal.remedy.startswith("What seems to be missing may be in the files that could not be read")
    assert refusal.remedy.endswith("Send the whole series again.")
    assert refusal.to_json() == {"code": refusal.code, "says": refusal.says, "remedy": refusal.remedy}
    assert refusal.says in str(refusal)
    assert all(path.name in refusal.private and path.name not in str(refusal) for path in files[6:8])


def test_gap_of_absent_files_says_nothing_of_unreadable_ones(files: list[Path]) -> None:
    for path in files[6:8]:
        path.unlink()
    refusal = refused(files[0].parent)
    assert refusal.code == "E_SLICE_GAP"
    assert "could not be read" not in refusal.says + refusal.remedy


def test_files_that_are_all_damaged_are_named_once(files: list[Path]) -> None:
    for path in files:
        path.write_bytes(b"damaged")
    refusal = refused(files[0].parent)
    assert refusal.says == refusal.reason.says and refusal.besides is None
