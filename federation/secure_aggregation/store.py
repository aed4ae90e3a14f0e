"""What a hospital's gateway remembers of masked rounds, so that neither a crash nor a backup makes it reveal more.

Two files, written before each message is sent:

- the database (SQLite, flushed to the disk): for each run its last attempt and step, for ever; the sums that were
  revealed, by model and kind, for ever; over which hospitals of a list figures and answers of each kind were summed,
  for ever; and the secrets of the last attempt, encrypted.
- the witness, in a folder that is in memory and in no backup (`witness_folder`): the key of these secrets, which is new
  in every attempt, and the step that was reached.

After kill -9 both are there, and the round goes on. After a restart of the machine the witness is gone: the attempt is
lost, and no secret is. A database restored from a backup of an earlier attempt cannot be decrypted; one of an earlier
step of the same attempt is behind the witness. Both are refused with E_SECAGG_LOST, so that no step is done twice with
different content. What an old database has forgotten is rebuilt from the ledger (`add`). Not prevented: a backup of the
whole machine with its memory and its ledger. A hospital restored like that counts as one that colludes with the server:
fewer than 2t - n of them change nothing (see `Roster.threshold`).
"""

import hashlib
import json
import os
import secrets
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

from federation.secure_aggregation import reasons
from federation.secure_aggregation.keys import KEY_BYTES, seal, unseal
from federation.secure_aggregation.messages import NOTHING, hospitals_digest
from models.refusal import Refusal
from pipeline.system.atomic_files import write_ahead, write_atomically
from pipeline.system.sqlite_format import SqliteFormat, bring_up

