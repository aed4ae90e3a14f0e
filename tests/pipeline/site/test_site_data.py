"""Tests of whose a series is (an identifier that was not read whole is nobody's), and of when it was acquired."""

from datetime import datetime
from pathlib import Path

import pytest

from pipeline.imaging.discovery import Series
from pipeline.site.folder import Site, init_site
from pipeline.site.site_data import read_series_list
from tests.helpers.dicom_files import body, ct_slice, write_mislabelled

SETTINGS = '[site]\nname = "ward"\n[ct]\nfolder = "{folder}"\n[labels]\nfile = "labels.csv"\n'


def write_scan(folder: Path, number: int, **attributes: str) -> None:
    """Write a few slices whose texts are Latin-1 although the header says UTF-8."""
    folder.mkdir(parents=True)
    for index, pixels in enumerate(body(slices=3)):
        image = ct_slice(pixels, position_mm=(0, 0, index * 2.0))
        image.StudyInstanceUID, image.SeriesInstanceUID = "2.25.8", f"2.25.9{number}"
        for keyword, value in attributes.items():
            setattr(image, keyword, value)
        write_mislabelled(image, folder / f"{index}.dcm")


@pytest.mark.parametrize("keyword", ["PatientID", "IssuerOfPatientID"])
def test_patients_whose_identifiers_cannot_be_decoded_are_not_one_patient(keyword: str, tmp_path: Path) -> None:
    write_scan(tmp_path / "ct" / "a", 1, **{keyword: "Ä1"})
    write_scan(tmp_path / "ct" / "b", 2, **{keyword: "Ö1"})
    write_scan(tmp_path / "ct" / "c", 3, PatientID="1", PatientName="Müll^A")  # other texts do not matter
    site = init_site(tmp_path / "site", SETTINGS.format(folder=tmp_path / "ct"))
    series, findings = read_series_list(site)
    assert [each.patient_id for each in series] == [site.pseudonym("1")]
    assert [(finding.reason.code, finding.patient_id) for finding in findings] == [("E_PATIENT_ID_UNDECODED", "")] * 2


def test_padding_makes_no_second_patient(tmp_path: Path) -> None:
    write_scan(tmp_path / "ct" / "a", 1, PatientID="0042")
    write_scan(tmp_path / "ct" / "b", 2, PatientID=" 0042")
    site = init_site(tmp_path / "site", SETTINGS.format(folder=tmp_path / "ct"))
    series, findings = read_series_list(site)
    assert {each.patient_id for each in series} == {site.pseudonym("0042")}
    assert (len(series), findings) == (2, [])


RECORDS = '[laboratory]\nfile = "laboratory.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
LABELS = '[labels]\nfile = "labels.csv"\n'
IN_UTC = {"AcquisitionDate": "20200403", "AcquisitionTime": "013000", "TimezoneOffsetFromUTC": "+0000"}
PULLED = '[pacs]\nprotocol = "dicomweb"\n[pacs.dicomweb]\nurl = "https://pacs.example/dicom-web"\n'


def site_with(folder: Path, tables: str, time_zone: str = "", **attributes: str) -> Site:
    """A site with one scan."""
    ct = "" if PULLED in tables else f'[ct]\nfolder = "{folder / "ct"}"\n'
    site = init_site(folder / "site", f'[site]\nname = "ward"\ntime_zone = "{time_zone}"\n{ct}{tables}')
    write_scan(site.ct_folder / "a", 1, **attributes)
    return site


@pytest.mark.parametrize("tables", [RECORDS, LABELS, RECORDS + PULLED], ids=["records", "labels", "pulled"])
@pytest.mark.parametrize(
    ("time_zone", "acquired"),
    [
        ("America/Los_Angeles", datetime(2020, 4, 2, 18, 30)),
        ("Europe/Paris", datetime(2020, 4, 3, 3, 30)),
        ("Etc/UTC", datetime(2020, 4, 3, 1, 30)),
    ],
)
def test_time_with_utc_offset_is_converted_to_the_site_time_zone(
    tmp_path: Path, tables: str, time_zone: str, acquired: datetime
) -> None:
    site = site_with(tmp_path, tables, time_zone, **IN_UTC)
    write_scan(site.ct_folder / "b", 2, **IN_UTC)
    soon: list[Series] = []
    series, _ = read_series_list(site, soon.append)
    assert [each.acquired for each in series] == [acquired] * 2
    assert {each.acquired for each in soon} == {acquired}


def test_time_without_utc_offset_is_local(tmp_path: Path) -> None:
    attributes = {"AcquisitionDate": "20200403", "AcquisitionTime": "013000"}
    (series,), _ = read_series_list(site_with(tmp_path, RECORDS, "America/Los_Angeles", **attributes))
    assert series.acquired == datetime(2020, 4, 3, 1, 30)


def test_day_without_time_is_not_converted(tmp_path: Path) -> None:
    attributes = {"AcquisitionDate": "20200403", "TimezoneOffsetFromUTC": "+0000"}
    (series,), _ = read_series_list(site_with(tmp_path, RECORDS, "America/Los_Angeles", **attributes))
    assert (series.acquired, series.has_clock) == (datetime(2020, 4, 3), False)


@pytest.mark.parametrize(
    ("tables", "flagged"),
    [(RECORDS, ["W_SCAN_OFFSET"]), (RECORDS + PULLED, ["W_SCAN_OFFSET"]), (LABELS, [])],
    ids=["records", "pulled", "labels"],
)
def test_time_counts_as_written_without_a_site_time_zone(tmp_path: Path, tables: str, flagged: list[str]) -> None:
    """Scanners write the time of their place. The flag is for archives in UTC, if labels depend on the day."""
    (series,), findings = read_series_list(site_with(tmp_path, tables, **IN_UTC))
    assert series.acquired == datetime(2020, 4, 3, 1, 30)
    assert [finding.reason.code for finding in findings] == flagged
    assert {finding.patient_id for finding in findings} <= {series.patient_id}
