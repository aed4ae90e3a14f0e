"""Tests of the worker: what it stores for a scan, with and without a score. All scans here are synthetic."""

import errno
import json
import os
import shutil
import signal
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from models.compute import PROCESSOR
from models.network import build_network
from models.network_settings import NetworkSettings
from models.reasons import COMPUTE_FAILED
from models.refusal import Refusal
from models.release import save_release
from pipeline.clinic import unscored as without_score_module
from pipeline.clinic import worker
from pipeline.clinic.database import now, stamp
from pipeline.clinic.pictures import planes
from pipeline.clinic.reasons import RESULT_IDENTITY, RESULT_NO_DICOM
from pipeline.clinic.records import Answer, Job
from pipeline.clinic.results.write import why_no_results
from pipeline.clinic.retention import clear_work, forget_old, tidy
from pipeline.clinic.settings import SETTINGS, Clinic
from pipeline.clinic.store import Store, new_id
from pipeline.clinic.unscored import LUNGS_JSON
from pipeline.clinic.worker import Worker
from pipeline.imaging.phantom_marker import mark
from pipeline.scoring.reasons import UNFAMILIAR
from pipeline.site.folder import init_site
from tests.helpers import volume_images
from tests.helpers.chests import write_chest
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import PATIENT_ID, SERIES_UID, body, rewrite, write_mislabelled, write_series
from tests.pipeline.scoring.test_score import SPACING_MM, chest

MODELS = ("live", "shadow")


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic chest as a folder of DICOM files. Tests must not change it."""
    folder = tmp_path_factory.mktemp("SECRET-PLACE")
    write_series(folder, chest(), spacing_mm=SPACING_MM)
    return folder


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two releases with random weights, by their SHA-256."""
    found = {}
    for seed, study in enumerate(MODELS):
        folder = tmp_path_factory.mktemp(study)
        release = save_release(
            folder,
            build_network(NetworkSettings(), seed=seed),
            description(study=study, trained_on_synthetic_data=False),
        )
        found[release.sha256] = folder
    return found


@pytest.fixture
def clinic(tmp_path: Path, releases: dict[str, Path]) -> Clinic:
    """A clinic that stores both releases. The first is live."""
    clinic = Clinic.open(tmp_path)
    with clinic.store() as store:
        for (sha256, folder), name in zip(releases.items(), MODELS, strict=True):
            shutil.copytree(folder, clinic.models / sha256)
            store.models.add(sha256, name, signed_by=None, by="test")
        store.models.set_live(next(iter(releases)), by="test")
    return clinic


@pytest.fixture
def store(clinic: Clinic) -> Iterator[Store]:
    with clinic.store() as opened:
        yield opened


def queue(clinic: Clinic, store: Store, source: Path, **options: str) -> Job:
    job_id = new_id()
    if source.is_dir():
        shutil.copytree(source, clinic.scans / job_id)
    else:
        (clinic.scans / job_id).mkdir()
        shutil.copy(source, clinic.scans / job_id)
    return store.jobs.add(job_id, source="upload", asked_by="night desk", **options)  # type: ignore[arg-type]


def work(clinic: Clinic, store: Store) -> None:
    """Run one iteration of the worker's loop."""
    ours = Worker(clinic, store)
    assert ours.work_off_one(ours.release("live"))


def answer_of(clinic: Clinic, store: Store, source: Path, **options: str) -> Answer:
    job = queue(clinic, store, source, **options)
    work(clinic, store)
    done = store.jobs.get(job.id)
    assert done.answer_id, (done.code, done.says)
    return store.answers.get(done.answer_id)


def without_score(clinic: Clinic, store: Store, source: Path, **options: str) -> Job:
    job = queue(clinic, store, source, **options)
    work(clinic, store)
    done = store.jobs.get(job.id)
    assert done.state == "no_score"
    assert store.answers.newest(role=None) == []
    assert not job.folder.exists()
    left = {path.relative_to(clinic.answers).as_posix() for path in clinic.answers.rglob("*") if path.is_file()}
    lungs = {f"{job.id}/{name}" for name in ("lungs.nii.gz", "opacities.nii.gz", "lungs.json")}
    assert left - lungs == ({f"{job.id}/image.nii.gz"} if done.to_json()["has_pictures"] else set())
    assert not left & lungs or lungs <= left
    return done