P = ParamSpec("P")
T = TypeVar("T")
FILE = "rounds.sqlite"
_WAIT_SECONDS = 30.0
_FROM_LEDGER = "from the ledger"  # the kind of a row whose model is a `revealed_key`
UNKNOWN = "f" * 64  # in place of a `hospitals_digest` that was forgotten; no hospitals have it
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of this user is made in it
_SUMMED = """
CREATE TABLE IF NOT EXISTS summed (roster TEXT, kind TEXT, hospitals TEXT NOT NULL, PRIMARY KEY (roster, kind)) STRICT
"""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL, step INTEGER NOT NULL,
    secrets BLOB NOT NULL, uploaded TEXT NOT NULL, changes INTEGER NOT NULL, study TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS revealed (model TEXT, kind TEXT, PRIMARY KEY (model, kind)) STRICT;
{_SUMMED};
"""
FORMAT = SqliteFormat(
    version=4,
    schema=_SCHEMA,
    steps={
        1: (  # knew only sums of training
            "ALTER TABLE revealed RENAME TO trained",
            "CREATE TABLE revealed (model TEXT, kind TEXT, PRIMARY KEY (model, kind)) STRICT",
            "INSERT INTO revealed SELECT model, 'train' FROM trained",
            "DROP TABLE trained",
        ),
        2: (  # did not know over which hospitals figures and answers were summed
            _SUMMED,
        ),
        3: (  # kept names, of which the ledger holds only the digest, and did not know the study of a run
            "ALTER TABLE runs ADD COLUMN study TEXT NOT NULL DEFAULT ''",
            "UPDATE runs SET uploaded = hospitals_digest(uploaded)",
            "UPDATE summed SET hospitals = hospitals_digest(hospitals)",
        ),
    },
)


@dataclass(frozen=True)
class Attempt:
    """The last attempt of a run. `step`: how many steps were done in it.

    `secrets`: JSON values that nobody else may know; empty if they are gone. `uploaded`: the `hospitals_digest` of the
    run's last confirmed sum; "" before the first one. `changes`: how often the hospitals changed in the run. `study`:
    the digest of the run's study; "" if only an earlier version knew it.
    """

    run: str
    round: int
    attempt: int
    step: int = 0
    secrets: dict[str, Any] = field(default_factory=dict)
    uploaded: str = ""
    changes: int = 0
    study: str = ""


@dataclass(frozen=True)
class Known:
    """What the ledger knows of a run: the last confirmed `round`, and `uploaded`, `changes`, `study` (`Attempt`)."""

    round: int = 0
    uploaded: str = ""
    changes: int = 0
    study: str = ""


def _locked(method: Callable[Concatenate["Store", P], T]) -> Callable[Concatenate["Store", P], T]:
    """Let one thread after the other run these methods of a store."""

    @wraps(method)
    def alone(store: "Store", *arguments: P.args, **options: P.kwargs) -> T:
        with store.lock:
            return method(store, *arguments, **options)

    return alone


class Store:
    """The two files; thread-safe. `folder`: for the database; `witness`: the folder of the witness."""

    def __init__(self, folder: Path, witness: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _make_private(witness)
        self._file, self._witness = folder / FILE, witness / "secagg.json"
        # Threads of several runs use it. On one connection, a second transaction would undo the first one, and two
        # changes of the witness could lose one.
        self.lock = RLock()
        self._database = sqlite3.connect(
            self._file, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._file.chmod(0o600)
        self._database.execute("PRAGMA synchronous = FULL")
        write_ahead(self._database, seconds=_WAIT_SECONDS)
        self._database.create_function("hospitals_digest", 1, _digest_of_names, deterministic=True)  # to migrate
        bring_up(self._database, self._file, FORMAT)

    def close(self) -> None:
        self._database.close()

    @_locked
    def last(self, run: str) -> Attempt | None:
        """Return the run's last attempt, without secrets if they are gone."""
        row = self._database.execute("SELECT * FROM runs WHERE run = ?", (run,)).fetchone()
        if row is None:
            return None
        _, number, attempt, step, sealed, uploaded, changes, study = row
        opened = self._opened(run, step, sealed)
        return Attempt(run, number, attempt, step, opened, uploaded, changes, study)

    @_locked
    def changes(self, study: str, run: str) -> int:
        """Return how often the hospitals changed in all runs of a study, and in this run."""
        query = "SELECT COALESCE(SUM(changes), 0) FROM runs WHERE study = ? OR run = ?"
        return int(self._database.execute(query, (study, run)).fetchone()[0])

    def _opened(self, run: str, step: int, sealed: bytes) -> dict[str, Any]:
        key, seen = self._seen().get(run, ("", 0))
        if not key or step < seen:
            return {}
        with suppress(Refusal):
            content: dict[str, Any] = json.loads(unseal(bytes.fromhex(key), sealed, _about(run, step)))
            return content
        return {}

    @_locked
    def begin(self, attempt: Attempt) -> None:
        """Store the first step of a new attempt, and make the secrets of the one before unreadable."""
        seen = self._seen()
        self._write_witness({**seen, attempt.run: (secrets.token_hex(KEY_BYTES), 0)})
        self.advance(attempt)

    @_locked
    def advance(
        self, attempt: Attempt, *, revealed: tuple[str, str] | None = None, summed: tuple[str, str] | None = None
    ) -> None:
        """Store a step, durably.

        With `revealed`, also that the sum of this model and kind may be revealed from now on. With `summed`, a roster's
        digest and a kind, also that figures or answers are summed over the hospitals `uploaded` (see `summed_over`).
        The database is written first: a witness that is ahead of it means that the database was restored.
        Raises Refusal: E_SECAGG_LOST, E_SECAGG_MODEL_USED, E_SECAGG_NOT_SAME.
        """
        seen = self._seen()
        if attempt.run not in seen:  # removed between two steps
            raise Refusal(reasons.SECAGG_LOST)
        key = bytes.fromhex(seen[attempt.run][0])
        content = json.dumps(attempt.secrets).encode()
        row = (
            *(attempt.run, attempt.round, attempt.attempt, attempt.step),
            seal(key, content, _about(attempt.run, attempt.step)),
            attempt.uploaded,
            attempt.changes,
            attempt.study,
        )
        with self._database as database:  # sqlite3 ends the transaction: committed, or rolled back on an error
            database.execute("BEGIN IMMEDIATE")
            database.execute("REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            if revealed and not database.execute("INSERT OR IGNORE INTO revealed VALUES (?, ?)", revealed).rowcount:
                raise Refusal(reasons.SECAGG_MODEL_USED)  # another run revealed it between the check and now
            if summed:
                database.execute("INSERT OR IGNORE INTO summed VALUES (?, ?, ?)", (*summed, attempt.uploaded))
                if self.summed_over(*summed) != attempt.uploaded:
                    raise Refusal(reasons.SECAGG_NOT_SAME)
        self._write_witness({**seen, attempt.run: (key.hex(), attempt.step)})

    @_locked
    def summed_over(self, roster: str, kind: str) -> str:
        """Return the `hospitals_digest` of those over which figures or answers of this kind were summed.

        NOTHING if they never were with this roster; UNKNOWN if they were, and the hospitals were forgotten.
        """
        found = self._database.execute(
            "SELECT hospitals FROM summed WHERE roster = ? AND kind = ?", (roster, kind)
        ).fetchone()
        return str(found[0]) if found else NOTHING

    @_locked
    def was_revealed(self, model: str, kind: str) -> bool:
        """Tell whether a sum of this kind for this model may have been revealed."""
        query = "SELECT 1 FROM revealed WHERE (model, kind) IN ((?, ?), (?, ?))"
        found = self._database.execute(query, (model, kind, revealed_key(model, kind), _FROM_LEDGER)).fetchone()
        return found is not None

    @_locked
    def revealed_keys(self) -> set[str]:
        """Return the `revealed_key` of each sum that this folder knows itself, not from the ledger."""
        rows = self._database.execute("SELECT model, kind FROM revealed WHERE kind != ?", (_FROM_LEDGER,))
        return {revealed_key(model, kind) for model, kind in rows}

    @_locked
    def add(self, *, revealed: Iterable[str], runs: Mapping[str, Known], summed: Mapping[tuple[str, str], str]) -> None:
        """Store, durably, what the ledger knows and this folder has forgotten; what the folder knows is kept.

        `revealed`: sums, by their `revealed_key`. `runs`: what is known of them, by name. `summed`: hospitals of
        figures and answers, by roster and kind, as `summed_over` returns them.
        """
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            rows = ((key, _FROM_LEDGER) for key in revealed)
            database.executemany("INSERT OR IGNORE INTO revealed VALUES (?, ?)", rows)
            found = ((*key, hospitals) for key, hospitals in summed.items())
            database.executemany("INSERT OR IGNORE INTO summed VALUES (?, ?, ?)", found)
            for run, known in runs.items():
                self._add_run(run, known)

    def _add_run(self, run: str, known: Known) -> None:
        """Bring the row of a run up to date, if it is older than the ledger.

        Of a later round than the row's, no attempt is left: the next one must have a higher number.
        """
        database, nothing = self._database, (run, 0, 0, 0, b"", "", 0, "")
        database.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", nothing)
        database.execute("UPDATE runs SET study = ? WHERE run = ? AND study = ''", (known.study, run))
        database.execute(
            "UPDATE runs SET uploaded = ?, changes = ? WHERE run = ? AND (changes < ? OR uploaded = '')",
            (known.uploaded, known.changes, run, known.changes),
        )
        database.execute(
            "UPDATE runs SET round = ?, attempt = 0, step = 0, secrets = ? WHERE run = ? AND round < ?",
            (known.round, b"", run, known.round),
        )

    def _seen(self) -> dict[str, tuple[str, int]]:
        """Return key and step of each run's last attempt; nothing if the file is missing or damaged."""
        try:
            content = json.loads(self._witness.read_bytes())
            return {str(run): (str(key), int(step)) for run, (key, step) in content.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}

    def _write_witness(self, seen: dict[str, tuple[str, int]]) -> None:
        write_atomically(self._witness, json.dumps(seen).encode(), mode=0o600)


def _digest_of_names(names: str) -> str:
    """Return the `hospitals_digest` of a JSON list, as format 3 has it; "" if it is empty."""
    found = json.loads(names)
    return hospitals_digest(found) if found else ""


def revealed_key(model: str, kind: str) -> str:
    """Return the digest by which the ledger names a revealed sum."""
    return hashlib.sha256(f"{model}|{kind}".encode()).hexdigest()


def _make_private(folder: Path) -> None:
    """Create the folder. Raises Refusal E_SECAGG_LOST if it is another user's, who could have made it before."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise Refusal(reasons.SECAGG_LOST, private=f"{folder} can be read or written by other users")


def check_witness(site: Path) -> bool:
    """Return whether a site's witness is in memory; a disk may keep what was deleted, and get into a backup.

    Raises Refusal E_SECAGG_LOST if the folder is another user's, or others can read it.
    """
    folder = witness_folder(site)
    if folder.exists():
        _make_private(folder)
    return folder.parent == MEMORY


def _about(run: str, step: int) -> bytes:
    return f"{run}|{step}".encode()


def witness_folder(site: Path) -> Path:
    """Return the folder of a site's witness: in memory, of this user only, gone after a restart of the machine.

    Where there is no such folder (outside Linux), it is in the system's temporary folder, which backups leave out.
    """
    name = f"fedthorax-{os.getuid()}-{hashlib.sha256(str(site.resolve()).encode()).hexdigest()[:16]}"
    return (MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())) / name
