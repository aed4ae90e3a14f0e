"""Writes files atomically, so that they are complete or absent, also after a power cut."""

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LOOK_SECONDS = 0.01


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, flush: bool = False) -> Iterator[BinaryIO]:
    """Write a file in a block; it replaces `path` when the block ends. If the block fails, nothing changes.

    A reader sees either the old or the new content. `mode`: the umask removes bits from it. `flush`: write the content
    to the disk before the file gets its name; otherwise a power cut could leave an empty file. A process that is killed
    or interrupted leaves a hidden file with the suffix .tmp. A link is replaced itself (see `named_file`). What is no
    file, such as a device, is not replaced: its name would be lost for the whole machine.

    Raises OSError.
    """
    require_replaceable(path)
    temporary = path.with_name(f".{os.urandom(8).hex()}.tmp")
    file = os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
    try:
        with file:
            yield file
            if flush:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise


def named_file(path: Path) -> Path:
    """Return the place to write of a file that a person named: that to which a link leads, so that the link stays.

    Files of our own folders are written in place of a link: whoever else may write there chooses no other place.
    """
    return Path(os.path.realpath(path))


def require_replaceable(path: Path) -> None:
    """Check that `path` is missing, a regular file or a link. Raises OSError."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
        raise OSError(errno.EINVAL, "this is not a regular file", str(path))


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left of files that they were writing. Nobody may be writing there now.

    Raises OSError.
    """
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write or replace a file in one step, without waiting for the disk. Raises OSError and then changes nothing."""
    with replacing(path, mode=mode) as file:
        file.write(content)


def write_durably(path: Path, content: bytes) -> None:
    """Write or replace a file that only its owner may read, so that it survives a power cut.

    Raises OSError and then changes nothing.
    """
    with replacing(path, mode=0o600, flush=True) as file:
        file.write(content)
    sync_folder(path.parent)


def move_durably(folder: Path, place: Path) -> None:
    """Give a complete folder its final name on the same disk, so that it survives a power cut. Raises OSError."""
    sync_tree(folder)
    folder.rename(place)
    sync_folder(place.parent)


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
