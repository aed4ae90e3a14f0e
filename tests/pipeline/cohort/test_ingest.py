"""Ingest: finds the planted defects only, examines no series twice, survives interruptions, stores no identifiers."""

import csv
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless

from models.refusal import Refusal
from pipeline.cohort.ingest import Assessment, ingest
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.cohort.workers import EXAMINATION
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.preprocessing.reasons import TURNED_REFUSED
from pipeline.site.folder import Site
from pipeline.system.codes import BY_CODE
from tests.conftest import OneThread
from tests.helpers.enhanced import legacy_converted, save_frames, single_frames
from tests.helpers.own import CLEAN, SETTINGS, Own, truth_of

OTHER = Preprocessing(shape=(16, 24, 24))
ALL = ("train", "validation", "test")


def interrupted_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == count:
            raise KeyboardInterrupt

    return progress


# --- the whole small hospital -----------------------------------------------------------------------------


def test_planted_defects_are_found_and_nothing_else(
    small_hospital: Path, small_ingest: tuple[Site, Assessment]
) -> None:
    site, assessment = small_ingest
    planted = Counter((e["code"], site.pseudonym(e["patient_id"])) for e in truth_of(small_hospital)["defects"])
    found = Counter((finding.reason.code, finding.patient_id) for finding in assessment.findings)
    assert found == planted
    assert dict(assessment.counts) == Counter(BY_CODE[each["code"]] for each in truth_of(small_hospital)["defects"])


def test_patients_without_an_excluding_defect_are_accepted(
    small_hospital: Path, small_ingest: tuple[Site, Assessment]
) -> None:
    """A stray MR or a second series leaves the CT usable. A skipped PCR row invalidates negative labels only."""
    site, assessment = small_ingest
    expected = set()
    for each in truth_of(small_hospital)["patients"]:
        harmless = each["defect"] in (None, "W_SEVERAL_SERIES", "E_MODALITY")
        spoils_negative = each["defect"] in ("W_PCR_UNMAPPED", "E_PCR_DATE")
        if harmless or (spoils_negative and each["pcr_positive"]):
            expected.add(site.pseudonym(each["patient_id"]))
    assert {patient.pseudonym for patient in assessment.patients} == expected
    assert len(expected) >= 10


def test_labels_age_and_sex_match_the_ground_truth(small_hospital: Path, small_ingest: tuple[Site, Assessment]) -> None:
    site, assessment = small_ingest
    truth = {site.pseudonym(each["patient_id"]): each for each in truth_of(small_hospital)["patients"]}
    lost = {site.pseudonym(patient) for patient in lost_to_follow_up(small_hospital)}
    for patient in assessment.patients:
        true = truth[patient.pseudonym]
        assert patient.pcr_positive == true["pcr_positive"]
        assert (patient.age_years, patient.sex) == (true["age_years"], true["sex"])
        assert patient.severe == (None if patient.pseudonym in lost else true["severe"])
        assert patient.split == site.split(patient.pseudonym)
    assert {patient.severe for patient in assessment.patients} >= {True, False}
    assert {patient.pcr_positive for patient in assessment.patients} == {True, False}


