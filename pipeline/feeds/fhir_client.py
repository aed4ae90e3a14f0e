"""HTTP access to a FHIR R4 server, with limits on what a faulty or hostile server can do.

Tokens go to the server's own origin (scheme, host and port) and, for files of an export, to the listed ones. Redirects
are not followed, compressed responses are refused (they can expand to any size), and no response is read beyond a
limit. URLs can contain identifiers: they are never logged, and errors name only statuses.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from requests import exceptions

from models.refusal import Reason, Refusal
from pipeline.feeds import reasons
from pipeline.feeds.smart_token import Tokens
from pipeline.site.fhir_settings import FhirTable, origin_of
from pipeline.site.tls import as_client, ends_with_alert
from pipeline.system.json_text import parse_json

JSON = "application/fhir+json"
NDJSON = "application/fhir+ndjson"
MAX_BYTES = 32_000_000  # of a JSON response, or a line of NDJSON
_JSON_TYPES = {JSON, "application/json", "application/json+fhir"}
_NDJSON_TYPES = {NDJSON, "application/ndjson", "application/x-ndjson", "application/octet-stream", "text/plain"}
_CONNECT_SECONDS = 15.0
_RESPONSE_SECONDS = 600.0  # for a whole response other than a file
_CHUNK_BYTES = 2**18
_BUSY = {408, 425, 429, 502, 503, 504}
_DENIED = {401, 403}
_GONE = {404, 410}
_CONTENT_REFUSED = {400, 404, 405, 409, 412, 413, 415, 422}
_MIN_WAIT, _MAX_WAIT = 1.0, 300.0
_BROKE_OFF = ("EOF occurred", "[SYS]")  # in messages of TLS errors: the connection ended; not about certificates


class GoneError(Exception):
    """The server does not have this resource, page or export (any more)."""


class FhirClient:
    """Access to one server; a context manager. `folder`: the base of relative paths in the table."""

    def __init__(self, table: FhirTable, folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        """Raises Refusal E_PACS_FILE."""
        self.base, self._table, self._sleep = table.url, table, sleep
        self._own = origin_of(table.url)
        self._files = {self._own, *map(origin_of, table.file_origins)}
        self._timeout = (min(_CONNECT_SECONDS, table.timeout_seconds), table.timeout_seconds)
        self._session = requests.Session()
        self._session.trust_env = False  # ignore proxies and passwords of the environment
        self._session.proxies = {"http": table.proxy, "https": table.proxy} if table.proxy else {}
        self._session.headers["Accept-Encoding"] = "identity"
        # This checks the files now; requests reads them later.
        self._tls = as_client(folder, authority=table.ca_certificate, certificate=table.certificate, key=table.key)
        if table.ca_certificate:
            self._session.verify = str(folder / table.ca_certificate)
        if table.certificate and table.key:
            self._session.cert = (str(folder / table.certificate), str(folder / table.key))
        self._tokens = Tokens(table, folder, self._session, self._timeout)
        self.received = 0  # bytes of all responses

    def __enter__(self) -> "FhirClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def is_own(self, url: str) -> bool:
        return origin_of(url) == self._own

    def get_json(self, url: str, params: list[tuple[str, str]] | None = None) -> tuple[dict[str, Any], float | None]:
        """Return the JSON object at a URL of the server, and the server's time in seconds since 1970.

        Raises GoneError; Refusal E_FHIR_ORIGIN and those of `_coded`.
        """
        with self._request("GET", url, params=params, headers={"Accept": JSON}) as response:
            return self._object(response), _date(response)

    def start(self, url: str, params: list[tuple[str, str]]) -> str:
        """Start an asynchronous request; return the URL of its status. Raises as `get_json`."""
        headers = {"Accept": JSON, "Prefer": "respond-async"}
        with self._request("GET", url, params=params, headers=headers) as response:
            status = response.headers.get("Content-Location", "")
            if response.status_code != requests.codes.accepted or not status:
                raise Refusal(reasons.FHIR_ANSWER, private=f"$export: status {response.status_code}")
            return absolute(self.base, status)

    def poll(self, url: str) -> dict[str, Any] | float:
        """Return the result of an asynchronous request, or the seconds after which to ask again."""
        with self._request("GET", url, headers={"Accept": "application/json"}) as response:
            if response.status_code == requests.codes.accepted:
                return _retry_after(response, default=10.0)
            return self._object(response)

    def transaction(self, bundle: dict[str, Any]) -> None:
        """Send a transaction once; the server stores all of it or nothing.

        Only a whole transaction response counts: a page of a proxy with status 200 does not. Raises Refusal
        E_FHIR_REFUSED if the server refuses its content, E_FHIR_SILENT if it can be sent again later, E_FHIR_ANSWER,
        and those of `_coded`.
        """
        answer: dict[str, Any] = {}
        body = json.dumps(bundle, allow_nan=False).encode()
        headers = {"Accept": JSON, "Content-Type": JSON, "Prefer": "return=minimal"}
        for _ in range(2):
            with _coded(), self._send("POST", self.base, None, headers, True, body) as response:
                status = response.status_code
                if status == requests.codes.ok:
                    answer = self._object(response)
            if status != requests.codes.unauthorized or not self._tokens.forget():
                break
        if status in _CONTENT_REFUSED:
            raise Refusal(reasons.FHIR_REFUSED, private=f"status {status}")
        if status != requests.codes.ok:
            raise Refusal(_reason(status), private=f"status {status}")
        if not _is_stored(answer, len(bundle["entry"])):
            raise Refusal(reasons.FHIR_ANSWER, private="no transaction response")

    def delete(self, url: str) -> None:
        """Tell the server that an export is no longer needed; a failure does not matter."""
        try:
            self._request("DELETE", url, headers={"Accept": JSON}).close()
        except (Refusal, GoneError):
            return

    def lines(self, url: str, *, with_token: bool) -> Iterator[bytes]:
        """Yield the lines of an NDJSON file of an export. Raises as `get_json`."""
        if origin_of(url) not in self._files:
            raise Refusal(reasons.FHIR_ORIGIN, private="a file of the export is on another server")
        headers = {"Accept": NDJSON}
        with self._request("GET", url, headers=headers, is_file=True, with_token=with_token) as response:
            _check_type(response, _NDJSON_TYPES)
            rest = b""
            for chunk in self._chunks(response, None):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from whole
                if len(rest) > MAX_BYTES:
                    raise Refusal(reasons.FHIR_SIZE, private="a line of a file")
            yield rest

    def _request(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        params: list[tuple[str, str]] | None = None,
        is_file: bool = False,
        with_token: bool = True,
    ) -> requests.Response:
        """Send a request, again if the server is busy or silent; return its successful response, not yet read."""
        if not (is_file or self.is_own(url)):
            raise Refusal(reasons.FHIR_ORIGIN, private="a link points to another server")
        wait, has_new_token = _MIN_WAIT, False
        for attempt in range(self._table.retries + 2):
            is_last = attempt >= self._table.retries
            try:
                with _coded():
                    response = self._send(method, url, params, headers, with_token)
            except Refusal as refusal:
                if refusal.reason is not reasons.FHIR_SILENT or is_last:
                    raise
            else:
                status = response.status_code
                if status < 300:
                    return response
                response.close()
                if status in _GONE:
                    raise GoneError
                if status == requests.codes.unauthorized and not has_new_token and self._tokens.forget():
                    has_new_token = True
                    continue
                if status not in _BUSY or is_last:
                    raise Refusal(_reason(status), private=f"status {status}")
                wait = max(wait, _retry_after(response, default=wait))
            self._sleep(wait)
            wait = min(2 * wait, _MAX_WAIT)
        raise Refusal(reasons.FHIR_AUTH, private="a new token was not accepted")

    def _send(
        self,
        method: str,
        url: str,
        params: list[tuple[str, str]] | None,
        headers: dict[str, str],
        with_token: bool,
        body: bytes | None = None,
    ) -> requests.Response:
        token = self._tokens.current() if with_token else ""
        headers = {**headers, "Authorization": f"Bearer {token}"} if token else headers
        try:
            return self._session.request(
                method,
                url,
                params=params,
                data=body,
                headers=headers,
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            )
        except exceptions.ConnectionError as error:
            if _reason_of(error) is reasons.FHIR_SILENT and self._denies_our_certificate():
                raise Refusal(reasons.FHIR_UNTRUSTED, private="the server ended the TLS connection") from None
            raise

    def _denies_our_certificate(self) -> bool:
        """Whether the server ends a TLS connection with an alert; in a request that can look like a broken network."""
        assert self._own is not None  # FhirTable ensures it
        scheme, host, port = self._own
        return scheme == "https" and not self._table.proxy and ends_with_alert(self._tls, host, port)

    def _object(self, response: requests.Response) -> dict[str, Any]:
        _check_type(response, _JSON_TYPES)
        content = b"".join(self._chunks(response, MAX_BYTES))
        try:
            tree = parse_json(content)
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise Refusal(reasons.FHIR_ANSWER, private="the response is not a JSON object")
        return tree

    def _chunks(self, response: requests.Response, max_bytes: int | None) -> Iterator[bytes]:
        """Yield the content. Raises Refusal E_FHIR_SIZE beyond `max_bytes` or `max_gb`, E_FHIR_SILENT if it stalls."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Refusal(reasons.FHIR_ANSWER, private="the response is compressed")
        size, deadline = 0, time.monotonic() + _RESPONSE_SECONDS
        with _coded():
            for chunk in response.iter_content(_CHUNK_BYTES):
                size += len(chunk)
                self.received += len(chunk)
                if (max_bytes and size > max_bytes) or self.received > self._table.max_gb * 1e9:
                    raise Refusal(reasons.FHIR_SIZE, private=f"more than {size} bytes")
                if max_bytes and time.monotonic() > deadline:
                    raise Refusal(reasons.FHIR_SILENT, private="a response takes too long")
                yield chunk


