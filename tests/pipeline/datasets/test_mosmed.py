"""Import of MosMedData as a site. The files have the published layout; their content is synthetic."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.cohort.ingest import ingest
from pipeline.datasets.common import Imported
from pipeline.datasets.mosmed import import_mosmed
from pipeline.imaging.readers import find_scans
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.records.labels import Label, read_labels
from pipeline.site.folder import Site
from tests.helpers.chests import tree, write_chest
from tests.helpers.volume_images import image, save

HEADER = "study_id,category,study_file,mask_file"
STUDIES = {f"study_{number:04d}": f"CT-{number % 5}" for number in range(1, 11)}


def rows(studies: dict[str, str]) -> list[str]:
    return [f"{study},{category},/studies/{category}/{study}.nii.gz," for study, category in studies.items()]


def published(folder: Path, table: Sequence[str], scans: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    (folder / "dataset_registry.csv").write_text("\n".join([HEADER, *table]) + "\n")
    (folder / "dataset_registry.xlsx").write_bytes(b"a spreadsheet, which nobody reads")
    for study, category in scans.items():
        save(image([[[0]]]), folder / "studies" / category / f"{study}.nii.gz")
    save(image([[[0]]]), folder / "masks" / "study_0001_mask.nii.gz")
    return folder


def run(folder: Path, out: Path) -> Imported:
    return import_mosmed(folder, out, progress=lambda done, total: None)


def test_severity_label_is_the_extent_of_findings_and_is_declared_as_such(tmp_path: Path) -> None:
    data = published(tmp_path / "data", rows(STUDIES), STUDIES)
    before = tree(data)
    made = run(data, tmp_path / "sites")
    assert made == Imported({"mosmed": 10}, [])
    site = Site.open(tmp_path / "sites" / "mosmed")
    assert site.settings.labels is not None
    assert "an extent, not an outcome" in site.settings.labels.severe_means
    labels, findings = read_labels(site.settings.labels)
    assert findings == []
    assert labels == {
        study: Label(None, category in {"CT-3", "CT-4"}) for study, category in STUDIES.items() if category != "CT-0"
    }
    found, _ = find_scans(site.settings.ct.folder)
    assert {s.patient_id for s in found} == STUDIES.keys()
    assert tree(data) == before


def test_patients_without_scan_or_row_are_excluded_and_counted(tmp_path: Path) -> None:
    there = {"study_0001": "CT-1", "study_0002": "CT-3", "study_0003": "CT-3"}
    listed = {
        "study_0001": "CT-1",
        "study_0002": "CT-2",  # the scan is in another category folder
        "study_0004": "CT-2",
    }
    made = run(published(tmp_path / "data", rows(listed), there), tmp_path / "sites")
    assert made.sites == {"mosmed": 1}
    assert sorted((r.code, n) for r, n in made.counts) == [("E_NO_LABEL", 2), ("E_NO_SCAN", 2)]


@pytest.mark.parametrize(
    ("table", "code"),
    [
        (["study_0001,CT-5,,"], "E_IMPORT_LABEL"),
        (["study_0001,,,"], "E_IMPORT_LABEL"),
        (["study_0001,CT-1,,", "study_0001,CT-1,,"], "E_IMPORT_DUPLICATE"),
        (["study_0009,CT-1,,"], "E_LAYOUT"),
    ],
)
def test_table_that_differs_from_the_published_format_is_refused(tmp_path: Path, table: list[str], code: str) -> None:
    data = published(tmp_path / "data", table, {"study_0001": "CT-1"})
    with pytest.raises(Refusal) as caught:
        run(data, tmp_path / "sites")
    assert caught.value.code == code


def test_spreadsheet_without_the_csv_table_is_refused(tmp_path: Path) -> None:
    data = published(tmp_path / "data", rows(STUDIES), STUDIES)
    (data / "dataset_registry.csv").unlink()
    with pytest.raises(Refusal, match=r"dataset_registry\.csv is missing") as caught:
        run(data, tmp_path / "sites")
    assert caught.value.code == "E_LAYOUT"


@pytest.mark.usefixtures("in_this_process")
def test_thick_slices_are_accepted_and_unlabelled_studies_are_excluded(tmp_path: Path) -> None:
    studies = {"study_0001": "CT-1", "study_0002": "CT-4", "study_0003": "CT-0"}
    data = published(tmp_path / "data", rows(studies), {})
    for seed, (study, category) in enumerate(studies.items()):
        write_chest(data / "studies" / category / f"{study}.nii.gz", noise_seed=seed)
    run(data, tmp_path / "sites")
    site = Site.open(tmp_path / "sites" / "mosmed")
    assessment = ingest(site, Preprocessing(), lambda done, total: None)
    assert {p.pseudonym: (p.pcr_positive, p.severe) for p in assessment.patients} == {
        site.pseudonym("study_0001"): (None, False),
        site.pseudonym("study_0002"): (None, True),
    }
    counts = {reason.code: count for reason, count in assessment.counts}
    assert counts == {"W_THICK": 3, "E_NO_LABEL": 1}
