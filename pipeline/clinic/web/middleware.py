"""Checks before every route: host names, callers, sizes, rates, timeouts, headers, and error responses."""

import asyncio
import errno
import logging
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.refusal import Refusal
from pipeline.clinic import reasons
from pipeline.clinic.web import error_responses
from pipeline.clinic.web.limits import Buckets

if TYPE_CHECKING:
    from pipeline.clinic.web.authentication import Callers

API = "/api/v1"
SCANS, SESSION, OPENAPI = f"{API}/scans", f"{API}/session", f"{API}/openapi.json"
SIGN_IN, SIGN_IN_END = f"{API}/sign-in", f"{API}/sign-in/finish"
REQUEST_BYTES = 2**16  # of a request without a scan
REQUEST_SECONDS, UPLOAD_SECONDS = 60, 900  # until the response begins
READ_ON_SECONDS = 30  # the rest of a refused request
MB = 10**6
_NOT_COUNTED = ("/health/", "/static/")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

log = logging.getLogger("fedthorax.clinic")


class CutShortError(Exception):
    """A response failed after its start; the connection is closed, so that it is not mistaken for a complete one."""


class Guard:
    """ASGI middleware that checks every request; routes find the caller in `request.state.caller`.

    `hosts`: the permitted host names, in lower case, without port. Starlette's TrustedHostMiddleware 1.3 cannot check
    them: it compares upper and lower case, refuses every IPv6 literal (`[::1]:8765`), redirects to `www.` unless told
    not to, and refuses in plain text, without a code and without our headers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        callers: "Callers",
        hosts: frozenset[str],
        requests_per_minute: int,
        upload_mb: int,
        behind_proxy: bool,
    ) -> None:
        self._app, self._callers, self._hosts, self._upload_mb = app, callers, hosts, upload_mb
        # Behind a proxy all requests have the same address: the proxy must limit them.
        self._by_address = None if behind_proxy else Buckets(requests_per_minute, requests_per_minute)
        self._by_name = Buckets(requests_per_minute, requests_per_minute)
        self._headers = _HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if callers.tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # start and end of the application
            await self._app(scope, receive, send)
            return
        brings_a_scan = scope["path"] == SCANS
        exchange = _Exchange(
            receive,
            send,
            most_bytes=self._upload_mb * MB if brings_a_scan else REQUEST_BYTES,
            headers=self._headers | {"Cache-Control": "no-cache" if _is_static(scope) else "no-store"},
        )
        seconds = UPLOAD_SECONDS if brings_a_scan else REQUEST_SECONDS
        try:
            async with asyncio.timeout(seconds) as deadline:
                exchange.deadline = deadline
                await self._let_in(scope, exchange)
                await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass  # the client is gone
        except Exception as error:
            exchange.deadline = None
            refusal = Refusal(reasons.REQUEST_TIME, seconds=seconds) if deadline.expired() else _refusal_of(error)
            if exchange.has_begun:
                raise CutShortError from None
            await error_responses.answer(refusal, scope)(scope, receive, exchange.send)

    async def _let_in(self, scope: Scope, exchange: "_Exchange") -> None:
        """Check host, size, rate and caller of a request. Raises Refusal if a check fails."""
        headers = Headers(scope=scope)
        if _host_name(headers.get("host", "")) not in self._hosts:
            raise Refusal(reasons.HOST)
        exchange.announced(headers.get("content-length", "0"))
        if scope["path"].startswith(_NOT_COUNTED):
            return
        if self._by_address and (wait := self._by_address.take(error_responses.address(scope))):
            raise Refusal(reasons.RATE, seconds=wait)
        if _needs_a_caller(scope):
            caller = await self._callers.of(scope)
            if wait := self._by_name.take(caller.name):
                raise Refusal(reasons.RATE, seconds=wait)
            scope.setdefault("state", {})["caller"] = caller
            exchange.known()


class _Exchange:
    """One request and its response inside the middleware."""

    def __init__(self, receive: Receive, send: Send, *, most_bytes: int, headers: dict[str, str]) -> None:
        self._receive, self._send, self._most_bytes, self._headers = receive, send, most_bytes, headers
        self._bytes, self._is_whole = 0, False
        self._read_at_most = REQUEST_BYTES
        self.has_begun = False
        self.deadline: asyncio.Timeout | None = None  # before which the response must begin

    def announced(self, length: str) -> None:
        """Check Content-Length. Raises Refusal E_REQUEST, E_REQUEST_SIZE."""
        if not (length.isascii() and length.isdecimal() and len(length) < 20):
            raise Refusal(reasons.REQUEST, problems="Content-Length is not a number")
        self._is_not_larger(int(length))

    async def receive(self) -> Message:
        """Receive a message. Raises Refusal E_REQUEST_SIZE if the body is too large, whatever Content-Length says."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            self._is_not_larger(self._bytes)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400:
                await self._read_on()
            for name, value in self._headers.items():
                MutableHeaders(scope=message).setdefault(name, value)
            self.has_begun = True
            if self.deadline:
                self.deadline.reschedule(None)  # a large file may go to a slow browser
        await self._send(message)

    def known(self) -> None:
        """Mark the caller as known: a refused body is then read up to the full size limit."""
        self._read_at_most = self._most_bytes

    async def _read_on(self) -> None:
        """Read the rest of a refused request: many clients read the response only after sending everything."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READ_ON_SECONDS):
                while not self._is_whole and self._bytes < self._read_at_most:
                    message = await self._receive()
                    self._bytes += len(message.get("body", b""))
                    self._is_whole = not message.get("more_body", False)  # also ends after a broken connection

    def _is_not_larger(self, size: int) -> None:
        if size > self._most_bytes:
            raise Refusal(reasons.REQUEST_SIZE, megabytes=round(self._most_bytes / MB, 2))


def _needs_a_caller(scope: Scope) -> bool:
    path: str = scope["path"]
    is_open = path in (OPENAPI, SIGN_IN, SIGN_IN_END) or (path == SESSION and scope["method"] == "POST")
    return path == "/metrics" or (path.startswith(f"{API}/") and not is_open)


def _is_static(scope: Scope) -> bool:
    return bool(scope["path"].startswith("/static/"))


def _host_name(host: str) -> str:
    """Return the name or address in a Host header, in lower case; '' if there is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refusal_of(error: Exception) -> Refusal:
    """Return the refusal for an error. For an unexpected error, log its type and traceback, never its message."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refusal(reasons.DISK_FULL)
    log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return Refusal(reasons.INTERNAL)
