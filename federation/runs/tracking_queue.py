"""What waits for MLflow, in tracking.jsonl in a run's folder: one JSON object a line, oldest first.

Several processes may upload what one run queued: the run itself, the next run on this server, an export. They take
turns, and each goes on with what the file holds then.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.system.atomic_files import write_durably
from pipeline.system.locks import in_turn

SPOOL = "tracking.jsonl"
_LOCK = ".tracking.lock"

Entry = dict[str, Any]


class TrackingQueue:
    """The queue of one run. `has_lost` becomes true if a part of the file was damaged; that part is left out."""

    def __init__(self, run_folder: Path) -> None:
        self.file = run_folder / SPOOL
        self.has_lost = False
        self._unstored: list[Entry] = []  # what a full disk did not take

    def deliver(self, new: list[Entry], upload: Callable[[Entry], None]) -> None:
        """Upload all entries in order, those of the file first, and keep the rest if one fails.

        Raises what `upload` raises. Raises OSError if the rest cannot be stored; it is then kept in this object.
        """
        with in_turn(self.file.with_name(_LOCK)):
            stored = self._read()
            more = [*self._unstored, *new]
            uploaded = 0
            try:
                for entry in (*stored, *more):
                    upload(entry)
                    uploaded += 1
            finally:
                self._unstored = more[max(0, uploaded - len(stored)) :]
                self._store([*stored[uploaded:], *self._unstored])
                self._unstored = []

    def _read(self) -> list[Entry]:
        try:
            lines = self.file.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = [entry for line in lines if (entry := _parsed(line))]
        self.has_lost |= len(found) < len(lines)
        return found

    def _store(self, waiting: list[Entry]) -> None:
        if waiting:
            write_durably(self.file, "".join(json.dumps(each) + "\n" for each in waiting).encode())
        else:
            self.file.unlink(missing_ok=True)


def _parsed(line: bytes) -> Entry | None:
    """Return a line's entry; None if the line is damaged, as after a full disk."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("what"), str) else None