def absolute(base: str, link: str) -> str:
    """Return a link as an absolute URL, "" if it cannot be one."""
    try:
        return urljoin(f"{base}/", link)
    except ValueError:
        return ""


def _is_stored(answer: dict[str, Any], entries: int) -> bool:
    """Whether this is the response to a transaction of so many entries that were all stored (R4, 3.1.0.11.2)."""
    found = answer.get("entry")
    if answer.get("resourceType") != "Bundle" or answer.get("type") != "transaction-response":
        return False
    responses = [each.get("response") for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    statuses = [each.get("status") for each in responses if isinstance(each, dict)]
    return len(statuses) == entries and all(str(status).startswith("2") for status in statuses)


def _check_type(response: requests.Response, types: set[str]) -> None:
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind not in types:
        raise Refusal(reasons.FHIR_ANSWER, private=f"content type {kind[:80]!r}")


def _reason(status: int) -> Any:
    return reasons.FHIR_AUTH if status in _DENIED else reasons.FHIR_SILENT if status in _BUSY else reasons.FHIR_ANSWER


def _retry_after(response: requests.Response, *, default: float) -> float:
    """Return the seconds of Retry-After (RFC 9110, 10.2.3), within sensible limits."""
    text = response.headers.get("Retry-After", "").strip()
    seconds = default
    if text.isascii() and text.isdecimal() and len(text) < 10:
        seconds = float(text)
    elif text:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            seconds = default
    return min(max(seconds, _MIN_WAIT), _MAX_WAIT)


def _date(response: requests.Response) -> float | None:
    try:
        return parsedate_to_datetime(response.headers.get("Date", "")).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


@contextmanager
def _coded() -> Iterator[None]:
    """Convert the library's errors to refusals, without the URLs that they quote."""
    library = logging.getLogger("urllib3")  # its lines quote URLs
    level = library.level
    library.setLevel(logging.CRITICAL)
    try:
        yield
    except (exceptions.RequestException, OSError) as error:
        raise Refusal(_reason_of(error), private=type(error).__name__) from None
    finally:
        library.setLevel(level)


def _reason_of(error: Exception) -> Reason:
    if isinstance(error, exceptions.ProxyError):
        return reasons.FHIR_PROXY
    is_tls = isinstance(error, exceptions.SSLError) and not any(each in str(error) for each in _BROKE_OFF)
    return reasons.FHIR_UNTRUSTED if is_tls else reasons.FHIR_SILENT
