"""Tests of finding and grouping DICOM files. The series are synthetic."""

import logging
import os
import warnings
from datetime import datetime

import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from pipeline.imaging.discovery import find_series
from pipeline.imaging.fast_header import read_head
from pipeline.imaging.series_reader import read_series
from tests.helpers.dicom_files import PATIENT_ID, body, ct_slice, rewrite, save, write_series

AIR = [[-1000, -1000], [-1000, -1000]]


def write_one(path, **attributes):
    save(ct_slice(AIR, position_mm=(0, 0, 0), **attributes), path)


def only(found):
    (series,), findings = found
    assert findings == []
    return series


def test_series_is_described(tmp_path):
    paths = write_series(tmp_path / "a", body(slices=3), names=["z", "IM1.ima", "k.dcm"])
    series = only(find_series(tmp_path))
    assert series.files == tuple(sorted(paths))
    assert (series.patient_id, series.issuer, series.modality) == (PATIENT_ID, "", "CT")
    assert (series.age_years, series.sex, series.kernel) == (63.0, "F", "B30f")
    assert series.acquired == datetime(2021, 3, 4, 10, 11, 12)


def test_files_are_grouped_by_patient_study_and_series_not_folder(tmp_path):
    write_one(tmp_path / "a" / "1")
    write_one(tmp_path / "b" / "2")
    write_one(tmp_path / "a" / "3", SeriesInstanceUID="2.25.9")
    write_one(tmp_path / "a" / "4", StudyInstanceUID="2.25.8")
    write_one(tmp_path / "a" / "5", PatientID="0042")
    write_one(tmp_path / "a" / "6", PatientID="42")
    write_one(tmp_path / "a" / "7", IssuerOfPatientID="other hospital")
    series, findings = find_series(tmp_path)
    assert findings == []
    assert sorted(len(each.files) for each in series) == [1, 1, 1, 1, 1, 2]
    assert {"0042", "42"} <= {each.patient_id for each in series}


def test_files_without_series_uid_are_grouped_by_folder(tmp_path):
    for name in ("a/1", "a/2", "b/1"):
        write_one(tmp_path / name, SeriesInstanceUID="")
    series, _ = find_series(tmp_path)
    assert sorted(len(each.files) for each in series) == [1, 2]


def test_files_and_folders_are_accepted(tmp_path):
    write_one(tmp_path / "a" / "1")
    write_one(tmp_path / "2")
    assert len(only(find_series([tmp_path / "a", tmp_path / "2"])).files) == 2


def test_companion_files_are_ignored_without_finding(tmp_path):
    write_one(tmp_path / "1")
    for name in ("LICENSE", "notes.txt", "readme.md", "list.csv", "x.json", ".DS_Store", "DICOMDIR"):
        (tmp_path / name).write_text("not an image")
    directory = Dataset()
    directory.file_meta = FileMetaDataset()
    directory.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    directory.FileSetID = "X"
    directory.save_as(tmp_path / "index", enforce_file_format=True)
    os.mkfifo(tmp_path / "pipe")
    assert len(only(find_series(tmp_path)).files) == 1


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "E_NOT_DICOM"),
        (b"<html>" * 100, "E_NOT_DICOM"),
        (bytes(128) + b"DICM", "E_NOT_DICOM"),
        (bytes(128) + b"DICM" + bytes(range(256)) * 4, "E_NOT_DICOM"),
    ],
)
def test_non_dicom_file_is_reported(tmp_path, content, code):
    write_one(tmp_path / "1.dcm")
    (tmp_path / "2.dcm").write_bytes(content)
    series, findings = find_series(tmp_path)
    assert len(series) == 1
    assert [(each.reason.code, each.detail) for each in findings] == [(code, str(tmp_path / "2.dcm"))]


def test_archive_in_a_folder_is_reported(tmp_path):
    (tmp_path / "patient.zip").write_bytes(b"PK\x03\x04")
    assert [each.reason.code for each in find_series(tmp_path)[1]] == ["E_NOT_DICOM"]


def test_unreadable_file_is_reported(tmp_path, monkeypatch):
    write_one(tmp_path / "1.dcm")

    def refuse(*args, **options):
        raise PermissionError("no")

    monkeypatch.setattr("pipeline.imaging.dicom_header.dcmread", refuse)
    series, findings = find_series(tmp_path)
    assert series == []
    assert [each.reason.code for each in findings] == ["E_PARSE"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"PatientID": "0042"}, {"PatientID": " 0042"}),
        ({"PatientID": "0042 "}, {"PatientID": "  0042\0"}),
        ({"IssuerOfPatientID": "WARD"}, {"IssuerOfPatientID": " WARD "}),
    ],
)
def test_padding_makes_no_second_patient(tmp_path, first, second):
    def pad(image, index):
        for keyword, value in (second if index % 2 else first).items():
            setattr(image, keyword, value)

    write_series(tmp_path, body(slices=24), edit=pad)
    series = only(find_series(tmp_path))
    (keyword,) = first
    assert {"PatientID": series.patient_id, "IssuerOfPatientID": series.issuer}[keyword] == first[keyword].strip()
    assert len(read_series(series).hu) == 24


