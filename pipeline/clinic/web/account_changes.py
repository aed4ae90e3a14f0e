"""Changes of tokens and accounts by an administrator on the page: role, disable, enable, reset.

Nobody changes their own account, so the last administrator cannot lock everybody out by mistake. The machine's
administrator is not bound by this: `fedthorax clinic token` and `revoke` work without a session.
"""

import sqlite3
from datetime import datetime
from typing import Any

from models.refusal import Refusal
from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, now, stamp
from pipeline.clinic.reasons import NO_SUCH_TOKEN
from pipeline.clinic.records import moment
from pipeline.clinic.web.auth import SSO, Access, Caller, Tokens, new_token
from pipeline.identity.reasons import EMERGENCY_ADMIN, OWN_ACCOUNT, PROVIDER_ACCOUNT, TOKEN_ENDED

_LIST = """
    SELECT tokens.*, (SELECT count(*) FROM sessions WHERE token = name AND sessions.ends_at > ?) AS open_sessions
    FROM tokens ORDER BY revoked_at IS NOT NULL, name
"""


class AccountChanges:
    """`by`: the administrator. `emergency`: name of the emergency administrator's token; '' without one.

    Every method raises Refusal E_CLINIC_FILE, and those that change something E_NO_SUCH_TOKEN and E_OWN_ACCOUNT.
    """

    def __init__(self, tokens: Tokens, by: Caller, emergency: str = "") -> None:
        self._folder, self._by, self._emergency = tokens.folder, by, emergency

    def all(self) -> list[dict[str, Any]]:
        """Return all tokens and accounts as the API (v1) gives them, without secrets; disabled ones last."""
        with Database(self._folder) as database:
            return [self._json(row) for row in database.rows(_LIST, stamp(now()))]

    def set_role(self, name: str, role: Access) -> None:
        """Change a token's role; its sessions have it at once.

        Raises Refusal E_PROVIDER_ACCOUNT, E_TOKEN_ENDED, E_EMERGENCY_ADMIN.
        """
        with Database(self._folder) as database, database.transaction() as db:
            before = self._own_token(db, name)
            self._keep_emergency(name)
            db.execute("UPDATE tokens SET role = ? WHERE name = ?", (role, name))
            write_record(db, self._by.name, "role", output={"name": name, "role": role, "before": before["role"]})

    def disable(self, name: str) -> None:
        """Revoke a token for good, or disable an account of the provider; end all sessions.

        Raises Refusal E_EMERGENCY_ADMIN.
        """
        with Database(self._folder) as database, database.transaction() as db:
            self._found(db, name)
            self._keep_emergency(name)
            db.execute("UPDATE tokens SET revoked_at = coalesce(revoked_at, ?) WHERE name = ?", (stamp(now()), name))
            db.execute("DELETE FROM sessions WHERE token = ?", (name,))
            write_record(db, self._by.name, "revoke", output={"name": name})

    def enable(self, name: str) -> None:
        """Enable an account of the provider again. Raises Refusal E_TOKEN_ENDED for a token."""
        with Database(self._folder) as database, database.transaction() as db:
            if not _is_account(self._found(db, name)):
                raise Refusal(TOKEN_ENDED)
            db.execute("UPDATE tokens SET revoked_at = NULL WHERE name = ?", (name,))
            write_record(db, self._by.name, "enable", output={"name": name})

    def reset(self, name: str) -> str:
        """Give a token a new secret and return it; the old one and all sessions end.

        Raises Refusal E_PROVIDER_ACCOUNT, E_TOKEN_ENDED.
        """
        secret, digest = new_token()
        with Database(self._folder) as database, database.transaction() as db:
            if self._own_token(db, name)["once"]:
                raise Refusal(TOKEN_ENDED)
            db.execute("UPDATE tokens SET sha256 = ? WHERE name = ?", (digest, name))
            db.execute("DELETE FROM sessions WHERE token = ?", (name,))
            write_record(db, self._by.name, "reset", output={"name": name})
        return secret

    def _found(self, db: sqlite3.Connection, name: str) -> sqlite3.Row:
        row: sqlite3.Row | None = db.execute("SELECT * FROM tokens WHERE name = ?", (name,)).fetchone()
        if row is None:
            raise Refusal(NO_SUCH_TOKEN)
        if name == self._by.name:
            raise Refusal(OWN_ACCOUNT)
        return row

    def _own_token(self, db: sqlite3.Connection, name: str) -> sqlite3.Row:
        """Return a token of this clinic that is valid."""
        row = self._found(db, name)
        if _is_account(row):
            raise Refusal(PROVIDER_ACCOUNT)
        if row["revoked_at"] or (row["ends_at"] and datetime.fromisoformat(row["ends_at"]) <= now()):
            raise Refusal(TOKEN_ENDED)
        return row

    def _keep_emergency(self, name: str) -> None:
        if name == self._emergency:
            raise Refusal(EMERGENCY_ADMIN)

    def _json(self, row: sqlite3.Row) -> dict[str, Any]:
        times = {
            key: moment(datetime.fromisoformat(row[key])) if row[key] else None
            for key in ("made_at", "ends_at", "revoked_at", "used_at")
        }
        return {
            "name": row["name"],
            "kind": "account" if _is_account(row) else "token",
            "role": row["role"],
            "person": row["person"],
            "once": bool(row["once"]),
            **times,
            "open_sessions": row["open_sessions"],
            "is_emergency": row["name"] == self._emergency,
            "is_own": row["name"] == self._by.name,
        }


def _is_account(row: sqlite3.Row) -> bool:
    """Whether a row is an account of the hospital's provider, not a token."""
    return bool(row["sha256"].startswith(SSO))
