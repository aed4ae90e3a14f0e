"""A PACS over DICOMweb (DICOM PS3.18): QIDO-RS with dicomweb-client; WADO-RS and STOW-RS are implemented here.

The library's retrieval parses every image. If a PACS breaks off in the middle of a response without a length (Orthanc
sends such responses), the library takes the fragment for a complete image. The library's storing rewrites every file,
and names the PACS without its port.
"""

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from requests import exceptions
from urllib3.exceptions import NameResolutionError, NewConnectionError
from urllib3.util import Retry

from models.refusal import Reason, Refusal
from pipeline.pacs import reasons
from pipeline.pacs.divided_search import Study, TimeRejected, studies
from pipeline.pacs.queries import (
    TRUNCATED_AT,
    WHOLE_DAY,
    Days,
    Minutes,
    RemoteSeries,
    StudyQuery,
    time_range,
    valid_uid,
    whole_number,
)
from pipeline.pacs.store_status import PROCESSING_FAILURE
from pipeline.site.pacs_settings import DicomWebTable, read_secret
from pipeline.site.tls import as_client
from pipeline.system.json_text import parse_json

_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as stored, without conversion
_CHUNK_BYTES = 2**20
_MAX_IMAGE_BYTES = 2**30
_CONNECT_SECONDS = 15.0
# The other side may close a kept-alive connection at the moment when we reuse it.
_AT_ONCE = Retry(total=1, connect=0, status=0)
_PAGE = 500  # results for each request
_HAS_MORE = ("exceeded", "additional results")  # in the header Warning of a search (PS3.18, 10.6.3)
_ACCESS_DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_BUSY = {
    *(HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS),
    *(HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT),
}
_PARTLY_STORED = {HTTPStatus.ACCEPTED, HTTPStatus.CONFLICT}  # PS3.18, table 10.5.3-1
# A server that cannot search by StudyTime may reject such a search (PS3.18, table 10.6.3-1).
_CANNOT_SEARCH_SO = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_IMPLEMENTED}
_NEVER_STORED = {
    *(HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    *(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY),
}
_BROKE_OFF = ("RemoteDisconnected", "ConnectionResetError", "EOF occurred")  # in messages of proxy and TLS errors


class DicomWebPacs:
    """A `Pacs` over DICOMweb; a context manager. `folder`: the base of relative paths in the table."""

    def __init__(self, table: DicomWebTable, folder: Path) -> None:
        self._url = table.url.rstrip("/")
        self._timeout = (min(_CONNECT_SECONDS, table.timeout_seconds), table.timeout_seconds)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=_AT_ONCE))
        self._session.hooks["response"].append(self._receive)
        self._says_more = False
        self._session.trust_env = False  # ignore proxies and passwords of the environment
        self._session.proxies = {"http": table.proxy, "https": table.proxy} if table.proxy else {}
        if table.ca_certificate or table.certificate:  # check them now; requests reads them later
            as_client(folder, authority=table.ca_certificate, certificate=table.certificate, key=table.key)
        if table.ca_certificate:
            self._session.verify = str(folder / table.ca_certificate)
        if table.certificate and table.key:
            self._session.cert = (str(folder / table.certificate), str(folder / table.key))
        if table.password_file:
            password = read_secret(folder / table.password_file)
            self._session.auth = requests.auth.HTTPBasicAuth(table.user.encode(), password.encode())
        if table.token_file:
            self._session.auth = _Bearer(read_secret(folder / table.token_file))
        self._qido = DICOMwebClient(self._url, self._session, permissive_uid=True, timeout=self._timeout)
        self._qido.set_http_retry_params(retry=False)
        self._open = ExitStack()

    def __enter__(self) -> "DicomWebPacs":
        self._open.enter_context(_quiet())
        self._open.callback(self._session.close)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def echo(self) -> None:
        with _coded():
            self._qido.search_for_studies(limit=1)

    def find(self, query: StudyQuery) -> list[RemoteSeries]:
        """Search for studies, then for the series of each; drop results that have no valid UID.

        Also raises Refusal E_PACS_TRUNCATED.
        """
        found = {}
        for accession in query.accessions or ("",):
            with _coded():
                for study in self._studies(query, accession):
                    for series in self._series(study):
                        found[series.study_uid, series.series_uid] = series
                    if query.is_met(found.values()):
                        break
        return list(found.values())

    def _studies(self, query: StudyQuery, accession: str) -> Iterator[dict[str, Any]]:
        def search(days: Days, minutes: Minutes) -> _Pages:
            by_time = minutes != WHOLE_DAY
            asked = _filters(query, accession, days, minutes)
            return self._pages(_rejectable(self._qido.search_for_studies, by_time=by_time), asked)

        return studies((query.from_date, query.to_date), search, _study)

    def _series(self, study: dict[str, Any]) -> Iterator[RemoteSeries]:
        study_uid = _uid(study, "0020000D")

        def search(**paging: Any) -> list[dict[str, Any]]:
            fields = ["Modality", "BodyPartExamined", "NumberOfSeriesRelatedInstances", "SeriesDescription"]
            return self._qido.search_for_series(study_uid, fields=fields, **paging)

        pages = self._pages(search, {})
        for series in pages:
            series_uid = _uid(series, "0020000E")
            if not series_uid:
                continue
            yield RemoteSeries(
                patient_id=_value(study, "00100020"),
                issuer=_value(study, "00100021"),
                accession=_value(study, "00080050"),
                study_uid=study_uid,
                series_uid=series_uid,
                modality=_value(series, "00080060"),
                body_part=_value(series, "00180015"),
                images=whole_number(_value(series, "00201209")),
                patient_name=_name(study, "00100010"),
                study_date=_value(study, "00080020"),
                description=_value(series, "0008103E"),
            )
        if pages.has_more:
            raise Refusal(reasons.PACS_TRUNCATED, results=pages.count)

    def image_count(self, study_uid: str, series_uid: str) -> int | None:
        asked = {"search_filters": {"SeriesInstanceUID": series_uid}, "fields": ["NumberOfSeriesRelatedInstances"]}

        def search(**paging: Any) -> list[dict[str, Any]]:
            return self._qido.search_for_series(study_uid, **paging)

        with _coded():
            ours = [each for each in self._pages(search, asked) if _uid(each, "0020000E") == series_uid]
        return whole_number(_value(ours[0], "00201209")) if ours else None

    def images(self, series: RemoteSeries) -> set[str]:
        def search(**paging: Any) -> list[dict[str, Any]]:
            return self._qido.search_for_instances(series.study_uid, series.series_uid, **paging)

        with _coded():
            pages = self._pages(search, {})
            found = {_uid(image, "00080018") for image in pages} - {""}
        if pages.has_more or (pages.is_cut and len(found) < (series.images or 0)):
            raise Refusal(reasons.PACS_TRUNCATED, results=pages.count)
        return found

    def fetch(self, series: RemoteSeries, wanted: set[str] | None) -> Iterator[bytes]:
        url = f"{self._url}/studies/{quote(series.study_uid)}/series/{quote(series.series_uid)}"
        urls = [url] if wanted is None else [f"{url}/instances/{quote(image)}" for image in sorted(wanted)]
        for each in urls:
            with _coded():
                yield from self._retrieve(each)

    def store(self, files: Sequence[Path]) -> list[int]:
        """Send DICOM files unchanged with STOW-RS; return the status of each, 0 if stored (PS3.18, 10.5.3).

        Also raises Refusal E_PACS_STORE if the PACS rejects the whole request.
        """
        images = {str(dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): file for file in files}
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file.read_bytes() + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        with _coded():
            # No redirects: a redirected POST becomes a GET, whose success would look like that of storing.
            response = self._session.post(
                f"{self._url}/studies", body, headers=headers, timeout=self._timeout, allow_redirects=False
            )
            if response.is_redirect:
                raise ValueError(f"status {response.status_code}, another address")
            if response.status_code in _NEVER_STORED:
                raise Refusal(reasons.PACS_STORE, status=response.status_code)
            if response.status_code not in _PARTLY_STORED:
                response.raise_for_status()
                return [0] * len(images)
            sequence = response.json().get("00081198", {}).get("Value", [])
            if response.status_code == HTTPStatus.CONFLICT and not sequence:
                response.raise_for_status()
            failed = {_value(each, "00081155"): _failure(each) for each in sequence}
            return [failed.get(image, 0) for image in images]

    def _pages(self, search: Callable[..., list[dict[str, Any]]], asked: dict[str, Any]) -> "_Pages":
        return _Pages(search, asked, lambda: self._says_more)

    def _receive(self, response: requests.Response, **_: Any) -> None:
        """Note the warning that a search has more results; replace the method by which dicomweb-client parses JSON."""
        self._says_more = any(word in response.headers.get("Warning", "").lower() for word in _HAS_MORE)
        response.json = lambda **_: parse_json(response.content)  # type: ignore[method-assign]

    def _retrieve(self, url: str) -> Iterator[bytes]:
        headers = {"Accept": _ANY_SYNTAX}
        with self._session.get(url, headers=headers, timeout=self._timeout, stream=True) as response:
            response.raise_for_status()
            kind = Message()
            kind["Content-Type"] = response.headers.get("Content-Type", "")
            boundary = kind.get_boundary()
            if kind.get_content_type() != "multipart/related" or not boundary:
                raise ValueError(f"not multipart/related: {kind['Content-Type']!r}")
            yield from split_multipart(response.iter_content(_CHUNK_BYTES), boundary.encode("latin-1"))