def test_answer_has_all_its_files(clinic: Clinic, store: Store, scan: Path, releases: dict[str, Path]) -> None:
    answer = answer_of(clinic, store, scan)
    assert answer.patient
    assert (answer.patient.id, answer.patient.name, answer.patient.sex) == (PATIENT_ID, "CANARY^SYNTHETIC", "F")
    assert answer.patient.age_years == 63
    assert answer.patient.key == store.keys.patient_key(PATIENT_ID)
    assert (answer.model_sha256, answer.model_name, answer.role) == (next(iter(releases)), "live", "live")
    assert (answer.series_uid, answer.pcr, answer.pacs) == (SERIES_UID, None, None)
    assert answer.acquired_at and answer.acquired_at.isoformat() == "2021-03-04T10:11:12"
    assert json.loads((answer.folder / "score.json").read_text()) == answer.score
    names = answer.to_json()["files"]
    assert {"score.json", "image.nii.gz", "lungs.nii.gz", "source.dcm", "sr.dcm", "picture.dcm"} <= set(names)
    job = store.jobs.get(answer.job_id)
    assert (job.state, job.attempts, job.patient) == ("answered", 1, answer.patient)
    assert not job.folder.exists()
    (record,) = store.audit.records(limit=1)
    assert (record.action, record.who) == ("answer", "night desk")
    assert record.input_sha256 == answer.score["input"]["hu_sha256"]
    assert PATIENT_ID not in str(record)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("time_zone", "acquired", "result"),
    [
        ("America/Los_Angeles", datetime(2021, 3, 4, 17, 30), "negative"),
        ("Europe/Paris", datetime(2021, 3, 5, 2, 30), None),
        ("", datetime(2021, 3, 5, 1, 30, tzinfo=UTC), None),
    ],
)
def test_pcr_result_matches_the_day_of_the_scan_at_the_site(
    clinic: Clinic, store: Store, tmp_path: Path, time_zone: str, acquired: datetime, result: str | None
) -> None:
    """The specimen is of two days before the scan in Los Angeles, of three days before it in Paris."""
    records = '[laboratory]\nfile = "laboratory.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
    site = init_site(tmp_path / "site", f'[site]\nname = "ward"\ntime_zone = "{time_zone}"\n{records}')
    rows = f"patient_id,collected,result\n{PATIENT_ID},2021-03-02T08:00,negative\n"
    (site.folder / "laboratory.csv").write_text(rows)
    (clinic.folder / SETTINGS).write_text(f'[node]\nfolder = "{site.folder}"\n')

    def edit(image: Dataset, _: int) -> None:
        image.AcquisitionDate, image.AcquisitionTime, image.TimezoneOffsetFromUTC = "20210305", "013000", "+0000"

    write_series(tmp_path / "scan", chest(), spacing_mm=SPACING_MM, edit=edit)
    answer = answer_of(Clinic.open(clinic.folder), store, tmp_path / "scan")
    assert answer.acquired_at is not None
    assert (answer.acquired_at, answer.acquired_at.tzinfo) == (acquired, acquired.tzinfo)
    assert (answer.pcr and answer.pcr.result) == result


@pytest.mark.slow
def test_scan_sent_twice_has_one_answer(clinic: Clinic, store: Store, scan: Path) -> None:
    first = answer_of(clinic, store, scan)
    again = queue(clinic, store, scan)
    work(clinic, store)
    done = store.jobs.get(again.id)
    assert (done.state, done.answer_id, done.patient) == ("answered", first.id, first.patient)
    assert [answer.id for answer in store.answers.newest(role=None)] == [first.id]
    (record,) = store.audit.records(limit=1)
    assert (record.action, record.who, record.answer_id) == ("repeat", "night desk", first.id)
    store.forget(now() + timedelta(days=1), None)
    assert store.jobs.newest() == []


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["patient", "positions", "model", "results"])
def test_changed_scan_model_or_missing_results_give_a_new_answer(
    changed: str, clinic: Clinic, store: Store, scan: Path, releases: dict[str, Path], tmp_path: Path
) -> None:
    first = answer_of(clinic, store, scan)
    source = scan
    if changed == "patient":
        source = tmp_path / "corrected"
        write_series(source, chest(), spacing_mm=SPACING_MM, edit=_older)
    elif changed == "positions":  # the same voxels: their HU alone do not tell
        source = tmp_path / "corrected"
        between, *in_plane = SPACING_MM
        write_series(source, chest(), spacing_mm=(between * 0.9, *in_plane))
    elif changed == "model":
        store.models.set_live(list(releases)[1], by="test")
    else:
        (first.folder / "sr.dcm").unlink()
    assert answer_of(clinic, store, source).id != first.id


