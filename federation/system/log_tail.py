"""Follow a log that other processes write."""

import os
from pathlib import Path

_MAX_LOOK_BYTES = 2**20  # of new log lines at once
_MAX_LINE_BYTES = 500


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
