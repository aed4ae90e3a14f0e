"""Logs that child processes write: limit their size, and follow them.

A log has at most `MAX_LOG_BYTES`, and its older half is NAME.1. A child keeps its log open and a sandbox has it mounted
as a file, so while it runs its content is copied and the file emptied. Lines that are written in between are lost.
"""

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MAX_LOG_BYTES = 16 * 2**20
_MAX_LOOK_BYTES = 2**20  # of new log lines at once
_MAX_LINE_BYTES = 500


def put_aside(log: Path, *, max_bytes: int = MAX_LOG_BYTES) -> Path:
    """Rename a log that nobody writes and that is too long to NAME.1, which replaces the previous one."""
    if log.exists() and log.stat().st_size > max_bytes:
        log.replace(log.with_name(f"{log.name}.1"))
    return log


def cut(logs: Iterable[Path], *, max_bytes: int = MAX_LOG_BYTES) -> None:
    """Empty each log that is too long, after its end was copied to NAME.1.

    If the disk is full, the copy is left out: a log must not keep the disk full. Errors are ignored.
    """
    for log in logs:
        with suppress(OSError):
            if log.stat().st_size <= max_bytes:
                continue
            old = log.with_name(f"{log.name}.1")
            try:
                _copy_end(log, old, max_bytes)
            except OSError:
                old.unlink(missing_ok=True)
            os.truncate(log, 0)


def _copy_end(log: Path, old: Path, max_bytes: int) -> None:
    """Copy the last `max_bytes` of a log, which may have grown quickly, to a file of mode 0600."""
    old.unlink(missing_ok=True)
    with log.open("rb") as read, os.fdopen(os.open(old, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as write:
        read.seek(-max_bytes, os.SEEK_END)
        shutil.copyfileobj(read, write)


class Tail:
    """A growing log, read from its current end on. A log that became shorter is a new one, read from its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = path.stat().st_size if path.exists() else 0
        self._begun = b""  # a line that is not complete yet

    def lines(self) -> list[str]:
        """Return the lines that were completed since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as log:
            if os.fstat(log.fileno()).st_size < self._at:
                self._at, self._begun = 0, b""
            log.seek(self._at)
            news = log.read(_MAX_LOOK_BYTES)
            # A study's code can write more than can be read: the excess is skipped.
            self._at = log.tell() if len(news) < _MAX_LOOK_BYTES else log.seek(0, os.SEEK_END)
            *whole, begun = (self._begun + news).split(b"\n")
            self._begun = begun[:_MAX_LINE_BYTES]
        return [line[:_MAX_LINE_BYTES].decode(errors="replace") for line in whole]