def _older(image: Dataset, _: int) -> None:
    image.PatientAge = "064Y"


def _without_a_study(image: Dataset, _: int) -> None:
    del image.StudyInstanceUID


def test_answer_names_why_it_has_no_results(clinic: Clinic, store: Store, scan: Path, tmp_path: Path) -> None:
    assert why_no_results(answer_of(clinic, store, scan).folder) is None
    unnamed = tmp_path / "unnamed"
    write_series(unnamed, chest(), spacing_mm=SPACING_MM, edit=_without_a_study)
    assert why_no_results(answer_of(clinic, store, unnamed).folder) is RESULT_IDENTITY


@pytest.mark.slow
def test_patients_whose_identifiers_cannot_be_decoded_are_not_one_patient(
    clinic: Clinic, store: Store, scan: Path, tmp_path: Path
) -> None:
    answers = []
    for number, patient_id in enumerate(("Ä1", "Ö1")):
        folder = tmp_path / f"patient-{number}"
        folder.mkdir()
        for path in scan.iterdir():
            image = dcmread(path)
            image.PatientID, image.StudyInstanceUID, image.SeriesInstanceUID = patient_id, "2.25.8", f"2.25.9{number}"
            write_mislabelled(image, folder / path.name)
        answers.append(answer_of(clinic, store, folder))
    assert [answer.patient for answer in answers] == [None, None]
    assert [store.jobs.get(answer.job_id).patient for answer in answers] == [None, None]
    assert [why_no_results(answer.folder) for answer in answers] == [RESULT_IDENTITY] * 2
    assert "\ufffd" not in str([answer.to_json() for answer in answers])


