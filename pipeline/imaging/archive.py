"""Opens the folder, files or zips that a user gives; zips are treated as hostile and unpacked within strict limits."""

import errno
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from models.refusal import Refusal
from pipeline.imaging import reasons

MAX_RATIO = 100  # unpacked bytes per packed byte; lossless CT reaches 4
MAX_BYTES = 4 * 2**30
MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = MAX_ENTRIES * 512  # the zip's table of contents, which zipfile holds in memory
_ARCHIVES = frozenset((".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"))


@contextmanager
def open_images(source: Path | Sequence[Path]) -> Iterator[Path | list[Path]]:
    """Yield `source` as folders and files; zips are unpacked into a temporary folder, which is removed afterwards.

    Files keep the modification times of the zip, so unpacking it again gives the same `Series.fingerprint`.
    Raises `Refusal`: E_NO_IMAGES, E_ARCHIVE_RATIO, E_ARCHIVE_PATH, E_ARCHIVE_DEPTH, E_ARCHIVE_BROKEN.
    """
    paths = [source] if isinstance(source, Path) else list(source)
    for path in paths:
        if not path.exists():
            raise Refusal(reasons.NO_IMAGES, private=str(path))
    with TemporaryDirectory(prefix="fedthorax-") as temporary:
        opened = []
        for number, path in enumerate(paths):
            if _is_zip(path):
                folder = Path(temporary, str(number))
                _unpack(path, folder)
                opened.append(folder)
            else:
                opened.append(path)
        yield opened[0] if isinstance(source, Path) else opened


def _is_zip(path: Path) -> bool:
    if not path.is_file():
        return False
    if path.suffix.lower() == ".zip":
        return True
    with path.open("rb") as file:
        start = file.read(132)
    return start.startswith(b"PK\x03\x04") and not start.endswith(b"DICM")


def _unpack(path: Path, folder: Path) -> None:
    try:
        _check_directory_size(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries, packed_bytes=path.stat().st_size)
            folder.mkdir()
            for entry in entries:
                if not entry.is_dir():
                    _extract(archive, entry, folder)
    except Refusal as refusal:
        raise Refusal(refusal.reason, private=f"{path}: {refusal.private}", **refusal.numbers) from None
    except Exception as error:  # zipfile and its decompressors share no base exception
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # a full disk says nothing about the zip
        raise Refusal(reasons.ARCHIVE_BROKEN, private=f"{path}: {error}") from None


def _check_directory_size(path: Path) -> None:
    """Check the end record before zipfile loads the whole table of contents (APPNOTE 6.3.10, 4.3.16)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16 - 42))  # longest comment, end record, zip64 locator
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        raise Refusal(reasons.ARCHIVE_BROKEN)
    directory_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
    # zip64 is needed only beyond our limits, and it states a second, larger size of the table.
    is_zip64 = tail[max(0, end - 20) : end].startswith(b"PK\x06\x07")
    if is_zip64 or directory_bytes > MAX_DIRECTORY_BYTES:
        raise Refusal(reasons.ARCHIVE_DEPTH, entries=MAX_ENTRIES)


def _check_entries(entries: list[zipfile.ZipInfo], *, packed_bytes: int) -> None:
    if len(entries) > MAX_ENTRIES:
        raise Refusal(reasons.ARCHIVE_DEPTH, entries=MAX_ENTRIES)
    if sum(entry.file_size for entry in entries) > min(MAX_BYTES, MAX_RATIO * packed_bytes):
        raise Refusal(reasons.ARCHIVE_RATIO, ratio=MAX_RATIO, gigabytes=MAX_BYTES >> 30)
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        kind = stat.S_IFMT(entry.external_attr >> 16)  # 0 if the archive was not made on Unix
        has_drive = ":" in name.parts[0] if name.parts else False
        if name.is_absolute() or ".." in name.parts or has_drive or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refusal(reasons.ARCHIVE_PATH, private=entry.filename)
        if name.suffix.lower() in _ARCHIVES:
            raise Refusal(reasons.ARCHIVE_DEPTH, private=entry.filename, entries=MAX_ENTRIES)
        # bz2 and LZMA are refused: they decompress without a limit on memory.
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refusal(reasons.ARCHIVE_BROKEN, private=f"{entry.filename}: encrypted or unusual compression")


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Write one entry. zipfile returns at most as many bytes as the header states; a false header fails the CRC."""
    target = folder / entry.filename.replace("\\", "/")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Mode "x": a second entry with the same name would overwrite the first.
    with archive.open(entry) as packed, target.open("xb") as file:
        shutil.copyfileobj(packed, file)
    changed = time.mktime((*entry.date_time, 0, 0, -1))
    os.utime(target, (changed, changed))
