"""A PACS over DICOMweb (DICOM PS3.18): QIDO-RS finds with dicomweb-client, WADO-RS and STOW-RS are spoken here.

The retrieval is our own: the library's parses every image, and where a PACS breaks off in the middle of an answer
that does not tell its length (Orthanc's do not), it takes the piece for a whole image. So is the storing: the library's
writes every file anew, and names the PACS without its port.
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
from urllib3.util import Retry

from models.refusal import Refusal
from pipeline.pacs import reasons
from pipeline.pacs.pacs import RemoteSeries, StudyQuery
from pipeline.pacs.store_status import PROCESSING_FAILURE
from pipeline.pacs.tls import as_client
from pipeline.site.pacs_settings import DicomWebTable, read_secret

_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'  # as stored: the PACS need not convert
_CHUNK_BYTES = 2**20
_MAX_IMAGE_BYTES = 2**30
_CONNECT_SECONDS = 15.0
# A connection that was kept for the next request may be closed by the other side just as we use it.
_AT_ONCE = Retry(total=1, connect=0, status=0)
_PAGE = 500  # answers asked for at once
_ACCESS_DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_BUSY = {
    *(HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS),
    *(HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT),
}
_PARTLY_STORED = {HTTPStatus.ACCEPTED, HTTPStatus.CONFLICT}  # PS3.18, table 10.5.3-1
_NEVER_STORED = {
    *(HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    *(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY),
}
_BROKE_OFF = ("RemoteDisconnected", "ConnectionResetError", "EOF occurred")  # within errors of proxies and TLS


class DicomWebPacs:
    """See `Pacs`; a context manager. `folder`: the site's, against which the table's files are read."""

    def __init__(self, table: DicomWebTable, folder: Path) -> None:
        self._url = table.url.rstrip("/")
        self._timeout = (min(_CONNECT_SECONDS, table.timeout_seconds), table.timeout_seconds)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=_AT_ONCE))
        self._session.trust_env = False  # neither proxies nor passwords of whoever started us
        self._session.proxies = {"http": table.proxy, "https": table.proxy} if table.proxy else {}
        if table.ca_certificate or table.certificate:  # requests itself would find them wrong only when it needs them
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
        found = {}
        for accession in query.accessions or ("",):
            with _coded():
                for study in _all_pages(self._qido.search_for_studies, _filters(query, accession)):
                    for series in self._series(study):
                        found[series.study_uid, series.series_uid] = series
                    if query.is_met(found.values()):
                        break
        return list(found.values())

    def _series(self, study: dict[str, Any]) -> Iterator[RemoteSeries]:
        study_uid = _value(study, "0020000D")

        def search(**paging: Any) -> list[dict[str, Any]]:
            fields = ["Modality", "BodyPartExamined", "NumberOfSeriesRelatedInstances", "SeriesDescription"]
            return self._qido.search_for_series(study_uid, fields=fields, **paging)

        for series in _all_pages(search, {}):
            count = _value(series, "00201209")
            yield RemoteSeries(
                patient_id=_value(study, "00100020"),
                issuer=_value(study, "00100021"),
                accession=_value(study, "00080050"),
                study_uid=study_uid,
                series_uid=_value(series, "0020000E"),
                modality=_value(series, "00080060"),
                body_part=_value(series, "00180015"),
                images=int(count) if count.isdecimal() else None,
                patient_name=_name(study, "00100010"),
                study_date=_value(study, "00080020"),
                description=_value(series, "0008103E"),
            )

    def images(self, series: RemoteSeries) -> set[str]:
        def search(**paging: Any) -> list[dict[str, Any]]:
            return self._qido.search_for_instances(series.study_uid, series.series_uid, **paging)

        with _coded():
            return {_value(image, "00080018") for image in _all_pages(search, {})} - {""}

    def fetch(self, series: RemoteSeries, wanted: set[str] | None) -> Iterator[bytes]:
        url = f"{self._url}/studies/{quote(series.study_uid)}/series/{quote(series.series_uid)}"
        urls = [url] if wanted is None else [f"{url}/instances/{quote(image)}" for image in sorted(wanted)]
        for each in urls:
            with _coded():
                yield from self._retrieve(each)

    def store(self, files: Sequence[Path]) -> list[int]:
        """STOW-RS of DICOM files, as they are; the status of each, 0 where it is stored (PS3.18, 10.5.3).

        Raises also Refusal E_PACS_STORE, where the PACS does not take the request at all.
        """
        images = {str(dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID): file for file in files}
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + file.read_bytes() + b"\r\n" for file in files) + f"--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        headers = {"Content-Type": kind, "Accept": "application/dicom+json"}
        with _coded():
            # Not sent on: a POST becomes a GET on the way, whose success would pass for that of the storing.
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
    """A token (RFC 6750, 2.1)."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._header
        return request


