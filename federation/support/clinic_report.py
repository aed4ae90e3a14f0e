"""The report on a clinic: counts of its store by known words, and nothing of an answer, a scan or a person.

The clinic's database holds names, identifiers, dates and UIDs of patients. The queries below read states, codes, roles
and durations only, and each word is looked up in the release. The store is opened for reading, so nothing is migrated.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from federation.support.log_summary import log_summary
from federation.support.sections import (
    bounded,
    databases,
    disk,
    head,
    known_word,
    listed_words,
    read_only,
    section,
    tally,
)
from federation.support.settings_summary import settings_summary
from federation.system.refusals_page import REASONS
from federation.upgrade.clinics import is_running, stores
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.clinic import records
from pipeline.clinic.database import FILE
from pipeline.clinic.folder_reasons import NO_CLINIC
from pipeline.clinic.service import SERVICE_LOG, WORKER_LOG
from pipeline.clinic.settings import FOLDERS, SETTINGS, Clinic, ClinicSettings
from pipeline.clinic.web.auth import Access

_PARTS = (FILE, *FOLDERS, "received")
_STAGES = ("read", "prepare", "predict", "explain", "total")


def clinic_report(folder: Path) -> dict[str, Any]:
    """Return the report as JSON values. Raises Refusal E_NO_CLINIC."""
    if not folder.is_dir():
        raise Refusal(NO_CLINIC, private=str(folder))
    clinic = Clinic(folder.resolve(), ClinicSettings())  # `Clinic.open` refuses wrong settings and makes folders
    return {
        **head(folder),
        "settings": section(lambda: settings_summary(_settings(clinic))),
        "service": section(lambda: {"running": is_running(clinic), **_ask(clinic, _worker)}),
        "scans": section(lambda: _ask(clinic, _scans)),
        "deliveries": section(lambda: _ask(clinic, _deliveries)),
        "access": section(lambda: _ask(clinic, _access)),
        "databases": section(lambda: databases(stores(clinic))),
        "disk": section(lambda: disk(clinic.folder, _PARTS)),
        "logs": section(lambda: log_summary(clinic.logs, (SERVICE_LOG, WORKER_LOG))),
    }


def _settings(clinic: Clinic) -> ClinicSettings:
    path = clinic.folder / SETTINGS
    return load_settings(path, ClinicSettings) if path.exists() else ClinicSettings()


def _ask(clinic: Clinic, question: Callable[[sqlite3.Connection], dict[str, Any]]) -> dict[str, Any]:
    with read_only(clinic.folder / FILE) as store:
        return question(store)


def _column(store: sqlite3.Connection, query: str) -> list[Any]:
    return [row[0] for row in store.execute(query)]


def _worker(store: sqlite3.Connection) -> dict[str, Any]:
    """Return the last reported state of the scoring process, and the models that it has to load."""
    state, code = store.execute("SELECT state, code FROM worker").fetchone() or ("starting", None)
    return {
        "worker": known_word(state, listed_words(records.WorkerState)),
        "worker_code": code and known_word(code, REASONS),
        "models": len(_column(store, "SELECT sha256 FROM models")),
        "in_use": tally(_column(store, "SELECT role FROM models WHERE role IS NOT NULL"), listed_words(records.Role)),
    }


def _scans(store: sqlite3.Connection) -> dict[str, Any]:
    """Return the state of the queue, why scans got no score, and how long the stages of scoring take."""
    live = "SELECT json_extract(score, '$.timing_seconds.' || ?) AS seconds FROM answers WHERE role = 'live'"
    means = {name: store.execute(f"SELECT avg(seconds) FROM ({live})", (name,)).fetchone()[0] for name in _STAGES}  # noqa: S608
    return {
        "states": tally(_column(store, "SELECT state FROM jobs"), records.JOB_STATES),
        "sources": tally(_column(store, "SELECT source FROM jobs"), listed_words(records.Source)),
        "files_still_to_come": len(_column(store, "SELECT 1 FROM jobs WHERE state = 'waiting' AND NOT is_whole")),
        "waiting_after_a_failed_attempt": len(
            _column(store, "SELECT 1 FROM jobs WHERE state = 'waiting' AND attempts > 0")
        ),
        "no_score": tally(_column(store, "SELECT code FROM jobs WHERE state = 'no_score'"), REASONS),
        "answers": tally(_column(store, "SELECT role FROM answers"), listed_words(records.Role)),
        "decisions": len(_column(store, "SELECT 1 FROM decisions")),
        "mean_seconds": {name: bounded(mean) for name, mean in means.items() if mean is not None},
    }


def _deliveries(store: sqlite3.Connection) -> dict[str, Any]:
    """Return the deliveries to each system by state, and the codes of those that failed or are retried."""
    failing = "SELECT code FROM deliveries WHERE code IS NOT NULL AND state IN ('waiting', 'failed') AND target = ?"
    return {
        target: {
            "states": tally(
                [state for (state,) in store.execute("SELECT state FROM deliveries WHERE target = ?", (target,))],
                listed_words(records.DeliveryState),
            ),
            "codes": tally([code for (code,) in store.execute(failing, (target,))], REASONS),
        }
        for target in listed_words(records.Target)
    }


def _access(store: sqlite3.Connection) -> dict[str, Any]:
    """Return how many tokens are valid by role, how many browsers are signed in, and the size of the audit log."""
    return {
        "tokens": tally(_column(store, "SELECT role FROM tokens WHERE revoked_at IS NULL"), listed_words(Access)),
        "sessions": len(_column(store, "SELECT 1 FROM sessions")),
        "audit_records": store.execute("SELECT count(*) FROM audit").fetchone()[0],
    }
