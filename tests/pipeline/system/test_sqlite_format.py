"""Migrations of SQLite files: a copy first, one transaction a step, a way back, and kill -9 at every moment."""

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.system.sqlite_format import SqliteFormat, bring_up, copies, file_version, go_back
from tests.helpers.killed import killed_copies

FIRST = SqliteFormat(version=1, schema="CREATE TABLE note (text TEXT);\nCREATE INDEX by_text ON note (text);")
THIRD = SqliteFormat(
    version=3,
    schema="CREATE TABLE note (text TEXT, length INTEGER);\nCREATE TABLE word (text TEXT);\n",
    steps={
        1: ("ALTER TABLE note ADD COLUMN length INTEGER", "UPDATE note SET length = length(text)"),
        2: ("CREATE TABLE word (text TEXT)", "INSERT INTO word SELECT text FROM note"),
    },
)
ROWS = [("north",), ("south",)]
MIGRATED = ([("north", 5), ("south", 5)], ROWS)


def opened(path: Path, of: SqliteFormat = THIRD) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    bring_up(database, path, of)
    return database


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a file of the first format, in WAL mode."""
    path = tmp_path / "old" / "notes.sqlite"
    path.parent.mkdir()
    with closing(opened(path, FIRST)) as database:
        database.executemany("INSERT INTO note VALUES (?)", ROWS)
    return path


def content(path: Path) -> tuple[list[tuple[str, int]], list[tuple[str]]]:
    with closing(opened(path)) as database:
        return database.execute("SELECT * FROM note").fetchall(), database.execute("SELECT * FROM word").fetchall()


def test_new_file_has_the_newest_format_and_no_copy(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite"
    assert file_version(path, THIRD) == 0
    assert content(path) == ([], [])
    assert file_version(path, THIRD) == 3
    assert copies(path) == {}


def test_old_file_is_migrated_and_its_copy_has_the_old_format(old: Path) -> None:
    assert content(old) == MIGRATED
    assert file_version(old, THIRD) == 3
    assert list(copies(old)) == [1]
    assert copies(old)[1].stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(copies(old)[1])) as copy:
        assert copy.execute("SELECT * FROM note").fetchall() == ROWS


def test_file_without_a_number_counts_as_the_named_format(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE note (text TEXT)")
    numbered = SqliteFormat(version=1, schema=FIRST.schema, unnumbered=1)
    assert file_version(path, numbered) == 1
    with closing(opened(path, numbered)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
    assert copies(path) == {}


def test_newer_file_is_refused_unchanged(old: Path) -> None:
    content(old)
    before = old.read_bytes()
    with pytest.raises(Refusal, match="E_FORMAT_NEWER"):
        opened(old, FIRST)
    assert old.read_bytes() == before


def test_step_that_fails_changes_nothing(old: Path) -> None:
    broken = SqliteFormat(version=2, schema="", steps={1: ("DELETE FROM note", "SELECT * FROM nowhere")})
    with pytest.raises(sqlite3.OperationalError):
        opened(old, broken)
    assert content(old) == MIGRATED


def test_processes_that_open_an_old_file_together_migrate_it_once(old: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(content, [old] * 12)) == [MIGRATED] * 12


# --- the way back -----------------------------------------------------------------------------------------


def test_way_back_restores_the_old_file_and_keeps_the_new_one(old: Path) -> None:
    content(old)
    with closing(opened(old)) as database:
        database.execute("INSERT INTO note VALUES ('west', 4)")
    assert go_back(old, THIRD) == 1
    with closing(opened(old, FIRST)) as database:
        assert database.execute("SELECT * FROM note").fetchall() == ROWS
    with closing(sqlite3.connect(copies(old)[3])) as newer:
        assert ("west", 4) in newer.execute("SELECT * FROM note").fetchall()
    assert content(old) == MIGRATED  # and forward again


def test_no_way_back_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "notes.sqlite"
    content(path)
    assert go_back(path, THIRD) is None


def test_damaged_copy_is_refused_and_nothing_changes(old: Path) -> None:
    content(old)
    copies(old)[1].write_bytes(b"SQLite format 3\0" + bytes(5000))
    with pytest.raises(Refusal, match="E_COPY_DAMAGED"):
        go_back(old, THIRD)
    assert content(old) == MIGRATED


# --- kill -9 ----------------------------------------------------------------------------------------------


def migrate(path: Path) -> None:
    opened(path).close()


def undo(path: Path) -> None:
    go_back(path, THIRD)


@pytest.mark.slow
def test_migration_that_is_killed_at_any_moment_loses_nothing(old: Path, tmp_path: Path) -> None:
    files = killed_copies(f"{__name__}:migrate", old, tmp_path / "killed")
    assert len(files) > 12
    assert {file_version(file, THIRD) for file in files} == {1, 3}
    for file in files:
        assert content(file) == MIGRATED
        assert go_back(file, THIRD) == 1
        with closing(opened(file, FIRST)) as database:
            assert database.execute("SELECT * FROM note").fetchall() == ROWS


@pytest.mark.slow
def test_way_back_that_is_killed_at_any_moment_loses_nothing(old: Path, tmp_path: Path) -> None:
    content(old)
    files = killed_copies(f"{__name__}:undo", old, tmp_path / "killed")
    assert len(files) > 5
    formats = [file_version(file, THIRD) for file in files]
    assert (formats[0], formats[-1]) == (3, 1) and set(formats) == {3, 1}
    for file in files:
        assert content(file) == MIGRATED


COPY_A_LOCKED_FILE = """
import signal, sqlite3, sys, threading
from pipeline.system.sqlite_format import copy_all
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
database = sqlite3.connect(sys.argv[1], timeout=0)
threading.Timer(0.5, print, ["waits"], {"flush": True}).start()
copy_all(database, sqlite3.connect(":memory:"))
"""


def test_signal_ends_a_copy_that_waits_for_a_locked_file(tmp_path: Path) -> None:
    """Such as a backup, or the copy before a migration, while another program holds the file."""
    path = tmp_path / "locked.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("CREATE TABLE note (text TEXT)")
        database.execute("BEGIN EXCLUSIVE")
        with subprocess.Popen(
            [sys.executable, "-c", COPY_A_LOCKED_FILE, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        ) as process:
            assert process.stdout and process.stdout.readline() == "waits\n"
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(timeout=60) == 3
            finally:
                process.kill()
