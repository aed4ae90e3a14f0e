"""Patients whose records spell the identifier in another way than the scans. All data are synthetic."""

from pathlib import Path

import pytest

from pipeline.cohort.ingest import Material
from pipeline.doctor.identifier_spelling import other_spelling
from pipeline.imaging.discovery import Series
from pipeline.site.folder import init_site
from pipeline.site.site_data import read_records

SITE = '[site]\nname = "ward"\n[labels]\nfile = "labels.csv"\n'


@pytest.mark.parametrize(
    ("in_records", "in_scans", "is_found"),
    [
        ("42", "0042", True),
        ("00000042", "42", True),
        ("HOSP-0042", "0042", True),
        ("hosp 42", "HOSP42", True),
        ("42", "42", False),  # as it should be
        ("42", "43", False),
        ("4200", "42", False),
    ],
)
def test_usual_spellings_are_found(tmp_path: Path, in_records: str, in_scans: str, is_found: bool) -> None:
    site = init_site(tmp_path / "site", SITE)
    (site.folder / "labels.csv").write_text(f"patient_id,pcr_positive,severe\n{in_records},1,0\n777,1,1\n")
    series = Series((), site.pseudonym(in_scans), "", "", "", "CT", None, None, None, "", "", "")
    material = Material([series], read_records(site)[0], [], [])
    assert other_spelling(site, material) == ({series.patient_id} if is_found else set())
