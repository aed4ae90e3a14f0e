"""The keys of the hospitals' gateways for masked rounds, as the server passes them on: SERVER_DIR/peers/<site>.

The server is not trusted with them: each hospital compares the list with the others before it approves it.
"""

import sqlite3
import time
from pathlib import Path

from federation.enrolment.registry import registry, valid_certificates
from federation.secure_aggregation.roster import Member, Roster
from pipeline.system.atomic_files import write_durably

_FOLDER = "peers"


def register(folder: Path, site: str, key: bytes) -> None:
    """Store the key that a joined site presents; a new key replaces the old one. Raises OSError."""
    place = folder / _FOLDER
    place.mkdir(exist_ok=True, mode=0o700)
    if not (place / site).exists() or (place / site).read_bytes() != key:
        write_durably(place / site, key)


def roster(folder: Path, known: sqlite3.Connection) -> Roster:
    """Return the joined sites that have presented a key and hold a valid certificate."""
    now = time.time()
    files = sorted(path for path in (folder / _FOLDER).glob("*") if not path.name.startswith("."))
    present = [path for path in files if valid_certificates(known, path.name, valid_at=now)]
    return Roster(members=tuple(Member(name=path.name, key=path.read_bytes()) for path in present))


def roster_of(folder: Path) -> Roster:
    """Return the roster of the server in `folder`. Raises Refusal as `registry` does."""
    with registry(folder) as known:
        return roster(folder, known)
