"""The journal of a site's pulls, an SQLite file with keyed hashes and no identifiers.

It saves queries for series that are already complete. If it is lost, queries are repeated, but no transfers, because
the files show what is there.
"""

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.system.atomic_files import write_ahead

SCHEMA_VERSION = 1
_BUSY_SECONDS = 30.0
SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    series TEXT PRIMARY KEY,
    pseudonym TEXT NOT NULL,  -- of the patient to whom the PACS assigned it then
    images INTEGER,           -- number in the PACS when the series was complete; NULL while incomplete
    bytes INTEGER NOT NULL    -- size of their files, to detect damage
);
CREATE TABLE IF NOT EXISTS refused (
    series TEXT NOT NULL,
    image TEXT NOT NULL,
    code TEXT NOT NULL,       -- why it was not stored
    PRIMARY KEY (series, image)
);
"""


@dataclass(frozen=True)
class Entry:
    """One line of the table `series`."""

    series: str
    pseudonym: str
    images: int | None
    bytes: int


class Journal:
    """The open journal; a context manager. Every change is written at once."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        write_ahead(self._db, seconds=_BUSY_SECONDS)
        if self._db.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            self._db.executescript("DROP TABLE IF EXISTS series; DROP TABLE IF EXISTS refused;")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._db.executescript(SCHEMA)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def entry(self, series: str) -> Entry | None:
        row = self._db.execute("SELECT * FROM series WHERE series = ?", (series,)).fetchone()
        return Entry(*row) if row else None

    def of_patients(self, pseudonyms: Collection[str]) -> list[str]:
        """Return the keys of the series of some patients."""
        rows = self._db.execute("SELECT series, pseudonym FROM series").fetchall()
        return [series for series, pseudonym in rows if pseudonym in pseudonyms]

    def write(self, entry: Entry) -> None:
        values = (entry.series, entry.pseudonym, entry.images, entry.bytes)
        self._db.execute("INSERT OR REPLACE INTO series VALUES (?, ?, ?, ?)", values)

    def forget(self, series: str) -> None:
        self._db.execute("DELETE FROM refused WHERE series = ?", (series,))
        self._db.execute("DELETE FROM series WHERE series = ?", (series,))

    def compact(self) -> None:
        """Rewrite the file, so that no deleted row remains in its unused pages or in the write-ahead log."""
        self._db.execute("VACUUM")
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def refuse(self, series: str, image: str, code: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?)", (series, image, code))

    def refused(self, series: str) -> dict[str, str]:
        """Return the code of each refused image of a series."""
        return dict(self._db.execute("SELECT image, code FROM refused WHERE series = ?", (series,)))
