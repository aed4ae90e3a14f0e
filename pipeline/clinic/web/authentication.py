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

WRONG_TOKENS, WRONG_TOKENS_PER_MINUTE = 10, 2  # from one address
_SAFE = ("GET", "HEAD")

T = TypeVar("T")


class Callers:
    """Identifies callers. `tls`: whether browsers connect with TLS; `hours`: how long a session lasts."""

    def __init__(self, tokens: Tokens, *, hours: float, tls: bool) -> None:
        self.tokens, self.hours, self.tls = tokens, hours, tls
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
            return await self._counted(scope, lambda: self.tokens.caller(token.strip()))
        secret = self.session_secret(headers)
        if not secret:
            raise Refusal(reasons.NO_TOKEN)
        if scope["method"] not in _SAFE and not _from_our_page(headers):
            raise Refusal(reasons.OTHER_SITE)
        return await run_in_threadpool(self.tokens.session, secret)

    async def sign_in(self, request: Request, token: str) -> tuple[str, Caller]:
        """Return the cookie's secret and the caller. Raises Refusal E_TOKEN, E_SIGN_IN_TRIES, E_OTHER_SITE."""
        browser = {"origin", "sec-fetch-site"} & set(request.headers)
        if browser and not _from_our_page(request.headers):
            raise Refusal(reasons.OTHER_SITE)
        return await self._counted(request.scope, lambda: self.tokens.sign_in(token, hours=self.hours))

    def session_secret(self, headers: Headers) -> str:
        """Return the cookie's value; '' if there is none."""
        return cookie_parser(headers.get("cookie", "")).get(self.cookie, "")

    async def _counted(self, scope: Scope, check: Callable[[], T]) -> T:
        """Check a token; an address that sends many wrong tokens must wait."""
        try:
            return await run_in_threadpool(check)
        except Refusal as refusal:
            if refusal.reason is reasons.TOKEN and (wait := self._wrong.take(address(scope))):
                raise Refusal(reasons.SIGN_IN_TRIES, seconds=wait) from None
            raise


def _from_our_page(headers: Headers) -> bool:
    """Whether our page sent the request, by Fetch Metadata, or by Origin, which older browsers send with changes."""
    if site := headers.get("sec-fetch-site"):
        return site == "same-origin"
    _, _, origin = headers.get("origin", "").partition("://")
    return origin.lower() == headers.get("host", "").lower() != ""
