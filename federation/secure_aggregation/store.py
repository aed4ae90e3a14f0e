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
different content. Not prevented: a backup of the whole machine with its memory. Also, an old database has forgotten
which sums were revealed since. A hospital restored like that counts as one that colludes with the server: fewer
than 2t - n of them change nothing (see `Roster.threshold`).
"""

import hashlib
import json
import os
import secrets
import sqlite3
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

from federation.secure_aggregation import reasons
from federation.secure_aggregation.keys import KEY_BYTES, seal, unseal
from models.refusal import Refusal
from pipeline.system.atomic_files import write_ahead, write_atomically
from pipeline.system.sqlite_format import SqliteFormat, bring_up

P = ParamSpec("P")
T = TypeVar("T")
FILE = "rounds.sqlite"
_WAIT_SECONDS = 30.0
_FROM_LEDGER = "from the ledger"  # the kind of a row whose model is a `revealed_key`
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of this user is made in it
_SUMMED = """
CREATE TABLE IF NOT EXISTS summed (roster TEXT, kind TEXT, hospitals TEXT NOT NULL, PRIMARY KEY (roster, kind)) STRICT
"""
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS runs (
    run TEXT PRIMARY KEY, round INTEGER NOT NULL, attempt INTEGER NOT NULL, step INTEGER NOT NULL,
    secrets BLOB NOT NULL, uploaded TEXT NOT NULL, changes INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS revealed (model TEXT, kind TEXT, PRIMARY KEY (model, kind)) STRICT;
{_SUMMED};
"""
FORMAT = SqliteFormat(
    version=3,
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
    },
)


@dataclass(frozen=True)
class Attempt:
    """The last attempt of a run. `step`: how many steps were done in it.

    `secrets`: JSON values that nobody else may know; empty if they are gone. `uploaded`: the hospitals in the run's
    last confirmed sum. `changes`: how often these changed in the run.
    """

    run: str
    round: int
    attempt: int
    step: int = 0
    secrets: dict[str, Any] = field(default_factory=dict)
    uploaded: tuple[str, ...] = ()
    changes: int = 0


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
        bring_up(self._database, self._file, FORMAT)

    def close(self) -> None:
        self._database.close()

    @_locked
    def last(self, run: str) -> Attempt | None:
        """Return the run's last attempt, without secrets if they are gone."""
        row = self._database.execute("SELECT * FROM runs WHERE run = ?", (run,)).fetchone()
        if row is None:
            return None
        _, number, attempt, step, sealed, uploaded, changes = row
        opened = self._opened(run, step, sealed)
        return Attempt(run, number, attempt, step, opened, tuple(json.loads(uploaded)), changes)

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
            json.dumps(attempt.uploaded),
            attempt.changes,
        )
        with self._database as database:  # sqlite3 ends the transaction: committed, or rolled back on an error
            database.execute("BEGIN IMMEDIATE")
            database.execute("REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            if revealed and not database.execute("INSERT OR IGNORE INTO revealed VALUES (?, ?)", revealed).rowcount:
                raise Refusal(reasons.SECAGG_MODEL_USED)  # another run revealed it between the check and now
            if summed:
                hospitals = sorted(attempt.uploaded)
                database.execute("INSERT OR IGNORE INTO summed VALUES (?, ?, ?)", (*summed, json.dumps(hospitals)))
                if self.summed_over(*summed) != tuple(hospitals):
                    raise Refusal(reasons.SECAGG_NOT_SAME)
        self._write_witness({**seen, attempt.run: (key.hex(), attempt.step)})

    @_locked
    def summed_over(self, roster: str, kind: str) -> tuple[str, ...] | None:
        """Return the hospitals of a roster over which figures or answers of this kind were summed; None if never."""
        found = self._database.execute(
            "SELECT hospitals FROM summed WHERE roster = ? AND kind = ?", (roster, kind)
        ).fetchone()
        return tuple(json.loads(found[0])) if found else None

    @_locked
    def was_revealed(self, model: str, kind: str) -> bool:
        """Tell whether a sum of this kind for this model may have been revealed."""
        query = "SELECT 1 FROM revealed WHERE (model, kind) IN ((?, ?), (?, ?))"
        found = self._database.execute(query, (model, kind, revealed_key(model, kind), _FROM_LEDGER)).fetchone()
        return found is not None

    @_locked
    def add_revealed(self, keys: Iterable[str]) -> None:
        """Store, durably, that sums were revealed which the ledger names by their `revealed_key`."""
        with self._database as database:
            database.execute("BEGIN IMMEDIATE")
            database.executemany("INSERT OR IGNORE INTO revealed VALUES (?, ?)", ((key, _FROM_LEDGER) for key in keys))

    def _seen(self) -> dict[str, tuple[str, int]]:
        """Return key and step of each run's last attempt; nothing if the file is missing or damaged."""
        try:
            content = json.loads(self._witness.read_bytes())
            return {str(run): (str(key), int(step)) for run, (key, step) in content.items()}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            return {}

    def _write_witness(self, seen: dict[str, tuple[str, int]]) -> None:
        write_atomically(self._witness, json.dumps(seen).encode(), mode=0o600)


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
