"""Decisions of named persons about answers. They are only ever added: the newest one of an answer holds."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, stamp
from pipeline.clinic.deliveries import queue_in
from pipeline.clinic.records import Answer, Correction, Decision, Target

DECISION_COLUMNS = (
    *("id", "answer_id", "at", "by", "person", "verdict", "reason", "comment", "correction", "revision", "before"),
)
_PLACES = ", ".join("?" * len(DECISION_COLUMNS))
_INSERT = f"INSERT INTO decisions ({', '.join(DECISION_COLUMNS)}) VALUES ({_PLACES})"  # noqa: S608  our own names


class Decisions:
    """The decisions of one clinic; `review.py` makes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of(self, answer_id: str) -> list[Decision]:
        """Return all decisions about an answer, oldest first."""
        rows = self._database.rows("SELECT * FROM decisions WHERE answer_id = ? ORDER BY number", answer_id)
        return [decision_of(row) for row in rows]


def add_decision(db: sqlite3.Connection, decision: Decision, answer: Answer, targets: Iterable[Target]) -> None:
    """Store a decision, queue it for other systems, and write an audit record, within a transaction."""
    values = {**asdict(decision), "at": stamp(decision.at)}
    values |= {name: json.dumps(values[name], allow_nan=False) for name in ("correction", "before")}
    db.execute(_INSERT, [values[name] for name in DECISION_COLUMNS])
    for target in targets:
        queue_in(db, answer.id, target, decision.id)
    write_record(
        db,
        decision.by,
        "decide",
        job_id=answer.job_id,
        answer_id=answer.id,
        model_sha256=answer.model_sha256,
        output={
            "decision": decision.id,
            "verdict": decision.verdict,
            "reason": decision.reason,
            **_recorded(decision.correction),
        },
    )


def _recorded(correction: Correction) -> dict[str, Any]:
    """Return what the audit record holds, which outlives the answer: of a mask, which one and how much was changed."""
    mask = correction.mask and {key: correction.mask[key] for key in ("sha256", "changed")}
    return {**asdict(correction), "mask": mask}


def decision_of(row: sqlite3.Row, prefix: str = "") -> Decision:
    """Read a row of decisions; `prefix`: of the names of its columns."""
    values = {name: row[f"{prefix}{name}"] for name in DECISION_COLUMNS}
    return Decision(
        **{
            **values,
            "at": datetime.fromisoformat(values["at"]),
            "correction": Correction(**json.loads(values["correction"])),
            "before": json.loads(values["before"]),
        }
    )