def test_identifier_of_spaces_is_none(tmp_path):
    write_one(tmp_path / "1", PatientID="  ")
    assert only(find_series(tmp_path)).patient_id == ""


@pytest.mark.parametrize(("sex", "kept"), [("M", "M"), ("O", None), ("X", None), ("", None)])
def test_sex_is_parsed(tmp_path, sex, kept):
    write_one(tmp_path / "1", PatientSex=sex)
    assert only(find_series(tmp_path)).sex == kept


UNREADABLE = {  # a VR of numbers, and a length that no number has
    "PatientSex": ("US", b"F  "),
    "PatientAge": ("US", b"063"),
    "StudyDate": ("FD", b"202103"),
    "StudyTime": ("FD", b"101112"),
    "TimezoneOffsetFromUTC": ("FD", b"+0100 "),
    "Manufacturer": ("US", b"SYN"),
    "ConvolutionKernel": ("US", b"B30"),
}


def write_damaged(folder, *keywords, **attributes):
    def add(image, index):
        image.TimezoneOffsetFromUTC = "+0100"
        for keyword, value in attributes.items():
            setattr(image, keyword, value)

    for path in write_series(folder, body(slices=24), edit=add):
        content = path.read_bytes()
        for keyword in keywords:
            content = rewrite(content, keyword, *UNREADABLE.get(keyword, ("FD", b"unread")))
        path.write_bytes(content)


@pytest.mark.parametrize("keyword", UNREADABLE)
def test_unreadable_value_that_a_scan_does_not_need_counts_as_missing(tmp_path, keyword):
    write_damaged(tmp_path / "damaged", keyword)
    write_series(tmp_path / "empty", body(slices=24), edit=lambda image, _: setattr(image, keyword, ""))
    found, expected = only(find_series(tmp_path / "damaged")), only(find_series(tmp_path / "empty"))
    described = ("age_years", "sex", "has_clock", "manufacturer", "kernel", "patient_id", "series_uid")
    assert [getattr(found, name) for name in described] == [getattr(expected, name) for name in described]
    assert (found.acquired and found.acquired.replace(tzinfo=None)) == expected.acquired
    assert len(read_series(found).hu) == 24


def test_series_is_kept_if_no_optional_value_can_be_read(tmp_path):
    write_damaged(tmp_path, *UNREADABLE)
    series = only(find_series(tmp_path))
    assert (series.patient_id, series.age_years, series.sex, series.acquired) == (PATIENT_ID, None, None, None)


def test_unreadable_age_is_calculated_from_the_birth_date(tmp_path):
    write_damaged(tmp_path, "PatientAge", PatientBirthDate="19571001")
    assert only(find_series(tmp_path)).age_years == 63


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality"])
def test_unreadable_identity_is_refused(tmp_path, keyword):
    write_damaged(tmp_path, keyword)
    series, findings = find_series(tmp_path)
    assert series == []
    assert {each.reason.code for each in findings} == {"E_PARSE"}


def test_fingerprint_depends_on_content_not_folder(tmp_path):
    for place in ("here", "there"):
        paths = write_series(tmp_path / place, body(slices=2))
        for path in paths:
            os.utime(path, (1_600_000_000, 1_600_000_000))
    here = only(find_series(tmp_path / "here")).fingerprint
    assert here == only(find_series(tmp_path / "there")).fingerprint
    os.utime(paths[0], (1_600_000_001, 1_600_000_001))
    assert here != only(find_series(tmp_path / "there")).fingerprint


def test_each_series_is_reported_once_after_its_folder(tmp_path, monkeypatch):
    for folder in "abc":
        for name in "123":
            write_one(tmp_path / folder / name, SeriesInstanceUID=f"2.25.{ord(folder)}")
    told, read = [], []
    monkeypatch.setattr(
        "pipeline.imaging.discovery.read_head", lambda path, wanted: read.append(path) or read_head(path, wanted)
    )
    found, _ = find_series(tmp_path, lambda each: told.append((each, len(read))))
    assert [(each.files, when) for each, when in told] == [(found[0].files, 3), (found[1].files, 6)], (
        "the last series is only in the return value"
    )


def test_series_in_two_folders_is_reported_with_files_of_the_first(tmp_path):
    for folder in ("a", "b", "c"):
        write_one(tmp_path / folder / folder)
    told = []
    series = only(find_series(tmp_path, told.append))
    assert len(series.files) == 3
    (early,) = told
    assert early.files == series.files[:1]
    assert early.fingerprint != series.fingerprint


def test_reading_logs_no_patient_data(tmp_path, caplog, capfd):
    write_one(tmp_path / "1", PatientID="CANARY" * 20, StudyDate="CANARY", SpecificCharacterSet="CANARY")
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        assert only(find_series(tmp_path)).patient_id == "CANARY" * 20
    assert warned == []
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")