def lost_to_follow_up(hospital: Path) -> set[str]:
    """Patients without an event whose follow-up ended less than 30 days after their CT."""
    lost = set()
    with (hospital / "outcomes.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            folder = hospital / "ct" / row["patient_id"]
            if not folder.is_dir() or row["intubated"] or row["died"]:
                continue
            day = dcmread(next(folder.iterdir()), stop_before_pixels=True).AcquisitionDate
            if date.fromisoformat(row["followed_until"]) < date.fromisoformat(day) + timedelta(days=30):
                lost.add(row["patient_id"])
    return lost


def test_second_ingest_examines_no_series_and_gives_the_same_result(small_ingest: tuple[Site, Assessment]) -> None:
    site, first = small_ingest
    calls: list[tuple[int, int]] = []
    second = ingest(site, SETTINGS, lambda done, total: calls.append((done, total)))
    assert (first.examined_now, second.examined_now) == (first.series, 0)
    assert calls == [(first.series, first.series)]
    assert second.patients == first.patients
    assert Counter(second.findings) == Counter(first.findings)


def test_cohort_stores_the_assessed_patients(small_ingest: tuple[Site, Assessment]) -> None:
    site, assessment = small_ingest
    with Cohort(site) as cohort:
        assert cohort.patients() == sorted(assessment.patients, key=lambda patient: patient.pseudonym)
        assert cohort.settings() == {settings_digest(SETTINGS)}
        examples = cohort.examples(*ALL)
    assert len(examples) == len(assessment.patients)
    for example in examples:
        tensor = np.load(example.tensor)
        assert tensor.shape == (2, *SETTINGS.shape)
        assert np.isfinite(tensor).all()


def test_patients_without_labels_stay_only_where_the_site_keeps_them(own: Own) -> None:
    own.add(*CLEAN[:3])
    rows = (own.folder / "laboratory.csv").read_text().splitlines(keepends=True)
    own.laboratory("".join(row for row in rows if CLEAN[0] not in row))
    without = own.ingest()
    table = (own.site.cohort_folder / "cohort.csv").read_bytes()
    own.site.settings.site.unlabelled_patients = True
    kept = own.ingest()
    assert (without.unlabelled, [row.pseudonym for row in kept.unlabelled]) == ((), [own.site.pseudonym(CLEAN[0])])
    assert kept.patients == without.patients
    assert (own.site.cohort_folder / "cohort.csv").read_bytes() == table
    assert ("unlabelled", 1) in {(count.key, count.count) for _, count in kept.waterfall.walk()}
    with Cohort(own.site) as cohort:
        assert cohort.unlabelled() == list(kept.unlabelled)
        assert np.load(cohort.tensors / kept.unlabelled[0].tensor).shape == (2, *SETTINGS.shape)
    own.site.settings.site.unlabelled_patients = False
    own.ingest()
    with Cohort(own.site) as cohort:
        assert cohort.unlabelled() == []


def test_examination_long_before_the_test_does_not_take_the_place_of_the_one_beside_it(own: Own) -> None:
    own.add(CLEAN[0])
    alone = own.ingest()
    for path in sorted((own.folder / "ct" / CLEAN[0]).iterdir()):
        image = dcmread(path)
        image.StudyInstanceUID, image.SeriesInstanceUID = "2.25.11", "2.25.12"
        image.AcquisitionDate = image.SeriesDate = image.StudyDate = "20150302"
        image.save_as(own.folder / "ct" / f"old-{path.name}")
    both = own.ingest()
    assert len(alone.patients) == len(both.patients) == 1
    assert replace(both.patients[0], tensor="") == replace(alone.patients[0], tensor="")
    assert ("later", 1) in {(count.key, count.count) for _, count in both.waterfall.walk()}


def left_and_right_exchanged(ds: Dataset) -> None:
    ds.PixelData = np.ascontiguousarray(ds.pixel_array[:, ::-1]).tobytes()


def front_and_back_exchanged(ds: Dataset) -> None:
    ds.PixelData = np.ascontiguousarray(ds.pixel_array[::-1]).tobytes()


def every_second_slice_missing(ds: Dataset) -> None:
    ds.InstanceNumber, ds.SliceThickness = 2 * ds.InstanceNumber, ds.SliceThickness / 2


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (left_and_right_exchanged, "E_MIRRORED"),
        (front_and_back_exchanged, "E_TURNED"),
        (every_second_slice_missing, "E_SLICES_MISSING"),
    ],
)
def test_scan_that_cannot_be_right_does_not_train(own: Own, edit: Callable[[Dataset], None], code: str) -> None:
    own.add(*CLEAN[:2])
    for path in (own.folder / "ct" / CLEAN[0]).iterdir():
        ds = dcmread(path)
        edit(ds)
        ds.save_as(path)
    found = own.ingest()
    assert [patient.pseudonym for patient in found.patients] == [own.site.pseudonym(CLEAN[1])]
    assert [each.reason.code for each in found.findings if each.patient_id == own.site.pseudonym(CLEAN[0])] == [code]


