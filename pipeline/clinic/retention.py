"""Removal of old answers and records, and of files that a kill left behind."""

import logging
import shutil
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from pipeline.clinic.database import FILE
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store, now
from pipeline.system.sqlite_format import copies

# A folder without a row may be an upload in progress while the service runs, but not after a day.
_COMING_IN = timedelta(days=1)
COPY_DAYS = 30  # a copy of the database from before an upgrade; less if answers are kept for less

log = logging.getLogger("fedthorax.clinic")


def forget_old(clinic: Clinic, store: Store) -> None:
    """Remove answers and records older than clinic.toml allows, and the database's copies from before an upgrade.

    A copy holds patients, also those who are removed later, so it is kept for a limited time. Raises Refusal
    E_CLINIC_FILE.
    """
    keep, today = clinic.settings.keep, now()
    answers_before = today - timedelta(days=keep.answers_days) if keep.answers_days else None
    gone = store.forget(answers_before, today - timedelta(days=keep.audit_days))
    _remove(clinic.answers / answer_id for answer_id in gone)
    oldest = today - timedelta(days=min(COPY_DAYS, keep.answers_days or COPY_DAYS))
    _remove(copy for copy in copies(clinic.folder / FILE).values() if copy.stat().st_mtime < oldest.timestamp())
    if gone:
        log.info("removed %d answers after %d days", len(gone), keep.answers_days)


def tidy(clinic: Clinic, store: Store, *, at_start: bool = False) -> None:
    """Remove the files of finished scans, and folders that belong to no scan and no answer.

    `at_start`: no upload is in progress yet. Otherwise a folder without a row may be one, and is kept for a day. Raises
    Refusal E_CLINIC_FILE.
    """
    before = [*_folders(clinic.scans), *_folders(clinic.answers)]  # listed before the rows are read
    jobs = {row["id"]: row["ended_at"] for row in store.database.rows("SELECT id, ended_at FROM jobs")}
    shown = store.database.rows("SELECT id FROM answers UNION SELECT id FROM jobs WHERE state = 'no_score'")
    answers = {row["id"] for row in shown}
    oldest = now().timestamp() - _COMING_IN.total_seconds()
    for folder in before:
        is_known = folder.name in (jobs if folder.parent == clinic.scans else answers)
        is_done = folder.parent == clinic.scans and jobs.get(folder.name) and not clinic.settings.keep.uploads
        if is_done or (not is_known and (at_start or folder.stat().st_mtime < oldest)):
            _remove([folder])


def clear_work(clinic: Clinic) -> None:
    """Remove a worker's unfinished files; call it only while no worker runs."""
    _remove(clinic.work.iterdir())


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()]


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
