"""What leaving and settling have in common: what an archive holds in numbers, how it is opened."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from federation.enrolment.registry import open_registry
from federation.migration import reasons
from federation.migration.age_file import UnsealingReader, is_sealed
from federation.migration.archive import Contents, Progress, Readable
from federation.migration.experiments import Experiment
from federation.server import reasons as server_reasons
from models.refusal import Refusal

# Shows how far something is: called with what is done, it gives what takes (done, total).
Bar = Callable[[str], AbstractContextManager[Progress]]

ROSTER = "sites.sqlite"


@dataclass(frozen=True)
class Moved:
    """What an export wrote or an import read: the archive's SHA-256, its size, what it holds.

    `address` is what the sites dial: of the old server before, of the new one after an import.
    """

    sha256: str
    bytes: int
    address: str
    contents: Contents


def is_sealed_archive(file: Path) -> bool:
    """Whether a passphrase is needed. Raises Refusal E_MOVE_WRITE where the file cannot be read."""
    with files_can_be_used(), file.open("rb") as stream:
        return is_sealed(stream)


@contextmanager
def opened(file: Path, passphrase: str | None) -> Iterator[Readable]:
    """An archive to read, unsealed if it is sealed."""
    with file.open("rb") as stream:
        if not is_sealed(stream):
            yield stream
        elif passphrase is not None:
            yield UnsealingReader(stream, passphrase)
        else:
            raise Refusal(reasons.PASSPHRASE, problem="the archive is sealed, and none was given")


@contextmanager
def roster_of(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with open_registry(path) as db:
            yield db
    except sqlite3.DatabaseError as error:
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
    return max((int(path.name[6:12]) for path in checkpoints.glob("round-*.safetensors")), default=0)
