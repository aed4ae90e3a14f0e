"""The scoring process: takes one scan after another from the queue, and writes an answer for each.

    python -m pipeline.clinic.worker CLINIC

It is a child of the service (`service.py`) and ends with it. It may be killed at any moment: an answer exists only
after its transaction, and all other files are removed later. A scan may be malicious, so the process limits its own
memory (`worker_mb`), and its time for each scan (`scoring_seconds`) with a signal that ends the process.
"""

import ctypes
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from errno import EDQUOT, ENOSPC
from functools import cached_property
from pathlib import Path
from typing import NoReturn

from models.compute import Compute
from models.compute_settings import ComputeSettings
from models.reasons import COMPUTE_FAILED, MODEL_ALTERED, NO_MODEL
from models.refusal import Refusal
from models.release import Release, load_release
from pipeline.clinic.header_patient import name_in, patient_in_headers
from pipeline.clinic.laboratory import open_feed
from pipeline.clinic.pictures import write_pictures
from pipeline.clinic.reasons import (
    ALREADY_ANSWERED,
    DISK_FULL,
    NOT_FOR_PATIENTS,
    RESULT_NO_DICOM,
    SCORING_FAILED,
    SCORING_MEMORY,
)
from pipeline.clinic.records import Answer, Job, Patient, Role
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.results.source import keep_source, read_source
from pipeline.clinic.results.write import PICTURE, REPORT, keep_why_not, why_no_results, write_results
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store, new_id, now
from pipeline.clinic.unscored import keep_to_be_seen
from pipeline.imaging.archive import open_images
from pipeline.imaging.dicom_header import read_header, tags, text
from pipeline.imaging.discovery import Series
from pipeline.imaging.nifti_reader import is_volume_file
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.records.laboratory.times import Clock
from pipeline.scoring.score import Score, score_scan
from pipeline.scoring.single_scan import OneScan, read_one
from pipeline.system.atomic_files import move_durably

SCORE = "score.json"
POLL_SECONDS = 0.2
NO_MODEL_SECONDS = 5.0  # between two checks for a model
LOOK_AGAIN_SECONDS, LOOK_BACK = 900.0, timedelta(days=30)
_NAME = tags("PatientName")
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

log = logging.getLogger("fedthorax.clinic")


