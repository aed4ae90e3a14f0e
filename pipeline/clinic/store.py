"""The clinic's store: the queue of scans, their answers, the models, and the audit records.

CLINIC/clinic.sqlite          the database (see `database.py`)
CLINIC/scans/JOB_ID/          a scan's files, until it is answered
CLINIC/answers/ANSWER_ID/     an answer's files
CLINIC/answers/JOB_ID/        pictures of a scan without a score, if it could be read
CLINIC/models/SHA256/         verified releases
"""

from datetime import datetime
from pathlib import Path
from typing import Self

from pipeline.clinic.answers import Answers
from pipeline.clinic.assignments import Assignments
from pipeline.clinic.audit import Audit
from pipeline.clinic.database import LEAST_AUDIT_DAYS, Database, now, stamp
from pipeline.clinic.decisions import Decisions
from pipeline.clinic.deliveries import Deliveries
from pipeline.clinic.model_table import Models
from pipeline.clinic.patient_keys import PatientKeys
from pipeline.clinic.queue import Jobs, new_id
from pipeline.clinic.worker_status import WorkerStatus

__all__ = ["LEAST_AUDIT_DAYS", "Store", "new_id", "now"]


class Store:
    """An open clinic: `Store(clinic_folder)`, one for each thread and process; a context manager.

    Its parts share one `Database`, that is, one connection. Whatever has to change together is one transaction, also
    across parts. The constructor and every method of a part raise Refusal E_CLINIC_FILE for errors of SQLite or the
    disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(folder)
        self.keys = PatientKeys(self.database)
        self.jobs = Jobs(self.database, self.keys)
        self.assignments = Assignments(self.database)
        self.answers = Answers(self.database, self.keys)
        self.decisions = Decisions(self.database)
        self.deliveries = Deliveries(self.database)
        self.models = Models(self.database)
        self.audit = Audit(self.database)
        self.worker = WorkerStatus(self.database)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.database.close()

    def forget(self, answers_before: datetime | None, audit_before: datetime | None) -> list[str]:
        """Remove answers with their jobs, and audit records, older than a time; None: remove nothing.

        Answers that still wait to be sent are kept. Returns the ids of the removed answers; the caller must remove
        their folders. Raises Refusal E_CLINIC_FILE if records younger than six months would be removed.
        """
        gone: list[str] = []
        with self.database.transaction() as db:
            if answers_before:
                old = stamp(answers_before)
                found = db.execute(
                    "DELETE FROM answers WHERE created_at < ? AND id NOT IN"
                    " (SELECT answer_id FROM deliveries WHERE state = 'waiting') RETURNING id",
                    (old,),
                )
                gone = [row["id"] for row in found.fetchall()]
                db.execute(
                    "DELETE FROM jobs WHERE (ended_at < ?"
                    " OR answer_id IS NOT NULL AND answer_id NOT IN (SELECT id FROM answers))"
                    " AND id NOT IN (SELECT job_id FROM answers)",
                    (old,),
                )
            if audit_before:
                db.execute("DELETE FROM audit WHERE at < ?", (stamp(audit_before),))
        return gone
