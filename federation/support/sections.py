"""What all reports share: sections that survive what is broken, counts of known words, databases, and the disk."""

import os
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from federation.support.log_summary import known_exception
from federation.system.refusals_page import REASONS
from federation.upgrade.plan import Store
from models.refusal import Refusal
from pipeline.system.folder_format import read_stamp
from pipeline.system.sqlite_format import file_version

OTHER = "other"  # stands for every word that the release does not contain
_VERSION = re.compile(r"\d{1,3}(\.\d{1,3}){1,2}((a|b|rc|\.dev)\d{1,3})?", re.ASCII)
_WAIT_SECONDS = 30.0
_MOST = 10**6  # a larger number may be an identifier


def section(compute: Callable[[], Any]) -> Any:
    """Return a section, or only the code of its problem: a report is made of what may be broken."""
    try:
        return compute()
    except Refusal as refusal:
        return {"problem": known_word(refusal.code, REASONS)}
    except Exception as error:  # its text may name anything
        return {"problem": known_exception(type(error).__name__) or OTHER}


def known_word(word: Any, known: Collection[str]) -> str:
    """Return a word of the release, or `OTHER` for any other: a person, a file or another site may have chosen it."""
    return word if isinstance(word, str) and word in known else OTHER


def tally(words: Iterable[Any], known: Collection[str]) -> dict[str, int]:
    """Count words of the release; all others are counted together."""
    return dict(sorted(Counter(known_word(word, known) for word in words).items()))


def listed_words(annotation: Any) -> set[Any]:
    """Return the words that a type lists, such as those of `Literal["off", "accepted"] | None`."""
    inner = get_args(annotation)
    return set(inner) if get_origin(annotation) is Literal else set[Any]().union(*map(listed_words, inner))


def bounded(number: float) -> float | str:
    """Return a number with four digits, or "(large)"; the digits of a longer one may be those of an identifier."""
    if abs(number) > _MOST:
        return "(large)"
    return number if isinstance(number, int) else float(f"{number:.4g}")


def version_word(text: Any) -> str:
    """Return a version such as 0.1.0, or `OTHER`."""
    return text if isinstance(text, str) and _VERSION.fullmatch(text) else OTHER


def head(folder: Path) -> dict[str, Any]:
    """Return when and with which version the report is made, and the version that last worked in the folder."""
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("fedthorax"),
        "last_version": section(lambda: version_word(read_stamp(folder).software)),
    }


def disk(folder: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Return the space of a folder's disk in GB, and the size of those of its parts that exist, in whole MB.

    Exact sizes are left out: the size of a scan may identify it.
    """
    usage = shutil.disk_usage(folder)
    sizes = {name: -(-_bytes(folder / name) // 10**6) for name in parts if (folder / name).exists()}
    return {"total_gb": round(usage.total / 1e9, 1), "free_gb": round(usage.free / 1e9, 1), "parts_mb": sizes}


def _bytes(path: Path) -> int:
    """Return the size of a file or of all files in a folder. Links in it are not followed."""
    if not path.is_dir():
        return path.lstat().st_size
    files = (os.path.join(top, name) for top, _, names in os.walk(path) for name in names)  # noqa: PTH118 - many files
    return sum(_size(file) for file in files)


def _size(file: str) -> int:
    try:
        return os.lstat(file).st_size
    except FileNotFoundError:  # a running service has removed it
        return 0


def databases(stores: Iterable[Store]) -> dict[str, Any]:
    """Return format and integrity of each database that exists, by its file name. Nothing is migrated."""
    return {store.path.name: section(partial(_database, store)) for store in stores if store.path.exists()}


def _database(store: Store) -> dict[str, Any]:
    with read_only(store.path) as database:
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    return {"intact": found == "ok", "format": file_version(store.path, store.of), "known_format": store.of.version}


@contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for reading; its format is not changed. Raises sqlite3.Error."""
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as database:
        yield database
