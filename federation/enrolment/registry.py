"""The study's registry, SERVER_DIR/sites.sqlite: invitations, joined sites, and the certificates issued to them.

The ingress accepts a certificate only if it is in the registry, even if the same authority signed others. A server
without its registry accepts nobody.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from federation.enrolment import reasons
from federation.enrolment.certificates import fingerprint, public_pem
from federation.superlink.control import read_server_config
from models.refusal import Refusal
from pipeline.system.sqlite_format import SqliteFormat, bring_up

_SCHEMA = """
CREATE TABLE IF NOT EXISTS invitations (
    id TEXT PRIMARY KEY, site TEXT UNIQUE NOT NULL, secret_sha256 BLOB NOT NULL, patients INTEGER, ends REAL NOT NULL,
    wrong_tries INTEGER NOT NULL DEFAULT 0, used_by BLOB
);
CREATE TABLE IF NOT EXISTS sites (name TEXT PRIMARY KEY, patients INTEGER);
CREATE TABLE IF NOT EXISTS certificates (
    fingerprint TEXT PRIMARY KEY, site TEXT NOT NULL, public_key BLOB NOT NULL, serial TEXT NOT NULL,
    ends REAL NOT NULL, revoked REAL, pem TEXT NOT NULL
);
"""
FILE = "sites.sqlite"
FORMAT = SqliteFormat(version=1, schema=_SCHEMA, unnumbered=1)  # before 0.1.0 the file had no number


@dataclass(frozen=True)
class Holder:
    """The site to which a certificate was issued. Times are seconds since 1970; `public_key` is PEM."""

    site: str
    public_key: bytes
    ends: float
    revoked: float | None

    def judge(self) -> None:
        """Raise Refusal E_CERTIFICATE_REVOKED or E_CERTIFICATE_EXPIRED if the certificate is no longer valid."""
        if self.revoked is not None:
            raise Refusal(reasons.CERTIFICATE_REVOKED)
        if self.ends <= time.time():
            raise Refusal(reasons.CERTIFICATE_EXPIRED, holder="this site", until=f"{utc(self.ends):%Y-%m-%d}")


@contextmanager
def registry(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a server's sites.sqlite. Each statement takes effect at once; see `transaction`.

    Raises Refusal: E_NO_SERVER, and those of `load_settings`.
    """
    read_server_config(folder)
    with open_registry(folder / FILE) as connection:
        yield connection


@contextmanager
def open_registry(path: Path) -> Iterator[sqlite3.Connection]:
    """Open the registry in a file, or create it. Raises sqlite3.DatabaseError if it is damaged."""
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        bring_up(connection, path, FORMAT)
        yield connection
    finally:
        connection.close()


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block as one transaction: all or nothing, and no other writer at the same time."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def holder(db: sqlite3.Connection, certificate: x509.Certificate) -> Holder:
    """Return the site to which this study issued the certificate. Raises Refusal E_CERTIFICATE_UNKNOWN."""
    row = db.execute(
        "SELECT site, public_key, ends, revoked FROM certificates WHERE fingerprint = ?", (fingerprint(certificate),)
    ).fetchone()
    if row is None:
        raise Refusal(reasons.CERTIFICATE_UNKNOWN)
    return Holder(*row)


def record(db: sqlite3.Connection, site: str, certificate: x509.Certificate) -> None:
    """Register a certificate that was issued to `site`; from now on the ingress accepts it."""
    db.execute(
        "INSERT INTO certificates (fingerprint, site, public_key, serial, ends, pem) VALUES (?, ?, ?, ?, ?, ?)",
        (
            fingerprint(certificate),
            site,
            public_pem(certificate.public_key()),
            f"{certificate.serial_number:x}",
            certificate.not_valid_after_utc.timestamp(),
            certificate.public_bytes(Encoding.PEM).decode(),
        ),
    )


def valid_certificates(db: sqlite3.Connection, site: str, *, valid_at: float) -> list[str]:
    """Return the certificates (PEM) of a site that are valid at that time, the newest first."""
    rows = db.execute(
        "SELECT pem FROM certificates WHERE site = ? AND revoked IS NULL AND ends > ? ORDER BY rowid DESC",
        (site, valid_at),
    )
    return [pem for (pem,) in rows]


def utc(seconds: float) -> datetime:
    """Convert seconds since 1970 to a time."""
    return datetime.fromtimestamp(seconds, UTC)
