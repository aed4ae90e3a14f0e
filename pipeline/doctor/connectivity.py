"""Checks of the connections to the study's server and the PACS. Each check ends within seconds."""

import base64
import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from models.refusal import Refusal, without_error_number
from pipeline.feeds.result_queue import queue_state
from pipeline.site.folder import Site
from pipeline.site.study_server import MAX_AHEAD_SECONDS, MAX_BEHIND_SECONDS, server_proxy
from pipeline.system.check_line import Line, Status, refused

AREA = "network"
TIMEOUT_SECONDS = 5.0  # for each step; all steps together take at most three times as long
PACS_TIMEOUT_SECONDS = 15.0  # without data; a large archive may respond slowly
# Differences that are still accepted, and worth a warning.
NOTED_BEHIND_SECONDS, NOTED_AHEAD_SECONDS = 60.0, 2.0


@dataclass(frozen=True)
class Endpoint:
    """An address to check.

    `ca`: the only trusted authority, None for the system's. `proxy`: "host:port", with "user:password@" before it if
    the proxy requires a login; '' for none.
    """

    host: str
    port: int
    is_tls: bool = True
    ca: Path | None = None
    proxy: str = ""


@dataclass(frozen=True)
class Answer:
    """The result. `failed`: what is wrong, '' if nothing. `ahead_seconds`: our clock minus theirs, None if unknown."""

    failed: str = ""
    remedy: str = ""
    private: str = ""
    ahead_seconds: float | None = None


def server_endpoint(site: Site) -> Endpoint:
    """Return the study's server, with the proxy that the node uses for it. Raises Refusal E_SERVER_PROXY."""
    address = site.settings.server.address
    host, _, port = address.rpartition(":")
    proxy = urlsplit(server_proxy(site, address)).netloc
    return Endpoint(host.strip("[]"), int(port), ca=site.ca_certificate, proxy=proxy)


