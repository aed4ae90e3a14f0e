"""The participants of a study: invited with a one-time code, joined with a certificate, revoked.

The registry stores all of it; certificates/crl.pem lists the revoked certificates for nginx. Of a code's secret the
server stores only the hash: 192 random bits cannot be guessed, so no slow hash is needed.
"""

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field

from federation.enrolment import reasons
from federation.enrolment.certificates import fingerprint, is_node_key, open_authority, public_pem
from federation.enrolment.registry import Holder, record, registry, transaction, utc, valid_certificates
from federation.superlink import reasons as superlink_reasons
from federation.superlink.control import ca_certificate, read_server_config
from federation.superlink.nodes import enrol, strike_off
from federation.superlink.nodes import sites as registered_sites
from federation.system.certificate_files import read_certificate
from models.refusal import Refusal
from pipeline.system.atomic_files import write_atomically

INVITATION_SECONDS = 7 * 86_400
MAX_WRONG_TRIES = 10
# A node's certificate is renewed when it expires within this time; before that, the node keeps the present one.
RENEW_BEFORE_SECONDS = 30 * 86_400

_SITE_NAME = re.compile(r"[a-z0-9-]{1,63}")


class JoinRequest(BaseModel):
    """What a node sends with its code: a certificate request (PKCS #10, PEM) with its own key."""

    model_config = ConfigDict(extra="forbid")

    invitation: str = Field(pattern=r"^[0-9a-f]{16}$")
    secret: str = Field(max_length=64)
    request: str = Field(max_length=8192)
    name: str = Field(default="", max_length=63)  # the site that the node takes itself for; not checked if empty


@dataclass(frozen=True)
class EnrolledSite:
    """A site as the study's office sees it. `until`: when its newest certificate expires; None before it joined."""

    name: str
    state: str  # invited, enrolled, expired or revoked
    patients: int | None
    until: datetime | None
    online: bool


# --- the study's office -----------------------------------------------------------------------------------


def invite(folder: Path, name: str, *, patients: int | None = None) -> str:
    """Create a one-time code with which one node may join as site `name` within 7 days.

    It holds the ingress's address, the SHA-256 of the study's authority, the invitation's number and a secret.
    `patients`: the upper limit of the site's weight. A second invitation of the same name cancels the first.

    Raises Refusal: E_SITE_NAME, E_SITE_NAME_TAKEN, E_NO_SERVER, E_CERTIFICATE_FILE.
    """
    if not _SITE_NAME.fullmatch(name):
        raise Refusal(reasons.SITE_NAME)
    address, authority = read_server_config(folder).address, read_certificate(ca_certificate(folder))
    invitation, secret = secrets.token_hex(8), secrets.token_urlsafe(24)
    with registry(folder) as db, transaction(db):
        if valid_certificates(db, name, valid_at=time.time()):
            raise Refusal(reasons.SITE_NAME_TAKEN, site=name)
        db.execute("DELETE FROM invitations WHERE site = ?", (name,))
        db.execute(
            "INSERT INTO invitations (id, site, secret_sha256, patients, ends) VALUES (?, ?, ?, ?, ?)",
            (invitation, name, _hash(secret), patients, time.time() + INVITATION_SECONDS),
        )
    return f"{address}/{fingerprint(authority)}/{invitation}/{secret}"


def has_open_code(folder: Path, name: str) -> bool:
    """Tell whether site `name` was sent a code that it has not used yet and that is still valid."""
    with registry(folder) as db:
        query = "SELECT 1 FROM invitations WHERE site = ? AND ends > ? AND wrong_tries < ? AND used_by IS NULL"
        return db.execute(query, (name, time.time(), MAX_WRONG_TRIES)).fetchone() is not None


def end_codes(db: sqlite3.Connection) -> list[str]:
    """End all codes that nobody has used yet; return their sites."""
    now = time.time()
    with transaction(db):
        rows = db.execute("SELECT site FROM invitations WHERE used_by IS NULL AND ends > ? ORDER BY site", (now,))
        sites = [site for (site,) in rows.fetchall()]
        db.execute("UPDATE invitations SET ends = ? WHERE used_by IS NULL AND ends > ?", (now, now))
    return sites


def revoke(folder: Path, name: str) -> None:
    """Exclude site `name`: revoke its certificates and invitation, and remove its node if the server is running.

    From this moment the ingress refuses the certificates, also on open connections.
    Raises Refusal: E_SITE_UNKNOWN, E_NO_SERVER, E_AUTHORITY.
    """
    with registry(folder) as db, transaction(db):
        known = db.execute("DELETE FROM invitations WHERE site = ?", (name,)).rowcount
        known += db.execute(
            "UPDATE certificates SET revoked = coalesce(revoked, ?) WHERE site = ?", (time.time(), name)
        ).rowcount
        if not known:
            raise Refusal(reasons.SITE_UNKNOWN)
    with registry(folder) as db:  # the site is already excluded, even if the rest fails
        publish_revocations(db, ca_certificate(folder).parent)
    try:
        strike_off(folder, name)
    except Refusal as refusal:
        if refusal.reason is not superlink_reasons.SERVER_UNREACHABLE:  # a stopped server has no node to remove
            raise


def publish_revocations(db: sqlite3.Connection, certificates: Path) -> None:
    """Write the registry's revoked certificates to `certificates`/crl.pem. Raises Refusal E_AUTHORITY."""
    rows = db.execute("SELECT serial, revoked FROM certificates WHERE revoked IS NOT NULL").fetchall()
    serials = {int(serial, 16): utc(when) for serial, when in rows}
    crl = open_authority(certificates).revocation_list(serials)
    write_atomically(certificates / "crl.pem", crl.public_bytes(Encoding.PEM))


