"""Formats of SQLite files: a number in the file, migrations to the newest one, and the way back.

The number is SQLite's `user_version`. Before a file is migrated, a copy with the old format is written beside it, as
NAME.v2 for format 2. One transaction makes the new format and writes its number, so a process that is killed at any
moment leaves the file in the old or in the new format.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from models.refusal import Refusal
from pipeline.system import reasons
from pipeline.system.atomic_files import sync_folder

_COPY = ".v"  # before the number of a format, in the name of a copy
_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class SqliteFormat:
    """The format of one kind of SQLite file.

    `version`: the format that this release writes. `schema`: statements that create an empty file. `steps`: by format,
    the statements that make the next one of it. `unnumbered`: the format of a file that has tables and no number.
    """

    version: int
    schema: str
    steps: Mapping[int, Sequence[str]] = field(default_factory=dict)
    unnumbered: int = 0


def bring_up(database: sqlite3.Connection, path: Path, of: SqliteFormat) -> None:
    """Create the tables of a new file, or migrate those of an older one; `database` is `path`, in autocommit mode.

    Raises Refusal E_FORMAT_NEWER and then changes nothing; sqlite3.Error; OSError if there is no space for the copy.
    """
    while (found := version_of(database, of)) != of.version or not _number(database):
        if found > of.version:
            raise Refusal(reasons.FORMAT_NEWER, file=path.name, found=found, known=of.version)
        database.execute("BEGIN IMMEDIATE")
        try:
            if version_of(database, of) == found:  # otherwise another process has done it meanwhile
                _migrate(database, path, of, found)
        except BaseException:
            database.execute("ROLLBACK")
            raise
        database.execute("COMMIT")


def _migrate(database: sqlite3.Connection, path: Path, of: SqliteFormat, found: int) -> None:
    """Write the tables of the newest format in the open transaction, which keeps other processes from writing."""
    if 0 < found < of.version:
        _keep_copy(path, found)
    steps = [of.steps[number] for number in range(found, of.version)] if found else [list(_statements(of.schema))]
    for statement in chain.from_iterable(steps):
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {of.version}")


def version_of(database: sqlite3.Connection, of: SqliteFormat) -> int:
    """Return the format of an open file; 0 if it is empty."""
    number = _number(database)
    if number == 0 and of.unnumbered and database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return of.unnumbered
    return number


def file_version(path: Path, of: SqliteFormat) -> int:
    """Return the format of a file without changing it; 0 if there is none. Raises sqlite3.Error."""
    if not path.exists():
        return 0
    with closing(_read_only(path)) as database:
        return version_of(database, of)


def copies(path: Path) -> dict[int, Path]:
    """Return the copies of a file from before its migrations, by format."""
    found = path.parent.glob(f"{path.name}{_COPY}*")
    numbers = {each: each.name.removeprefix(f"{path.name}{_COPY}") for each in found}
    return {int(number): each for each, number in sorted(numbers.items()) if number.isdecimal()}


def go_back(path: Path, of: SqliteFormat) -> int | None:
    """Put back the newest copy of an older format, and keep the present file as a copy; return the copy's format.

    Returns None if there is no such copy. No other process may have the file open. It is exchanged in one step.
    Raises Refusal E_COPY_DAMAGED; sqlite3.Error; OSError.
    """
    now = file_version(path, of)
    older = [number for number in copies(path) if number < now]
    if not older:
        return None
    copy = copies(path)[max(older)]
    try:
        with closing(_read_only(copy)) as database:
            found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
            found = "another format" if found == "ok" and version_of(database, of) != max(older) else found
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise Refusal(reasons.COPY_DAMAGED, file=path.name, private=f"{copy}: {found}")
    _keep_copy(path, now)
    with closing(sqlite3.connect(path, timeout=_WAIT_SECONDS, isolation_level=None)) as database:
        # Otherwise a log of the newer file would lie beside the older one, and SQLite would apply it.
        database.execute("PRAGMA journal_mode = DELETE")
    _write_copy(copy, path)
    return max(older)


def _number(database: sqlite3.Connection) -> int:
    number: int = database.execute("PRAGMA user_version").fetchone()[0]
    return number


def _keep_copy(path: Path, number: int) -> None:
    _write_copy(path, path.with_name(f"{path.name}{_COPY}{number}"))


def _write_copy(path: Path, target: Path) -> None:
    """Write a whole copy of a database, which only its owner may read, to `target` in one step."""
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    # A connection of its own: SQLite copies nothing over a connection that is about to write.
    with closing(_read_only(path)) as database, closing(sqlite3.connect(temporary)) as copy:
        copy_all(database, copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file: the copy of a database in WAL mode is in WAL mode
    handle = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    temporary.replace(target)
    sync_folder(target.parent)


def copy_all(database: sqlite3.Connection, copy: sqlite3.Connection) -> None:
    """Copy a whole database; wait while another process locks it, until it is free or a signal ends the wait."""
    # Without a function to call, sqlite3 tries again within C, and Python never runs a signal's handler.
    database.backup(copy, progress=lambda status, left, pages: None)


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)


def _statements(script: str) -> Iterator[str]:
    """Split a script into its statements; `executescript` would end the transaction."""
    rest = ""
    for line in script.splitlines(keepends=True):
        rest += line
        if sqlite3.complete_statement(rest):
            yield rest
            rest = ""
    if rest.strip():
        yield rest
