"""Authentication of requests by token or cookie, with protection against requests from other sites."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.types import Scope

from models.refusal import Refusal
from pipeline.clinic import reasons
from pipeline.clinic.web.auth import Caller, Tokens
from pipeline.clinic.web.error_responses import address
from pipeline.clinic.web.limits import Buckets
from pipeline.clinic.web.single_sign_on import ProviderAnswer, SingleSignOn
from pipeline.identity import reasons as identity

WRONG_TOKENS, WRONG_TOKENS_PER_MINUTE = 10, 2  # from one address
_WRONG = (reasons.TOKEN, identity.SIGN_IN_STATE, identity.SIGN_IN_TOKEN)
_SAFE = ("GET", "HEAD")

T = TypeVar("T")


class Callers:
    """Identifies callers. `tls`: whether browsers connect with TLS; `hours`: how long a session lasts.

    `sso`: sign-in with the hospital's accounts, if it is set up. If it allows no tokens for persons, only programs and
    the emergency administrator may use one.
    """

    def __init__(self, tokens: Tokens, *, hours: float, tls: bool, sso: SingleSignOn | None = None) -> None:
        self.tokens, self.hours, self.tls, self.sso = tokens, hours, tls, sso
        self._only = None if sso is None or sso.table.sign_in_with_tokens else sso.table.emergency_admin
        self._wrong = Buckets(WRONG_TOKENS_PER_MINUTE, WRONG_TOKENS)

    @property
    def cookie(self) -> str:
        """The cookie's name; browsers accept the prefix __Host- only from this host and over TLS (RFC 6265bis)."""
        return "__Host-fedthorax" if self.tls else "fedthorax"

    async def of(self, scope: Scope) -> Caller:
        """Identify the caller by the token in the header, else by the cookie.

        Raises Refusal E_NO_TOKEN, E_TOKEN, E_SIGN_IN_TRIES, and E_OTHER_SITE if a request with a cookie changes
        something and does not come from our own page.
        """
        headers = Headers(scope=scope)
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._permitted(await self._counted(scope, lambda: self.tokens.caller(token.strip())))
        secret = self.session_secret(headers)
        if not secret:
            raise Refusal(reasons.NO_TOKEN)
        if scope["method"] not in _SAFE and not _from_our_page(headers):
            raise Refusal(reasons.OTHER_SITE)
        return self._permitted(await run_in_threadpool(self.tokens.session, secret))

    async def sign_in(self, request: Request, token: str) -> tuple[str, Caller]:
        """Return the cookie's secret and the caller.

        Raises Refusal E_TOKEN, E_SIGN_IN_TRIES, E_OTHER_SITE, E_SIGN_IN_TOKENS_OFF.
        """
        check_same_site(request)
        before = self.session_secret(request.headers)
        return await self._counted(
            request.scope,
            lambda: self.tokens.sign_in(token, hours=self.hours, instead_of=before, only=self._only),
        )

    async def finish_sign_in(self, request: Request, sealed: str, answer: ProviderAnswer) -> tuple[str, Caller, str]:
        """End a sign-in with the hospital's account; return the cookie's secret, the caller and where to go.

        Raises Refusal E_OTHER_SITE, E_SIGN_IN_OFF, E_SIGN_IN_TRIES and those of `SingleSignOn.finish`.
        """
        check_same_site(request)
        sso, before = self.single_sign_on(), self.session_secret(request.headers)
        return await self._counted(
            request.scope, lambda: sso.finish(sealed, answer, hours=self.hours, instead_of=before)
        )

    def single_sign_on(self) -> SingleSignOn:
        """Raises Refusal E_SIGN_IN_OFF."""
        if self.sso is None:
            raise Refusal(identity.SIGN_IN_OFF)
        return self.sso

    def session_secret(self, headers: Headers) -> str:
        """Return the cookie's value; '' if there is none."""
        return cookie_parser(headers.get("cookie", "")).get(self.cookie, "")

    def _permitted(self, caller: Caller) -> Caller:
        """Return the caller. Raises Refusal E_TOKEN, E_SIGN_IN_TOKENS_OFF if [oidc] of clinic.toml excludes them."""
        if caller.account:
            if self.sso is None or not self.sso.accounts.owns(caller):
                raise Refusal(reasons.TOKEN)
            return caller
        is_excluded = self._only is not None and (caller.by_cookie or bool(caller.person))
        if is_excluded and (caller.name, caller.role) != (self._only, "admin"):
            raise Refusal(identity.SIGN_IN_TOKENS_OFF)
        return caller

    async def _counted(self, scope: Scope, check: Callable[[], T]) -> T:
        """Check a token or a sign-in; an address that sends many wrong ones must wait."""
        try:
            return await run_in_threadpool(check)
        except Refusal as refusal:
            if refusal.reason in _WRONG and (wait := self._wrong.take(address(scope))):
                raise Refusal(reasons.SIGN_IN_TRIES, seconds=wait) from None
            raise


def check_same_site(request: Request) -> None:
    """Check that a browser's request comes from our page. Raises Refusal E_OTHER_SITE."""
    browser = {"origin", "sec-fetch-site"} & set(request.headers)
    if browser and not _from_our_page(request.headers):
        raise Refusal(reasons.OTHER_SITE)


def _from_our_page(headers: Headers) -> bool:
    """Whether our page sent the request, by Fetch Metadata, or by Origin, which older browsers send with changes."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    _, _, origin = headers.get("origin", "").partition("://")
    return origin.lower() == headers.get("host", "").lower() != ""