class Worker:
    """Scores the scans of one clinic, with the models that its store names."""

    def __init__(self, clinic: Clinic, store: Store) -> None:
        self._clinic, self._store, self._outbox = clinic, store, Outbox(clinic)
        self._loaded: dict[str, Release] = {}  # by SHA-256
        self._look_at = 0.0  # when PCR results are looked up again

    @cached_property
    def compute(self) -> Compute:
        """The processor of clinic.toml. Raises Refusal E_COMPUTE_DEVICE."""
        return Compute.open(ComputeSettings(device=self._clinic.settings.compute.device))

    def run(self) -> NoReturn:
        while True:
            try:
                live, _ = self.release("live"), self.compute
                self._store.worker.set("ready")
            except Refusal as refusal:
                log.warning("no model or no processor is available for scoring: %s", refusal.code)
                self._store.worker.set("no_model", refusal.code)
                time.sleep(NO_MODEL_SECONDS)
                continue
            while self._is_live(live):
                if not self.work_off_one(live):
                    if time.monotonic() >= self._look_at:
                        self.look_for_pcr()
                    time.sleep(POLL_SECONDS)

    def work_off_one(self, live: Release) -> bool:
        """Score one scan; False if none waits. Raises Refusal E_CLINIC_FILE."""
        job = self._store.jobs.take() if self._store.jobs.waiting() else None
        if job is None:
            return False
        self._work_off(job, live)
        if not self._clinic.settings.keep.uploads:
            shutil.rmtree(job.folder, ignore_errors=True)
        return True

    def _work_off(self, job: Job, live: Release) -> None:
        scan = patient = None

        def name_patient(series: Series) -> None:
            nonlocal patient
            patient = self._patient(series)

        try:
            with self._time_limit(), open_images(_source(job.folder)) as images:
                scan = self._in_site_time(read_one(images, job.series_uid, chosen=name_patient))
                earlier = self._earlier(scan, patient, live)
                if earlier:
                    self._store.answers.repeat(job, earlier, deliver=self._outbox.targets_of_new(earlier))
                    return
                answer = self._answer(job, scan, patient, live, "live")
        except Exception as error:
            refusal = _why_not(error)
            if refusal.reason is COMPUTE_FAILED:
                raise  # the driver serves only a new process, which tries the scan again
            if refusal.reason is not ALREADY_ANSWERED:
                if scan:
                    with self._time_limit():
                        keep_to_be_seen(scan, job, self._clinic.work)
                digest = _sha256(scan, job.folder)
                self._store.jobs.refuse(job, refusal, patient=patient, input_sha256=digest, model_sha256=live.sha256)
            return
        self._ask_shadow(job, scan, patient)
        self._follow_laboratory([answer])

    def _earlier(self, scan: OneScan, patient: Patient | None, live: Release) -> Answer | None:
        """Return the answer that the scan has already; None if there is none, or if its results are not complete.

        One scan sent twice would otherwise have two answers, two reports in the PACS, and a trend. While a shadow model
        runs, each scan is scored anew, so that both models answer it.
        """
        if self._store.models.with_role("shadow"):
            return None
        found = self._store.answers.of_same_scan(scan, patient, _sha256_hu(scan), live.sha256)
        if found is None:
            return None
        wanted = self._clinic.settings.results
        missing = [
            name
            for name, is_wanted in ((REPORT, wanted.sr), (PICTURE, wanted.picture))
            if is_wanted and not (found.folder / name).is_file()
        ]
        is_final = why_no_results(found.folder) in (NOT_FOR_PATIENTS, RESULT_NO_DICOM)
        return found if is_final or not missing else None

    def _answer(self, job: Job, scan: OneScan, patient: Patient | None, release: Release, role: Role) -> Answer:
        """Score a scan, write the answer's files, then store the answer. Raises Refusal, OSError."""
        score = score_scan(scan, release, compute=self.compute)
        answer_id = new_id()
        folder = self._clinic.work / answer_id
        folder.mkdir(mode=0o700)
        (folder / SCORE).write_text(json.dumps(score.to_json(), indent=1, allow_nan=False), encoding="utf-8")
        source = why_not = None
        if role == "live":
            write_pictures(score, folder)
            why_not = keep_source(scan.series, folder)
            source = read_source(folder)
        accession = text(source.header, "AccessionNumber") if source else ""
        answer = self._made(job, scan.series, patient, accession, score, answer_id, role)
        if source:
            wanted = self._clinic.settings.results
            why_not = write_results(answer, folder, report=wanted.sr, picture=wanted.picture, seg=wanted.seg)
        if why_not:  # the answer is valid without them
            log.warning("no results for the PACS: %s", why_not.code)
            keep_why_not(why_not, folder)
        move_durably(folder, answer.folder)
        self._store.answers.add(job, answer, deliver=self._outbox.targets_of_new(answer))
        log.info("a scan was answered after %.1f s", score.seconds["total"])
        return answer

    def _made(
        self,
        job: Job,
        series: Series,
        patient: Patient | None,
        accession: str,
        score: Score,
        answer_id: str,
        role: Role,
    ) -> Answer:
        model = next(model for model in self._store.models.all() if model.sha256 == score.model_sha256)
        return Answer(
            id=answer_id,
            job_id=job.id,
            created_at=now(),
            study_uid=series.study_uid,
            series_uid=series.series_uid,
            accession=accession,
            acquired_at=series.acquired,
            has_clock=series.has_clock,
            score=score.to_json(),
            model_sha256=model.sha256,
            model_name=model.name,
            role=role,
            folder=self._clinic.answers / answer_id,
            patient=patient,
        )

    def _in_site_time(self, scan: OneScan) -> OneScan:
        """Convert the scan's time to the time zone of the node's site; without one it keeps its offset from UTC."""
        at = scan.series.acquired
        zone = self._clinic.node.settings.site.time_zone if self._clinic.node else ""
        if at is None or at.tzinfo is None or not zone:
            return scan
        return replace(scan, series=replace(scan.series, acquired=Clock.of(zone).of_scan(at) or at))

    def _patient(self, series: Series) -> Patient | None:
        """Return the scan's patient; None without a usable identifier; a volume file has none."""
        if is_volume_file(series.files[0].name):
            return None
        with quiet_pydicom():
            name = name_in(read_header(series.files[0], _NAME))
        patient = patient_in_headers(series.patient_id, series.issuer, name, series.sex, series.age_years)
        return self._store.keys.keyed(patient) if patient.id else None

    def _ask_shadow(self, job: Job, scan: OneScan, patient: Patient | None) -> None:
        """Score with the shadow model too. An error here does not affect the clinician."""
        try:
            if self._store.models.with_role("shadow"):
                with self._time_limit():
                    self._answer(job, scan, patient, self.release("shadow"), "shadow")
        except Exception as error:
            log.warning("the shadow model gave no answer: %s", _why_not(error).code)

    def look_for_pcr(self) -> None:
        """Look up PCR results again: a result comes hours after the scan, and the next specimen may change it."""
        self._look_at = time.monotonic() + LOOK_AGAIN_SECONDS
        if self._clinic.node:
            self._follow_laboratory(self._store.answers.without_entered_pcr(now() - LOOK_BACK))

    def _follow_laboratory(self, answers: Iterable[Answer]) -> None:
        """Give each answer the laboratory's PCR result that matches the scan now; none if there is none (any more)."""
        feed = open_feed(self._clinic.node.folder) if self._clinic.node else None
        if feed is None:  # a feed that cannot be read says nothing: earlier results stay
            return
        for answer in answers:
            day = answer.acquired_at and feed.day_of(answer.acquired_at)
            if answer.patient and day:
                pcr = feed.find(answer.patient.id, answer.patient.issuer, day)
                if pcr != answer.pcr:
                    self._store.answers.follow_laboratory(answer.id, pcr)

    def release(self, role: Role) -> Release:
        """Return the model of this role, loaded once. Raises Refusal E_NO_MODEL, and what `load_release` raises."""
        model = self._store.models.with_role(role)
        if model is None:
            raise Refusal(NO_MODEL)
        if model.sha256 not in self._loaded:
            used = {other.sha256 for other in self._store.models.all() if other.role}
            self._loaded = {sha256: old for sha256, old in self._loaded.items() if sha256 in used}
            release = load_release(self._clinic.models / model.sha256)
            if release.sha256 != model.sha256:
                raise Refusal(MODEL_ALTERED)
            self._loaded[model.sha256] = release
        # Its signature was checked when it was added, and its SHA-256 covers all of its files.
        return replace(self._loaded[model.sha256], signed_by=model.signed_by)

    def _is_live(self, release: Release) -> bool:
        model = self._store.models.with_role("live")
        return model is not None and (model.sha256, model.signed_by) == (release.sha256, release.signed_by)

    @contextmanager
    def _time_limit(self) -> Iterator[None]:
        """End this process if scoring takes too long; nothing else stops a decoder that hangs."""
        signal.alarm(self._clinic.settings.limits.scoring_seconds)
        try:
            yield
        finally:
            signal.alarm(0)


