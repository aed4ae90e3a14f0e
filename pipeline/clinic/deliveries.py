"""The deliveries of results to other systems: which of them wait, were sent, failed, or were dropped."""

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.records import Delivery, DeliveryState, Target

DELIVERY_COLUMNS = ("number", "answer_id", "target", "decision_id", "state", "attempts", "code", "due_at", "sent_at")
_SELECT = "SELECT * FROM deliveries"
_QUEUE = """
    INSERT INTO deliveries (answer_id, target, decision_id, state, attempts, due_at) VALUES (?, ?, ?, 'waiting', 0, ?)
    ON CONFLICT (answer_id, target, decision_id) DO
"""


class Deliveries:
    """The deliveries of one clinic; `results/outbox.py` makes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def queue(self, answer_id: str, target: Target, decision_id: str = "") -> None:
        """Queue a delivery, also if it was sent or failed before; its attempts stay counted."""
        with self._database.transaction() as db:
            queue_in(db, answer_id, target, decision_id, again=True)

    def begin(self, delivery: Delivery) -> Delivery:
        """Count an attempt before it is made: after a kill, the other system may have the result."""
        with self._database.transaction() as db:
            db.execute("UPDATE deliveries SET attempts = attempts + 1 WHERE number = ?", (delivery.number,))
        (begun,) = self._found("number = ?", delivery.number)
        return begun

    def set(self, delivery: Delivery) -> None:
        """Store the outcome of an attempt."""
        due, sent = delivery.due_at, delivery.sent_at
        with self._database.transaction() as db:
            db.execute(
                "UPDATE deliveries SET state = ?, attempts = ?, code = ?, due_at = ?, sent_at = ? WHERE number = ?",
                (
                    *(delivery.state, delivery.attempts, delivery.code),
                    *(due and stamp(due), sent and stamp(sent), delivery.number),
                ),
            )

    def in_state(self, state: DeliveryState = "waiting", due: datetime | None = None) -> list[Delivery]:
        """Return deliveries in a state, the first due first. `due`: only those that are due by this time."""
        until = stamp(due) if due else None
        return self._found("state = ?1 AND (?2 IS NULL OR due_at <= ?2) ORDER BY due_at, number", state, until)

    def problems(self) -> list[Delivery]:
        """Return the deliveries that failed, or wait after a failed attempt, oldest first; what was replaced is not."""
        newest = "(SELECT max(number) FROM deliveries AS other WHERE other.answer_id = deliveries.answer_id"
        return self._found(
            f"number = {newest} AND other.target = deliveries.target)"
            " AND (state = 'failed' OR (state = 'waiting' AND code IS NOT NULL)) ORDER BY number"
        )

    def of(self, answer_id: str) -> list[Delivery]:
        """Return all deliveries of an answer, oldest first."""
        return self._found("answer_id = ? ORDER BY number", answer_id)

    def perhaps_sent(self, answer_id: str, target: Target) -> list[Delivery]:
        """Return the deliveries of an answer that another system has, or may have after a kill, oldest first."""
        was_tried = "(sent_at IS NOT NULL OR attempts > 0)"
        return self._found(f"answer_id = ? AND target = ? AND {was_tried} ORDER BY number", answer_id, target)

    def _found(self, where: str, *values: str | int | None) -> list[Delivery]:
        rows = self._database.rows(f"{_SELECT} WHERE {where}", *values)
        return [delivery_of(row) for row in rows]


def queue_in(
    db: sqlite3.Connection, answer_id: str, target: Target, decision_id: str = "", *, again: bool = False
) -> None:
    """Queue a delivery within a transaction; `again`: also if it was queued before.

    Earlier deliveries that failed are dropped: this one replaces them. Attempts are never reset, because they say that
    the other system may have the result (`Deliveries.perhaps_sent`).
    """
    once_more = "UPDATE SET state = 'waiting', code = NULL, due_at = excluded.due_at"
    earlier = "answer_id = ? AND target = ? AND decision_id <> ? AND state = 'failed'"
    db.execute(f"UPDATE deliveries SET state = 'dropped' WHERE {earlier}", (answer_id, target, decision_id))  # noqa: S608
    db.execute(f"{_QUEUE} {once_more if again else 'NOTHING'}", (answer_id, target, decision_id, stamp(now())))


def delivery_of(row: sqlite3.Row | Mapping[str, Any]) -> Delivery:
    """Read a row of deliveries."""
    values = {name: row[name] for name in DELIVERY_COLUMNS}
    times = {name: values[name] and datetime.fromisoformat(values[name]) for name in ("due_at", "sent_at")}
    return Delivery(**{**values, **times})
