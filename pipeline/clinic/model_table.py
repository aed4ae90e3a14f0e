"""The table of the models that a clinic keeps; `model_registry.py` verifies and copies their files."""

import sqlite3
from datetime import datetime

from models.refusal import Refusal
from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.reasons import NO_SUCH_MODEL
from pipeline.clinic.records import Model, Role


class Models:
    """The models of one clinic; at most one is live, and at most one runs in shadow."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, sha256: str, name: str, *, signed_by: str | None, by: str) -> None:
        """Add a verified release, whose files are in CLINIC/models/SHA256.

        A model that exists already is not changed, except that it is marked as signed once its signature was checked.
        """
        with self._database.transaction() as db:
            values = (sha256, name, signed_by, stamp(now()), by)
            changed = db.execute(
                "INSERT INTO models VALUES (?, ?, ?, ?, ?, NULL) ON CONFLICT (sha256) DO UPDATE"
                " SET signed_by = excluded.signed_by WHERE signed_by IS NULL AND excluded.signed_by IS NOT NULL",
                values,
            ).rowcount
            if changed:
                write_record(db, by, "add_model", model_sha256=sha256)

    def all(self) -> list[Model]:
        return [_model(row) for row in self._database.rows("SELECT * FROM models ORDER BY added_at, sha256")]

    def with_role(self, role: Role) -> Model | None:
        """Return the live or the shadow model; None if none is set."""
        row = self._database.row("SELECT * FROM models WHERE role = ?", role)
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
        with self._database.transaction() as db:
            db.execute("UPDATE models SET role = NULL WHERE role = ?", (role,))
            if sha256 and not db.execute("UPDATE models SET role = ? WHERE sha256 = ?", (role, sha256)).rowcount:
                raise Refusal(NO_SUCH_MODEL)
            write_record(db, by, action, model_sha256=sha256)


def _model(row: sqlite3.Row) -> Model:
    return Model(**{**dict(row), "added_at": datetime.fromisoformat(row["added_at"])})
