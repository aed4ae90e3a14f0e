"""The clinic's SQLite database: how it is opened, brought to the current version, and written (tables: `schema.py`).

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
from pipeline.clinic.schema import LEAST_AUDIT_DAYS, MIGRATIONS, SCHEMA, VERSION
from pipeline.system.atomic_files import write_ahead
from pipeline.system.sqlite_format import SqliteFormat, bring_up

FILE = "clinic.sqlite"
_BUSY_SECONDS = 30.0
__all__ = ["FILE", "FORMAT", "LEAST_AUDIT_DAYS", "Database", "now", "stamp"]
FORMAT = SqliteFormat(version=VERSION, schema=SCHEMA, steps=MIGRATIONS)


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
        db.create_function("secret_key", 0, lambda: secrets.token_bytes(32))
        bring_up(db, self.folder / FILE, FORMAT)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise Refusal(CLINIC_FILE, private=f"{FILE}: {type(error).__name__}: {error}") from error
