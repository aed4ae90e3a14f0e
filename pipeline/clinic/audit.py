"""The audit records of a clinic.

A record is never changed, and never deleted before six months have passed: triggers in the database prevent both
(`database.py`). Records have no hash chain: anyone who can write to the file could compute the chain again, so a chain
proves something only to those who store its last hash elsewhere.
"""

import json
import sqlite3
from datetime import datetime
from importlib.metadata import version
from typing import Any, TypedDict, Unpack

from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.records import AuditRecord


class Parts(TypedDict, total=False):
    """Optional parts of an audit record, besides who did what and when."""

    job_id: str | None
    answer_id: str | None
    input_sha256: str | None
    model_sha256: str | None
    output: dict[str, Any]
    code: str | None


class Audit:
    """The audit records of one clinic."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, who: str, action: str, **parts: Unpack[Parts]) -> None:
        """Write one audit record; `records.AuditRecord` explains each part.

        No part may name a patient. Identifiers are written as keys (`PatientKeys`).
        """
        with self._database.transaction() as db:
            write_record(db, who, action, **parts)

    def records(self, since: datetime | None = None, limit: int = 1000) -> list[AuditRecord]:
        """Return the records since a time, oldest first; without a time, the newest `limit` records."""
        rows = self._database.rows
        if since:
            found = rows("SELECT * FROM audit WHERE at >= ? ORDER BY number LIMIT ?", stamp(since), limit)
        else:
            found = rows("SELECT * FROM audit ORDER BY number DESC LIMIT ?", limit)[::-1]
        return [_record(row) for row in found]


def write_record(db: sqlite3.Connection, who: str, action: str, **parts: Unpack[Parts]) -> None:
    """Write one audit record within a transaction."""
    output = parts.get("output")
    db.execute(
        "INSERT INTO audit (at, who, action, job_id, answer_id, input_sha256, model_sha256, output, code, version)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(stamp(now()), who, action),
            *(parts.get(part) for part in ("job_id", "answer_id", "input_sha256", "model_sha256")),
            *(json.dumps(output) if output else None, parts.get("code"), version("fedthorax")),
        ),
    )


def _record(row: sqlite3.Row) -> AuditRecord:
    output = row["output"] and json.loads(row["output"])
    return AuditRecord(**{**dict(row), "at": datetime.fromisoformat(row["at"]), "output": output})
