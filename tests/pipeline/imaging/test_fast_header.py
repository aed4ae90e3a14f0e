"""Tests of the fast header reader: it returns the same elements as pydicom, or leaves the file to pydicom."""

from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence
from pydicom import uid as uids

from models.refusal import Refusal
from pipeline.imaging import ct_slice as slices
from pipeline.imaging.ct_slice import Slice, decode_slice, inspect_file, inspect_slice, inspect_slices
from pipeline.imaging.dicom_header import PIXEL_DATA, read_header
from pipeline.imaging.discovery import find_series
from pipeline.imaging.fast_header import head_tags, read_head
from pipeline.imaging.pydicom_silence import quiet_pydicom
from tests.helpers.dicom_files import body, ct_slice, save, write_series

KEYWORDS = ("Modality", "PatientID", "SeriesInstanceUID", "ImagePositionPatient", "Rows", "PixelRepresentation")
LITTLE_ENDIAN = [uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.RLELossless, uids.JPEGLSLossless]


def referring(ds: Dataset, _: int) -> None:
    item = Dataset()
    item.CodeValue = "CANARY"
    ds.ProcedureCodeSequence = Sequence([item])


def values_of(found: list[Slice]) -> list[tuple[object, ...]]:
    """Return the values of slices. Since Python 3.13, slices with the same NaN for an absent value are not equal."""
    return [astuple(each) for each in found]


@pytest.mark.parametrize("syntax", LITTLE_ENDIAN)
@pytest.mark.parametrize("edit", [None, referring], ids=["plain", "with a sequence"])
def test_slices_inspected_together_equal_slices_inspected_one_by_one(tmp_path, syntax, edit, monkeypatch):
    paths = write_series(tmp_path, body(), transfer_syntax=syntax, edit=edit)
    alone = [inspect_slice(path) for path in paths]
    pixels = [decode_slice(each) for each in alone]
    asked = []
    monkeypatch.setattr(slices, "inspect_file", lambda path: asked.append(path) or inspect_file(path))
    together = inspect_slices(paths)
    assert asked == paths[:1], "only the first slice is inspected in full"
    assert values_of([replace(each, pixels_at=None, native=None) for each in together]) == values_of(alone)
    assert all(np.array_equal(decode_slice(each), known) for each, known in zip(together, pixels, strict=True))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"Modality": "MR"}, "E_MODALITY_MISMATCH"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "E_LOCALIZER"),
        ({"BurnedInAnnotation": "YES"}, "E_BURNED_IN"),
        ({"RescaleSlope": 0.0}, "E_RESCALE"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "E_PIXEL"),
        ({"NumberOfFrames": 2}, "E_MULTIFRAME"),
        ({"ImagePositionPatient": [0.0, 0.0]}, "E_GEOMETRY"),
        ({"PixelPaddingValue": 0}, "E_PIXEL"),
    ],
)
def test_one_slice_that_differs_is_checked(tmp_path, change, code):
    def edit(ds: Dataset, index: int) -> None:
        if index == 7:
            ds.update(change)
            if "PixelPaddingValue" in change:
                ds["PixelPaddingValue"].VR = "SS"

    with pytest.raises(Refusal) as caught:
        inspect_slices(write_series(tmp_path, body(), edit=edit))
    assert caught.value.code == code
    assert "007.dcm" in caught.value.private


def test_file_of_another_patient_is_another_series(tmp_path):
    write_series(tmp_path, body(), edit=lambda ds, index: setattr(ds, "PatientID", "B" if index == 7 else "A"))
    series, findings = find_series(tmp_path)
    assert sorted((each.patient_id, len(each.files)) for each in series) == [("A", 23), ("B", 1)]
    assert not findings


def test_slice_without_pixels_is_truncated(tmp_path):
    *_, last = inspect_slices(write_series(tmp_path, body()))
    last.path.write_bytes(last.path.read_bytes()[: last.pixels_at])
    with pytest.raises(Refusal) as caught:
        decode_slice(last)
    assert caught.value.code == "E_TRUNCATED"


