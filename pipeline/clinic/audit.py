"""The audit records of a clinic, and the table of its models.

A record is never changed, and never deleted before six months have passed: triggers in the database prevent both
(`database.py`). Records have no hash chain: anyone who can write to the file could compute the chain again, so a chain
proves something only to those who store its last hash elsewhere.
"""

import json
import sqlite3
from datetime import datetime
from importlib.metadata import version
from typing import Any, TypedDict, Unpack

from models.refusal import Refusal
from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.reasons import NO_SUCH_MODEL
from pipeline.clinic.records import AuditRecord, Model, Role


class Parts(TypedDict, total=False):
    """Optional parts of an audit record, besides who did what and when."""

    job_id: str | None
    answer_id: str | None
    input_sha256: str | None
    model_sha256: str | None
    output: dict[str, Any]
    code: str | None


class Audit(Database):
    def audit_record(self, who: str, action: str, **parts: Unpack[Parts]) -> None:
        """Write one audit record; `records.AuditRecord` explains each part.

        No part may name a patient. Identifiers are written as keys (`patient_key`, `hidden`).
        """
        with self.transaction() as db:
            write_record(db, who, action, **parts)

    def audit(self, since: datetime | None = None, limit: int = 1000) -> list[AuditRecord]:
        """Return the records since a time, oldest first; without a time, the newest `limit` records."""
        if since:
            found = self.rows("SELECT * FROM audit WHERE at >= ? ORDER BY number LIMIT ?", stamp(since), limit)
        else:
            found = self.rows("SELECT * FROM audit ORDER BY number DESC LIMIT ?", limit)[::-1]
        return [_record(row) for row in found]


class Models(Database):
    def add_model(self, sha256: str, name: str, *, signed_by: str | None, by: str) -> None:
        """Add a verified release, whose files are in CLINIC/models/SHA256.

        A model that exists already is not changed, except that it is marked as signed once its signature was checked.
        """
        with self.transaction() as db:
            values = (sha256, name, signed_by, stamp(now()), by)
            changed = db.execute(
                "INSERT INTO models VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT (sha256) DO UPDATE"
                " SET signed_by = excluded.signed_by WHERE signed_by IS NULL AND excluded.signed_by IS NOT NULL",
                values,
            ).rowcount
            if changed:
                write_record(db, by, "add_model", model_sha256=sha256)

    def models(self) -> list[Model]:
        return [_model(row) for row in self.rows("SELECT * FROM models ORDER BY added_at, sha256")]

    def model(self, role: Role) -> Model | None:
        """Return the live or the shadow model; None if none is set."""
        row = self.row("SELECT * FROM models WHERE role = ?", role)
        return _model(row) if row else None

    def set_live(self, sha256: str, *, by: str) -> None:
        """Use this model as the live one, from the next scan on. Raises Refusal E_NO_SUCH_MODEL."""
        self._set("live", sha256, "promote", by)

    def set_shadow(self, sha256: str | None, *, by: str) -> None:
        """Run this model in shadow beside the live one, from the next scan on; None: run no shadow model.

        Raises Refusal E_NO_SUCH_MODEL.
        """
        self._set("shadow", sha256, "shadow", by)

    def _set(self, role: Role, sha256: str | None, action: str, by: str) -> None:
        with self.transaction() as db:
            db.execute("UPDATE models SET role = NULL WHERE role = ?", (role,))
            if sha256 and not db.execute("UPDATE models SET role = ? WHERE sha256 = ?", (role, sha256)).rowcount:
                raise Refusal(NO_SUCH_MODEL)
            write_record(db, by, action, model_sha256=sha256)


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


def _model(row: sqlite3.Row) -> Model:
    return Model(**{**dict(row), "added_at": datetime.fromisoformat(row["added_at"])})