class _Bearer(requests.auth.AuthBase):
    """Authentication with a bearer token (RFC 6750, 2.1)."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


def split_multipart(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """Yield the bodies of a multipart message (RFC 2046, 5.1), each as soon as it is complete.

    Raises Refusal E_PACS_SILENT if the message ends before its last boundary, so that no fragment is taken for a
    complete file, and ValueError if a body is larger than 1 GiB.
    """
    delimiter = b"\r\n--" + boundary
    buffer, searched = bytearray(b"\r\n"), 0  # the first boundary may be at the very start
    is_preamble = True
    for chunk in chunks:
        buffer += chunk
        while (end := buffer.find(delimiter, searched)) >= 0:
            if not is_preamble:
                body = buffer.index(b"\r\n\r\n", 0, end) + 4
                with memoryview(buffer) as view:
                    content = bytes(view[body:end])
                yield content
            is_preamble = False
            del buffer[: end + len(delimiter)]
            searched = 0
        if len(buffer) > _MAX_IMAGE_BYTES:
            raise ValueError("one part of the response is larger than 1 GiB")
        searched = max(0, len(buffer) - len(delimiter))
    if is_preamble or not buffer.startswith(b"--"):
        raise Refusal(reasons.PACS_SILENT, private="the response ended too early")


def _rejectable(search: Callable[..., list[dict[str, Any]]], *, by_time: bool) -> Callable[..., list[dict[str, Any]]]:
    """Return the search; one by StudyTime raises TimeRejected if the PACS does not accept it."""

    def ask(**asked: Any) -> list[dict[str, Any]]:
        try:
            return search(**asked)
        except exceptions.HTTPError as error:
            if not by_time or error.response is None or error.response.status_code not in _CANNOT_SEARCH_SO:
                raise
            raise TimeRejected(str(error)) from None

    return ask


def _study(answer: dict[str, Any]) -> Study:
    return Study(_uid(answer, "0020000D"), _value(answer, "00080020"), _value(answer, "00080030"))


def _filters(query: StudyQuery, accession: str, days: Days, minutes: Minutes) -> dict[str, Any]:
    """Return the QIDO-RS query; the modality only helps the PACS, because complete studies are returned."""
    filters = {"ModalitiesInStudy": query.modality, "AccessionNumber": accession, "PatientID": query.patient_id}
    if any(days):
        first, last = (day.strftime("%Y%m%d") if day else "" for day in days)
        filters["StudyDate"] = f"{first}-{last}"
    if minutes != WHOLE_DAY:
        filters["StudyTime"] = time_range(minutes)
    fields = ["StudyInstanceUID", "StudyDate", "StudyTime", "PatientID", "IssuerOfPatientID", "PatientName"]
    fields += ["AccessionNumber"]
    return {"search_filters": {key: value for key, value in filters.items() if value}, "fields": fields}


class _Pages:
    """All results of one search, each once. A PACS may return smaller pages than requested, or the same page forever.

    After the last result, `has_more`: the PACS said that there are more. `is_cut`: there may be more, because it
    returned so many results that this can be its maximum, and the same ones again for a later page.
    """

    def __init__(
        self, search: Callable[..., list[dict[str, Any]]], asked: dict[str, Any], says_more: Callable[[], bool]
    ) -> None:
        self._search, self._asked, self._says_more = search, asked, says_more
        self.count = 0
        self.has_more = self.is_cut = False
        self.refusal = None

    @property
    def is_surely_cut(self) -> bool:
        """As `is_cut`: a PACS that returns the same for a later page has not shown that these are all results."""
        return self.is_cut

    def __iter__(self) -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        offset = pages = 0
        while page := self._search(limit=_PAGE, offset=offset, **self._asked):
            fresh = {str(answer): answer for answer in page if str(answer) not in seen}
            if not fresh:
                self.is_cut = pages == 1 and self.count >= TRUNCATED_AT
                break
            self.has_more = self._says_more()  # before the next request
            offset, pages = offset + len(page), pages + 1
            seen |= fresh.keys()
            self.count = len(seen)
            yield from fresh.values()
        self.is_cut |= self.has_more


def _value(answer: dict[str, Any], tag: str) -> str:
    """Return the first value of an attribute in DICOM JSON (PS3.18, F.2), '' if there is none."""
    values = answer.get(tag, {}).get("Value") or [""]
    return "" if values[0] is None else str(values[0]).strip()


def _uid(answer: dict[str, Any], tag: str) -> str:
    """Return a UID, '' if there is no valid one."""
    return valid_uid(_value(answer, tag))


def _name(answer: dict[str, Any], tag: str) -> str:
    """Return a person's alphabetic name (PS3.18, F.2.2), '' if there is none."""
    names = answer.get(tag, {}).get("Value") or [{}]
    return str((names[0] or {}).get("Alphabetic", "")).strip()


