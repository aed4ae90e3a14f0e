"""The FHIR resources that were fetched from a server: one SQLite file with the newest version of each.

A page of resources and the place from which to continue are written in one transaction, so a fetch that was killed
continues without loss. Only the elements that records need are kept: no names, addresses, narratives or notes.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pipeline.system.sqlite_format import SqliteFormat, bring_up

_BUSY_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE resource (
    name TEXT PRIMARY KEY,  -- type/id
    entry TEXT NOT NULL,
    round INTEGER NOT NULL  -- the fetch that wrote it
) WITHOUT ROWID;
CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
FORMAT = SqliteFormat(version=1, schema=_SCHEMA)
_COMMON = {"resourceType", "id", "meta", "identifier", "status", "code", "subject", "encounter", "contained"}
_EVENT = _COMMON | {"effectiveDateTime", "effectiveInstant", "effectivePeriod", "issued", "specimen"}
_VALUE = {
    "valueCodeableConcept", "valueString", "valueBoolean", "valueInteger", "valueQuantity", "dataAbsentReason",
}  # fmt: skip
KEPT = {
    "Patient": {"resourceType", "id", "meta", "identifier", "deceasedBoolean", "deceasedDateTime"},
    "Specimen": _COMMON | {"collection"},
    "Observation": _EVENT | _VALUE | {"component", "hasMember"},
    "DiagnosticReport": _EVENT | {"result", "conclusion", "conclusionCode"},
    "Encounter": _COMMON | {"period", "type", "serviceType", "hospitalization"},
    "Procedure": _COMMON | {"performedDateTime", "performedPeriod"},
    "Condition": _COMMON | {"onsetDateTime", "onsetPeriod", "recordedDate", "verificationStatus"},
}


def kept(resource: dict[str, Any]) -> dict[str, Any] | None:
    """Return the kept elements of a resource, also of those that it contains; None for other types."""
    elements = KEPT.get(str(resource.get("resourceType")))
    if elements is None:
        return None
    result = {key: value for key, value in resource.items() if key in elements}
    inside = resource.get("contained")
    if isinstance(inside, list):
        result["contained"] = [each for each in (kept(one) for one in inside if isinstance(one, dict)) if each]
    return result


def without_id(resource: dict[str, Any]) -> dict[str, Any]:
    """Return a resource whose id cannot be used, with a mark instead of it: readers report it as unreadable.

    The mark depends on the content alone, so that a resource that is fetched again is stored once.
    """
    content = json.dumps(resource, sort_keys=True).encode()
    return resource | {"id": {"invalid": hashlib.sha256(content).hexdigest()}}


def name_of(resource: dict[str, Any]) -> str:
    """Return the name of a resource in the store: type/id, or type/?hash if `without_id` has marked it."""
    own = resource.get("id")
    return f"{resource.get('resourceType')}/" + (f"?{own['invalid']}" if isinstance(own, dict) else str(own))


def is_unnamed(name: str) -> bool:
    """Whether a name in the store is that of a resource that `without_id` has marked."""
    return "/?" in name


class ResourceStore:
    """The open store; a context manager. Each method is one transaction.

    Raises sqlite3.Error, and Refusal E_FORMAT_NEWER on opening.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        self._db.execute("PRAGMA secure_delete = ON")  # what is deleted must not stay in the file
        self._db.execute("PRAGMA synchronous = FULL")  # the default journal: readers compare the file's time and size
        bring_up(self._db, path, FORMAT)

    def __enter__(self) -> "ResourceStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def state(self) -> dict[str, Any]:
        """Return what `write` has stored besides resources."""
        return {key: json.loads(value) for key, value in self._db.execute("SELECT key, value FROM state")}

    def write(
        self, resources: Iterable[tuple[str, dict[str, Any]]] = (), *, gone: Iterable[str] = (), **state: Any
    ) -> int:
        """Write resources with their URLs, delete those named in `gone`, and change the state (None: delete it).

        Return how many resources were written.
        """
        count, current = 0, self.state().get("round", 0)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for url, resource in resources:
                entry = {"resourceType": "Bundle", "entry": [{"fullUrl": url, "resource": resource}]}
                text = json.dumps(entry)
                self._db.execute("INSERT OR REPLACE INTO resource VALUES (?, ?, ?)", (name_of(resource), text, current))
                count += 1
            self._db.executemany("DELETE FROM resource WHERE name = ?", ((name,) for name in gone))
            for key, value in state.items():
                self._db.execute("DELETE FROM state WHERE key = ?", (key,))
                if value is not None:
                    self._db.execute("INSERT INTO state VALUES (?, ?)", (key, json.dumps(value)))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        return count

    def clear(self) -> None:
        """Delete everything."""
        self._db.executescript("BEGIN; DELETE FROM resource; DELETE FROM state; COMMIT;")

    def delete_older(self) -> None:
        """Delete the resources that the current fetch, the state `round`, has not written."""
        self._db.execute("DELETE FROM resource WHERE round <> ?", (self.state().get("round", 0),))

    def compact(self) -> None:
        """Rewrite the file, so that nothing of a deleted resource remains in its unused parts."""
        self._db.execute("VACUUM")

    def names(self) -> set[str]:
        return {name for (name,) in self._db.execute("SELECT name FROM resource")}

    def older_names(self) -> set[str]:
        """Return the names of what the current fetch, the state `round`, has not written."""
        found = self._db.execute("SELECT name FROM resource WHERE round <> ?", (self.state().get("round", 0),))
        return {name for (name,) in found}

    def resources(self, kind: str) -> Iterator[dict[str, Any]]:
        """Yield the stored resources of one type."""
        rows = self._db.execute("SELECT entry FROM resource WHERE name LIKE ? || '/%'", (kind,)).fetchall()
        for (entry,) in rows:  # fetched at once, so that the caller may write meanwhile
            yield json.loads(entry)["entry"][0]["resource"]


def entries(path: Path) -> Iterator[bytes]:
    """Yield each stored resource as a Bundle with its URL. Raises OSError if the file cannot be read."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_BUSY_SECONDS)) as db:
            for (entry,) in db.execute("SELECT entry FROM resource ORDER BY name"):
                yield entry.encode()
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}") from error