def enrolled_patients(folder: Path) -> dict[str, int | None]:
    """Return the sites that may take part now, each with its enrolled number of patients; None if the office set none.

    Raises Refusal: E_NO_SERVER.
    """
    with registry(folder) as db:
        rows = db.execute("SELECT name, patients FROM sites ORDER BY name").fetchall()
        return {name: patients for name, patients in rows if valid_certificates(db, name, valid_at=time.time())}


def overview(folder: Path) -> list[EnrolledSite]:
    """List every invited or joined site by name; the server must be running.

    Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE.
    """
    online = {site.name for site in registered_sites(folder) if site.online}
    with registry(folder) as db:
        invited = dict(db.execute("SELECT site, patients FROM invitations WHERE used_by IS NULL").fetchall())
        joined = dict(db.execute("SELECT name, patients FROM sites").fetchall())
        found = []
        for name in sorted({*invited, *joined}):
            newest = db.execute(
                "SELECT ends, revoked FROM certificates WHERE site = ? ORDER BY rowid DESC LIMIT 1", (name,)
            ).fetchone()
            if newest is None:
                found.append(EnrolledSite(name, "invited", invited[name], None, online=False))
                continue
            ends, revoked = newest
            state = "revoked" if revoked is not None else "enrolled" if ends > time.time() else "expired"
            found.append(EnrolledSite(name, state, joined[name], utc(ends), online=name in online))
    return found


def restore_roster(folder: Path) -> None:
    """Register every site that may take part with the running SuperLink, in case its state.db was lost.

    Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE.
    """
    with registry(folder) as db:
        rows = db.execute(
            "SELECT DISTINCT site, public_key FROM certificates WHERE revoked IS NULL AND ends > ?", (time.time(),)
        ).fetchall()
    for site, public_key in rows:
        enrol(folder, public_key, site)


# --- the ingress ------------------------------------------------------------------------------------------


def accept(folder: Path, join: JoinRequest) -> tuple[str, str]:
    """Let a node join with its code; return the site's name and the node's certificate (PEM).

    The key is registered with the running SuperLink. The same node may repeat the request in case the answer was lost;
    for any other node the code is used up.

    Raises Refusal: E_INVITATION, E_INVITATION_OVER, E_JOIN_NAME, E_PUBLIC_KEY, E_KEY_REVOKED, E_ALREADY_ENROLLED,
    E_SERVER_UNREACHABLE.
    """
    with registry(folder) as db:
        _check_secret(db, join)
        public_key = _requested_key(join.request)
        with transaction(db):
            row = db.execute(
                "SELECT site, patients, used_by FROM invitations WHERE id = ? AND ends > ?",
                (join.invitation, time.time()),
            ).fetchone()
            if row is None or row[2] not in (None, public_key):
                raise Refusal(reasons.INVITATION_OVER)
            site, patients, used_by = row
            if join.name not in ("", site):
                raise Refusal(reasons.JOIN_NAME, site=join.name)
            if used_by is not None and (held := valid_certificates(db, site, valid_at=time.time())):
                return site, held[0]
            if db.execute(
                "SELECT 1 FROM certificates WHERE public_key = ? AND revoked IS NOT NULL", (public_key,)
            ).fetchone():
                raise Refusal(superlink_reasons.KEY_REVOKED)
            enrol(folder, public_key, site)
            pem = _issue(db, folder, site, public_key)
            db.execute("INSERT OR REPLACE INTO sites (name, patients) VALUES (?, ?)", (site, patients))
            db.execute("UPDATE invitations SET used_by = ? WHERE id = ?", (public_key, join.invitation))
    return site, pem


def renew(folder: Path, held: Holder) -> str:
    """Return a new certificate (PEM) for a node that holds one; its newest one while that remains valid long enough.

    Raises Refusal: E_CERTIFICATE_REVOKED, E_CERTIFICATE_EXPIRED.
    """
    held.judge()
    with registry(folder) as db, transaction(db):
        if good := valid_certificates(db, held.site, valid_at=time.time() + RENEW_BEFORE_SECONDS):
            return good[0]
        if not valid_certificates(db, held.site, valid_at=time.time()):  # revoked since the check above
            raise Refusal(reasons.CERTIFICATE_REVOKED)
        return _issue(db, folder, held.site, held.public_key)


def _check_secret(db: sqlite3.Connection, join: JoinRequest) -> None:
    with transaction(db):
        row = db.execute(
            "SELECT secret_sha256, wrong_tries FROM invitations WHERE id = ?", (join.invitation,)
        ).fetchone()
        kept, wrong_tries = row or (bytes(32), MAX_WRONG_TRIES)
        right = hmac.compare_digest(kept, _hash(join.secret)) and wrong_tries < MAX_WRONG_TRIES
        if not right:
            db.execute("UPDATE invitations SET wrong_tries = wrong_tries + 1 WHERE id = ?", (join.invitation,))
    if not right:
        raise Refusal(reasons.INVITATION)


def _requested_key(request: str) -> bytes:
    """Return the key (PEM) in a certificate request; everything else in the request is ignored."""
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        key = parsed.public_key()
        if not (is_node_key(key) and parsed.is_signature_valid):
            raise ValueError("the key is of another kind, or the request is not signed with it")
    except ValueError as error:
        raise Refusal(reasons.PUBLIC_KEY, private=str(error)) from error
    return public_pem(key)


def _issue(db: sqlite3.Connection, folder: Path, site: str, public_key: bytes) -> str:
    key = load_pem_public_key(public_key)
    assert is_node_key(key), "checked when it was accepted"
    certificate = open_authority(ca_certificate(folder).parent).node_certificate(key, site)
    pem = certificate.public_bytes(Encoding.PEM).decode()
    record(db, site, certificate)
    return pem


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