def test_series_with_most_slices_is_used(small_hospital: Path, small_ingest: tuple[Site, Assessment]) -> None:
    site, assessment = small_ingest
    (patient_id,) = [e["patient_id"] for e in truth_of(small_hospital)["defects"] if e["code"] == "W_SEVERAL_SERIES"]
    (patient,) = [p for p in assessment.patients if p.pseudonym == site.pseudonym(patient_id)]
    with Cohort(site) as cohort:
        (scan,) = [s for s in cohort.scans(settings_digest(SETTINGS)).values() if s.tensor == patient.tensor]
    whole, cut = (len(list((small_hospital / "ct" / patient_id).glob(f"{number}-*.dcm"))) for number in (2, 3))
    assert scan.measures is not None
    assert scan.measures.slices == whole > cut


def test_no_stored_file_identifies_a_patient(small_hospital: Path, small_ingest: tuple[Site, Assessment]) -> None:
    """Neither file contents nor file names contain identifiers. Only the site's own screen may show them."""
    site, assessment = small_ingest
    identifying = {folder.name for folder in (small_hospital / "ct").iterdir()}
    for folder in (small_hospital / "ct").iterdir():
        for path in (next(folder.glob("2-*.dcm")), max(folder.iterdir())):
            ds = dcmread(path, stop_before_pixels=True)
            identifying |= {str(ds.PatientID), str(ds.PatientName), ds.StudyInstanceUID, ds.SeriesInstanceUID}
            identifying |= {ds.SOPInstanceUID, ds.FrameOfReferenceUID}
    with (small_hospital / "outcomes.csv").open(encoding="utf-8") as file:
        identifying |= {row["patient_id"] for row in csv.DictReader(file)}
    assert len(identifying) > 5 * 20
    stored = [path for path in site.folder.rglob("*") if path.is_file()]
    assert {"cohort.sqlite", "site.toml", "refusals.csv"} <= {path.name for path in stored}
    assert sum(path.suffix == ".npy" for path in stored) > 15
    for path in stored:
        content = path.read_bytes() + str(path.relative_to(site.folder)).encode()
        assert not [text for text in identifying if text.encode() in content], path.name
    shown = " ".join(finding.patient_id for finding in assessment.findings)
    assert not [text for text in identifying if text in shown]


