"""Shared parts of export and import: the contents of an archive in numbers, and how to open it."""

import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from federation.comparison.signed_release import RELEASES
from federation.enrolment.registry import open_registry
from federation.migration import reasons
from federation.migration.age_file import UnsealingReader, is_sealed
from federation.migration.archive import Contents, Progress, Readable
from federation.migration.experiments import Experiment
from federation.protocol.release_files import ENCODERS
from federation.server import reasons as server_reasons
from models.refusal import Refusal

# Results of SQLite that say something about the disk and nothing about the database.
_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_CHECKPOINT = re.compile(r"round-(\d{6})[^/]*\.safetensors")

# Shows progress: called with the name of a step, it gives the function that takes (done, total).
Bar = Callable[[str], AbstractContextManager[Progress]]

ROSTER = "sites.sqlite"
FOLDERS = ("runs", RELEASES, ENCODERS)  # of the server; they are carried as they are


@dataclass(frozen=True)
class Moved:
    """The result of an export or import: the archive's SHA-256, size and contents.

    `address` is the server to which the sites connect: the old one after an export, the new one after an import.
    """

    sha256: str
    bytes: int
    address: str
    contents: Contents


def is_sealed_archive(file: Path) -> bool:
    """Whether an archive is encrypted and needs a passphrase. Raises Refusal: E_ARCHIVE_READ, E_MOVE_WRITE."""
    with files_can_be_used(), _stream_of(file) as stream:
        return is_sealed(stream)


@contextmanager
def opened(file: Path, passphrase: str | None) -> Iterator[Readable]:
    """Open an archive for reading, and decrypt it if it is encrypted. Raises Refusal: E_ARCHIVE_READ, E_PASSPHRASE."""
    with _stream_of(file) as stream:
        if not is_sealed(stream):
            yield stream
        elif passphrase is not None:
            yield UnsealingReader(stream, passphrase)
        else:
            raise Refusal(reasons.PASSPHRASE, problem="the archive is encrypted, and no passphrase was given")


def _stream_of(archive: Path) -> BinaryIO:
    try:
        return archive.open("rb")
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise Refusal(reasons.ARCHIVE_READ, problem=problem, private=str(archive)) from error


@contextmanager
def roster_of(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a roster. Raises Refusal E_MOVE_WRITE if the disk is full or forbids it, else E_SERVER_DATABASE."""
    try:
        with open_registry(path) as db:
            yield db
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DISK:
            raise Refusal(reasons.MOVE_WRITE, private=f"{path}: {error}") from error
        raise Refusal(server_reasons.SERVER_DATABASE, file=path.name, private=str(error)) from error


@contextmanager
def files_can_be_used() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refusal(reasons.MOVE_WRITE, private=str(error)) from error


def contents_of(roster: Path, runs: Path, found: Sequence[Experiment]) -> Contents:
    with roster_of(roster) as db:
        sites, certificates, invitations = (
            db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
            for table in ("sites", "certificates", "invitations")
        )
    folders = sorted(path.parent for path in runs.glob("*/study.json"))
    return Contents(
        sites=sites,
        certificates=certificates,
        invitations=invitations,
        runs={folder.name: _last_round(folder / "checkpoints") for folder in folders},
        experiments={each.name: each.amount() for each in found},
    )


def _last_round(checkpoints: Path) -> int:
    names = (_CHECKPOINT.fullmatch(path.name) for path in checkpoints.glob("round-*"))
    return max((int(name[1]) for name in names if name), default=0)
