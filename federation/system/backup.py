"""Back up the folder of a site, a server or a clinic to one private file, and restore it.

The file is a gzip-compressed tar archive of mode 0600 whose first member says what it is. It holds private keys, a
site's backup also the key of the pseudonyms, and a clinic's the patients, so it is as secret as the folder. Restored
folders have mode 0700, and files 0600. A node, server or clinic may run meanwhile: SQLite databases are copied with
SQLite's own backup function, and all other files are only appended to or replaced whole.
"""

import contextlib
import json
import os
import shutil
import sqlite3
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from federation.system import reasons
from models.refusal import Refusal
from pipeline.system.atomic_files import move_durably, sync_folder
from pipeline.system.json_text import parse_json
from pipeline.system.sqlite_format import copy_all
from pipeline.system.work_folder import work_folder

Kind = Literal["site", "server", "clinic"]

_ABOUT = "backup.json"
_FORMAT = 1
_SQLITE, _SQLITE_BESIDE = b"SQLite format 3\x00", ("-wal", "-shm", "-journal")
_MAX_ABOUT_BYTES = 64 * 1024
_PIECE_BYTES = 2**20
_TIMES = 2**33  # seconds before and after 1970 that a file's time may have; systems refuse some beyond


def write_backup(kind: Kind, folder: Path, parts: Iterable[Path], file: Path) -> int:
    """Write the files and folders `parts` of `folder` to a new `file`; return how many files it holds.

    The parts are written in their order, and each is listed when its turn comes: what refers to other files is a part
    before them. What a link leads to is written in place of the link: a key may be a link to a safer disk. Temporary
    files are left out. After an error there is no `file`.
    Raises Refusal: E_BACKUP_EXISTS, E_BACKUP_LINK, E_BACKUP_DATABASE; OSError.
    """
    if file.exists():
        raise Refusal(reasons.BACKUP_EXISTS, private=str(file))
    about = {"format": _FORMAT, "kind": kind, "software": version("fedthorax"), "made": datetime.now(UTC).isoformat()}
    with work_folder(file) as work:
        written = work / "backup"
        with os.fdopen(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
                encoded = json.dumps(about).encode()
                archive.addfile(_member(_ABOUT, len(encoded), 0.0), BytesIO(encoded))
                count = sum(_add(archive, path, folder, work) for path in _files(parts))
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(written, file)  # unlike a rename, it never replaces a file that another process made meanwhile
        except FileExistsError:
            raise Refusal(reasons.BACKUP_EXISTS, private=str(file)) from None
        sync_folder(file.parent)
    return count


def _files(parts: Iterable[Path]) -> Iterator[Path]:
    seen: set[Path] = set()
    for part in parts:
        for path in _below(part, frozenset()):
            if path not in seen and path.suffix != ".tmp":
                seen.add(path)
                yield path


def _below(path: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield the files of a folder, also behind links. `above`: the folders in which it is, so that no link is a loop.

    Raises Refusal E_BACKUP_LINK for a link that leads to nothing. Editors mark open files with such links; they are
    hidden, and are left out.
    """
    if path.is_dir():
        if (place := path.resolve()) not in above:
            with contextlib.suppress(FileNotFoundError):  # a running server deletes folders
                for each in sorted(path.iterdir()):
                    yield from _below(each, above | {place})
    elif path.is_file():
        yield path
    elif path.is_symlink() and not path.exists() and not path.name.startswith("."):
        raise Refusal(reasons.BACKUP_LINK, file=path.name, private=str(path))


def _add(archive: tarfile.TarFile, path: Path, folder: Path, work: Path) -> bool:
    """Add one file; return whether it was there: a running server deletes old checkpoints."""
    name = path.relative_to(folder).as_posix()
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        if file.read(len(_SQLITE)) == _SQLITE:
            path = copy_database(path, work)
        elif name.endswith(_SQLITE_BESIDE) and path.with_name(path.name.rpartition("-")[0]).exists():
            return False  # the copy of the database already has what it holds
        with path.open("rb") as content:
            about = os.fstat(content.fileno())
            archive.addfile(_member(name, about.st_size, about.st_mtime), content)
        return True
    return False


def copy_database(path: Path, work: Path) -> Path:
    """Copy a database that may be in use, with what is in its write-ahead log, into `work`; return the copy.

    Raises Refusal E_BACKUP_DATABASE.
    """
    copy = work / "database"
    copy.unlink(missing_ok=True)
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as old, closing(sqlite3.connect(copy)) as new:
            copy_all(old, new)
    except sqlite3.Error as error:
        raise Refusal(reasons.BACKUP_DATABASE, file=path.name, problem=str(error), private=str(path)) from error
    return copy


def _member(name: str, size: int, mtime: float) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, int(mtime), 0o600
    return member


def restore_backup(kind: Kind, file: Path, folder: Path, finish: Callable[[Path], None] = lambda restored: None) -> int:
    """Restore a backup of this kind to `folder`, which must be empty or missing; return the number of files.

    `finish` opens the restored folder and changes in it what must not be as it was, before it gets its place. The
    folder is complete or unchanged. Raises Refusal: E_BACKUP_FOLDER, E_BACKUP_FORMAT, those of `finish`; OSError.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Refusal(reasons.BACKUP_FOLDER, private=str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with work_folder(folder) as work:
        with file.open("rb") as stream:
            count = _unpack(kind, stream, work)
        finish(work)
        move_durably(work, folder)
    return count


def _unpack(kind: Kind, stream: IO[bytes], folder: Path) -> int:
    count = 0
    try:
        with tarfile.open(fileobj=stream, mode="r:gz") as archive:
            _check(kind, archive)
            while (member := archive.next()) is not None:
                _write(archive, member, folder)
                count += 1
            while archive.fileobj and archive.fileobj.read(_PIECE_BYTES):
                pass  # gzip compares its checksum at the end of the stream
    except (tarfile.TarError, EOFError, ValueError, OverflowError, KeyError, TypeError, FileExistsError) as error:
        raise Refusal(reasons.BACKUP_FORMAT, kind=kind, private=str(error)) from error
    except OSError as error:
        if error.errno is not None:  # of the disk; errors of gzip have no number
            raise
        raise Refusal(reasons.BACKUP_FORMAT, kind=kind, private=str(error)) from error
    return count


def _check(kind: Kind, archive: tarfile.TarFile) -> None:
    first = archive.next()
    if first is None or first.name != _ABOUT or not first.isreg() or first.size > _MAX_ABOUT_BYTES:
        raise ValueError("the first member does not say what this is")
    content = archive.extractfile(first)
    assert content is not None
    about = parse_json(content.read())
    if about["format"] != _FORMAT or about["kind"] != kind:
        raise ValueError(f"a backup of kind {about['kind']}, format {about['format']}")


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write a plain file below `folder`. Raises ValueError for anything else, and for a time that no file has."""
    path = PurePosixPath(member.name)
    if not member.isreg() or path.is_absolute() or ".." in path.parts or "\x00" in member.name:
        raise ValueError(f"not a plain file of the folder: {member.name!r}")
    if not -_TIMES < member.mtime < _TIMES:  # also if it is not a number
        raise ValueError(f"not a file's time: {member.mtime}")
    target = folder / path
    for parent in reversed(target.relative_to(folder).parents[:-1]):
        (folder / parent).mkdir(mode=0o700, exist_ok=True)
    content = archive.extractfile(member)
    assert content is not None
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, _PIECE_BYTES)
    os.utime(target, (member.mtime, member.mtime))