@pytest.mark.slow
def test_name_that_cannot_be_decoded_is_left_empty(clinic: Clinic, store: Store, scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    for path in scan.iterdir():
        image = dcmread(path)
        image.PatientName = "Müll^A"
        write_mislabelled(image, folder / path.name)
    answer = answer_of(clinic, store, folder)
    assert answer.patient and (answer.patient.id, answer.patient.name) == (PATIENT_ID, "")
    assert why_no_results(answer.folder) is None


@pytest.mark.slow
def test_name_that_cannot_be_read_is_left_empty(clinic: Clinic, store: Store, scan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "named"
    folder.mkdir()
    for path in scan.iterdir():
        (folder / path.name).write_bytes(rewrite(path.read_bytes(), "PatientName", "US", b"DOE^J"))
    answer = answer_of(clinic, store, folder)
    assert answer.patient and (answer.patient.id, answer.patient.name) == (PATIENT_ID, "")
    assert why_no_results(answer.folder) is RESULT_IDENTITY


@pytest.mark.slow
def test_zip_and_volume_file_give_the_same_hu_values(clinic: Clinic, store: Store, scan: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "1.zip", "w") as packed:
        for file in scan.iterdir():
            packed.write(file, f"a/{file.name}")
    volume = volume_images.save(volume_images.image(chest(), spacing_mm=SPACING_MM), tmp_path / "1.nii.gz")
    answers = [answer_of(clinic, store, source) for source in (scan, tmp_path / "1.zip", volume)]
    assert len({answer.score["input"]["hu_sha256"] for answer in answers}) == 1
    assert [answer.patient and answer.patient.id for answer in answers] == [PATIENT_ID, PATIENT_ID, None]
    assert (answers[1].folder / "sr.dcm").is_file()  # although the unpacked files of the zip have been deleted
    assert not (answers[2].folder / "sr.dcm").exists()  # the patient is not known
    assert list(clinic.work.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "waits"), [("off", False), ("on_request", False), ("always", True)], ids=["off", "on_request", "always"]
)
def test_results_are_queued_for_sending_only_if_configured(
    clinic: Clinic, store: Store, scan: Path, send: str, waits: bool
) -> None:
    text = f'[results]\nsend = "{send}"\nurl = "http://127.0.0.1:9/none"\npicture = false\n'
    (clinic.folder / SETTINGS).write_text(text)
    answer = answer_of(Clinic.open(clinic.folder), store, scan)
    assert bool(answer.pacs) is waits
    assert {"sr.dcm", "picture.dcm"} & set(answer.to_json()["files"]) == {"sr.dcm"}


@pytest.mark.slow
@pytest.mark.parametrize("marked", ["every slice", "all but one", "none"])
def test_phantom_model_sends_no_result_of_a_patient_scan(
    marked: str, clinic: Clinic, store: Store, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (clinic.folder / SETTINGS).write_text('[results]\nsend = "always"\nurl = "http://127.0.0.1:9/none"\n')
    folder = tmp_path_factory.mktemp("phantoms")
    points = {"severe": {"rule_out": 0.9999, "rule_in": 0.99999}}
    described = description(study="phantoms", operating_points=points)
    release = save_release(folder, build_network(NetworkSettings(), seed=3), described)
    shutil.copytree(folder, clinic.models / release.sha256)
    store.models.add(release.sha256, "phantoms", signed_by=None, by="test")
    store.models.set_live(release.sha256, by="test")

    def edit(image: Dataset, index: int) -> None:
        if marked == "every slice" or (marked == "all but one" and index):
            mark(image)

    write_series(tmp_path / "scan", chest(), spacing_mm=SPACING_MM, edit=edit)
    answer = answer_of(Clinic.open(clinic.folder), store, tmp_path / "scan")
    is_phantom = marked == "every slice"
    assert answer.score["input"]["is_phantom"] is is_phantom
    assert answer.score["level"]["severe"] == ("low" if is_phantom else None)
    assert bool(answer.pacs) is is_phantom
    assert bool({"sr.dcm", "picture.dcm"} & set(answer.to_json()["files"])) is is_phantom
    (record,) = store.audit.records(limit=1)
    assert record.output and record.output["level"] == answer.score["level"]


@pytest.mark.slow
def test_result_of_a_volume_file_is_never_sent(clinic: Clinic, store: Store, tmp_path: Path) -> None:
    (clinic.folder / SETTINGS).write_text('[results]\nsend = "always"\nurl = "http://127.0.0.1:9/none"\n')
    volume = volume_images.save(volume_images.image(chest(), spacing_mm=SPACING_MM), tmp_path / "1.nii.gz")
    answer = answer_of(Clinic.open(clinic.folder), store, volume)
    assert answer.pacs is None
    assert why_no_results(answer.folder) is RESULT_NO_DICOM


def test_scan_without_a_chest_gets_a_reason_and_no_score(clinic: Clinic, store: Store, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", body())
    job = without_score(clinic, store, tmp_path / "scan")
    assert job.code == "E_FIELD_OF_VIEW"
    assert planes(job.pictures)["axial"]["count"] == 24  # the pictures show the reader why there is no score
    assert job.patient and job.patient.key  # so that the job can be found in the worklist
    (record,) = store.audit.records(limit=1)
    assert (record.action, record.code, record.model_sha256) == ("no_score", job.code, store.models.all()[0].sha256)
    assert record.input_sha256 and len(record.input_sha256) == 64


def test_refused_scan_says_that_files_could_not_be_read(clinic: Clinic, store: Store, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", body())
    for path in sorted((tmp_path / "scan").iterdir())[6:8]:
        path.write_bytes(bytes(path.stat().st_size))
    job = without_score(clinic, store, tmp_path / "scan")
    assert job.code == "E_SLICE_GAP"
    assert job.says and "files that could not be read: 2 (E_NOT_DICOM)" in job.says
    assert job.remedy and "files that could not be read" in job.remedy


def test_refused_scan_has_its_patient_in_the_worklist(clinic: Clinic, store: Store, tmp_path: Path) -> None:
    write_series(tmp_path / "scan", body())
    sorted((tmp_path / "scan").iterdir())[6].unlink()
    job = without_score(clinic, store, tmp_path / "scan")
    assert job.code == "E_SLICE_GAP"
    assert job.patient and (job.patient.id, job.patient.name) == (PATIENT_ID, "CANARY^SYNTHETIC")
    assert job.patient.key == store.keys.patient_key(PATIENT_ID)


@pytest.mark.parametrize("fault", ["the disk is full", "killed before"])
def test_failed_pictures_of_an_unscored_scan_do_not_change_its_reason(
    clinic: Clinic, store: Store, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "scan", body())
    if fault == "killed before":
        queued = queue(clinic, store, tmp_path / "scan")
        queued.pictures.mkdir()
        (queued.pictures / "image.nii.gz").write_bytes(b"of an earlier attempt")
        work(clinic, store)
        assert planes(store.jobs.get(queued.id).pictures)
        return

    def fail(_volume: object, folder: Path) -> None:
        (folder / "image.nii.gz").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(without_score_module, "write_scan", fail)
    job = without_score(clinic, store, tmp_path / "scan")
    assert (job.code, job.pictures.exists()) == ("E_FIELD_OF_VIEW", False)
    assert list(clinic.work.iterdir()) == []


def test_lungs_of_an_unscored_scan_are_kept_with_their_checks(
    clinic: Clinic, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlike(*_: object, **__: object) -> None:
        raise Refusal(UNFAMILIAR, distance=9, limit=3)

    monkeypatch.setattr(worker, "score_scan", unlike)
    write_chest(tmp_path / "chest.nii.gz")  # slices of 8 mm
    job = without_score(clinic, store, tmp_path / "chest.nii.gz")
    quality = json.loads((job.pictures / LUNGS_JSON).read_text())["quality"]
    assert {"lungs", "lungs_agree", "unsure_border", "lungs_cut", "metal"} <= {check["name"] for check in quality}
    (thick,) = (check for check in quality if check["name"] == "reader")
    assert (thick["code"], thick["verdict"]) == ("W_THICK", "flag") and thick["says"] and thick["remedy"]


@pytest.mark.slow
def test_pictures_of_an_unscored_scan_are_deleted_like_answers(
    clinic: Clinic, store: Store, scan: Path, tmp_path: Path
) -> None:
    write_series(tmp_path / "scan", body())
    job = without_score(clinic, store, tmp_path / "scan")
    answer = answer_of(clinic, store, scan)
    clinic.settings.keep.answers_days = 10
    for days, left in ((9, 2), (11, 0)):
        ago = now() - timedelta(days=days)
        with store.database.transaction() as db:
            db.execute("UPDATE answers SET created_at = ?", (stamp(ago),))
            db.execute("UPDATE jobs SET ended_at = ?", (stamp(ago),))
        for folder in (job.pictures, answer.folder):
            os.utime(folder, (ago.timestamp(), ago.timestamp()))
        forget_old(clinic, store)
        tidy(clinic, store)
        assert len(list(clinic.answers.iterdir())) == left


@pytest.mark.parametrize(("content", "code"), [(b"no scan", "E_NOT_DICOM"), (b"PK\x03\x04 torn", "E_ARCHIVE_BROKEN")])
def test_unreadable_file_gets_a_reason(clinic: Clinic, store: Store, tmp_path: Path, content: bytes, code: str) -> None:
    (tmp_path / "1.bin").write_bytes(content)
    job = without_score(clinic, store, tmp_path / "1.bin")
    assert (job.code, job.pictures.exists()) == (code, False)
    (record,) = store.audit.records(limit=1)
    assert record.input_sha256  # the hash of the file


@pytest.mark.slow
def test_chosen_series_is_scored(clinic: Clinic, store: Store, scan: Path) -> None:
    assert without_score(clinic, store, scan, series_uid="2.25.1").code == "E_UNKNOWN_SERIES"
    assert answer_of(clinic, store, scan, series_uid=SERIES_UID)


def test_scan_with_missing_files_ends_without_a_score(clinic: Clinic, store: Store, scan: Path) -> None:
    """This happens after a restore from a backup, which does not contain the scans' files."""
    job = queue(clinic, store, scan)
    shutil.rmtree(job.folder)
    work(clinic, store)
    assert store.jobs.get(job.id).code == "E_NO_IMAGES"


@pytest.mark.slow
def test_unexpected_error_text_appears_only_in_the_log(
    clinic: Clinic, store: Store, scan: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("CANARY in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(worker, "write_pictures", fail)
        job = without_score(clinic, store, scan)
    assert job.code == "E_SCORING_FAILED"
    assert "CANARY" not in str((job.code, job.says, job.remedy, store.audit.records()))
    assert "CANARY in the middle" in caplog.text
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)  # no timer is left that would interrupt the next scan
    assert answer_of(clinic, store, scan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(errno.ENOSPC, "full"), "E_DISK_FULL"), (MemoryError(), "E_SCORING_MEMORY")],
    ids=["disk", "memory"],
)
def test_full_disk_and_full_memory_have_their_own_codes(
    clinic: Clinic, store: Store, scan: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker, "write_pictures", fail)
    assert without_score(clinic, store, scan).code == code


@pytest.mark.slow
def test_clinic_scores_on_the_cpu_unless_it_says_otherwise(clinic: Clinic, store: Store, scan: Path) -> None:
    ours = Worker(clinic, store)
    assert ours.compute == PROCESSOR
    assert answer_of(clinic, store, scan).score["probability"]
    clinic.settings.compute.device = "cuda:31"
    missing = Worker(clinic, store)
    with pytest.raises(Refusal, match="E_COMPUTE_DEVICE"):
        _ = missing.compute


@pytest.mark.slow
def test_error_of_the_device_ends_the_worker_and_keeps_the_scan(
    clinic: Clinic, store: Store, scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Refusal(COMPUTE_FAILED, device="cuda")

    monkeypatch.setattr(worker, "score_scan", fail)
    job = queue(clinic, store, scan)
    with pytest.raises(Refusal, match="E_COMPUTE_FAILED"):
        work(clinic, store)
    assert store.jobs.get(job.id).state == "working" and job.folder.exists()


@pytest.mark.slow
def test_scoring_time_is_limited(clinic: Clinic, store: Store, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clinic.folder / SETTINGS).write_text("[limits]\nscoring_seconds = 500\n")
    left = []
    write = worker.write_pictures

    def look(*arguments: object) -> None:
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "write_pictures", look)
    answer_of(Clinic.open(clinic.folder), store, scan)
    assert 0 < left[0] <= 500
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.mark.slow
def test_uploads_are_kept_if_configured(clinic: Clinic, store: Store, scan: Path) -> None:
    (clinic.folder / SETTINGS).write_text("[keep]\nuploads = true\n")
    keeping = Clinic.open(clinic.folder)
    answer = answer_of(keeping, store, scan)
    tidy(keeping, store, at_start=True)
    assert store.jobs.get(answer.job_id).folder.is_dir()
    tidy(clinic, store)
    assert not store.jobs.get(answer.job_id).folder.exists()


# --- the laboratory ---------------------------------------------------------------------------------------


@pytest.fixture
def laboratory(clinic: Clinic, tmp_path: Path) -> Path:
    """The laboratory table of the node that the clinic belongs to. It is empty at first."""
    site = tmp_path / "site"
    site.mkdir()
    text = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'
    (site / "site.toml").write_text(text)
    (clinic.folder / SETTINGS).write_text('[node]\nfolder = "site"\n')
    (site / "pcr.csv").write_text("patient_id,collected,result\n")
    return site / "pcr.csv"


@pytest.mark.slow
def test_pcr_result_is_added_with_the_answer_or_later(
    clinic: Clinic, store: Store, scan: Path, laboratory: Path, tmp_path: Path
) -> None:
    clinic = Clinic.open(clinic.folder)
    early = answer_of(clinic, store, scan)
    assert early.pcr is None
    laboratory.write_text(f"patient_id,collected,result\n{PATIENT_ID},2021-03-04T12:00,detected\n")
    other = tmp_path / "other"
    write_series(other, chest(), spacing_mm=SPACING_MM, edit=_older)
    late = answer_of(clinic, store, other)
    assert late.pcr and (late.pcr.result, late.pcr.source, late.pcr.by) == ("positive", "laboratory", "laboratory")
    Worker(clinic, store).look_for_pcr()
    assert store.answers.get(early.id).pcr == late.pcr


@pytest.mark.slow
def test_manually_entered_pcr_result_is_not_overwritten(
    clinic: Clinic, store: Store, scan: Path, laboratory: Path
) -> None:
    clinic = Clinic.open(clinic.folder)
    answer = answer_of(clinic, store, scan)
    entered = store.answers.set_pcr(answer.id, "negative", None, "entered", "night desk").pcr
    laboratory.write_text(f"patient_id,collected,result\n{PATIENT_ID},2021-03-04T12:00,detected\n")
    Worker(clinic, store).look_for_pcr()
    assert store.answers.get(answer.id).pcr == entered


# --- models -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shadow_model_also_scores_and_a_new_live_model_takes_the_next_scan(
    clinic: Clinic, store: Store, scan: Path, releases: dict[str, Path]
) -> None:
    first, second = releases
    store.models.set_shadow(second, by="test")
    old = answer_of(clinic, store, scan)
    shadow, live = store.answers.newest(role=None)
    assert (live.id, live.model_sha256, shadow.model_sha256, shadow.role) == (old.id, first, second, "shadow")
    assert shadow.score["probability"] != live.score["probability"]
    assert shadow.score["input"]["hu_sha256"] == live.score["input"]["hu_sha256"]
    assert [path.name for path in shadow.folder.iterdir()] == ["score.json"]
    store.models.set_live(second, by="test")
    new = answer_of(clinic, store, scan)
    assert (new.model_sha256, new.model_name) == (second, "shadow")
    assert new.score["probability"] == shadow.score["probability"]
    assert store.answers.get(old.id).model_name == "live"


@pytest.mark.slow
def test_failing_shadow_model_does_not_affect_the_live_answer(
    clinic: Clinic, store: Store, scan: Path, releases: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    second = list(releases)[1]
    store.models.set_shadow(second, by="test")
    (clinic.models / second / "model.safetensors").write_bytes(b"torn")
    assert answer_of(clinic, store, scan).role == "live"
    assert len(store.answers.newest(role=None)) == 1
    assert "E_MODEL_ALTERED" in caplog.text


def test_model_replaced_on_disk_is_not_used(clinic: Clinic, store: Store, releases: dict[str, Path]) -> None:
    first, second = releases
    shutil.rmtree(clinic.models / first)
    shutil.copytree(releases[second], clinic.models / first)
    with pytest.raises(Refusal) as caught:
        Worker(clinic, store).release("live")
    assert caught.value.code == "E_MODEL_ALTERED"


# --- after a kill -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_late_answer_is_discarded(clinic: Clinic, store: Store, scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker was considered dead, and another worker has answered in the meantime."""
    job = queue(clinic, store, scan)
    write = worker.write_pictures

    def overtaken(*arguments: object) -> None:
        write(*arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(worker, "write_pictures", write)
        store.jobs.recover()
        shutil.copytree(scan, job.folder, dirs_exist_ok=True)
        work(clinic, store)

    monkeypatch.setattr(worker, "write_pictures", overtaken)
    work(clinic, store)
    (answer,) = store.answers.newest(role=None)
    assert store.jobs.get(job.id).answer_id == answer.id
    assert len(list(clinic.answers.iterdir())) == 2
    tidy(clinic, store, at_start=True)
    assert [path.name for path in clinic.answers.iterdir()] == [answer.id]


def test_tidying_keeps_files_that_are_still_needed(clinic: Clinic, store: Store, scan: Path) -> None:
    answer = answer_of(clinic, store, scan)
    waiting = queue(clinic, store, scan)
    coming = clinic.scans / ".incoming-1"
    coming.mkdir()
    (clinic.work / "half").mkdir()
    tidy(clinic, store)
    assert coming.is_dir()  # while the service runs, an upload may still be in progress
    tidy(clinic, store, at_start=True)
    clear_work(clinic)
    assert [path.name for path in clinic.scans.iterdir()] == [waiting.id]
    assert [path.name for path in clinic.answers.iterdir()] == [answer.id]
    assert list(clinic.work.iterdir()) == []


def test_expired_answers_are_deleted_with_their_files(clinic: Clinic, store: Store, scan: Path) -> None:
    answer = answer_of(clinic, store, scan)
    a_month_ago = stamp(now() - timedelta(days=31))
    with store.database.transaction() as db:
        db.execute("UPDATE answers SET created_at = ?", (a_month_ago,))
        db.execute("UPDATE jobs SET ended_at = ?", (a_month_ago,))
    for days, stays in ((0, True), (32, True), (30, False)):
        (clinic.folder / SETTINGS).write_text(f"[keep]\nanswers_days = {days}\n")
        forget_old(Clinic.open(clinic.folder), store)
        assert answer.folder.is_dir() is stays
        assert (len(store.answers.newest()), len(store.jobs.newest())) == (stays, stays)