def _source(folder: Path) -> Path:
    """Return the scan's folder, or its only file, which may be a zip."""
    inside = list(folder.iterdir()) if folder.is_dir() else []
    return inside[0] if len(inside) == 1 else folder


def _why_not(error: Exception) -> Refusal:
    """Return the refusal for an error; log an unexpected error with its traceback."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return Refusal(DISK_FULL)
    if isinstance(error, MemoryError):
        return Refusal(SCORING_MEMORY)
    log.error("a scan could not be scored because of an unexpected error", exc_info=error)
    return Refusal(SCORING_FAILED)


def _sha256_hu(scan: OneScan) -> str:
    return hashlib.sha256(scan.volume.hu.data).hexdigest()


def _sha256(scan: OneScan | None, folder: Path) -> str:
    """Return the SHA-256 of the volume in HU, as in an answer; if there is no volume, of the files."""
    if scan:
        return _sha256_hu(scan)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _end_with_parent() -> None:
    """End when the service ends for any reason: by a signal from the kernel (Linux), else when the pipe closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _bound_memory(most_bytes: int) -> None:
    """Limit the memory of this process; mapped files do not count (RLIMIT_DATA)."""
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if most == resource.RLIM_INFINITY or most > most_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most))


def main(clinic_folder: Path) -> NoReturn:
    _end_with_parent()
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    clinic = Clinic.open(clinic_folder)
    _bound_memory(clinic.settings.limits.worker_mb * 10**6)
    tempfile.tempdir = str(clinic.work)  # zips are unpacked here
    import highdicom.sr  # noqa: F401  import it now, so that the first scan does not wait
    import torch

    torch.set_num_threads(1)  # the network is small: on busy cores, threads would wait for each other

    with clinic.store() as store:
        Worker(clinic, store).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
