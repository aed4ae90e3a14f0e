"""A clinic: its files with a format, and whether scans or deliveries are under way."""

import sqlite3
from contextlib import closing, suppress

from federation.upgrade.plan import Commands, Plan, Store, make_plan, undo
from pipeline.clinic import database
from pipeline.clinic.settings import LOCK, Clinic
from pipeline.system.locks import is_held

_UNDER_WAY = {
    "a scan is being scored": "SELECT count(*) FROM jobs WHERE state = 'working'",
    "scans wait to be scored": "SELECT count(*) FROM jobs WHERE state = 'waiting'",
    "answers wait to be sent to the PACS or another system": "SELECT count(*) FROM deliveries WHERE state = 'waiting'",
}


def stores(clinic: Clinic) -> list[Store]:
    """Return the files of a clinic that have a format of their own."""
    return [Store(clinic.folder / database.FILE, database.FORMAT)]


def plan_clinic(clinic: Clinic) -> Plan:
    """Return what this version would change at a clinic, and what is under way there. The store is only read."""
    running = is_running(clinic)
    waits = [f"{what}: {count}" for what, query in _UNDER_WAY.items() if running and (count := _count(clinic, query))]
    commands = Commands("fedthorax-clinic", "fedthorax clinic")
    return make_plan("clinic", clinic.folder, stores(clinic), commands, running=running, waits_for=waits)


def undo_clinic(clinic: Clinic) -> dict[str, int]:
    """Go back to the files from before the last upgrade. Raises what `undo` raises."""
    return undo(clinic.folder, stores(clinic), what="page", is_running=lambda: is_running(clinic))


def is_running(clinic: Clinic) -> bool:
    return is_held(clinic.folder / LOCK)


def _count(clinic: Clinic, query: str) -> int:
    file = clinic.folder / database.FILE
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=30)) as db:
        count: int = db.execute(query).fetchone()[0]
        return count
    return 0
