"""Accounts of the hospital's provider in the clinic's table of tokens, and changes of accounts by an administrator.

An account of the provider is a row without a token: its field `sha256` holds who it is instead (issuer and subject,
hashed), which no token can hash to. Its name begins with `sso:`, which no token's name can. So an account never shares
a name, a role or a session with a token. The role is that of the newest sign-in.
"""

import hashlib
import re
import sqlite3
import unicodedata
from datetime import timedelta

from models.refusal import Refusal
from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.web.auth import SSO, Access, Caller, Tokens, is_person_name, start_session
from pipeline.identity.reasons import SIGN_IN_DISABLED, SIGN_IN_NAME, SIGN_IN_ROLE

_USER = re.compile(r"[\w.@][\w.@ +\\/'-]{0,99}")


class Accounts:
    """The provider's accounts in one clinic; any thread may use it. `issuer`: of the provider in use."""

    def __init__(self, tokens: Tokens, issuer: str) -> None:
        self._folder = tokens.folder
        self._of_issuer = f"{SSO}{hashlib.sha256(issuer.encode()).hexdigest()[:16]}:"

    def sign_in(
        self, subject: str, user: str, role: Access | None, *, person: str, hours: float, instead_of: str = ""
    ) -> tuple[str, Caller]:
        """Start a session of an account; return its secret, for a cookie, and its owner.

        `role`: what the provider's claims give now; without one, the account's sessions end. `instead_of`: secret of
        the browser's session until now, which ends. Raises Refusal E_SIGN_IN_ROLE, E_SIGN_IN_DISABLED, E_SIGN_IN_NAME,
        E_CLINIC_FILE.
        """
        key = self._of_issuer + hashlib.sha256(subject.encode(errors="surrogatepass")).hexdigest()
        person = person if is_person_name(person) else ""
        with Database(self._folder) as database, database.transaction() as db:
            row = db.execute("SELECT name, revoked_at FROM tokens WHERE sha256 = ?", (key,)).fetchone()
            is_disabled = bool(row and row["revoked_at"])
            if row and role is None:
                db.execute("DELETE FROM sessions WHERE token = ?", (row["name"],))
            if role and not is_disabled:
                name = row["name"] if row else _add(db, key, account_name(user), role)
                values = (role, person, stamp(now()), name)
                db.execute("UPDATE tokens SET role = ?, person = ?, used_at = ? WHERE name = ?", values)
                ends_at = now() + timedelta(hours=hours)
                session = start_session(db, name, ends_at, instead_of)
                write_record(db, name, "sign_in", output={"role": role, "person": person})
        if role is None:
            raise Refusal(SIGN_IN_ROLE)
        if is_disabled:
            raise Refusal(SIGN_IN_DISABLED)
        return session, Caller(name, role, ends_at, by_cookie=True, person=person, account=key)

    def owns(self, caller: Caller) -> bool:
        """Whether a caller is an account of the provider in use, not of one that clinic.toml named before."""
        return caller.account.startswith(self._of_issuer)


def account_name(user: str) -> str:
    """Return the name of an account in this clinic: `sso:` and the user's name, in one spelling.

    Raises Refusal E_SIGN_IN_NAME.
    """
    one_spelling = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", user).casefold())
    if not _USER.fullmatch(one_spelling):
        raise Refusal(SIGN_IN_NAME)
    return f"{SSO}{one_spelling}"


def _add(db: sqlite3.Connection, key: str, name: str, role: Access) -> str:
    """Add an account at its first sign-in. Raises Refusal E_SIGN_IN_NAME if another one has the name."""
    if db.execute("SELECT 1 FROM tokens WHERE name = ?", (name,)).fetchone():
        raise Refusal(SIGN_IN_NAME)
    db.execute(
        "INSERT INTO tokens (name, sha256, role, made_at, once) VALUES (?, ?, ?, ?, 0)", (name, key, role, stamp(now()))
    )
    write_record(db, name, "account", output={"name": name, "role": role})
    return name
