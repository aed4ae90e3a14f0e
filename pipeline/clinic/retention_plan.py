"""What the clinic will delete, and when: the plan of `retention.py`, for the administrator's page. It names no patient.

Data is deleted at each start of the service and every hour, so it may stay for an hour longer than planned.
"""

from datetime import datetime, timedelta
from typing import Any

from pipeline.clinic.database import FILE
from pipeline.clinic.records import moment
from pipeline.clinic.retention import COPY_DAYS
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.system.sqlite_format import copies

DAYS = 31  # that are listed


def retention_plan(clinic: Clinic, store: Store) -> dict[str, Any]:
    """Return what is kept for how long, and how much is deleted on the next days on which something is.

    `answers`, `records`: `kept` their number, `oldest` the time of the first one, `due` by day (UTC), at most `DAYS`.
    `held`: answers in the outbox, which are kept until they are sent or have failed. Raises Refusal E_CLINIC_FILE.
    """
    keep = clinic.settings.keep
    held = store.database.row("SELECT count(DISTINCT answer_id) FROM deliveries WHERE state = 'waiting'")
    shortest = min(COPY_DAYS, keep.answers_days or COPY_DAYS)
    copied = [
        {"format": number, "due_on": _day(datetime.fromtimestamp(copy.stat().st_mtime).astimezone(), shortest)}
        for number, copy in copies(clinic.folder / FILE).items()
    ]
    return {
        "answers_days": keep.answers_days,
        "audit_days": keep.audit_days,
        "uploads": keep.uploads,
        "answers": _table(store, "answers", "created_at", keep.answers_days),
        "records": _table(store, "audit", "at", keep.audit_days),
        "held": int(held[0]) if held else 0,
        "copies": copied,
    }


def _table(store: Store, table: str, column: str, days: int) -> dict[str, Any]:
    """Count the rows of a table by the day on which they are deleted. `days`: 0 for never."""
    first = store.database.row(f"SELECT count(*) AS kept, min({column}) AS oldest FROM {table}")  # noqa: S608
    assert first is not None
    oldest = datetime.fromisoformat(first["oldest"]) if first["oldest"] else None
    counted = f"SELECT substr({column}, 1, 10) AS day, count(*) AS count FROM {table}"  # noqa: S608
    rows = store.database.rows(f"{counted} GROUP BY day ORDER BY day LIMIT ?", DAYS) if days else []
    due = [{"on": _day(datetime.fromisoformat(row["day"]), days), "count": row["count"]} for row in rows]
    return {"kept": first["kept"], "oldest": moment(oldest), "due": due}


def _day(at: datetime, days: int) -> str:
    return (at + timedelta(days=days)).date().isoformat()
