"""The gateway's only client to the study's server: mutual TLS, the node's signature, responses of limited size."""

import logging
import re
import ssl
from collections.abc import Mapping
from importlib.metadata import version
from io import BytesIO
from types import TracebackType
from typing import Self, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
from google.protobuf.message import DecodeError, Message

from federation.enrolment import reasons as enrolment_reasons
from federation.flower.addresses import PREFIX
from federation.flower.chunks import CHUNK_BYTES
from federation.gateway import reasons
from federation.gateway.credentials import NodeKey
from federation.protocol.versions import VERSION_HEADER
from federation.secure_aggregation.messages import MAX_BYTES
from federation.superlink.masked_address import PATH
from models.refusal import Reason
from pipeline.site.study_server import refused_connect
from pipeline.system.json_text import parse_json

MEDIA_TYPE = "application/protobuf"
MAX_BODY_BYTES = CHUNK_BYTES + 256 * 1024
MAX_SMALL_BYTES = 256 * 1024  # of every response that is neither an object nor an app
MAX_APP_BYTES = 10 * 2**20 + 256 * 1024  # flwr.common.constant.FAB_MAX_SIZE, and the message around it
_ERROR_STATUSES, _BAD_GATEWAY = range(400, 600), 502
_MAX_DETAIL_CHARACTERS = 300
_MASKED_SECONDS = 40.0
_TRY_AGAIN = (408, 429, 502, 503, 504)
_TIMEOUT = aiohttp.ClientTimeout(total=600, connect=10, sock_read=60)
_HEADERS = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE, VERSION_HEADER: version("fedthorax")}
_CODE = re.compile(rb'"detail": ?"(E_[A-Z_]{2,40})"')  # the format of the study's ingress

Answer = TypeVar("Answer", bound=Message)
log = logging.getLogger("fedthorax.gateway")


class Unreachable(Exception):
    """The server gave no usable response now; a later attempt may succeed. `reason`: the cause, if known."""

    def __init__(self, text: str, reason: Reason | None = None) -> None:
        super().__init__(text)
        self.reason = reason


class Unusable(Unreachable):
    """The response is too long, or not in Flower's format."""


class Declined(Exception):
    """The server declined the request: HTTP status (502 if it was not an error status), Flower error code, and text.

    The node receives nothing else of the response's body; control characters are removed from the text.
    """

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"HTTP {status}: {body[:300]!r}")
        self.status = status if status in _ERROR_STATUSES else _BAD_GATEWAY
        self.code, self.detail = _error_of(body)


class TooLong(Exception):
    """A body exceeds its size limit."""


