"""What the node must reach: the study's server and the PACS. Every look ends within seconds."""

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.check_line import Line, Status, refused

AREA = "network"
TIMEOUT_SECONDS = 5.0  # for each step; all together take at most three times as long
PACS_TIMEOUT_SECONDS = 15.0  # of silence; a large archive may think for a while
# The server refuses signatures that are more than 300 s old or come from the future (Flower's node authentication).
LARGEST_SKEW_SECONDS = 300.0
NOTED_SKEW_SECONDS = 60.0


@dataclass(frozen=True)
class Endpoint:
    """Where to knock. `ca`: the only authority to trust; None for those of the system. `proxy`: "host:port" or ''."""

    host: str
    port: int
    is_tls: bool = True
    ca: Path | None = None
    proxy: str = ""


@dataclass(frozen=True)
class Answer:
    """What came back: `failed` says what is wrong, '' if nothing. `ahead_seconds`: of our clock, if theirs is told."""

    failed: str = ""
    remedy: str = ""
    private: str = ""
    ahead_seconds: float | None = None


def server_endpoint(site: Site) -> Endpoint:
    """The study's server, through the proxy that the environment names for https."""
    host, _, port = site.settings.server.address.rpartition(":")
    host = host.strip("[]")
    proxy = "" if proxy_bypass(host) else getproxies().get("https", "")
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return Endpoint(host, int(port), ca=site.ca_certificate, proxy=parts.netloc.rpartition("@")[2])


def _dicomweb_endpoint(site: Site) -> Endpoint | None:
    table = site.settings.pacs and site.settings.pacs.dicomweb
    if not table:
        return None
    url = urlsplit(table.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    ca = site.folder / table.ca_certificate if table.ca_certificate else None
    return Endpoint(url.hostname or "", port, url.scheme == "https", ca, urlsplit(table.proxy).netloc)


def network(site: Site) -> Iterator[Line]:
    """Reach the server, compare the clocks. Nothing is contacted where no server and no PACS is set."""
    answers = []
    if site.settings.server.address:
        answer = knock(server_endpoint(site))
        answers.append(answer)
        if answer.failed:
            yield Line(AREA, "study's server", "fail", answer.failed, answer.remedy, private=answer.private)
        else:
            yield Line(AREA, "study's server", "ok", "reached over TLS, with the study's certificate")
    else:
        yield Line(
            AREA, "study's server", "skip", "no server of a study is set", "Fill in [server] of site.toml to take part."
        )
    if all(answer.ahead_seconds is None for answer in answers) and (endpoint := _dicomweb_endpoint(site)):
        answers.append(knock(endpoint))
    told = [answer.ahead_seconds for answer in answers if answer.ahead_seconds is not None]
    yield _clock(told[0] if told else None)


def _clock(ahead_seconds: float | None) -> Line:
    if ahead_seconds is None:
        return Line(AREA, "clock", "skip", "there is no other clock to compare with")
    off = abs(ahead_seconds)
    status: Status = "fail" if off > LARGEST_SKEW_SECONDS else "warn" if off >= NOTED_SKEW_SECONDS else "ok"
    says = f"{off:.0f} s {'ahead of' if ahead_seconds > 0 else 'behind'} the other side's" if off >= 1 else "right"
    remedy = "" if status == "ok" else "Set this machine's clock by NTP; beyond 300 s the server lets no node in."
    return Line(AREA, "clock", status, says, remedy)


def knock(endpoint: Endpoint) -> Answer:
    """Connect, through the proxy if there is one, shake hands over TLS and ask for the time. Never raises."""
    answer: list[Answer] = []
    # In a thread of its own: neither the resolver nor a peer that sends one byte a second can then hold us up.
    thread = threading.Thread(target=lambda: answer.append(_knock(endpoint)), daemon=True)
    thread.start()
    thread.join(3 * TIMEOUT_SECONDS)
    return answer[0] if answer else _SILENT


_SILENT = Answer("no answer", "Let the firewall open the way out to this address and port; check both in site.toml.")
_UNKNOWN = Answer(
    "the host's name is not known to this machine", "Check the name in site.toml, and this machine's DNS."
)
_CLOSED = Answer("nothing listens there", "Check host and port in site.toml, and with those who run the server.")
_NO_PROXY = Answer(
    "the proxy cannot be reached",
    "Check `https_proxy` of this machine for the study's server, `proxy` in [pacs.dicomweb] of site.toml for the PACS.",
)
_PROXY = Answer(
    "the proxy does not let the node through",
    "Have the proxy allow CONNECT to this host and port without a login, or except the host with no_proxy.",
)
_UNTRUSTED = Answer(
    "its certificate is not signed by the expected authority, is not valid, or is for another name",
    "Compare the authority's certificate here with theirs, and dial the name that the certificate is for. A proxy that "
    "opens TLS must let this address through unopened.",
)
_NO_TLS = Answer("what answers there does not speak TLS", "Check host and port in site.toml.")
_CERTIFICATE_FILE = Answer("the authority's certificate cannot be read", "Put it where site.toml says.")


def _knock(endpoint: Endpoint) -> Answer:
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
        if "Tunnel connection failed" in str(error):
            return _with(_PROXY, error)
        if endpoint.proxy and isinstance(error, socket.gaierror | ConnectionRefusedError):
            return _with(_NO_PROXY, error)
        return _with(next(answer for kind, answer in steps if isinstance(error, kind)), error)
    finally:
        connection.close()


def _with(answer: Answer, error: Exception) -> Answer:
    return Answer(answer.failed, answer.remedy, f"{type(error).__name__}: {error}")


def _connection(endpoint: Endpoint) -> http.client.HTTPConnection:
    """Raises OSError where the authority's certificate cannot be read."""
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
        connection.set_tunnel(endpoint.host, endpoint.port)
    return connection


def _ahead(connection: http.client.HTTPConnection) -> float | None:
    """Seconds by which our clock is ahead of the peer's; None if the peer does not tell (RFC 9110, 6.6.1)."""
    try:
        asked = time.time()
        connection.request("HEAD", "/", headers={"User-Agent": "fedthorax"})
        response = connection.getresponse()
        told = parsedate_to_datetime(response.headers.get("Date", ""))
        theirs = (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp() + 0.5  # they drop the fraction
        return round((asked + time.time()) / 2 - theirs, 1)
    except (OSError, ValueError, http.client.HTTPException):
        return None


def pacs(site: Site, count: Callable[[Site], tuple[int, int]]) -> Iterator[Line]:
    """Ask the PACS whether it answers, and how much of what the filters let through is here."""
    if site.settings.pacs is None:
        yield Line("PACS", "PACS", "skip", "no PACS is set; scans are read from a folder")
        return
    try:
        matching, here = count(site)
    except Refusal as refusal:
        yield refused("PACS", "PACS", refusal)
        return
    yield Line("PACS", "PACS", "ok", "answers")
    detail = f"{matching} series match the filters, {here} of them are here"
    if not matching:
        yield Line("PACS", "filters", "warn", "nothing matches", "Widen [pacs.filters] in site.toml.", detail)
    elif here < matching:
        yield Line("PACS", "fetched", "warn", "not all that matches is here", "Run `fedthorax node pull`.", detail)
    else:
        yield Line("PACS", "fetched", "ok", "all that matches is here", detail=detail)


def count_at_pacs(site: Site) -> tuple[int, int]:
    """How many series the filters let through, and how many of these are here. Raises Refusal as `Pacs` does."""
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
