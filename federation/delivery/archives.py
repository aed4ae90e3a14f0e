"""Archives whose bytes depend on their files alone: order, dates, owners and permissions are fixed.

The compressed bytes also depend on the version of zlib.
"""

import gzip
import tarfile
import time
import zipfile
from pathlib import Path
from typing import IO, cast


def write_tar(folder: Path, out: Path, epoch: int, *, compress: bool = False) -> None:
    """Write the files below `folder` as `out`, under its name. `epoch`: the date of all files, Unix seconds."""
    with out.open("wb") as raw:
        if not compress:
            _fill(folder, raw, epoch)
            return
        with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=epoch) as packed:
            _fill(folder, cast(IO[bytes], packed), epoch)


def _fill(folder: Path, out: IO[bytes], epoch: int) -> None:
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in files_below(folder):
            entry = tarfile.TarInfo(f"{folder.name}/{path.relative_to(folder).as_posix()}")
            entry.size, entry.mtime = path.stat().st_size, epoch
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as content:
                archive.addfile(entry, content)


def rewrite_zip(path: Path, epoch: int) -> None:
    """Write a zip archive, such as a wheel, again with sorted entries, one date and the same permissions."""
    new = path.with_suffix(".new")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as archive:
        # By the wheel's format the metadata stand at the end.
        for name in sorted(old.namelist(), key=lambda name: (".dist-info/" in name, name)):
            entry = zipfile.ZipInfo(name, time.gmtime(epoch)[:6])
            entry.external_attr = (0o100644) << 16
            entry.create_system = 3  # Unix
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, old.read(name))
    new.replace(path)


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted by their path."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.as_posix())
