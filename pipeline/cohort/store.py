"""Stores the cohort of a site in one SQLite file and a folder of tensors.

The table `scans` holds every examined series by fingerprint, so that nothing is read twice. `examined` holds which
version of the examination took or refused it: another version may decide otherwise. `patients` and `findings`
hold the result of the last ingest; one transaction replaces them. `unlabelled` holds patients with a scan and no label,
where the site keeps them. They have a table of their own, so that nothing that reads `patients` can use or count them.
A version that does not know this table ignores it, and may leave rows in it whose scans are gone: `unlabelled()` omits
these. The same holds for `examined` and `records`. `revision` shows that the training patients changed, even if they
changed back.

The same transaction removes series that are no longer in the site's files, for all settings; their tensors are deleted
afterwards. Tensors of existing series are kept, also for other settings: a study with these settings may be running,
and returning to it must not need a new ingest.

`encoded/ENCODER/` holds the features of frozen encoders, one file for each tensor, under the same name.

The module imports little, because a node imports it at its start and then runs for months.
"""

import secrets
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from models.refusal import Refusal
from pipeline.cohort import reasons
from pipeline.cohort.tensor_files import is_whole
from pipeline.site.folder import Site, SiteTable, Split
from pipeline.system.locks import alone

if TYPE_CHECKING:
    from pipeline.cohort.dataset import Example
    from pipeline.preprocessing.measures import Measures

FILE, LOCK = "cohort.sqlite", "lock"
SCHEMA_VERSION = 4
SCHEMA = """
CREATE TABLE IF NOT EXISTS scans (
    fingerprint TEXT NOT NULL,     -- of the series' files
    settings TEXT NOT NULL,        -- digest of the preprocessing that made the tensor
    code TEXT,                     -- why it was refused; NULL if accepted
    says TEXT,
    flags TEXT NOT NULL,           -- W_ codes, comma-separated
    scan_digest TEXT,              -- SHA-256 of the HU on the working grid; copies of a scan have the same
    tensor TEXT,                   -- file name under tensors/
    measures TEXT,                 -- JSON, for the data contract: numbers and words from closed lists
    PRIMARY KEY (fingerprint, settings)
);
CREATE TABLE IF NOT EXISTS examined (
    fingerprint TEXT NOT NULL,
    settings TEXT NOT NULL,
    version INTEGER NOT NULL,      -- of the examination; scans without a row are of versions before this table
    PRIMARY KEY (fingerprint, settings)
);
CREATE TABLE IF NOT EXISTS patients (
    pseudonym TEXT PRIMARY KEY,
    split TEXT NOT NULL,
    tensor TEXT NOT NULL,
    age_years REAL,
    sex TEXT,
    pcr_positive INTEGER,
    severe INTEGER
);
CREATE TABLE IF NOT EXISTS unlabelled (
    pseudonym TEXT PRIMARY KEY,
    tensor TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS revision (
    training TEXT NOT NULL         -- random, another one after each change of the training patients or their scans
);
CREATE TABLE IF NOT EXISTS records (
    kind TEXT PRIMARY KEY,         -- PCR results, outcomes, or labels
    count INTEGER NOT NULL         -- at the last ingest, of all patients
);
CREATE TABLE IF NOT EXISTS findings (
    code TEXT NOT NULL,
    pseudonym TEXT NOT NULL,
    series TEXT NOT NULL,  -- start of the fingerprint; '' if it concerns no series
    says TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Scan:
    """The result of the examination of one series."""

    fingerprint: str
    settings: str
    code: str | None
    says: str | None
    flags: str
    scan_digest: str | None
    tensor: str | None
    measures: "Measures | None"


@dataclass(frozen=True)
class PatientRow:
    """One accepted patient."""

    pseudonym: str
    split: Split
    tensor: str
    age_years: float | None
    sex: str | None
    pcr_positive: bool | None
    severe: bool | None


@dataclass(frozen=True)
class UnlabelledRow:
    """One patient with a usable scan and without a label. Age and sex are not kept: nothing needs them."""

    pseudonym: str
    tensor: str


@dataclass(frozen=True)
class FindingRow:
    """One finding, under the patient's pseudonym ('' if it belongs to no patient)."""

    code: str
    pseudonym: str
    series: str
    says: str


