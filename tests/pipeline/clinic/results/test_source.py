"""Tests of the header data that is kept of a scan for its results."""

from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from pipeline.clinic.results.source import IMAGES, SOURCE, keep_source, read_source
from tests.helpers import volume_images
from tests.helpers.scored_answers import mislabelled, rename, series_of
from tests.pipeline.scoring.test_score import chest

PRIVATE = "CANARY-PRIVATE"


def test_only_identity_and_image_references_are_kept(scan: Path, tmp_path: Path) -> None:
    series = rename(scan, tmp_path / "scan", PatientID="CANARY-1", ImageComments=PRIVATE, AccessionNumber="ACC7")
    assert keep_source(series, tmp_path) is None
    source = read_source(tmp_path)
    assert source is not None
    assert (source.header.PatientID, source.header.AccessionNumber) == ("CANARY-1", "ACC7")
    assert source.header.StudyInstanceUID == series.study_uid
    written = {(str(image.SOPClassUID), str(image.SOPInstanceUID)) for image in map(dcmread, series.files)}
    assert set(source.images) == written
    assert len(source.images) == len(series.files)
    kept = dcmread(tmp_path / SOURCE)
    assert "PixelData" not in kept
    assert not any(element.tag.is_private for element in kept)
    assert PRIVATE.encode() not in (tmp_path / SOURCE).read_bytes()


def test_copies_of_a_slice_count_as_one_image(scan: Path, tmp_path: Path) -> None:
    series = rename(scan, tmp_path / "scan")
    (tmp_path / "scan" / "copy.dcm").write_bytes(series.files[1].read_bytes())
    again = series_of(tmp_path / "scan")
    assert keep_source(again, tmp_path) is None
    source = read_source(tmp_path)
    assert source is not None
    assert len(source.images) == len(series.files)


@pytest.mark.parametrize(
    ("character_set", "name"),
    [("ISO_IR 100", "Müller^Jörg"), ("ISO_IR 144", "Люкceмбypг"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")],
    ids=["latin", "cyrillic", "japanese"],
)
def test_names_in_any_character_set_are_converted_to_unicode(
    character_set: Any, name: str, scan: Path, tmp_path: Path
) -> None:
    series = rename(scan, tmp_path / "scan", SpecificCharacterSet=character_set, PatientName=name)
    assert keep_source(series, tmp_path) is None
    source = read_source(tmp_path)
    assert source is not None
    assert str(source.header.PatientName) == name
    assert source.header.SpecificCharacterSet == "ISO_IR 192"


def test_control_characters_are_removed_from_names(scan: Path, tmp_path: Path) -> None:
    name = "<b>Do\x07e\x00\x9b31m^\u202eenaJ\u2066\u200f"
    series = rename(scan, tmp_path / "scan", SpecificCharacterSet="ISO_IR 192", PatientName=name)
    assert keep_source(series, tmp_path) is None
    source = read_source(tmp_path)
    assert source is not None
    assert str(source.header.PatientName) == "<b>Doe31m^enaJ\u200f"  # U+200F alone does not reverse any text


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        ({"PatientSex": "female"}, {"PatientSex": ""}),
        ({"PatientBirthDate": "1960-02-30"}, {"PatientBirthDate": ""}),
        ({"StudyTime": "25:00"}, {"StudyTime": ""}),
        ({"StudyDescription": "x" * 100}, {"StudyDescription": "x" * 64}),
        ({"PatientBirthDate": None, "AccessionNumber": None}, {"PatientBirthDate": "", "AccessionNumber": ""}),
    ],
    ids=str,
)
def test_values_that_a_pacs_would_reject_are_omitted_or_truncated(
    attributes: dict[str, Any], kept: dict[str, str], scan: Path, tmp_path: Path
) -> None:
    assert keep_source(rename(scan, tmp_path / "scan", **attributes), tmp_path) is None
    source = read_source(tmp_path)
    assert source is not None
    assert {keyword: str(source.header[keyword].value or "") for keyword in kept} == kept


@pytest.mark.parametrize(
    "attributes",
    [
        {"PatientID": "CANARY\x07-1"},
        {"PatientID": "CANARY-" + "1" * 64},
        {"IssuerOfPatientID": "CLINIC\u202e"},
        {"StudyInstanceUID": ""},
        {"StudyInstanceUID": "1.2.x"},
        {"SOPInstanceUID": ""},
    ],
    ids=str,
)
def test_invalid_identity_gives_no_results(attributes: dict[str, Any], scan: Path, tmp_path: Path) -> None:
    series = rename(scan, tmp_path / "scan", SpecificCharacterSet="ISO_IR 192", **attributes)
    refusal = keep_source(series, tmp_path)
    assert refusal is not None
    assert refusal.code == "E_RESULT_IDENTITY"
    assert "CANARY" not in str(refusal)
    assert read_source(tmp_path) is None


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID"])
def test_identifier_that_cannot_be_decoded_gives_no_results(keyword: str, scan: Path, tmp_path: Path) -> None:
    """Otherwise the results of two patients, "Ä1" and "Ö1", would go to the PACS under one identifier."""
    series = mislabelled(scan, tmp_path / "scan", **{keyword: "Ä1"})
    refusal = keep_source(series, tmp_path)
    assert refusal is not None and refusal.code == "E_RESULT_IDENTITY"
    assert read_source(tmp_path) is None


def test_identifier_in_the_character_set_that_the_header_names_gives_results(scan: Path, tmp_path: Path) -> None:
    series = rename(scan, tmp_path / "scan", SpecificCharacterSet="ISO_IR 192", PatientID="Ä1", PatientName="Müll^A")
    assert keep_source(series, tmp_path) is None
    source = read_source(tmp_path)
    assert source is not None
    assert (source.header.PatientID, str(source.header.PatientName)) == ("Ä1", "Müll^A")


def test_names_and_numbers_that_cannot_be_decoded_are_left_empty(scan: Path, tmp_path: Path) -> None:
    lost = {"PatientName": "Müll^A", "ReferringPhysicianName": "Möller^B", "AccessionNumber": "Ä7"}
    assert keep_source(mislabelled(scan, tmp_path / "scan", PatientID="P-1", **lost), tmp_path) is None
    source = read_source(tmp_path)
    assert source is not None
    assert [str(source.header[keyword].value or "") for keyword in lost] == ["", "", ""]
    assert source.header.PatientID == "P-1"


def test_a_volume_file_gives_no_results(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    volume_images.save(volume_images.image(chest(), spacing_mm=(5.0, 4.0, 4.0)), path)
    from pipeline.imaging.readers import find_scans

    (series,), _ = find_scans(path)
    refusal = keep_source(series, tmp_path)
    assert refusal is not None
    assert refusal.code == "E_RESULT_NO_DICOM"
    assert not (tmp_path / SOURCE).exists()
    assert not (tmp_path / IMAGES).exists()
