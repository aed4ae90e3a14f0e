"""The clinic's SQLite database: its tables, and how it is opened and written.

Every change is one transaction, which is on the disk when it is committed (WAL with synchronous=FULL). Each thread and
each process opens its own connection; SQLite lets one of them write at a time, and the others wait.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from models.refusal import Refusal
from pipeline.clinic.reasons import CLINIC_FILE
from pipeline.system.atomic_files import write_ahead

FILE = "clinic.sqlite"
SCHEMA_VERSION = 1
LEAST_AUDIT_DAYS = 183  # six months
_BUSY_SECONDS = 30.0
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS secret (name TEXT PRIMARY KEY, value BLOB NOT NULL);
INSERT OR IGNORE INTO secret VALUES ('patients', secret_key());
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'working', 'answered', 'no_score')),
    source TEXT NOT NULL CHECK (source IN ('upload', 'pacs', 'received')),
    asked_by TEXT NOT NULL,
    received_at TEXT NOT NULL,
    started_at TEXT,
    ended_at TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    is_whole INTEGER NOT NULL DEFAULT 1,
    study_uid TEXT,
    series_uid TEXT,
    patient TEXT,                      -- JSON of records.Patient
    code TEXT,
    says TEXT,
    remedy TEXT,
    answer_id TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, attempts, number);
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL,
    created_at TEXT NOT NULL,
    patient_key TEXT,
    patient TEXT,
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    accession TEXT NOT NULL,
    acquired_at TEXT,                  -- local time of the scan, without time zone; a day if no time is known
    score TEXT NOT NULL,               -- JSON of Score.to_json()
    model_sha256 TEXT NOT NULL,
    model_name TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('live', 'shadow')),
    UNIQUE (job_id, role)              -- no job is answered twice
);
CREATE INDEX IF NOT EXISTS answers_by_patient ON answers (patient_key);
CREATE TABLE IF NOT EXISTS pcr (
    answer_id TEXT PRIMARY KEY REFERENCES answers (id) ON DELETE CASCADE,
    result TEXT NOT NULL CHECK (result IN ('positive', 'negative', 'indeterminate')),
    collected_on TEXT,
    source TEXT NOT NULL CHECK (source IN ('entered', 'laboratory')),
    by TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS deliveries (  -- to the PACS
    answer_id TEXT PRIMARY KEY REFERENCES answers (id) ON DELETE CASCADE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'failed')),
    attempts INTEGER NOT NULL,
    code TEXT,
    due_at TEXT,
    sent_at TEXT
);
CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (state, due_at);
CREATE TABLE IF NOT EXISTS models (
    sha256 TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    signed_by TEXT,
    added_at TEXT NOT NULL,
    added_by TEXT NOT NULL,
    role TEXT UNIQUE CHECK (role IN ('live', 'shadow'))
);
CREATE TABLE IF NOT EXISTS worker (      -- the scoring process: its last reported state
    one INTEGER PRIMARY KEY CHECK (one = 1),
    state TEXT NOT NULL CHECK (state IN ('starting', 'ready', 'no_model')),
    code TEXT
);
CREATE TABLE IF NOT EXISTS tokens (      -- access tokens; see web/auth.py
    name TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL UNIQUE,       -- of the token itself, which is shown once and not stored
    role TEXT NOT NULL CHECK (role IN ('read', 'score', 'admin')),
    made_at TEXT NOT NULL,
    ends_at TEXT,
    revoked_at TEXT,
    once INTEGER NOT NULL,             -- 1: valid only for a single sign-in of a browser
    used_at TEXT
);
CREATE TABLE IF NOT EXISTS sessions (    -- of browsers
    sha256 TEXT PRIMARY KEY,
    token TEXT NOT NULL REFERENCES tokens (name) ON DELETE CASCADE,
    ends_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    job_id TEXT,
    answer_id TEXT,
    input_sha256 TEXT,
    model_sha256 TEXT,
    output TEXT,
    code TEXT,
    version TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_by_time ON audit (at);
-- Even a faulty program of ours cannot change a record, or delete one too early.
CREATE TRIGGER IF NOT EXISTS audit_is_final BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'audit records are final'); END;
CREATE TRIGGER IF NOT EXISTS audit_is_kept BEFORE DELETE ON audit
    WHEN old.at > strftime('%Y-%m-%dT%H:%M:%S', 'now', '-{LEAST_AUDIT_DAYS} days')
    BEGIN SELECT RAISE(ABORT, 'audit records are kept'); END;
"""  # noqa: S608


def now() -> datetime:
    return datetime.now(UTC)


def stamp(at: datetime) -> str:
    """Format a time for the tables: UTC with a fixed width, so that texts sort like times."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


class Database:
    """An open clinic.sqlite, used by one thread at a time; a context manager.

    The constructor and all methods raise Refusal E_CLINIC_FILE for errors of SQLite or the disk.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _refusing():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):  # SQLite creates its WAL files with the mode of the database file
                os.close(os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            # FastAPI may close a connection in another thread than the one that opened it.
            self._db = sqlite3.connect(
                folder / FILE, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction: all changes are on the disk when it ends, or none."""
        with _refusing():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return all rows of a SELECT."""
        with _refusing():
            return self._db.execute(query, values).fetchall()

    def row(self, query: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a SELECT, or None."""
        return next(iter(self.rows(query, *values)), None)

    def _prepare(self) -> None:
        db = self._db
        write_ahead(db, seconds=_BUSY_SECONDS)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")  # deleted rows leave no trace in the file
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:  # another process may do the same: all of this can be repeated safely
            db.create_function("secret_key", 0, lambda: secrets.token_bytes(32))
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise Refusal(CLINIC_FILE, private=f"{FILE} is of version {version}, not {SCHEMA_VERSION}")


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise Refusal(CLINIC_FILE, private=f"{FILE}: {type(error).__name__}: {error}") from error
