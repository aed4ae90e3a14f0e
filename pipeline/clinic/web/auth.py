"""Authorization: tokens with a role, and the sessions of browsers that signed in with a token.

Only the SHA-256 of a token or session is stored: 256 random bits cannot be guessed, so no slow hash is needed. A
revoked token is refused from the next request on. Each role includes the lower ones: read < score < admin.
"""

import hashlib
import re
import secrets
import sqlite3
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

from models.refusal import Refusal
from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.reasons import NO_SUCH_TOKEN, PERSON_NAME, TOKEN, TOKEN_NAME
from pipeline.clinic.records import moment
from pipeline.identity.reasons import SIGN_IN_TOKENS_OFF

Access = Literal["read", "score", "admin"]
ACCESSES: tuple[Access, ...] = get_args(Access)
ONCE_MINUTES = 15  # for the first sign-in, after `serve` has printed its address
SSO = "sso:"  # begins the name and the key of an account of the hospital's provider (`accounts.py`), of no token
_PREFIX = "fct_"  # lets secret scanners recognise a leaked token
_LONGEST_PERSON = 64
_NAME = re.compile(r"[\w.@][\w.@ -]{0,59}")


@dataclass(frozen=True)
class Token:
    """The stored data of a token. `once`: it is valid only for a single sign-in of a browser.

    `person`: the DICOM name of the person whom it belongs to; '' for a program or a group of persons.
    """

    name: str
    role: Access
    made_at: datetime
    ends_at: datetime | None
    revoked_at: datetime | None
    once: bool
    person: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "role": self.role,
            "made_at": moment(self.made_at),
            "ends_at": moment(self.ends_at),
            "revoked_at": moment(self.revoked_at),
            "once": self.once,
            "person": self.person,
        }


@dataclass(frozen=True)
class Caller:
    """The sender of a request. `ends_at`: when their token or session expires; None: never.

    `person`: their DICOM name, if the token is a person's. `account`: the key of their account at the hospital's
    provider of identities; '' for a token.
    """

    name: str
    role: Access
    ends_at: datetime | None
    by_cookie: bool
    person: str = ""
    account: str = ""

    def may(self, needed: Access) -> bool:
        return ACCESSES.index(self.role) >= ACCESSES.index(needed)