def _failure(answer: dict[str, Any]) -> int:
    """Return the status of an image that was not stored (PS3.18, table I.2-2)."""
    reason = _value(answer, "00081197")
    return int(reason) if reason.isdecimal() else PROCESSING_FAILURE


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' log lines: they quote URLs with UIDs and identifiers."""
    loggers = [logging.getLogger(name) for name in ("dicomweb_client", "retrying", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _fault_of(error: exceptions.RequestException) -> Reason:
    """Return why there is no connection."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(cause, NameResolutionError):
        return reasons.PACS_NAME
    is_refused = isinstance(cause, NewConnectionError) and isinstance(cause.__cause__, ConnectionRefusedError)
    return reasons.PACS_REFUSED if is_refused else reasons.PACS_SILENT


@contextmanager
def _coded() -> Iterator[None]:
    """Convert errors to the refusals of `Pacs`; URLs in the errors stay private."""
    try:
        yield
    except exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = reasons.PACS_AUTH if status in _ACCESS_DENIED else reasons.PACS_ANSWER
        raise Refusal(reasons.PACS_SILENT if status in _BUSY else reason, private=str(error)) from None
    except (exceptions.ProxyError, exceptions.SSLError) as error:
        reason = reasons.PACS_PROXY if isinstance(error, exceptions.ProxyError) else reasons.PACS_UNTRUSTED
        broke_off = any(sign in str(error) for sign in _BROKE_OFF)
        raise Refusal(reasons.PACS_SILENT if broke_off else reason, private=str(error)) from None
    except (exceptions.ConnectionError, exceptions.Timeout, exceptions.ChunkedEncodingError) as error:
        raise Refusal(_fault_of(error), private=str(error)) from None
    except (exceptions.RequestException, ValueError, TypeError, AttributeError, LookupError) as error:
        raise Refusal(reasons.PACS_ANSWER, private=f"{type(error).__name__}: {error}") from None
    except OSError as error:
        raise Refusal(reasons.PACS_SILENT, private=str(error)) from None