def test_two_frames_in_a_single_frame_file_are_refused(tmp_path):
    paths = write_series(tmp_path, body(), edit=lambda ds, index: setattr(ds, "PixelData", 2 * ds.PixelData))
    with pytest.raises(Refusal) as caught:
        decode_slice(inspect_slices(paths)[0])
    assert caught.value.code == "E_DECODE"


@pytest.mark.parametrize("syntax", [uids.ExplicitVRBigEndian, uids.DeflatedExplicitVRLittleEndian])
def test_other_transfer_syntaxes_are_left_to_pydicom(tmp_path, syntax):
    (path,) = write_series(tmp_path, body()[:1], transfer_syntax=syntax)
    assert read_head(path, head_tags()) is None
    assert values_of(inspect_slices([path])) == values_of([inspect_slice(path)])


def test_sequence_of_undefined_length_is_left_to_pydicom(tmp_path):
    def edit(ds: Dataset, index: int) -> None:
        referring(ds, index)
        ds["ProcedureCodeSequence"].is_undefined_length = True

    paths = write_series(tmp_path, body(), edit=edit)
    assert read_head(paths[0], head_tags()) is None
    assert values_of(inspect_slices(paths)) == values_of([inspect_slice(path) for path in paths])


def test_non_dicom_or_missing_file_has_no_fast_header(tmp_path):
    (tmp_path / "text").write_text("DICM")
    assert read_head(tmp_path / "text", head_tags()) is None
    assert read_head(tmp_path / "absent", head_tags()) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[uids.UID, bytes]:
    path = tmp_path_factory.mktemp("whole") / "1.dcm"
    found = {}
    for syntax in LITTLE_ENDIAN[:2]:
        ds = ct_slice(body()[0], position_mm=(0, 0, 0))
        referring(ds, 0)
        save(ds, path, transfer_syntax=syntax)
        found[syntax] = path.read_bytes()
    return found


@settings(max_examples=400, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    syntax=st.sampled_from(LITTLE_ENDIAN[:2]),
    place=st.floats(0, 1, exclude_max=True),
    removed=st.integers(0, 9),
    added=st.one_of(st.binary(max_size=9), st.sampled_from([b"UI", b"SQ", b"UN", b"OB", b"ZZ", b"\xff\xff\xff\xff"])),
)
def test_fast_header_has_the_same_elements_as_pydicom(
    whole: dict[uids.UID, bytes], tmp_path: Path, syntax: uids.UID, place: float, removed: int, added: bytes
) -> None:
    good, path = whole[syntax], tmp_path / "1.dcm"
    at = 128 + int(place * (good.index(b"\xe0\x7f\x10\0") + 4 - 128))
    path.write_bytes(good[:at] + added + good[at + removed :])
    head = read_head(path, head_tags(*KEYWORDS))
    if head is None:
        return
    with quiet_pydicom():
        header = read_header(path, sorted(head_tags(*KEYWORDS)))
    for dataset, of_meta in ((header.file_meta, True), (header, False)):
        raw = {int(tag): dataset.get_item(tag) for tag in dataset.keys()}  # noqa: SIM118
        ours = {tag: element for tag, element in head.elements.items() if (tag >> 16 == 2) == of_meta}
        assert of_meta or raw.keys() == ours.keys()
        for tag, element in ours.items():
            value = raw[tag].value or b""
            assert not isinstance(value, bytes) or element.endswith(value)
            assert len(element) - raw[tag].length in (8, 12) if hasattr(raw[tag], "length") else True
    if head.native:
        begins, length = head.native
        with quiet_pydicom():
            element = read_header(path, [PIXEL_DATA]).get_item(PIXEL_DATA)
        assert element is not None
        assert (element.value or b"") == path.read_bytes()[begins : begins + length]
