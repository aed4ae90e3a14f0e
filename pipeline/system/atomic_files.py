"""Writes files atomically, so that they are complete or absent, also after a power cut."""

import os
import sqlite3
import tempfile
import time
from pathlib import Path

_LOOK_SECONDS = 0.01


def write_durably(path: Path, content: bytes) -> None:
    """Write or replace a file that only its owner may read. Raises OSError and then changes nothing."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:  # mode 0600
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except OSError:
            Path(file.name).unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names to the disk, so that it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush a folder with all of its content to the disk; its own name needs `sync_folder` of its parent."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path)  # works for files, too


def write_ahead(database: sqlite3.Connection, *, seconds: float) -> None:
    """Put a database into WAL mode. Raises sqlite3.Error, e.g. if another process locks it for `seconds`.

    Several processes may open a new file at once. For this change SQLite does not wait for another writer, whatever the
    timeout of the connection, because waiting could be a deadlock (https://sqlite.org/c3ref/busy_handler.html).
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_SECONDS)