class Tokens:
    """The tokens and sessions of a clinic. Each call opens the database itself, so any thread may call it.

    Raises Refusal E_CLINIC_FILE.
    """

    def __init__(self, clinic_folder: Path) -> None:
        self.folder = clinic_folder

    def make(
        self, name: str, role: Access, *, by: str, days: float | None = None, once: bool = False, person: str = ""
    ) -> str:
        """Create a token, which cannot be shown again. Names are never reused.

        `person`: the DICOM name of its owner, who may then decide about results. Raises Refusal E_TOKEN_NAME,
        E_PERSON_NAME.
        """
        if not _NAME.fullmatch(name):
            raise Refusal(TOKEN_NAME)
        if person and not is_person_name(person):
            raise Refusal(PERSON_NAME)
        secret, digest = new_token()
        lasts = timedelta(minutes=ONCE_MINUTES) if once else days and timedelta(days=days)
        ends_at = stamp(now() + lasts) if lasts else None
        with Database(self.folder) as database, database.transaction() as db:
            if db.execute("SELECT 1 FROM tokens WHERE name = ?", (name,)).fetchone():
                raise Refusal(TOKEN_NAME)
            db.execute(
                "INSERT INTO tokens (name, sha256, role, made_at, ends_at, once, person) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (name, digest, role, stamp(now()), ends_at, once, person),
            )
            write_record(db, by, "token", output={"name": name, "role": role, "person": person})
        return secret

    def all(self) -> list[Token]:
        """Return all tokens ever created, oldest first."""
        with Database(self.folder) as database:
            return [_token(row) for row in database.rows("SELECT * FROM tokens ORDER BY made_at")]

    def revoke(self, name: str, *, by: str) -> None:
        """Revoke a token, and end the sessions that it started. Raises Refusal E_NO_SUCH_TOKEN."""
        with Database(self.folder) as database, database.transaction() as db:
            found = db.execute(
                "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE name = ?", (stamp(now()), name)
            )
            if not found.rowcount:
                raise Refusal(NO_SUCH_TOKEN)
            db.execute("DELETE FROM sessions WHERE token = ?", (name,))
            write_record(db, by, "revoke", output={"name": name})

    def caller(self, secret: str) -> Caller:
        """Return the owner of a token. Raises Refusal E_TOKEN."""
        with Database(self.folder) as database:
            row = database.row("SELECT * FROM tokens WHERE sha256 = ? AND NOT once", _hash(secret))
        token = row and _token(row)
        if not token or not _holds(token):
            raise Refusal(TOKEN)
        return Caller(token.name, token.role, token.ends_at, by_cookie=False, person=token.person)

    def sign_in(
        self, secret: str, *, hours: float, instead_of: str = "", only: str | None = None
    ) -> tuple[str, Caller]:
        """Start a session; return its secret, for a cookie, and its owner.

        `instead_of`: secret of the browser's session until now, which ends. `only`: name of the administrator's token
        that may sign in; None: all. Raises Refusal E_TOKEN, E_SIGN_IN_TOKENS_OFF.
        """
        with Database(self.folder) as database, database.transaction() as db:
            row = db.execute("SELECT * FROM tokens WHERE sha256 = ?", (_hash(secret),)).fetchone()
            token = row and _token(row)
            if not token or not _holds(token) or (token.once and row["used_at"]):
                raise Refusal(TOKEN)
            if only is not None and (token.name, token.role) != (only, "admin"):
                raise Refusal(SIGN_IN_TOKENS_OFF)
            ends_at = now() + timedelta(hours=hours)
            if token.ends_at and not token.once:
                ends_at = min(ends_at, token.ends_at)
            db.execute("UPDATE tokens SET used_at = ? WHERE name = ?", (stamp(now()), token.name))
            session = start_session(db, token.name, ends_at, instead_of)
            write_record(db, token.name, "sign_in")
        return session, Caller(token.name, token.role, ends_at, by_cookie=True, person=token.person)

    def session(self, secret: str) -> Caller:
        """Return the owner of a session. Raises Refusal E_TOKEN."""
        with Database(self.folder) as database:
            row = database.row(
                "SELECT name, role, person, tokens.sha256, sessions.ends_at FROM sessions JOIN tokens ON name = token"
                " WHERE sessions.sha256 = ? AND sessions.ends_at > ? AND revoked_at IS NULL",
                _hash(secret),
                stamp(now()),
            )
        if row is None:
            raise Refusal(TOKEN)
        ends_at = datetime.fromisoformat(row["ends_at"])
        account = row["sha256"] if row["sha256"].startswith(SSO) else ""
        return Caller(row["name"], row["role"], ends_at, by_cookie=True, person=row["person"], account=account)

    def sign_out(self, secret: str) -> None:
        """End a session, if there is one."""
        with Database(self.folder) as database, database.transaction() as db:
            db.execute("DELETE FROM sessions WHERE sha256 = ?", (_hash(secret),))

    def open_sessions(self) -> int:
        with Database(self.folder) as database:
            return int(database.rows("SELECT count(*) FROM sessions WHERE ends_at > ?", stamp(now()))[0][0])


def new_token() -> tuple[str, str]:
    """Return the secret of a new token, and its SHA-256, which is all that is stored."""
    secret = _PREFIX + secrets.token_urlsafe(32)
    return secret, _hash(secret)


def start_session(db: sqlite3.Connection, name: str, ends_at: datetime, instead_of: str) -> str:
    """Start a session within a transaction, end the one before; return a new secret, never one that a browser had."""
    session = secrets.token_urlsafe(32)
    db.execute("DELETE FROM sessions WHERE ends_at < ? OR sha256 = ?", (stamp(now()), _hash(instead_of)))
    db.execute("INSERT INTO sessions VALUES (?, ?, ?)", (_hash(session), name, stamp(ends_at)))
    return session


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def is_person_name(name: str) -> bool:
    """Whether DICOM can store a name with family and given name in one component group (PS3.5, 6.2.1)."""
    has_control = any(unicodedata.category(sign)[0] == "C" for sign in name)
    family, _, given = name.partition("^")
    is_whole = bool(family.strip()) and bool(given.replace("^", "").strip())
    return len(name) <= _LONGEST_PERSON and is_whole and not has_control and not set(name) & set("\\=")


def _holds(token: Token) -> bool:
    return token.revoked_at is None and (token.ends_at is None or token.ends_at > now())


def _token(row: sqlite3.Row) -> Token:
    made_at, ends_at, revoked_at = (
        row[name] and datetime.fromisoformat(row[name]) for name in ("made_at", "ends_at", "revoked_at")
    )
    return Token(row["name"], row["role"], made_at, ends_at, revoked_at, bool(row["once"]), row["person"])
