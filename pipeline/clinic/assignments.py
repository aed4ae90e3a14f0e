"""Which reader has a scan: a named person takes it or releases it, and others see who has it.

It keeps two readers from reading the same scan without knowing. It forbids nothing: another person may still decide,
because a reader may be called away. A scan that was sent again, and so has the same answer, has one reader.
"""

import sqlite3

from models.refusal import Refusal
from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.reasons import NO_SUCH_JOB, SCAN_TAKEN

_SAME_SCAN = "id = :job OR answer_id = (SELECT answer_id FROM jobs WHERE id = :job)"


class Assignments:
    """The readers of one clinic's scans. `by` is always the caller: nobody takes a scan for another person."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, job_id: str, *, by: str, person: str) -> None:
        """Take a scan; to take it twice changes nothing. `by`: name of the token; `person`: its owner's DICOM name.

        Raises Refusal E_NO_SUCH_JOB; E_SCAN_TAKEN if another reader has it.
        """
        with self._database.transaction() as db:
            row = _holder(db, job_id)
            if row["reader_by"] == by:
                return
            if row["reader_by"]:
                raise Refusal(SCAN_TAKEN)
            _set(db, job_id, by, person)
            write_record(db, by, "take", job_id=job_id, answer_id=row["answer_id"])

    def release(self, job_id: str, *, by: str, is_admin: bool = False) -> None:
        """Release a scan that the caller has; one that nobody has stays so. An administrator may release every scan.

        Raises Refusal E_NO_SUCH_JOB; E_SCAN_TAKEN if another reader has it.
        """
        with self._database.transaction() as db:
            row = _holder(db, job_id)
            if not row["reader_by"]:
                return
            if row["reader_by"] != by and not is_admin:
                raise Refusal(SCAN_TAKEN)
            _set(db, job_id, None, None)
            whose = {"reader": row["reader_by"]}
            write_record(db, by, "release", job_id=job_id, answer_id=row["answer_id"], output=whose)


def share_reader(db: sqlite3.Connection, job_id: str) -> None:
    """Give a scan that was sent again the reader of its answer, within a transaction."""
    db.execute(
        "UPDATE jobs SET (reader_by, reader_person, reader_at) ="
        " (SELECT reader_by, reader_person, reader_at FROM jobs AS other WHERE other.answer_id = jobs.answer_id"
        " AND other.id <> jobs.id ORDER BY number DESC LIMIT 1) WHERE id = ? AND reader_by IS NULL",
        (job_id,),
    )


def _holder(db: sqlite3.Connection, job_id: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute("SELECT answer_id, reader_by FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise Refusal(NO_SUCH_JOB)
    return row


def _set(db: sqlite3.Connection, job_id: str, by: str | None, person: str | None) -> None:
    values = {"job": job_id, "by": by, "person": person, "at": stamp(now()) if by else None}
    db.execute(
        f"UPDATE jobs SET reader_by = :by, reader_person = :person, reader_at = :at WHERE {_SAME_SCAN}",  # noqa: S608
        values,
    )