class Upstream:
    """The Fleet API of the study's server at `address` ("host:port"). Use it as an async context manager.

    `proxy`: URL of the HTTP proxy to go through, '' for a direct connection.
    """

    def __init__(self, address: str, key: NodeKey, tls: ssl.SSLContext, *, proxy: str = "") -> None:
        self._origin = f"https://{address}"
        self._key, self._tls = key, tls
        self._proxy, self._login = _without_login(proxy)
        self._proxy_refuses = False

    async def __aenter__(self) -> Self:
        self._session = self._connect(self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def show(self, tls: ssl.SSLContext) -> None:
        """Use another certificate from now on. Requests in progress fail and are repeated."""
        before, self._session = self._session, self._connect(tls)
        await before.close()

    def _connect(self, tls: ssl.SSLContext) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=tls, limit=8)
        return aiohttp.ClientSession(
            connector=connector, auto_decompress=False, proxy=self._proxy, proxy_auth=self._login
        )

    async def ask(
        self,
        path: str,
        request: Message | BytesIO,
        answer: type[Answer],
        *,
        seconds: float | None = None,
        max_bytes: int = MAX_SMALL_BYTES,
    ) -> Answer:
        """Send a request, serialised or not, and return the response; `seconds` limits the time.

        A response longer than `max_bytes` is not read completely. Raises Unreachable, Declined.
        """
        # A stream is encrypted and sent in pieces; bytes would be copied several times.
        content = request if isinstance(request, BytesIO) else BytesIO(request.SerializeToString(deterministic=True))
        timeout = aiohttp.ClientTimeout(total=seconds) if seconds else _TIMEOUT
        body = await self._post(path, content, timeout, max_bytes)
        try:
            return answer.FromString(body)
        except DecodeError as error:
            raise Unusable("the response is not in Flower's format") from error

    async def tell(self, path: str, content: bytes, headers: Mapping[str, str]) -> bytes | None:
        """Send a message of a masked round, and return the answer; None if the server has none yet.

        Raises Unreachable, Declined.
        """
        timeout = aiohttp.ClientTimeout(total=_MASKED_SECONDS)
        body = await self._send(PATH + path, BytesIO(content), headers, timeout, MAX_BYTES, good=(200, 204))
        return bytes(body) or None

    async def _post(self, path: str, content: BytesIO, timeout: aiohttp.ClientTimeout, limit: int) -> bytearray:
        headers = {**self._key.headers(), **_HEADERS}
        return await self._send(f"{PREFIX}{path}", content, headers, timeout, limit)

    async def _send(
        self,
        path: str,
        content: BytesIO,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        limit: int,
        *,
        good: tuple[int, ...] = (200,),
    ) -> bytearray:
        try:
            async with self._session.post(
                self._origin + path, data=content, headers=headers, allow_redirects=False, timeout=timeout
            ) as response:
                body = await read_body(response.content, limit)
        except TooLong as error:
            raise Unusable("the response is too long") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise _untrusted(error, enrolment_reasons.SERVER_UNTRUSTED) from error
        except aiohttp.ClientHttpProxyError as error:
            raise self._not_connected(error.status) from error
        except (aiohttp.ClientError, OSError) as error:
            if _is_tls_alert(error):  # the server rejected our certificate
                raise _untrusted(error, reasons.CERTIFICATE_REFUSED) from error
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        self._proxy_refuses = False
        if response.status in _TRY_AGAIN:
            raise Unreachable(f"HTTP {response.status}")
        if response.status not in good:
            if found := _CODE.search(body):
                log.warning("the server refused: %s", found[1].decode())
            else:
                # The name alone: `node.start` recognises it, to tell a server that does not know the node.
                log.warning("the server declined %s: HTTP %d", path.rpartition("/")[2], response.status)
            raise Declined(response.status, bytes(body))
        return body

    def _not_connected(self, status: int) -> Unreachable:
        """Return the error for a proxy that answers CONNECT with this status; log a refusal.

        It is logged once until the server answers. The error has no `reason`: the node keeps trying, because somebody
        may correct the proxy.
        """
        refused = refused_connect(status)
        if refused and not self._proxy_refuses:
            log.warning("%s", refused)
        self._proxy_refuses = self._proxy_refuses or refused is not None  # until the server answers
        return Unreachable(f"the proxy answers HTTP {status}")


def _is_tls_alert(error: BaseException | None) -> bool:
    """Whether the server ended the connection with a TLS alert. Its reason has a name such as TLSV1_ALERT_UNKNOWN_CA.

    The error's text is not searched: a proxy's answer and the server's host name are part of it.
    """
    while error is not None:
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
            return True
        error = error.__cause__ or error.__context__
    return False


def _without_login(proxy: str) -> tuple[str | None, aiohttp.BasicAuth | None]:
    """Split a proxy's URL into the URL without a login, and the login: aiohttp's errors quote the URL."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return proxy or None, None
    login = aiohttp.BasicAuth(unquote(parts.username), unquote(parts.password or ""), encoding="utf-8")
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], *parts[2:])), login


def _error_of(body: bytes) -> tuple[int, str]:
    """Return the code and text of an error in Flower's format (flwr.supercore.error); 0 and "" for anything else."""
    try:
        content = parse_json(body)
        code, detail = content.get("code"), content.get("detail")
    except (ValueError, AttributeError):
        return 0, ""
    text = detail[:_MAX_DETAIL_CHARACTERS] if isinstance(detail, str) else ""
    return code if type(code) is int and 0 <= code < 10**6 else 0, "".join(filter(str.isprintable, text))


def _untrusted(error: Exception, reason: Reason) -> Unreachable:
    log.warning("%s: %s (%s)", reason.code, reason.says, error)
    return Unreachable(str(error), reason)


async def read_body(content: aiohttp.StreamReader, limit: int) -> bytearray:
    """Read a body of at most `limit` bytes into one buffer. Raises TooLong."""
    body = bytearray()
    async for part in content.iter_any():
        body += part
        if len(body) > limit:
            raise TooLong
    return body
