"""The cohort of a site: one SQLite file and a folder of tensors.

`scans` remembers every series that was examined, by fingerprint, so that nothing is read twice. `patients` and
`findings` say what the last ingest made of them; they are replaced in one transaction.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.examples import Example
from pipeline.site import Site, Split

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS scans (
    fingerprint TEXT NOT NULL,     -- of the series' files
    settings TEXT NOT NULL,        -- digest of the preprocessing that made the tensor
    code TEXT,                     -- why it was refused; NULL if accepted
    says TEXT,
    flags TEXT NOT NULL,           -- W_ codes, comma-separated
    scan_digest TEXT,              -- SHA-256 of the HU: the same scan under two names has the same
    tensor TEXT,                   -- file name under tensors/
    slices INTEGER NOT NULL,
    lungs_ml REAL,
    PRIMARY KEY (fingerprint, settings)
);
CREATE TABLE IF NOT EXISTS patients (
    pseudonym TEXT PRIMARY KEY,
    split TEXT NOT NULL,
    tensor TEXT NOT NULL,
    age_years REAL,
    sex TEXT,
    pcr_positive INTEGER NOT NULL,
    severe INTEGER
);
CREATE TABLE IF NOT EXISTS findings (
    code TEXT NOT NULL,
    pseudonym TEXT NOT NULL,
    series TEXT NOT NULL,  -- start of the fingerprint; '' where it is about no series
    says TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Scan:
    """What became of one series."""

    fingerprint: str
    settings: str
    code: str | None
    says: str | None
    flags: str
    scan_digest: str | None
    tensor: str | None
    slices: int
    lungs_ml: float | None


@dataclass(frozen=True)
class PatientRow:
    """One accepted patient."""

    pseudonym: str
    split: Split
    tensor: str
    age_years: float | None
    sex: str | None
    pcr_positive: bool
    severe: bool | None


@dataclass(frozen=True)
class FindingRow:
    """One finding, under the patient's pseudonym ('' where it belongs to nobody)."""

    code: str
    pseudonym: str
    series: str
    says: str


class Cohort:
    """The cohort of one site; a context manager."""

    def __init__(self, site: Site) -> None:
        self.folder = site.cohort_folder
        self.tensors = self.folder / "tensors"
        self.tensors.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(self.folder / "cohort.sqlite", timeout=30, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._forget_other_versions()
        self._db.executescript(SCHEMA)

    def _forget_other_versions(self) -> None:
        """Everything here is made from the source files, so a file of another version is begun anew."""
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found != SCHEMA_VERSION:
            for table in ("scans", "patients", "findings"):
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def __enter__(self) -> "Cohort":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add_scan(self, scan: Scan) -> None:
        """Remember one examined series; written through at once, so that an interruption loses nothing."""
        self._insert("scans", [scan])

    def scans(self, settings: str) -> dict[str, Scan]:
        """Examined series by fingerprint: those prepared with these settings whose tensor is still there."""
        rows = self._db.execute("SELECT * FROM scans WHERE settings = ?", (settings,))
        scans = [Scan(*row) for row in rows]
        return {s.fingerprint: s for s in scans if s.tensor is None or (self.tensors / s.tensor).is_file()}

    def replace(self, patients: Iterable[PatientRow], findings: Iterable[FindingRow]) -> None:
        """Put a new list of patients and findings in place of the old one, all or nothing."""
        with self._transaction():
            self._db.execute("DELETE FROM patients")
            self._db.execute("DELETE FROM findings")
            self._insert("patients", patients)
            self._insert("findings", findings)

    def _insert(self, table: str, rows: Iterable[Any]) -> None:
        for row in rows:
            marks = ", ".join("?" for _ in fields(row))
            self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", astuple(row))  # noqa: S608

    def patients(self) -> list[PatientRow]:
        """All accepted patients, by pseudonym."""
        rows = self._db.execute("SELECT * FROM patients ORDER BY pseudonym").fetchall()
        return [
            PatientRow(pseudonym, split, tensor, age, sex, bool(pcr), None if severe is None else bool(severe))
            for pseudonym, split, tensor, age, sex, pcr, severe in rows
        ]

    def settings(self) -> set[str]:
        """Digests of the preprocessing that made the patients' tensors: one, or none without patients."""
        rows = self._db.execute("SELECT DISTINCT settings FROM scans WHERE tensor IN (SELECT tensor FROM patients)")
        return {row[0] for row in rows}

    def examples(self, *splits: Split) -> list[Example]:
        """The examples of some splits, in the order of the pseudonyms."""
        return [
            Example(self.tensors / p.tensor, p.age_years, p.sex, p.pcr_positive, p.severe)
            for p in self.patients()
            if p.split in splits
        ]


def save_tensor(folder: Path, name: str, tensor: NDArray[np.float16]) -> None:
    """Write a tensor so that the file is either whole or not there."""
    temporary = folder / f".{name}.{os.getpid()}"
    with temporary.open("wb") as file:
        np.save(file, tensor)
        file.flush()
        os.fsync(file.fileno())  # before the name, or a power cut could leave an empty file behind it
    temporary.replace(folder / name)