def split_multipart(chunks: Iterable[bytes], boundary: bytes) -> Iterator[bytes]:
    """The bodies of a multipart message (RFC 2046, 5.1), each as soon as its end is here.

    Raises Refusal E_PACS_SILENT where the message ends before its last boundary, so that no piece passes for a
    whole, and ValueError above 1 GiB in one body.
    """
    delimiter = b"\r\n--" + boundary
    buffer, searched = bytearray(b"\r\n"), 0  # the first boundary may stand at the very start
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
            raise ValueError("one part of the answer is larger than 1 GiB")
        searched = max(0, len(buffer) - len(delimiter))
    if is_preamble or not buffer.startswith(b"--"):
        raise Refusal(reasons.PACS_SILENT, private="the answer broke off")


def _filters(query: StudyQuery, accession: str) -> dict[str, Any]:
    """What QIDO-RS is asked; the modality as a help for the PACS, since whole studies come back."""
    filters = {"ModalitiesInStudy": query.modality, "AccessionNumber": accession, "PatientID": query.patient_id}
    if query.from_date or query.to_date:
        first, last = (day.strftime("%Y%m%d") if day else "" for day in (query.from_date, query.to_date))
        filters["StudyDate"] = f"{first}-{last}"
    fields = ["StudyInstanceUID", "StudyDate", "PatientID", "IssuerOfPatientID", "PatientName", "AccessionNumber"]
    return {"search_filters": {key: value for key, value in filters.items() if value}, "fields": fields}


def _all_pages(search: Callable[..., list[dict[str, Any]]], asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every answer once. A PACS may send fewer at a time than asked for, and some send the same for ever."""
    seen: set[str] = set()
    offset = 0
    while page := search(limit=_PAGE, offset=offset, **asked):
        offset += len(page)
        fresh = {str(answer): answer for answer in page if str(answer) not in seen}
        if not fresh:
            return
        seen |= fresh.keys()
        yield from fresh.values()


def _value(answer: dict[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON (PS3.18, F.2), '' where there is none."""
    values = answer.get(tag, {}).get("Value") or [""]
    return "" if values[0] is None else str(values[0]).strip()


def _name(answer: dict[str, Any], tag: str) -> str:
    """A person's name in letters (PS3.18, F.2.2), '' where there is none."""
    names = answer.get(tag, {}).get("Value") or [{}]
    return str((names[0] or {}).get("Alphabetic", "")).strip()


def _failure(answer: dict[str, Any]) -> int:
    """Why an image was not stored (PS3.18, table I.2-2)."""
    reason = _value(answer, "00081197")
    return int(reason) if reason.isdecimal() else PROCESSING_FAILURE


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the libraries' log lines: they quote addresses with UIDs and identifiers in them."""
    loggers = [logging.getLogger(name) for name in ("dicomweb_client", "retrying", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _coded() -> Iterator[None]:
    """Turn whatever goes wrong into the refusals that `Pacs` promises; the addresses in the errors stay private."""
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
        raise Refusal(reasons.PACS_SILENT, private=str(error)) from None
    except (exceptions.RequestException, ValueError, TypeError, AttributeError, LookupError) as error:
        raise Refusal(reasons.PACS_ANSWER, private=f"{type(error).__name__}: {error}") from None
    except OSError as error:
        raise Refusal(reasons.PACS_SILENT, private=str(error)) from None
