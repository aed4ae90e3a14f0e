"""Tests of detecting missing slices from the headers of the received slices. The series are synthetic."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.missing_slices import Stated, remark, require_whole, stated
from pipeline.scoring.single_scan import read_one
from tests.helpers import volume_images
from tests.helpers.dicom_files import body, write_series


def numbered(first: int = 1, step: int = 1, **attributes: Any) -> Callable[[Dataset, int], None]:
    def edit(ds: Dataset, index: int) -> None:
        ds.InstanceNumber = first + step * index
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)

    return edit


def code(found: Stated, apart_mm: float) -> str | None:
    """The code of the refusal, or of the remark about the scan."""
    try:
        require_whole(found, apart_mm)
    except Refusal as refusal:
        return refusal.code
    reason = remark(found, apart_mm)
    return reason.code if reason else None


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("attributes", [{}, {"SliceThickness": 4.0, "SpacingBetweenSlices": 2.0}], ids=["", "overlap"])
def test_every_second_or_third_slice_alone_is_refused(every: int, attributes: dict[str, Any], tmp_path: Path) -> None:
    paths = write_series(tmp_path, body(slices=69), edit=numbered(**attributes))
    assert code(read_one(tmp_path).stated, 2.0) is None
    for index, path in enumerate(paths):
        if index % every:
            path.unlink()
    scan = read_one(tmp_path)
    apart_mm = scan.volume.spacing_mm[0]
    assert apart_mm == pytest.approx(2.0 * every)
    with pytest.raises(Refusal, match="E_SLICES_MISSING") as caught:
        require_whole(scan.stated, apart_mm)
    assert f"steps of {every}" in caught.value.says


@pytest.mark.parametrize(
    ("found", "apart_mm", "expected"),
    [
        (Stated(), 5.0, None),
        (Stated(1, 2.0, 2.0), 2.0, None),
        (Stated(1, None, 5.0), 2.5, None),  # overlapping slices
        (Stated(1, 1.0, 1.0), 1.25, None),
        (Stated(1, None, 1.0), 10.0, "W_SLICES_APART"),  # a high-resolution scan with gaps
        (Stated(1, 10.0, 1.0), 10.0, "W_SLICES_APART"),
        (Stated(2, None, None), 2.0, "W_SLICES_MISSING"),
        (Stated(2, 2.0, 2.0), 2.0, "W_SLICES_MISSING"),  # one of two reconstructions with alternating instance numbers
        (Stated(1, 1.0, 5.0), 2.0, "W_SLICES_MISSING"),
        (Stated(None, 0.5, 5.0), 5.5, "W_SLICES_MISSING"),  # some scanners write the gap there: not a proof
        (Stated(2, None, 1.0), 10.0, "W_SLICES_MISSING"),
        (Stated(2, None, 1.0), 2.05, "E_SLICES_MISSING"),
        (Stated(2, 1.0, 3.0), 2.0, "E_SLICES_MISSING"),
        (Stated(4, None, 1.25), 5.0, "E_SLICES_MISSING"),
    ],
)
def test_one_sign_warns_and_two_signs_refuse(found: Stated, apart_mm: float, expected: str | None) -> None:
    assert code(found, apart_mm) == expected


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (numbered(7, 3), Stated(3, None, 2.0)),
        (numbered(500, -2), Stated(2, None, 2.0)),  # from head to feet
        (numbered(SpacingBetweenSlices=2.5), Stated(1, 2.5, 2.0)),
        (numbered(SpacingBetweenSlices=0.0, SliceThickness=""), Stated(1)),
        (numbered(SpacingBetweenSlices=-2.0, SliceThickness=-3.0), Stated(1)),
        (numbered(step=0), Stated(None, None, 2.0)),
        (lambda ds, index: setattr(ds, "InstanceNumber", index**2), Stated(None, None, 2.0)),
        (lambda ds, index: None, Stated(None, None, 2.0)),
        (lambda ds, index: ds.add_new("InstanceNumber", "LO", "many"), Stated(None, None, 2.0)),
    ],
    ids=range(9),
)
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian])
def test_statements_of_headers_are_read(edit: Any, expected: Stated, syntax: Any, tmp_path: Path) -> None:
    options = {"transfer_syntax": syntax} if syntax else {}
    write_series(tmp_path, body(slices=6), edit=edit, **options)
    (series,), _ = find_series(tmp_path)
    assert stated(series) == expected


def test_volume_file_states_nothing(tmp_path: Path) -> None:
    volume_images.save(volume_images.image(body()), tmp_path / "scan.nii")
    assert read_one(tmp_path).stated == Stated()
