"""Tests of whose a series is: an identifier that was not read whole is nobody's."""

from pathlib import Path

import pytest

from pipeline.site.folder import init_site
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
