"""Files that are there whole or not at all, and still there after a power cut."""

import os
import sqlite3
import tempfile
import time
from pathlib import Path

_LOOK_SECONDS = 0.01


def write_durably(path: Path, content: bytes) -> None:
    """Write a file, readable by its owner alone, over what may be there. Raises OSError, with nothing changed."""
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
    """Make the folder's own list of names survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Make a folder with all that is below it survive a power cut; its own name is the folder's above it to keep."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path)  # a file as well


def write_ahead(database: sqlite3.Connection, *, seconds: float) -> None:
    """Put a database into WAL mode. Raises sqlite3.Error, e.g. if another holds it for so many seconds.

    Several may open a new file at once, and for this change SQLite does not wait while another writes, whatever the
    connection's timeout (https://sqlite.org/c3ref/busy_handler.html: where waiting could be a deadlock).
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
