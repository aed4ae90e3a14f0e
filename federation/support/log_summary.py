"""What a report says of logs: counts of known codes, of known exceptions, and of the lines of this program they name.

A log can hold names of patients, paths and words of an app, so nothing of its text is copied. Each word is looked up in
the release: a code in the table of reasons, an exception in Python's own, a place in the release's source.
"""

import builtins
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import models
from federation.system.refusals_page import REASONS

_CODE = re.compile(rb"\b[EW]_[A-Z_]+\b")
_EXCEPTION = re.compile(rb"\b([A-Z][A-Za-z]{3,40})(?=:|\s*$)", re.MULTILINE)
_PLACE = re.compile(rb'File "[^"\n]*/((?:models|pipeline|federation)/[\w/]{1,90}\.py)", line (\d{1,5})\b', re.ASCII)
_PACKAGES = Path(models.__file__).parents[1]
_READ_BYTES = 16 * 2**20  # of the end of each log
_PLACES, _LATEST = 30, 10
_ROTATED = ("", *(f".{number}" for number in range(1, 5)))
# Of libraries: what a disk, a network or a scan can cause.
_OF_LIBRARIES = (
    *("DatabaseError", "OperationalError", "IntegrityError", "SSLError", "SSLCertVerificationError", "gaierror"),
    *("ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "HTTPStatusError", "HTTPError", "ClientError"),
    *("InvalidDicomError", "ValidationError", "JSONDecodeError", "OutOfMemoryError", "MlflowException", "BadZipFile"),
)
_EXCEPTIONS = {
    *(name for name, each in vars(builtins).items() if isinstance(each, type) and issubclass(each, BaseException)),
    *_OF_LIBRARIES,
}


def log_summary(folder: Path, names: Sequence[str], *, of_app: Sequence[str] = ()) -> dict[str, Any]:
    """Return what is known of each log that exists in a folder. `names`: those of the role; other files are not read.

    `codes` are counted in the last 16 MB, `latest` are the last ones, the newest at the end. `exceptions` are counted
    by class, `places` by file and line of this program. `of_app`: logs that a study's code can write. It could hide
    data in counts and in an order, so only which codes occur is said.
    """
    found = {name: _summary(_end(path)) for name, path in _files(folder, names)}
    return found | {name: {"codes": sorted({*_codes(_end(path))})} for name, path in _files(folder, of_app)}


def _files(folder: Path, names: Sequence[str]) -> list[tuple[str, Path]]:
    files = [(name + suffix, folder / (name + suffix)) for name in names for suffix in _ROTATED]
    return [(name, path) for name, path in files if path.is_file()]


def known_exception(name: str) -> str:
    """Return the name of a known exception, or ""."""
    return name if name in _EXCEPTIONS else ""


def _end(path: Path) -> bytes:
    with path.open("rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _READ_BYTES))
        return log.read(_READ_BYTES)


def _summary(content: bytes) -> dict[str, Any]:
    codes = _codes(content)
    exceptions = [name for each in _EXCEPTION.findall(content) if (name := each.decode()) in _EXCEPTIONS]
    places = [f"{path.decode()}:{int(line)}" for path, line in _PLACE.findall(content) if _exists(path, int(line))]
    return {
        "lines": content.count(b"\n"),
        "codes": _counts(codes),
        "latest": codes[-_LATEST:],
        "exceptions": _counts(exceptions),
        "places": dict(Counter(places).most_common(_PLACES)),
    }


def _codes(content: bytes) -> list[str]:
    return [code for each in _CODE.findall(content) if (code := each.decode()) in REASONS]


def _counts(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _exists(path: bytes, line: int) -> bool:
    return 1 <= line <= _lines(path.decode())


@cache
def _lines(module: str) -> int:
    """Return the number of lines of a module of the release; 0 if there is none of this name."""
    file = _PACKAGES / module
    return len(file.read_bytes().splitlines()) if file.is_file() else 0