def _dicomweb_endpoint(site: Site) -> Endpoint | None:
    table = site.settings.pacs and site.settings.pacs.dicomweb
    if not table:
        return None
    url = urlsplit(table.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    ca = site.folder / table.ca_certificate if table.ca_certificate else None
    return Endpoint(url.hostname or "", port, url.scheme == "https", ca, urlsplit(table.proxy).netloc)


def network(site: Site) -> Iterator[Line]:
    """Connect to the server and compare the clocks, as far as a server or a PACS is configured."""
    answers = []
    if site.settings.server.address:
        try:
            endpoint = server_endpoint(site)
        except Refusal as refusal:
            yield refused(AREA, "study's server", refusal)
            return
        answer = probe(endpoint)
        answers.append(answer)
        if answer.failed:
            yield Line(AREA, "study's server", "fail", answer.failed, answer.remedy, private=answer.private)
        else:
            through = " through the proxy" if endpoint.proxy else ""
            yield Line(AREA, "study's server", "ok", f"reached over TLS{through}, with the study's certificate")
    else:
        yield Line(
            AREA,
            "study's server",
            "skip",
            "no study's server is configured",
            "Fill in [server] of site.toml to take part.",
        )
    if all(answer.ahead_seconds is None for answer in answers) and (archive := _dicomweb_endpoint(site)):
        answers.append(probe(archive))
    differences = [answer.ahead_seconds for answer in answers if answer.ahead_seconds is not None]
    yield _clock(differences[0] if differences else None)


def _clock(ahead_seconds: float | None) -> Line:
    if ahead_seconds is None:
        return Line(AREA, "clock", "skip", "no other clock to compare with")
    off, is_ahead = abs(ahead_seconds), ahead_seconds > 0
    most = MAX_AHEAD_SECONDS if is_ahead else MAX_BEHIND_SECONDS
    noted = NOTED_AHEAD_SECONDS if is_ahead else NOTED_BEHIND_SECONDS
    status: Status = "fail" if off > most else "warn" if off >= noted else "ok"
    says = f"{off:.0f} s {'ahead of' if is_ahead else 'behind'} the other side's" if off >= 1 else "right"
    remedy = (
        ""
        if status == "ok"
        else "Synchronise this machine's clock with NTP; the server refuses a node whose clock is more than "
        f"{MAX_AHEAD_SECONDS:.0f} s ahead of its own or {MAX_BEHIND_SECONDS:.0f} s behind it (E_CLOCK)."
    )
    return Line(AREA, "clock", status, says, remedy)


def probe(endpoint: Endpoint) -> Answer:
    """Connect, if necessary through the proxy, do the TLS handshake and read the peer's time. Never raises."""
    answer: list[Answer] = []
    # In its own thread: neither the resolver nor a peer that sends one byte per second can block this check.
    thread = threading.Thread(target=lambda: answer.append(_probe_directly(endpoint)), daemon=True)
    thread.start()
    thread.join(3 * TIMEOUT_SECONDS)
    return answer[0] if answer else _SILENT


_SILENT = Answer(
    "no response", "Check address and port in site.toml, and allow outgoing connections to them in the firewall."
)
_UNKNOWN = Answer("this machine cannot resolve the host name", "Check the name in site.toml, and this machine's DNS.")
_CLOSED = Answer("no service listens there", "Check host and port in site.toml, and ask the server's administrator.")
_NO_PROXY = Answer(
    "the proxy cannot be reached",
    "For the study's server, check `proxy` in [server] of site.toml or else `https_proxy` of this machine; for the "
    "PACS, `proxy` in [pacs.dicomweb].",
)
_PROXY = Answer(
    "the proxy refuses the node's connection",
    "Allow CONNECT to this host and port in the proxy, give its user and password in the proxy's address, or exclude "
    "the host with no_proxy.",
)
_BEHIND_PROXY = Answer(
    "the proxy cannot connect to it",
    "Check host and port in site.toml, ask the server's administrator whether it runs, and the proxy's administrator "
    "whether the proxy may connect to it.",
)
_UNTRUSTED = Answer(
    "its certificate is not signed by the expected authority, is invalid, or is for another name",
    "Compare the authority's certificate here with theirs, and use the host name of the certificate. A proxy that "
    "intercepts TLS must exclude this address.",
)
_NO_TLS = Answer("the service there does not use TLS", "Check host and port in site.toml.")
_CERTIFICATE_FILE = Answer("the authority's certificate cannot be read", "Store it at the path that site.toml names.")


def _probe_directly(endpoint: Endpoint) -> Answer:
    steps: list[tuple[type[Exception], Answer]] = [
        (socket.gaierror, _UNKNOWN),
        (ConnectionRefusedError, _CLOSED),
        (ssl.SSLCertVerificationError, _UNTRUSTED),
        (TimeoutError, _SILENT),
        (ssl.SSLError, _NO_TLS),
        (OSError, _SILENT),
        (Exception, _SILENT),
    ]
    try:
        connection = _connection(endpoint)
    except OSError as error:
        return _with(_CERTIFICATE_FILE, error)
    try:
        connection.connect()
        return Answer(ahead_seconds=_ahead(connection))
    except Exception as error:
        if found := re.search(r"Tunnel connection failed: (\d{3})", str(error)):
            return _with(_PROXY if found[1].startswith("4") else _BEHIND_PROXY, error)
        if endpoint.proxy and isinstance(error, socket.gaierror | ConnectionRefusedError):
            return _with(_NO_PROXY, error)
        return _with(next(answer for kind, answer in steps if isinstance(error, kind)), error)
    finally:
        connection.close()


def _with(answer: Answer, error: Exception) -> Answer:
    return Answer(answer.failed, answer.remedy, f"{type(error).__name__}: {without_error_number(str(error))}")


def _connection(endpoint: Endpoint) -> http.client.HTTPConnection:
    """Raises OSError if the authority's certificate cannot be read."""
    via_host, via_port = endpoint.host, endpoint.port
    if endpoint.proxy:
        proxy = urlsplit(f"http://{endpoint.proxy}")
        via_host, via_port = proxy.hostname or "", proxy.port or 3128
    connection: http.client.HTTPConnection
    if endpoint.is_tls:
        context = ssl.create_default_context(cafile=endpoint.ca)
        connection = http.client.HTTPSConnection(via_host, via_port, timeout=TIMEOUT_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(via_host, via_port, timeout=TIMEOUT_SECONDS)
    if endpoint.proxy:
        login, at, _ = endpoint.proxy.rpartition("@")
        encoded = base64.b64encode(unquote(login).encode()).decode()
        headers = {"Proxy-Authorization": f"Basic {encoded}"} if at else {}
        connection.set_tunnel(endpoint.host, endpoint.port, headers)
    return connection


def _ahead(connection: http.client.HTTPConnection) -> float | None:
    """Return the seconds by which our clock is ahead; None if the peer sends no time (RFC 9110, 6.6.1)."""
    try:
        asked = time.time()
        connection.request("HEAD", "/", headers={"User-Agent": "fedthorax"})
        response = connection.getresponse()
        date = parsedate_to_datetime(response.headers.get("Date", ""))
        theirs = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() + 0.5  # the header has whole seconds
        return round((asked + time.time()) / 2 - theirs, 1)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def pacs(site: Site, count: Callable[[Site], tuple[int, int]]) -> Iterator[Line]:
    """Check that the PACS responds, and count the series that match the filters and are stored here."""
    if site.settings.pacs is None:
        yield Line("PACS", "PACS", "skip", "no PACS is configured; scans are read from a folder")
        return
    try:
        matching, here = count(site)
    except Refusal as refusal:
        yield refused("PACS", "PACS", refusal)
        return
    yield Line("PACS", "PACS", "ok", "responds")
    detail = f"{matching} series match the filters, {here} of them are stored here"
    if not matching:
        yield Line("PACS", "filters", "warn", "no series matches", "Widen [pacs.filters] in site.toml.", detail)
    elif here < matching:
        yield Line(
            "PACS", "fetched", "warn", "not all matching series are stored here", "Run `fedthorax node pull`.", detail
        )
    else:
        yield Line("PACS", "fetched", "ok", "all matching series are stored here", detail=detail)


def listener(site: Site) -> Iterator[Line]:
    """Check that the listener for laboratory results runs; show what its queue holds."""
    try:
        queue = queue_state(site)
    except OSError as error:
        says, remedy = "the queue of received results cannot be read", "Make the node's user the owner of its folder."
        yield Line("records", "listener", "fail", says, remedy, private=without_error_number(str(error)))
        return
    if queue is None:
        return
    last = f"the last one at {queue.last:%Y-%m-%d %H:%M}" if queue.last else "none yet"
    detail = f"{queue.messages} messages, {last}"
    if queue.is_listening:
        yield Line("records", "listener", "ok", "receives laboratory results", detail=detail)
    else:
        remedy = "Run `fedthorax node listen`, as a service: docs/laboratory-feeds.md."
        yield Line("records", "listener", "warn", "does not run, so no results are received", remedy, detail)


def fhir(site: Site) -> Iterator[Line]:
    """Check that the FHIR server responds and is of version R4; show when records were fetched from it."""
    from pipeline.feeds.fhir_client import FhirClient, GoneError
    from pipeline.feeds.fhir_fetch import last_fetch

    table, area, name = site.settings.fhir, "records", "FHIR server"
    if table is None:
        return
    short = table.model_copy(update={"timeout_seconds": min(table.timeout_seconds, PACS_TIMEOUT_SECONDS), "retries": 0})
    try:
        with FhirClient(short, site.folder) as client:
            version = str(client.get_json(f"{client.base}/metadata")[0].get("fhirVersion", "unknown"))
        fetched = last_fetch(site)
    except Refusal as refusal:
        yield refused(area, name, refusal)
        return
    except GoneError:
        remedy = "Set `url` in [fhir] of site.toml to the base of FHIR R4, the part before /metadata."
        yield Line(area, name, "fail", "does not offer FHIR at this address", remedy)
        return
    if not version.startswith("4."):
        remedy = "Ask for the address of R4. Other versions name some elements otherwise."
        yield Line(area, name, "warn", f"responds, with version {version[:20]} instead of R4", remedy)
    elif fetched is None:
        yield Line(area, name, "warn", "responds, but nothing was fetched yet", "Run `fedthorax node pull`.")
    else:
        yield Line(area, name, "ok", "responds", detail=f"last fetch at {fetched:%Y-%m-%d %H:%M}")


def omop(site: Site) -> Iterator[Line]:
    """Check that the OMOP database responds and has the tables; show when outcomes were fetched from it."""
    from pipeline.feeds.omop_fetch import check_omop

    if site.settings.omop is None:
        return
    try:
        check_omop(site)
    except Refusal as refusal:
        yield refused("records", "OMOP database", refusal)
        return
    if not site.omop_events.is_file():
        says, remedy = "responds, but nothing was fetched yet", "Run `fedthorax node pull`."
        yield Line("records", "OMOP database", "warn", says, remedy)
        return
    fetched = datetime.fromtimestamp(site.omop_events.stat().st_mtime)
    yield Line("records", "OMOP database", "ok", "responds", detail=f"last fetch at {fetched:%Y-%m-%d %H:%M}")


def count_at_pacs(site: Site) -> tuple[int, int]:
    """Count the series that match the filters, and those of them stored here. Raises Refusal as `Pacs` does."""
    from pipeline.pacs.deidentify import series_folder
    from pipeline.pacs.pacs import open_pacs
    from pipeline.pacs.pull import study_query

    table = site.settings.pacs
    assert table is not None
    table = table.model_copy(deep=True)
    for each in (table.dicomweb, table.dimse):
        if each is not None:
            each.timeout_seconds = min(each.timeout_seconds, PACS_TIMEOUT_SECONDS)
    site = replace(site, settings=site.settings.model_copy(update={"pacs": table}))
    query = study_query(site, table)
    with open_pacs(site) as remote:
        remote.echo()
        matching = [each for each in remote.find(query) if not query.misses(each)]
    here = {path.name for path in site.ct_folder.iterdir()} if site.ct_folder.is_dir() else set()
    return len(matching), sum(series_folder(site, each.study_uid, each.series_uid) in here for each in matching)
