"""Sign-in with the hospital's accounts: OpenID Connect, authorization code flow with PKCE, state and nonce.

The page starts a sign-in, the browser goes to the provider and comes back to the page, and the page hands in what the
provider added to its address. Both requests of the page must come from the page itself (CSRF). In between, the browser
keeps state, nonce and PKCE's verifier in a sealed cookie, so anybody who starts many sign-ins fills no memory here.
"""

import hashlib
import hmac
import json
import logging
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlencode

from cryptography.fernet import Fernet, InvalidToken

from models.refusal import Refusal
from pipeline.clinic.web.accounts import Accounts
from pipeline.clinic.web.auth import ACCESSES, Access, Caller, Tokens
from pipeline.identity import id_token
from pipeline.identity.oidc_provider import Provider
from pipeline.identity.oidc_settings import OidcTable
from pipeline.identity.reasons import SIGN_IN_NAME, SIGN_IN_REFUSED, SIGN_IN_STATE

SIGN_IN_SECONDS = 600  # from the start until the browser comes back
PLACE = r"^(#/(scans/[0-9a-f]{32})?)?$"  # where a sign-in may lead: a place of the page, never an address
_MOST_USED = 10_000  # states that are remembered, so that none is used twice

log = logging.getLogger("fedthorax.clinic")


@dataclass(frozen=True)
class ProviderAnswer:
    """What the provider added to the page's address. `error`: it refused; `issuer`: '' if it did not say."""

    state: str
    code: str = ""
    issuer: str = ""
    error: str = ""


class SingleSignOn:
    """Sign-ins of one clinic; any thread may use it. `clock`: seconds since 1970."""

    def __init__(
        self, table: OidcTable, provider: Provider, accounts: Accounts, *, clock: Callable[[], float] = time.time
    ) -> None:
        self.table, self.provider, self.accounts, self._clock = table, provider, accounts, clock
        self._seal = Fernet(Fernet.generate_key())  # after a restart, sign-ins that have begun must begin again
        self._lock = Lock()
        self._used: dict[str, float] = {}  # by state: when it may be forgotten

    def begin(self, to: str) -> tuple[str, str]:
        """Return the provider's address for a sign-in, and the sealed cookie. `to`: where the page goes afterwards.

        Raises Refusal E_SIGN_IN_PROVIDER.
        """
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "response_type": "code",
            "client_id": self.table.client_id,
            "redirect_uri": self.table.page_url,
            "scope": self.table.scope,
            **{"state": state, "nonce": nonce, "code_challenge": challenge, "code_challenge_method": "S256"},
        }
        kept = json.dumps({"state": state, "nonce": nonce, "verifier": verifier, "to": to}).encode()
        sealed = self._seal.encrypt_at_time(kept, int(self._clock())).decode()
        with _logged():
            return with_query(self.provider.endpoints().authorization, asked), sealed

    def finish(
        self, sealed: str, answer: ProviderAnswer, *, hours: float, instead_of: str = ""
    ) -> tuple[str, Caller, str]:
        """Start a session; return its secret, its owner, and where the page goes.

        `sealed`: the cookie of the same browser. `instead_of`: the browser's session until now. Raises Refusal
        E_SIGN_IN_STATE, E_SIGN_IN_REFUSED, E_SIGN_IN_TOKEN, E_SIGN_IN_KEY, E_SIGN_IN_PROVIDER, and those of
        `Accounts.sign_in`.
        """
        with _logged():
            kept, begun_at = self._opened(sealed, answer.state)
            if answer.error or not answer.code:
                raise Refusal(SIGN_IN_REFUSED, private="the provider's response names an error")
            if (answer.issuer or self.provider.endpoints().names_issuer) and answer.issuer != self.table.issuer:
                raise Refusal(SIGN_IN_STATE, private="the response is of another issuer")
            token = self.provider.id_token(answer.code, kept["verifier"])
            claims = id_token.verify(
                token,
                self.provider.key(*id_token.header_of(token)),
                issuer=self.table.issuer,
                client_id=self.table.client_id,
                nonce=kept["nonce"],
                begun_at=begun_at,
            )
            table = self.table
            user = claims.get(table.name_claim)
            if not isinstance(user, str):
                raise Refusal(SIGN_IN_NAME, private="the name claim is absent or no text")
            role, person = role_of(claims, table), person_of(claims, table)
            session, caller = self.accounts.sign_in(
                claims["sub"], user, role, person=person, hours=hours, instead_of=instead_of
            )
        return session, caller, kept["to"]

    def sign_out_url(self) -> str:
        """Return where a browser ends its session at the provider (RP-Initiated Logout 1.0); '' if it offers none."""
        try:
            endpoint = self.provider.known_endpoints().sign_out
        except Refusal:
            return ""
        asked = {"client_id": self.table.client_id, "post_logout_redirect_uri": self.table.page_url}
        return with_query(endpoint, asked) if endpoint else ""

    def _opened(self, sealed: str, state: str) -> tuple[dict[str, str], int]:
        """Return the cookie's content and its time, once for each sign-in. Raises Refusal E_SIGN_IN_STATE."""
        now = self._clock()
        try:
            content = self._seal.decrypt_at_time(sealed.encode(), SIGN_IN_SECONDS, int(now))
            begun_at = self._seal.extract_timestamp(sealed.encode())
        except (InvalidToken, UnicodeError):
            raise Refusal(SIGN_IN_STATE, private="no cookie of a sign-in, or an old one") from None
        kept: dict[str, str] = json.loads(content)
        if not hmac.compare_digest(kept["state"].encode(), state.encode(errors="surrogatepass")):
            raise Refusal(SIGN_IN_STATE, private="the state is another one")
        with self._lock:
            if self._used.get(state, 0.0) > now:
                raise Refusal(SIGN_IN_STATE, private="the state was used before")
            if len(self._used) >= _MOST_USED:
                self._used = {each: until for each, until in self._used.items() if until > now}
                while len(self._used) >= _MOST_USED:
                    del self._used[next(iter(self._used))]  # the provider itself refuses a code that was used
            self._used[state] = now + SIGN_IN_SECONDS + 1
        return kept, begun_at


def single_sign_on(table: OidcTable, folder: Path, tokens: Tokens) -> SingleSignOn:
    """Set up sign-in with the hospital's accounts. Raises Refusal E_SIGN_IN_SECRET."""
    return SingleSignOn(table, Provider(table, folder), Accounts(tokens, table.issuer))


def role_of(claims: dict[str, Any], table: OidcTable) -> Access | None:
    """Return the highest role that the role claim gives; None without one."""
    path = [table.role_claim] if isinstance(table.role_claim, str) else table.role_claim
    found: Any = claims
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    values = {each for each in (found if isinstance(found, list) else [found]) if isinstance(each, str)}
    given = [access for access in ACCESSES if values & set(getattr(table.roles, access))]
    return given[-1] if given else None


def person_of(claims: dict[str, Any], table: OidcTable) -> str:
    """Return the person's name as DICOM writes it, FAMILY^GIVEN; '' if the claims do not name both parts."""
    names = [claims.get(claim) for claim in (table.family_name_claim, table.given_name_claim) if claim]
    if len(names) != 2 or not all(isinstance(name, str) and name.strip() and "^" not in name for name in names):
        return ""
    return "^".join(str(name).strip() for name in names)


def with_query(url: str, parameters: dict[str, str]) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(parameters)}"


@contextmanager
def _logged() -> Iterator[None]:
    """Write to the log which check failed; the browser gets only the code and its text."""
    try:
        yield
    except Refusal as refusal:
        log.warning("sign-in: %s %s", refusal.code, refusal.private)
        raise
