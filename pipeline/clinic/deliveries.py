"""The delivery of answers to the PACS: which of them wait, were sent, or failed."""

import sqlite3
from datetime import datetime

from pipeline.clinic.database import Database, stamp
from pipeline.clinic.records import Delivery, DeliveryState


class Deliveries:
    """The deliveries of one clinic; `results/outbox.py` makes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set(self, delivery: Delivery) -> None:
        """Set the delivery state of an answer, replacing the earlier one."""
        due, sent = delivery.due_at, delivery.sent_at
        with self._database.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO deliveries VALUES (?, ?, ?, ?, ?, ?)",
                (
                    delivery.answer_id,
                    delivery.state,
                    delivery.attempts,
                    delivery.code,
                    due and stamp(due),
                    sent and stamp(sent),
                ),
            )

    def in_state(self, state: DeliveryState = "waiting", due: datetime | None = None) -> list[Delivery]:
        """Return deliveries in a state, the first due first. `due`: only those that are due by this time."""
        found = self._database.rows(
            "SELECT * FROM deliveries WHERE state = ?1 AND (?2 IS NULL OR due_at <= ?2) ORDER BY due_at",
            state,
            due and stamp(due),
        )
        return [delivery_of(row["answer_id"], row) for row in found]


def delivery_of(answer_id: str, row: sqlite3.Row) -> Delivery:
    due, sent = (row[name] and datetime.fromisoformat(row[name]) for name in ("due_at", "sent_at"))
    return Delivery(answer_id, row["state"], row["attempts"], row["code"], due, sent)
