"""The queue of scans: waiting, being scored, answered, or ended without a score.

Only the worker that took a scan last can end it, and only once.
"""

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from models.refusal import Refusal
from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.patient_keys import PatientKeys
from pipeline.clinic.reasons import ALREADY_ANSWERED, NO_SUCH_JOB, QUEUE_FULL, SCORING_DIED
from pipeline.clinic.records import Job, JobState, Patient, ScanReader, Source

_REVISION_DIGITS = 16
MOST_ATTEMPTS = 3  # to score a scan during which the worker dies
# What can change about an answer: found here, because the answers themselves are too large for each refresh of a list.
_SELECT = """
    SELECT *, CASE WHEN answer_id IS NOT NULL THEN json_array(
        answer_id,
        (SELECT max(number) FROM decisions WHERE decisions.answer_id = jobs.answer_id),
        (SELECT json_array(result, collected_on, source, by) FROM pcr WHERE pcr.answer_id = jobs.answer_id)
    ) END AS said
    FROM jobs
"""


def new_id() -> str:
    """Return an id for a job or an answer that nobody can guess."""
    return secrets.token_hex(16)


class Jobs:
    """The queue of scans."""

    def __init__(self, database: Database, keys: PatientKeys) -> None:
        self._database, self._keys = database, keys

    def add(
        self,
        job_id: str,
        *,
        source: Source,
        asked_by: str,
        study_uid: str | None = None,
        series_uid: str | None = None,
        patient: Patient | None = None,
        at_most: int | None = None,
        is_whole: bool = True,
    ) -> Job:
        """Queue a scan. `job_id`: from `new_id`; its files must already be in CLINIC/scans/JOB_ID.

        `is_whole`: False if the files are still to come; no worker takes the scan before `mark_arrived` is called.
        `at_most`: raises Refusal E_QUEUE_FULL if this many scans already wait.
        """
        named = self._keys.patient_text(patient)
        with self._database.transaction() as db:
            if at_most is not None and (waiting := self.waiting()) >= at_most:
                raise Refusal(QUEUE_FULL, waiting=waiting)
            db.execute(
                "INSERT INTO jobs (id, state, source, asked_by, received_at, study_uid, series_uid, patient, is_whole)"
                " VALUES (?, 'waiting', ?, ?, ?, ?, ?, ?, ?)",
                (job_id, source, asked_by, stamp(now()), study_uid, series_uid, named, is_whole),
            )
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Return a job by its id. Raises Refusal E_NO_SUCH_JOB."""
        row = self._database.row(f"{_SELECT} WHERE id = ?", job_id)
        if row is None:
            raise Refusal(NO_SUCH_JOB)
        return self._job(row)

    def newest(
        self,
        state: JobState | None = None,
        limit: int = 100,
        before: str | None = None,
        reader: str | None = None,
    ) -> list[Job]:
        """Return jobs, newest first.

        `before`: the id of a job; only older ones are returned. `reader`: only those that this token has; '': only
        those that nobody has.
        """
        found = self._database.rows(
            f"{_SELECT} WHERE (?1 IS NULL OR state = ?1)"  # noqa: S608  our own text
            " AND (?2 IS NULL OR number < (SELECT number FROM jobs WHERE id = ?2))"
            " AND (?4 IS NULL OR coalesce(reader_by, '') = ?4) ORDER BY number DESC LIMIT ?3",
            *(state, before, limit, reader),
        )
        return [self._job(row) for row in found]

    def arriving(self) -> list[Job]:
        """Return scans whose files are still to come, oldest first."""
        found = self._database.rows("SELECT * FROM jobs WHERE state = 'waiting' AND NOT is_whole ORDER BY number")
        return [self._job(row) for row in found]

    def mark_arrived(self, job: Job) -> None:
        """Mark all files of a scan as present in its folder, so that a worker can take it."""
        with self._database.transaction() as db:
            db.execute("UPDATE jobs SET is_whole = 1 WHERE id = ?", (job.id,))

    def waiting(self) -> int:
        """Count the waiting scans."""
        return self.count("waiting")

    def count(self, state: JobState) -> int:
        return int(self._database.rows("SELECT count(*) FROM jobs WHERE state = ?", state)[0][0])

    def position(self, job: Job) -> int | None:
        """Return a job's place among the waiting ones, from 1; None if it does not wait."""
        if job.state != "waiting":
            return None
        before = self._database.rows(
            "SELECT count(*) FROM jobs, (SELECT attempts AS tried, number AS place FROM jobs WHERE id = ?)"
            " WHERE state = 'waiting' AND (attempts, number) < (tried, place)",
            job.id,
        )
        return int(before[0][0]) + 1

    def take(self) -> Job | None:
        """Take the scan that has waited longest, and mark it as being scored; None if none waits.

        Scans during which a worker died come after all others.
        """
        with self._database.transaction() as db:
            row = db.execute(
                "UPDATE jobs SET state = 'working', attempts = attempts + 1, started_at = ? WHERE number ="
                " (SELECT number FROM jobs WHERE state = 'waiting' AND is_whole ORDER BY attempts, number LIMIT 1)"
                " RETURNING *",
                (stamp(now()),),
            ).fetchone()
        return row and self._job(row)

    def refuse(
        self,
        job: Job,
        refusal: Refusal,
        *,
        patient: Patient | None = None,
        input_sha256: str | None = None,
        model_sha256: str | None = None,
    ) -> None:
        """End a job without a score, and write an audit record; `patient`: if known.

        The job must be in the state "working", or still wait for its files.

        Raises Refusal E_ALREADY_ANSWERED.
        """
        with self._database.transaction() as db:
            whose = self._keys.patient_text(patient)
            _end_without(db, job, refusal, patient=whose, input_sha256=input_sha256, model_sha256=model_sha256)

    def recover(self, *, is_our_doing: bool = False) -> list[Job]:
        """Requeue the jobs of a worker that has ended; call it while no worker runs.

        After three attempts a job ends without a score, E_SCORING_DIED. `is_our_doing`: the worker was stopped on
        purpose, so the attempt does not count. Returns the jobs that were in the state "working".
        """
        with self._database.transaction() as db:
            left = [self._job(row) for row in db.execute("SELECT * FROM jobs WHERE state = 'working'").fetchall()]
            for job in left:
                if is_our_doing or job.attempts < MOST_ATTEMPTS:
                    attempts = job.attempts - is_our_doing
                    db.execute("UPDATE jobs SET state = 'waiting', attempts = ? WHERE id = ?", (attempts, job.id))
                else:
                    _end_without(db, job, Refusal(SCORING_DIED, attempts=job.attempts))
        return left

    def _job(self, row: sqlite3.Row) -> Job:
        values = {**dict(row), "is_whole": bool(row["is_whole"])}
        del values["number"]
        said = values.pop("said", None)  # only what `get` and `newest` return may be answered
        values["answer_revision"] = said and hashlib.sha256(said.encode()).hexdigest()[:_REVISION_DIGITS]
        by, person, at = (values.pop(f"reader_{part}") for part in ("by", "person", "at"))
        values["reader"] = ScanReader(by, person, datetime.fromisoformat(at)) if by else None
        for name in ("received_at", "started_at", "ended_at"):
            values[name] = values[name] and datetime.fromisoformat(values[name])
        folder = self._database.folder
        folders = {"folder": folder / "scans" / row["id"], "pictures": folder / "answers" / row["id"]}
        return Job(**{**values, **folders, "patient": patient_of(row)})


