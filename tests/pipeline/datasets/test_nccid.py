"""Import of NCCID as sites. The files have the published layout; their content is synthetic."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from models.refusal import Refusal
from pipeline.cohort.ingest import ingest
from pipeline.datasets.common import Imported
from pipeline.datasets.nccid import import_nccid
from pipeline.imaging.readers import find_scans
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.scans import acquire
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records.laboratory import read_pcr
from pipeline.records.outcomes import read_outcomes
from pipeline.site.folder import Site
from tests.helpers.chests import tree
from tests.helpers.dicom_files import body, write_series
from tests.helpers.phantoms import thorax

CT_DAY = "20200410"


def scan(folder: Path, patient: str, series: str = "1.2.3", **attributes: object) -> None:
    """Write a series of one slice to its folder in the published layout."""

    def edit(ds: Dataset, _: int) -> None:
        ds.PatientID, ds.SeriesInstanceUID = patient, series
        ds.StudyDate = ds.AcquisitionDate = CT_DAY
        ds.SeriesDate = "20190317"  # shifted by the de-identification
        for keyword, value in attributes.items():
            setattr(ds, keyword, value)

    write_series(folder / "training" / "ct" / patient / "9.8.7" / series, body(slices=1), edit=edit)


def record(folder: Path, patient: str, kind: str, day: str = "2020-06-01", **fields: Any) -> None:
    path = folder / "training" / "data" / patient / f"{kind}_{day}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"Pseudonym": patient, **fields}))


def status(folder: Path, patient: str, centre: str, **fields: Any) -> None:
    record(folder, patient, "status", SubmittingCentre=centre, **{"SwabStatus": 0, "SwabDate": "09/04/2020", **fields})


def data(folder: Path, patient: str, centre: str, **fields: Any) -> None:
    course = {"Intubation": 0, "Death": 0, "Date last known alive": "2020-06-01"}
    swab = {"1st RT-PCR result": "1", "Date of acquisition of 1st RT-PCR": "04/09/2020"}
    record(folder, patient, "data", SubmittingCentre=centre, **{**swab, **course, **fields})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "nccid"


def run(folder: Path, out: Path) -> Imported:
    return import_nccid(folder, out, progress=lambda done, total: None)


def counts(made: Imported) -> dict[str, int]:
    return {reason.code: count for reason, count in made.counts}


def test_each_centre_becomes_a_site_with_laboratory_and_outcome_tables(source: Path, tmp_path: Path) -> None:
    for number in range(1, 5):
        scan(source, f"Covid{number}")
    status(source, "Covid1", "NHS Synthetic Trust")
    data(source, "Covid2", "nhs  synthetic trust ")  # the same centre, spelt differently
    data(source, "Covid3", "St. Nowhere's", **{"Intubation": "1", "Date of intubation": "13/04/2020"})
    status(source, "Covid4", "St. Nowhere's", SwabDate="05/16/2020")
    (source / "training" / "data" / "summary.json").write_text("[]")
    before = tree(source)
    made = run(source, tmp_path / "sites")
    assert made == Imported({"nhs-synthetic-trust": 2, "st-nowhere-s": 2}, [])
    assert tree(source) == before

    first = Site.open(tmp_path / "sites" / "nhs-synthetic-trust")
    results, findings = read_pcr(first.settings.laboratory)
    assert findings == []
    assert [(r.patient_id, r.collected.isoformat(), r.positive) for r in results] == [
        ("Covid1", "2020-04-09T00:00:00", False),
        ("Covid2", "2020-04-09T00:00:00", True),
    ]
    second = Site.open(tmp_path / "sites" / "st-nowhere-s")
    outcomes, findings = read_outcomes(second.settings.outcomes)
    assert findings == []
    assert {patient: o.intubated for patient, o in outcomes.items()} == {"Covid3": date(2020, 4, 13)}
    found, findings = find_scans(second.ct_folder)
    assert findings == []
    assert [s.patient_id for s in found] == ["Covid3", "Covid4"]


def test_training_folder_itself_is_accepted_as_source(source: Path, tmp_path: Path) -> None:
    scan(source, "Covid1")
    status(source, "Covid1", "A")
    assert run(source / "training", tmp_path / "sites").sites == {"a": 1}


def test_pseudonym_key_is_new_and_secret_in_each_import(source: Path, tmp_path: Path) -> None:
    """The data are under an access agreement: a key that anyone can compute would tell whose pseudonym is whose."""
    scan(source, "Covid1")
    status(source, "Covid1", "Ward")
    keys = []
    for name in "ab":
        assert run(source, tmp_path / name).sites == {"ward": 1}
        path = tmp_path / name / "ward" / "keys" / "pseudonym.key"
        keys.append(path.read_bytes())
        assert path.stat().st_mode & 0o077 == 0
    assert keys[0] != keys[1] and len(keys[0]) == len(keys[1]) == 32


def test_newest_clinical_file_is_used(source: Path, tmp_path: Path) -> None:
    scan(source, "Covid1")
    record(source, "Covid1", "status", "2020-05-01", SubmittingCentre="A", SwabStatus=1, SwabDate="2020-04-01")
    record(source, "Covid1", "status", "2020-07-01", SubmittingCentre="A", SwabStatus=0, SwabDate="2020-04-02")
    run(source, tmp_path / "sites")
    rows = (tmp_path / "sites" / "a" / "laboratory.csv").read_text().splitlines()
    assert rows == ["patient_id,collected,result", "Covid1,2020-04-02,negative"]


def test_excluded_patients_are_counted_by_reason(source: Path, tmp_path: Path) -> None:
    patients = ["good", "no-record", "two-centres", "no-centre", "broken", "list", "ambiguous", "unreadable", "undated"]
    for patient in patients:
        scan(source, patient, **({"AcquisitionDate": ""} if patient == "undated" else {}))
        if patient != "no-record":
            status(source, patient, "A")
    status(source, "no-ct", "A")
    (source / "training" / "ct" / "empty" / "study" / "series").mkdir(parents=True)
    status(source, "empty", "A")
    record(source, "two-centres", "status", "2020-05-01", SubmittingCentre="B")
    status(source, "no-centre", " - ")
    (source / "training" / "data" / "broken" / "status_2020-06-01.json").write_text('{"SwabStatus": 0')
    (source / "training" / "data" / "list" / "status_2020-06-01.json").write_text("[" * 100_000)
    data(source, "ambiguous", "A", **{"1st RT-PCR result": "", "Date of Positive Covid Swab": "04/09/2020"})
    status(source, "unreadable", "A", SwabStatus="maybe")
    made = run(source, tmp_path / "sites")
    assert made.sites == {"a": 1}
    assert [path.name for path in (tmp_path / "sites" / "a" / "ct").iterdir()] == ["good"]
    assert counts(made) == {
        "E_NO_SCAN": 3,  # no-ct, empty, and undated (its only series has no usable date)
        "E_NO_CLINICAL": 1,
        "E_CENTRE": 2,
        "E_CLINICAL_FILE": 2,
        "E_AMBIGUOUS_DATE": 1,
        "E_SWAB_RESULT": 1,
        "E_SWABS": 2,
        "E_CT_DATE": 1,
    }


def test_only_series_with_an_unshifted_date_are_linked(source: Path, tmp_path: Path) -> None:
    status(source, "Covid1", "A")
    scan(source, "Covid1", "1")
    scan(source, "Covid1", "2", AcquisitionDate="")  # ingest would use the shifted SeriesDate
    scan(source, "Covid1", "3", AcquisitionDate="", SeriesDate="")  # StudyDate is not shifted
    scan(source, "Covid1", "4", AcquisitionDate="10.04.2020")
    made = run(source, tmp_path / "sites")
    found, _ = find_scans(tmp_path / "sites" / "a" / "ct")
    assert sorted(s.series_uid for s in found) == ["1", "3"]
    assert {s.acquired.strftime("%Y%m%d") for s in found if s.acquired} == {CT_DAY}
    assert counts(made) == {"E_CT_DATE": 2}


def test_centres_with_long_similar_names_are_separate_sites(source: Path, tmp_path: Path) -> None:
    for number, end in enumerate(("North", "South", "North")):
        scan(source, f"Covid{number}")
        status(source, f"Covid{number}", f"The Synthetic Hospitals of the Royal County NHS Trust, {end}")
    made = run(source, tmp_path / "sites")
    assert sorted(made.sites.values()) == [1, 2]
    assert all(Site.open(tmp_path / "sites" / name).name == name for name in made.sites)


@pytest.mark.parametrize("missing", ["ct", "data"])
def test_other_layout_is_refused_with_the_missing_folder(source: Path, tmp_path: Path, missing: str) -> None:
    scan(source, "Covid1")
    status(source, "Covid1", "A")
    (source / "training" / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(Refusal, match=f"NCCID is published: {missing} is missing") as caught:
        run(source, tmp_path / "sites")
    assert caught.value.code == "E_LAYOUT"
    assert not (tmp_path / "sites").exists()


def test_output_inside_the_source_data_is_refused(source: Path, tmp_path: Path) -> None:
    scan(source, "Covid1")
    status(source, "Covid1", "A")
    for folder in (source, source / "training"):
        with pytest.raises(Refusal) as caught:
            run(folder, folder / "sites")
        assert caught.value.code == "E_IMPORT_OUT"


@pytest.mark.usefixtures("in_this_process")
def test_imported_site_can_be_ingested(source: Path, tmp_path: Path) -> None:
    grid = Grid((45, 80, 80), (6.0, 4.5, 4.5))
    for seed, patient in enumerate(("Covid1", "Covid2")):
        hu = acquire(thorax(grid).hu, HOSPITALS[0].scanner, np.random.default_rng(seed))

        def edit(ds: Dataset, _: int, patient: str = patient) -> None:
            ds.PatientID, ds.AcquisitionDate, ds.PatientAge = patient, CT_DAY, "050Y"
            ds.StudyInstanceUID = ds.SeriesInstanceUID = f"2.25.{patient[-1]}"

        write_series(source / "training" / "ct" / patient / "1" / "2", hu, spacing_mm=grid.spacing_mm, edit=edit)
    status(source, "Covid1", "A")
    data(source, "Covid2", "A", **{"Death": 1, "Date of death": "20/04/2020"})
    run(source, tmp_path / "sites")
    site = Site.open(tmp_path / "sites" / "a")
    assessment = ingest(site, Preprocessing(), lambda done, total: None)
    assert {p.pseudonym: (p.pcr_positive, p.severe) for p in assessment.patients} == {
        site.pseudonym("Covid1"): (False, None),
        site.pseudonym("Covid2"): (True, True),
    }
