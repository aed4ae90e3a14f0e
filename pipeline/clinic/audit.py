"""The audit records of a clinic.

A record is never changed, and never deleted before six months have passed: triggers in the database prevent both
(`database.py`). Records have no hash chain: anyone who can write to the file could compute the chain again, so a chain
proves something only to those who store its last hash elsewhere.
"""

import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from typing import Any, TypedDict, Unpack

from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.records import AuditRecord

AT_ONCE = 5000  # records that `every` reads at once


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

    def records(self, since: datetime | None = None, limit: int = 1000, after: int | None = None) -> list[AuditRecord]:
        """Return the first `limit` records since a time and after a number, oldest first; without both, the newest."""
        if since is None and after is None:
            return self.newest(limit)
        found = self._database.rows(
            "SELECT * FROM audit WHERE (?1 IS NULL OR at >= ?1) AND number > ?2 ORDER BY number LIMIT ?3",
            *(since and stamp(since), after or 0, limit),
        )
        return [_record(row) for row in found]

    def newest(self, limit: int, since: datetime | None = None) -> list[AuditRecord]:
        """Return the newest `limit` records, of those since a time if one is given, oldest first."""
        found = self._database.rows(
            "SELECT * FROM audit WHERE (?1 IS NULL OR at >= ?1) ORDER BY number DESC LIMIT ?2",
            *(since and stamp(since), limit),
        )
        return [_record(row) for row in reversed(found)]

    def every(self, since: datetime | None = None) -> Iterator[AuditRecord]:
        """Yield all records since a time, oldest first, a part at a time: half a year of them need much memory."""
        after = 0
        while found := self.records(since, AT_ONCE, after):
            yield from found
            after = found[-1].number

    def count(self, since: datetime | None = None) -> int:
        """Count all records since a time."""
        query = "SELECT count(*) FROM audit WHERE ?1 IS NULL OR at >= ?1"
        return int(self._database.rows(query, since and stamp(since))[0][0])

    def search(
        self,
        *,
        who: str = "",
        action: str = "",
        about: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> list[AuditRecord]:
        """Return the newest matching records, newest first; `before`: only those with a smaller number, for pages.

        `who`: part of a name, in any case. `about`: the beginning of an id or hash, of a scan, an answer, a volume or a
        model, or of a code. `until`: before this time.
        """
        found = self._database.rows(
            "SELECT * FROM audit WHERE (?1 = '' OR instr(lower(who), lower(?1))) AND (?2 = '' OR action = ?2)"
            " AND (?3 = '' OR substr(job_id, 1, length(?3)) = ?3 OR substr(answer_id, 1, length(?3)) = ?3"
            " OR substr(input_sha256, 1, length(?3)) = ?3 OR substr(model_sha256, 1, length(?3)) = ?3"
            " OR substr(code, 1, length(?3)) = ?3)"
            " AND (?4 IS NULL OR at >= ?4) AND (?5 IS NULL OR at < ?5) AND (?6 IS NULL OR number < ?6)"
            " ORDER BY number DESC LIMIT ?7",
            *(who, action, about, since and stamp(since), until and stamp(until), before, limit),
        )
        return [_record(row) for row in found]

    def actions(self) -> list[str]:
        """Return the actions that occur in the records."""
        return [row["action"] for row in self._database.rows("SELECT DISTINCT action FROM audit ORDER BY action")]


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