def patient_of(row: Mapping[str, Any] | sqlite3.Row) -> Patient | None:
    text = row["patient"]
    return Patient(**json.loads(text)) if text else None


def end_job(
    db: sqlite3.Connection,
    job: Job,
    state: JobState,
    *,
    answer_id: str | None = None,
    patient: str | None = None,
    refusal: Refusal | None = None,
) -> None:
    """End a job within a transaction. Raises Refusal E_ALREADY_ANSWERED if another worker took or ended it."""
    why = (refusal.code, refusal.says, refusal.remedy) if refusal else (None, None, None)
    done = db.execute(
        "UPDATE jobs SET state = ?, ended_at = ?, answer_id = ?, patient = coalesce(?, patient), code = ?, says = ?,"
        " remedy = ? WHERE id = ? AND attempts = ? AND (state = 'working' OR state = 'waiting' AND NOT is_whole)",
        (state, stamp(now()), answer_id, patient, *why, job.id, job.attempts),
    )
    if not done.rowcount:
        raise Refusal(ALREADY_ANSWERED)


def _end_without(
    db: sqlite3.Connection,
    job: Job,
    refusal: Refusal,
    *,
    patient: str | None = None,
    input_sha256: str | None = None,
    model_sha256: str | None = None,
) -> None:
    end_job(db, job, "no_score", patient=patient, refusal=refusal)
    write_record(
        db,
        job.asked_by,
        "no_score",
        job_id=job.id,
        input_sha256=input_sha256,
        model_sha256=model_sha256,
        code=refusal.code,
    )