def test_refusals_csv_gives_reason_and_series_without_patient_identifiers(
    small_hospital: Path, small_ingest: tuple[Site, Assessment]
) -> None:
    site, assessment = small_ingest
    with (site.cohort_folder / "refusals.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["code"] for row in rows) == Counter(f.reason.code for f in assessment.findings)
    by_code = {row["code"]: row for row in rows}
    (gap,) = [e["patient_id"] for e in truth_of(small_hospital)["defects"] if e["code"] == "E_SLICE_GAP"]
    assert by_code["E_SLICE_GAP"]["pseudonym"] == site.pseudonym(gap)
    assert by_code["E_SLICE_GAP"]["says"].startswith("distances between slices differ from the usual 5")
    assert not any("{" in row["says"] for row in rows), "all placeholders are filled in"
    assert all(row["remedy"] for row in rows)
    with Cohort(site) as cohort:
        fingerprints = cohort.scans(settings_digest(SETTINGS)).keys()
    for code in ("E_SLICE_GAP", "E_TILT", "E_NO_LUNGS", "W_SEVERAL_SERIES"):
        assert sum(each.startswith(by_code[code]["series"]) for each in fingerprints) == 1
    assert by_code["E_NO_PCR"]["series"] == ""


# --- repeated runs ----------------------------------------------------------------------------------------


def test_interrupted_ingest_resumes_and_a_new_patient_costs_one_examination(
    own: Own, small_ingest: tuple[Site, Assessment]
) -> None:
    own.add(*CLEAN[:3])
    with pytest.raises(KeyboardInterrupt):
        own.ingest(progress=interrupted_after(2))
    with Cohort(own.site) as cohort:
        assert len(cohort.scans(settings_digest(SETTINGS))) == 2
        assert cohort.patients() == [], "an interrupted ingest stores no partial cohort"

    resumed = own.ingest()
    assert resumed.examined_now == 1
    assert resumed.patients == expected_rows(small_ingest, CLEAN[:3]), "same result as without interruption"

    own.add(CLEAN[3])
    grown = own.ingest()
    assert (grown.examined_now, grown.series) == (1, 4)
    assert grown.patients == expected_rows(small_ingest, CLEAN[:4])

    shutil.rmtree(own.folder / "ct" / CLEAN[0])
    shrunk = own.ingest()
    assert shrunk.examined_now == 0
    assert shrunk.patients == expected_rows(small_ingest, CLEAN[1:4])


def expected_rows(small_ingest: tuple[Site, Assessment], patients: list[str]) -> list[PatientRow]:
    """The rows of some patients from the ingest of the whole small hospital. Both sites have the same key."""
    site, assessment = small_ingest
    wanted = {site.pseudonym(patient) for patient in patients}
    return [row for row in assessment.patients if row.pseudonym in wanted]


@pytest.mark.parametrize("damage", ["partial", "cut"])
def test_missing_or_damaged_tensor_is_prepared_again(own: Own, damage: str) -> None:
    own.add(CLEAN[0])
    (patient,) = own.ingest().patients
    tensor = own.site.cohort_folder / "tensors" / patient.tensor
    whole = tensor.read_bytes()
    if damage == "partial":
        tensor.rename(tensor.with_name(f".{tensor.name}.4711"))  # as left by a process killed while writing
    else:
        tensor.write_bytes(whole[:-1])
    again = own.ingest()
    assert again.examined_now == 1
    assert again.patients == [patient]
    assert tensor.read_bytes() == whole


def test_scan_that_is_prepared_again_loses_the_features_of_encoders(own: Own) -> None:
    """Scoring would not compute features of the tensor that was there before."""
    own.add(CLEAN[0])
    own.add(CLEAN[1])
    damaged, other = (patient.tensor for patient in own.ingest().patients)
    folders = [own.site.cohort_folder / "encoded" / name for name in ("encoder", "encoder-1")]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in (damaged, other):
            (folder / name).write_bytes(b"features")
    (own.site.cohort_folder / "tensors" / damaged).unlink()
    assert own.ingest().examined_now == 1
    assert [[path.name for path in folder.iterdir()] for folder in folders] == [[other], [other]]


def test_scans_of_another_examination_are_examined_again_once(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could be refused, or accepted, now. Features of encoders stay, because the tensors are the same."""
    own.add(*CLEAN[:2])
    before = own.ingest().patients
    folder = own.site.cohort_folder / "encoded" / "encoder"
    folder.mkdir(parents=True)
    for patient in before:
        (folder / patient.tensor).write_bytes(b"features")
    monkeypatch.setattr("pipeline.cohort.workers.EXAMINATION", EXAMINATION + 1)
    again = own.ingest()
    assert (again.examined_now, again.patients) == (len(before), before)
    assert {path.name for path in folder.iterdir()} == {patient.tensor for patient in before}
    assert own.ingest().examined_now == 0


def test_scan_that_an_earlier_examination_accepted_is_refused(own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise Refusal(TURNED_REFUSED)

    own.add(*CLEAN[:2])
    before = own.ingest().patients
    monkeypatch.setattr("pipeline.preprocessing.plausibility.require_upright", refuse)
    assert own.ingest().patients == before, "the same version does not examine them again"
    monkeypatch.setattr("pipeline.cohort.workers.EXAMINATION", EXAMINATION + 1)
    assert own.ingest().patients == []
    assert list((own.site.cohort_folder / "tensors").iterdir()) == []


def test_changed_settings_replace_all_tensors_of_the_cohort_at_once(own: Own) -> None:
    own.add(*CLEAN[:2])
    old = own.ingest().patients
    with pytest.raises(KeyboardInterrupt):
        own.ingest(OTHER, interrupted_after(1))
    assert shapes(own.site) == {(2, *SETTINGS.shape)}
    with Cohort(own.site) as cohort:
        assert cohort.patients() == sorted(old, key=lambda patient: patient.pseudonym)
        assert cohort.settings() == {settings_digest(SETTINGS)}

    assert own.ingest(OTHER).examined_now == 1
    assert shapes(own.site) == {(2, *OTHER.shape)}
    with Cohort(own.site) as cohort:
        assert cohort.settings() == {settings_digest(OTHER)}
    assert own.ingest(SETTINGS).examined_now == 0, "the tensors of the former settings are kept"
    assert shapes(own.site) == {(2, *SETTINGS.shape)}


def shapes(site: Site) -> set[tuple[int, ...]]:
    with Cohort(site) as cohort:
        return {np.load(example.tensor).shape for example in cohort.examples(*ALL)}


def test_changed_file_is_read_again(own: Own) -> None:
    own.add(CLEAN[0])
    (before,) = own.ingest().patients
    path = next((own.folder / "ct" / CLEAN[0]).glob("2-*.dcm"))
    ds = dcmread(path)
    ds.PatientComments = "SYNTHETIC"
    ds.save_as(path)
    assert own.ingest().examined_now == 1
    path.unlink()
    after = own.ingest()
    assert after.patients == [] or after.patients[0].tensor != before.tensor


def test_label_follows_the_day_of_the_scan_at_the_site(own: Own) -> None:
    """A scan at 01:30 UTC is of the day before in Los Angeles. Known series get the new day too."""
    own.add(CLEAN[0])
    for path in (own.folder / "ct" / CLEAN[0]).iterdir():
        ds = dcmread(path)
        ds.AcquisitionTime, ds.TimezoneOffsetFromUTC = "013000", "+0000"
        ds.save_as(path)
    specimen = date.fromisoformat(ds.AcquisitionDate) - timedelta(days=3)  # negative results count from two days before
    rows = (own.folder / "laboratory.csv").read_text().splitlines(keepends=True)
    others = "".join(row for row in rows if CLEAN[0] not in row)
    own.laboratory(f"{others}99,{CLEAN[0]},{specimen}T10:00,NEGATIVE\r\n")
    assert own.ingest().patients == []  # as written, which is the day in Paris
    own.site.settings.site.time_zone = "Europe/Paris"
    assert own.ingest().patients == []
    own.site.settings.site.time_zone = "America/Los_Angeles"
    again = own.ingest()
    assert [patient.pcr_positive for patient in again.patients] == [False]
    assert again.examined_now == 0


def test_unreadable_pcr_row_removes_a_negative_label_but_no_positive_one(own: Own, small_hospital: Path) -> None:
    """The unreadable row may have been a positive result."""
    pcr = {each["patient_id"]: each["pcr_positive"] for each in truth_of(small_hospital)["patients"]}
    negative = next(patient for patient in CLEAN if not pcr[patient])
    positive = next(patient for patient in CLEAN if pcr[patient])
    own.add(negative, positive)
    text = (own.folder / "laboratory.csv").read_text(encoding="utf-8")
    assert len(own.ingest().patients) == 2
    for faulty in ("2020-04-01T10:00,see comment", "01.04.2020,NEGATIVE", "2099-04-01T10:00,NEGATIVE"):
        own.laboratory(text + "".join(f"99,{patient},{faulty}\r\n" for patient in (negative, positive)))
        assert [row.pseudonym for row in own.ingest().patients] == [own.site.pseudonym(positive)]


def test_unusable_source_is_refused_and_the_cohort_is_kept(own: Own) -> None:
    own.add(CLEAN[0])
    (patient,) = own.ingest().patients
    text = (own.folder / "laboratory.csv").read_text(encoding="utf-8")
    own.laboratory("no,patient_id,collected\r\n")
    assert code_of(own) == "E_SCHEMA"
    (own.folder / "laboratory.csv").unlink()
    assert code_of(own) == "E_TABLE_FILE"
    own.laboratory(text)
    shutil.rmtree(own.folder / "ct" / CLEAN[0])
    assert code_of(own) == "E_NO_IMAGES"
    (own.folder / "ct").rmdir()
    assert code_of(own) == "E_CT_FOLDER"
    with Cohort(own.site) as cohort:
        assert cohort.patients() == [patient]


def code_of(own: Own) -> str:
    with pytest.raises(Refusal) as caught:
        own.ingest()
    assert str(own.folder) not in str(caught.value)
    return caught.value.code


def test_stored_findings_contain_no_file_names_or_cell_texts(own: Own) -> None:
    """File paths and cell texts may contain patient names."""
    own.add(CLEAN[0])
    (own.folder / "ct" / "CANARY^JANE.dcm").write_bytes(b"no DICOM" * 100)
    text = (own.folder / "laboratory.csv").read_text(encoding="utf-8")
    own.laboratory(f"{text}99,{CLEAN[0]},2020-04-01T10:00,CANARY^JANE\r\n")
    details = {f.reason.code: f.detail for f in own.ingest().findings}
    assert "CANARY" in details["E_NOT_DICOM"] and "CANARY" in details["W_PCR_UNMAPPED"]
    for path in own.site.folder.rglob("*"):
        assert path.is_dir() or b"CANARY" not in path.read_bytes()


# --- deletion of unused tensors ---------------------------------------------------------------------------


def tensors(site: Site) -> set[str]:
    return {path.name for path in (site.cohort_folder / "tensors").iterdir()}


def test_tensors_of_removed_scans_are_deleted_for_all_settings(own: Own) -> None:
    own.add(*CLEAN[:2])
    own.ingest()
    own.ingest(OTHER)
    assert len(tensors(own.site)) == 4
    (own.site.cohort_folder / "tensors" / ".half.npy.4711").write_bytes(b"of a process that was killed")
    shutil.rmtree(own.folder / "ct" / CLEAN[0])
    own.ingest()
    left = tensors(own.site)
    assert len(left) == 2, "one scan with two settings"
    assert {name[:32] for name in left} == {next(iter(left))[:32]}
    assert own.ingest(OTHER).examined_now == 0


def test_tensors_of_unlabelled_patients_are_kept(own: Own) -> None:
    own.add(CLEAN[0])
    text = (own.folder / "laboratory.csv").read_text(encoding="utf-8")
    own.laboratory(text.replace(CLEAN[0], "N0-999999"))
    assert own.ingest().patients == []
    assert len(tensors(own.site)) == 1
    own.laboratory(text)
    again = own.ingest()
    assert (again.examined_now, len(again.patients)) == (0, 1)


def test_multi_frame_image_gives_the_row_and_tensor_of_its_single_frames(
    own: Own, small_ingest: tuple[Site, Assessment]
) -> None:
    own.add(*CLEAN[:2])
    folder = own.folder / "ct" / CLEAN[0]
    files = sorted(folder.glob("*.dcm"))
    image = legacy_converted(single_frames(files))
    for path in files:
        path.unlink()
    save_frames(image, folder / "1.dcm", syntax=RLELossless)
    own.ingest()
    (expected,) = expected_rows(small_ingest, CLEAN[:1])
    with Cohort(own.site) as cohort, Cohort(small_ingest[0]) as small:
        (row,) = [each for each in cohort.patients() if each.pseudonym == expected.pseudonym]
        assert replace(row, tensor=expected.tensor) == expected
        assert np.array_equal(np.load(cohort.tensors / row.tensor), np.load(small.tensors / expected.tensor))


def test_all_numbers_of_series_are_the_same(own: Own) -> None:
    """One series has no patient and is not examined; the others are known from the first ingest."""
    own.add(*CLEAN[:2])
    own.ingest()
    (own.folder / "ct" / "nobody").mkdir()
    for path in (own.folder / "ct" / CLEAN[0]).glob("*.dcm"):
        image = dcmread(path)
        image.PatientID, image.SeriesInstanceUID = "", "2.25.7"
        image.save_as(own.folder / "ct" / "nobody" / path.name)
    shown: list[tuple[int, int]] = []
    again = own.ingest(progress=lambda done, total: shown.append((done, total)))
    counts = {again.series, again.waterfall.count, again.to_json()["series"], *shown[-1]}
    assert (counts, again.examined_now) == ({3}, 0)


def test_series_in_two_folders_is_one_scan_and_partial_results_are_discarded(
    own: Own, small_ingest: tuple[Site, Assessment]
) -> None:
    own.add(*CLEAN[:2])
    (own.folder / "ct" / CLEAN[0] / "more").mkdir()
    for path in sorted((own.folder / "ct" / CLEAN[0]).glob("*.dcm"))[::2]:
        path.rename(path.parent / "more" / path.name)
    shown: list[tuple[int, int]] = []
    ingested = own.ingest(progress=lambda done, total: shown.append((done, total)))
    assert (ingested.series, ingested.examined_now, shown[-1]) == (2, 2, (2, 2))
    expected = expected_rows(small_ingest, CLEAN[:2])
    assert [patient.pseudonym for patient in ingested.patients] == [row.pseudonym for row in expected]
    assert len(tensors(own.site)) == 2
    with Cohort(own.site) as cohort:
        assert len(cohort.scans(settings_digest(SETTINGS))) == 2
    assert own.ingest().examined_now == 0


def test_concurrent_ingest_is_refused(own: Own) -> None:
    own.add(CLEAN[0])
    with Cohort(own.site) as cohort, cohort.alone(), pytest.raises(Refusal) as caught:
        own.ingest()
    assert caught.value.code == "E_COHORT_BUSY"


@pytest.mark.parametrize(
    "step",
    [
        "label",
        "Cohort.replace",
        *(
            pytest.param(step, marks=pytest.mark.further)
            for step in ("PatientRow", "csv.writer", "Cohort.patients", "Cohort.sweep")
        ),
    ],
)
def test_next_ingest_repairs_an_interruption_at_any_step(own: Own, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Simulates a kill between two steps; `step` is a call in each. tests/e2e/test_kill.py kills a real process."""

    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    own.add(*CLEAN[:3])
    own.ingest()
    shutil.rmtree(own.folder / "ct" / CLEAN[0])
    monkeypatch.setattr(f"pipeline.cohort.ingest.{step}", end)
    with pytest.raises(KeyboardInterrupt):
        own.ingest()
    monkeypatch.undo()
    monkeypatch.setattr("pipeline.cohort.workers.WorkerPool", OneThread)
    own.ingest()
    resumed = {path.name: path.read_bytes() for path in own.site.cohort_folder.glob("*.csv")}
    left = tensors(own.site)
    shutil.rmtree(own.site.cohort_folder)
    own.ingest()
    assert resumed == {path.name: path.read_bytes() for path in own.site.cohort_folder.glob("*.csv")}
    assert left == tensors(own.site)