class Cohort:
    """The cohort of one site; a context manager. Raises Refusal E_COHORT_FILE if SQLite fails.

    SQLite uses a rollback journal here, not a write-ahead log. With a write-ahead log, readers must write too (to the
    shared memory beside the file, https://www.sqlite.org/wal.html#readonly), but the study's code runs on a read-only
    mount. SQLite's immutable mode would be wrong while an ingest is running. With a journal, readers can lock the file
    on a read-only mount, and wait some milliseconds while a change is written.
    """

    def __init__(self, site: Site) -> None:
        self._place(site)
        self.tensors.mkdir(parents=True, exist_ok=True)
        self._connect("rwc")
        with self._refusing():
            self._db.execute("PRAGMA journal_mode=DELETE")
            self._forget_other_versions()
            self._db.executescript(SCHEMA)

    @classmethod
    def read(cls, site: Site) -> Self:
        """Open the cohort for reading only: nothing is created or written, so the folder may be read-only.

        Raises Refusal E_COHORT_FILE if there is no cohort yet, or one of another version.
        """
        cohort = cls.__new__(cls)
        cohort._place(site)
        cohort._connect("ro")
        with cohort._refusing():
            if cohort._version() != SCHEMA_VERSION:
                raise Refusal(reasons.COHORT_FILE, private=f"version {cohort._version()}, not {SCHEMA_VERSION}")
        return cohort

    def _place(self, site: Site) -> None:
        self.folder = site.cohort_folder
        self.tensors = self.folder / "tensors"
        self.encoded = self.folder / "encoded"

    def _connect(self, mode: str) -> None:
        with self._refusing():
            path = f"{(self.folder / FILE).absolute().as_uri()}?mode={mode}"
            self._db = sqlite3.connect(path, uri=True, timeout=30, isolation_level=None)

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Refusal(reasons.COHORT_FILE, private=str(error)) from error

    def _version(self) -> int:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        return version

    def _forget_other_versions(self) -> None:
        """Empty a file of another version; its content can be made again from the source files."""
        if self._version() != SCHEMA_VERSION:
            for table in ("scans", "examined", "patients", "unlabelled", "revision", "records", "findings"):
                self._db.execute(f"DROP TABLE IF EXISTS {table}")
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise Refusal(reasons.COHORT_FILE, private=str(error)) from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the cohort against other examinations and changes; reading is allowed. Raises Refusal E_COHORT_BUSY."""
        with alone(self.folder / LOCK, reasons.COHORT_BUSY):
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add_scan(self, scan: Scan, version: int = 0) -> None:
        """Store one examined series at once, so that an interruption loses nothing. `version`: of the examination."""
        row = vars(scan) | {"measures": scan.measures and scan.measures.to_json()}
        with self._transaction():
            self._insert("scans", [tuple(row.values())])
            self._insert("examined", [(scan.fingerprint, scan.settings, version)])

    def examined(self, settings: str, version: int) -> set[str]:
        """Return the fingerprints of the series that this version of the examination examined with these settings."""
        rows = self._db.execute(
            "SELECT fingerprint FROM examined WHERE settings = ? AND version = ?", (settings, version)
        )
        return {row[0] for row in rows}

    def scans(self, settings: str) -> dict[str, Scan]:
        """Return the series examined with these settings, by fingerprint, if their tensor is still whole."""
        rows = self._db.execute("SELECT * FROM scans WHERE settings = ?", (settings,))
        scans = [_scan(row) for row in rows]
        return {s.fingerprint: s for s in scans if s.tensor is None or is_whole(self.tensors / s.tensor)}

    def replace(
        self,
        patients: Iterable[PatientRow],
        findings: Iterable[FindingRow],
        fingerprints: Collection[str],
        unlabelled: Iterable[UnlabelledRow] = (),
        records: Mapping[str, int] | None = None,
    ) -> None:
        """Replace the lists of patients, with and without labels, and of findings in one transaction.

        `fingerprints`: of all series that are now in the site's files; other scans are removed. `records`: how many
        records of each kind the site has; None if they were not read.
        """
        with self._transaction():
            before = self._training()
            for table in ("patients", "unlabelled", "findings"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608
            self._insert("patients", map(astuple, patients))
            self._insert("unlabelled", map(astuple, unlabelled))
            self._insert("findings", map(astuple, findings))
            if records is not None:
                self._db.execute("DELETE FROM records")
                self._insert("records", records.items())
            if self._training() != before:  # no counter: it would begin again in a file that is made again
                self._db.execute("DELETE FROM revision")
                self._insert("revision", [(secrets.token_hex(16),)])
            known = {row[0] for row in self._db.execute("SELECT DISTINCT fingerprint FROM scans")}
            gone = [(fingerprint,) for fingerprint in known.difference(fingerprints)]
            self._db.executemany("DELETE FROM scans WHERE fingerprint = ?", gone)
            self._db.execute("DELETE FROM examined WHERE fingerprint NOT IN (SELECT fingerprint FROM scans)")

    def _training(self) -> list[tuple[str, str]]:
        return self._db.execute(
            "SELECT pseudonym, tensor FROM patients WHERE split = 'train' ORDER BY pseudonym"
        ).fetchall()

    def sweep(self) -> None:
        """Delete tensors and features that belong to no scan, including those that a killed process left.

        If this process is killed too, the next call deletes the rest.
        """
        named = set(self.prepared())
        encoded = self.encoded.iterdir() if self.encoded.is_dir() else ()
        for folder in (self.tensors, *encoded):
            for path in folder.iterdir():
                if path.name not in named:
                    path.unlink(missing_ok=True)

    def prepared(self, settings: str | None = None) -> list[str]:
        """Return the names of all tensors, or of those that were made with these settings, sorted."""
        rows = self._db.execute(
            "SELECT tensor FROM scans WHERE tensor IS NOT NULL AND (?1 IS NULL OR settings = ?1) ORDER BY tensor",
            (settings,),
        )
        return [row[0] for row in rows]

    def _insert(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        for row in rows:
            marks = ", ".join("?" for _ in row)
            self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", row)  # noqa: S608

    def patients(self) -> list[PatientRow]:
        """Return all accepted patients, sorted by pseudonym."""
        rows = self._db.execute("SELECT * FROM patients ORDER BY pseudonym").fetchall()
        return [
            PatientRow(pseudonym, split, tensor, age, sex, _bool(pcr), _bool(severe))
            for pseudonym, split, tensor, age, sex, pcr, severe in rows
        ]

    def unlabelled(self) -> list[UnlabelledRow]:
        """Return the patients with a scan and without a label, sorted by pseudonym; none of them is in `patients`."""
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'unlabelled'").fetchone():
            return []  # opened for reading, and last written by a version without the table
        rows = self._db.execute(
            "SELECT * FROM unlabelled WHERE tensor IN (SELECT tensor FROM scans)"
            " AND pseudonym NOT IN (SELECT pseudonym FROM patients) ORDER BY pseudonym"
        )
        return [UnlabelledRow(*row) for row in rows]

    def to_pretrain(self, settings: SiteTable) -> list[UnlabelledRow]:
        """Return the patients whose scans a pretraining may use, by pseudonym: no label, age or sex is among it.

        They are the patients of the split `train`, and those without a label, if the site still keeps them and they are
        at least `min_patients`. Otherwise the number of all would say something about so few.
        """
        labelled = [UnlabelledRow(p.pseudonym, p.tensor) for p in self.patients() if p.split == "train"]
        unlabelled = self.unlabelled() if settings.unlabelled_patients else []
        both = labelled + (unlabelled if len(unlabelled) >= settings.min_patients else [])
        return sorted(both, key=lambda row: row.pseudonym)

    def findings(self) -> list[FindingRow]:
        """Return all findings of the last ingest."""
        return [FindingRow(*row) for row in self._db.execute("SELECT * FROM findings")]

    def records(self) -> dict[str, int]:
        """Return how many records of each kind the site had at the last ingest."""
        return dict(self._db.execute("SELECT kind, count FROM records").fetchall())

    def fingerprints(self, *, without: Collection[str]) -> set[str]:
        """Return the fingerprints of all examined series but those of these tensors."""
        rows = self._db.execute("SELECT fingerprint, tensor FROM scans").fetchall()
        return {fingerprint for fingerprint, tensor in rows if tensor not in without}

    def compact(self) -> None:
        """Rewrite the file, so that no deleted row remains in its unused pages."""
        self._db.execute("VACUUM")

    def settings(self) -> set[str]:
        """Return the digests of the settings of the patients' tensors: one, or none without patients."""
        rows = self._db.execute("SELECT DISTINCT settings FROM scans WHERE tensor IN (SELECT tensor FROM patients)")
        return {row[0] for row in rows}

    def require_encoded(self, encoder: str) -> None:
        """Raise Refusal E_NOT_ENCODED unless the features of an encoder are there for all patients.

        `encoder`: its name, or that of its maps (`encoded_name`).
        """
        patients = self.patients()
        missing = sum(not (self.encoded / encoder / patient.tensor).is_file() for patient in patients)
        if missing:
            raise Refusal(reasons.NOT_ENCODED, missing=missing, scans=len(patients))

    def forget_maps(self, wanted: Collection[str]) -> None:
        """Delete the maps that studies need which tune an encoder, except the `wanted` ones: maps are large.

        `wanted`: names as `encoded_name` makes them. Features of frozen encoders stay. Raises Refusal E_COHORT_BUSY.
        """
        with self.alone():
            for folder in self.encoded.iterdir() if self.encoded.is_dir() else ():
                if "-" in folder.name and folder.name not in wanted:
                    shutil.rmtree(folder)

    def examples(self, *splits: Split, encoder: str = "") -> "list[Example]":
        """Return the examples of some splits, sorted by pseudonym.

        `encoder`: with the paths of its features, or of its maps (`encoded_name`).
        """
        from pipeline.cohort.dataset import Example
        from pipeline.preprocessing.measures import Measures

        rows = self._db.execute("SELECT tensor, measures FROM scans WHERE tensor IN (SELECT tensor FROM patients)")
        measures = {tensor: stored and Measures.from_json(stored) for tensor, stored in rows}
        return [
            Example(
                self.tensors / p.tensor,
                p.age_years,
                p.sex,
                p.pcr_positive,
                p.severe,
                measures.get(p.tensor),
                p.pseudonym,
                self.encoded / encoder / p.tensor if encoder else None,
            )
            for p in self.patients()
            if p.split in splits
        ]


def _scan(row: tuple[Any, ...]) -> Scan:
    from pipeline.preprocessing.measures import Measures

    values = dict(zip((field.name for field in fields(Scan)), row, strict=True))
    return Scan(**{**values, "measures": values["measures"] and Measures.from_json(values["measures"])})


def _bool(stored: int | None) -> bool | None:
    return None if stored is None else bool(stored)
