"""Connectivity to the study's server and the PACS: each kind of failure is reported within seconds."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.doctor import connectivity
from pipeline.doctor.connectivity import Endpoint, network, pacs, probe
from pipeline.pacs import reasons
from pipeline.site.folder import Site, init_site
from pipeline.system.check_line import Line
from tests.pipeline.pacs.authority import Authority

SETTINGS = '[site]\nname = "ward"\n[laboratory]\nfile = "pcr.csv"\n[outcomes]\nfile = "outcomes.csv"\n'


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "TIMEOUT_SECONDS", 60.0)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.make(tmp_path)


@contextlib.contextmanager
def serving(authority: Authority | None, ahead: timedelta = timedelta()) -> Iterator[int]:
    """An HTTP server on loopback. `authority` enables TLS; `ahead` shifts its clock."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(datetime.now(UTC) + ahead, usegmt=True)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.sign("server"))
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@contextlib.contextmanager
def listening(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """A loopback port that passes each connection to `behave`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threading.Thread(target=behave, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]


def tunnel(connection: socket.socket) -> None:
    """An HTTP CONNECT proxy for one connection to any target."""

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                target.sendall(received)

    request = connection.recv(65536).decode()
    assert request.startswith("CONNECT ")
    host, _, port = request.split()[1].rpartition(":")
    with socket.create_connection((host, int(port))) as target:
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=pass_on, args=(target, connection), daemon=True).start()
        pass_on(connection, target)


def test_server_with_the_studys_certificate_is_reachable_and_gives_its_time(authority: Authority) -> None:
    with serving(authority, ahead=timedelta(minutes=-3)) as port:
        answer = probe(Endpoint("127.0.0.1", port, ca=authority.path))
    assert not answer.failed
    assert answer.ahead_seconds == pytest.approx(180, abs=2)


def test_server_certificate_of_another_authority_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with serving(Authority.make(tmp_path / "other")) as port:
        assert "certificate" in probe(Endpoint("127.0.0.1", port, ca=authority.path)).failed


def test_server_certificate_for_another_name_is_not_trusted(authority: Authority) -> None:
    with serving(authority) as port:
        assert "another name" in probe(Endpoint("localhost", port, ca=authority.path)).failed


def test_closed_port_is_reported(authority: Authority) -> None:
    answer = probe(Endpoint("127.0.0.1", free_port(), ca=authority.path))
    assert answer.failed == "no service listens there"
    assert "Refused" in answer.private


def test_unknown_host_name_is_reported(authority: Authority) -> None:
    assert "cannot resolve the host name" in probe(Endpoint("no-such-host.invalid", 443, ca=authority.path)).failed


def test_server_without_tls_is_reported(authority: Authority) -> None:
    with serving(None) as port:
        assert "TLS" in probe(Endpoint("127.0.0.1", port, ca=authority.path)).failed


@pytest.mark.slow
def test_silent_and_slow_servers_are_abandoned_at_the_timeout(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned = threading.Event()

    def drip(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while not abandoned.wait(0.1):
                connection.sendall(b"H")

    monkeypatch.setattr(connectivity, "TIMEOUT_SECONDS", 0.5)
    for behave in (lambda connection: abandoned.wait(300), drip):
        abandoned.clear()
        with listening(behave) as port:
            for is_tls in (True, False):
                probe(Endpoint("127.0.0.1", port, is_tls, authority.path if is_tls else None))  # it returns
            abandoned.set()


def test_unreadable_ca_certificate_is_reported(tmp_path: Path) -> None:
    assert "cannot be read" in probe(Endpoint("127.0.0.1", 1, ca=tmp_path / "no.crt")).failed


def test_server_is_reached_through_a_proxy(authority: Authority) -> None:
    with serving(authority) as port, listening(tunnel) as proxy:
        answer = probe(Endpoint("127.0.0.1", port, ca=authority.path, proxy=f"127.0.0.1:{proxy}"))
    assert not answer.failed, answer
    assert answer.ahead_seconds is not None


@pytest.mark.parametrize(
    ("answers", "says"),
    [("407 Proxy Authentication Required", "the proxy refuses"), ("502 Bad Gateway", "the proxy cannot connect")],
)
def test_proxy_that_does_not_connect_is_reported(authority: Authority, answers: str, says: str) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(f"HTTP/1.1 {answers}\r\nContent-Length: 0\r\n\r\n".encode())

    with listening(refuse) as proxy:
        answer = probe(Endpoint("study.example", 443, ca=authority.path, proxy=f"127.0.0.1:{proxy}"))
    assert answer.failed.startswith(says)


def test_unreachable_proxy_is_reported(authority: Authority) -> None:
    gone = probe(Endpoint("study.example", 443, ca=authority.path, proxy=f"127.0.0.1:{free_port()}"))
    assert gone.failed == "the proxy cannot be reached"


# --- the lines --------------------------------------------------------------------------------------------


def site(tmp_path: Path, more: str = "") -> Site:
    return init_site(tmp_path / "site", SETTINGS + more)


def lines(of: Site) -> dict[str, Line]:
    return {line.name: line for line in network(of)}


def test_no_connection_is_made_without_a_configured_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "probe", lambda endpoint: pytest.fail("somebody was contacted"))
    found = lines(site(tmp_path))
    assert {line.status for line in found.values()} == {"skip"}


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(0, "ok"), (4, "warn"), (20, "fail"), (-30, "ok"), (-70, "warn"), (-290, "warn"), (-320, "fail")],
)
def test_local_clock_is_judged_by_the_limits_of_the_server(
    tmp_path: Path, authority: Authority, seconds: int, status: str
) -> None:
    with serving(authority, ahead=timedelta(seconds=-seconds)) as port:
        made = site(tmp_path, f'[server]\naddress = "127.0.0.1:{port}"\nca_certificate = "{authority.path}"\n')
        found = lines(made)
    assert (found["study's server"].status, found["clock"].status) == ("ok", status)


def test_unreachable_server_is_reported_without_its_host_name(tmp_path: Path, authority: Authority) -> None:
    made = site(tmp_path, f'[server]\naddress = "no-such-host.invalid:443"\nca_certificate = "{authority.path}"\n')
    line = lines(made)["study's server"]
    assert line.status == "fail"
    assert "no-such-host" not in line.says + line.remedy + line.detail


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, ""),
        ({"https_proxy": "http://proxy.example:3128"}, "proxy.example:3128"),
        ({"https_proxy": "proxy.example:3128"}, "proxy.example:3128"),
        ({"https_proxy": "http://user:secret@proxy.example:3128/"}, "user:secret@proxy.example:3128"),
        ({"https_proxy": "http://proxy.example:3128", "no_proxy": "study.example"}, ""),
        ({"http_proxy": "http://proxy.example:3128"}, ""),
    ],
)
def test_proxy_is_read_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], proxy: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    endpoint = connectivity.server_endpoint(site(tmp_path, '[server]\naddress = "study.example:443"\n'))
    assert (endpoint.host, endpoint.port, endpoint.proxy) == ("study.example", 443, proxy)


def test_brackets_of_an_ipv6_address_are_removed(tmp_path: Path) -> None:
    endpoint = connectivity.server_endpoint(site(tmp_path, '[server]\naddress = "[::1]:8443"\n'))
    assert (endpoint.host, endpoint.port) == ("::1", 8443)


PACS = '[pacs]\nprotocol = "dicomweb"\n[pacs.dicomweb]\nurl = "http://127.0.0.1:1/dicom-web"\n'


@pytest.mark.parametrize(
    ("matching", "here", "last"),
    [(0, 0, ("filters", "warn")), (5, 3, ("fetched", "warn")), (5, 5, ("fetched", "ok"))],
)
def test_series_matching_at_the_pacs_are_compared_with_fetched_series(
    tmp_path: Path, matching: int, here: int, last: tuple[str, str]
) -> None:
    found = list(pacs(site(tmp_path, PACS), lambda site: (matching, here)))
    assert [(line.name, line.status) for line in found] == [("PACS", "ok"), last]
    assert str(matching) in found[-1].detail
    assert str(matching) not in found[-1].says


def test_pacs_refusal_is_reported(tmp_path: Path) -> None:
    def refuse(site: Site) -> tuple[int, int]:
        raise Refusal(reasons.PACS_AUTH, private="https://pacs.example")

    (line,) = pacs(site(tmp_path, PACS), refuse)
    assert (line.status, line.says.split(":")[0], line.private) == ("fail", "E_PACS_AUTH", "https://pacs.example")


def test_no_pacs_query_without_a_configured_pacs(tmp_path: Path) -> None:
    (line,) = pacs(site(tmp_path), lambda site: pytest.fail("the PACS was asked"))
    assert line.status == "skip"


def test_pacs_count_applies_the_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.pacs.deidentify import series_folder
    from pipeline.pacs.queries import RemoteSeries, StudyQuery

    made = site(tmp_path, PACS + '[pacs.filters]\nbody_parts = ["CHEST"]\n')
    remote = [
        RemoteSeries("p", "", "1", "1.2", f"1.2.{n}", modality, part, 60)
        for n, (modality, part) in enumerate([("CT", "CHEST"), ("CT", "chest"), ("CT", "HEAD"), ("SR", "CHEST")])
    ]

    class Pacs:
        def echo(self) -> None:
            """Succeed."""

        def find(self, query: StudyQuery) -> list[RemoteSeries]:
            return remote

    @contextlib.contextmanager
    def opened(site: Site) -> Iterator[Pacs]:
        assert site.settings.pacs and site.settings.pacs.dicomweb
        assert site.settings.pacs.dicomweb.timeout_seconds == connectivity.PACS_TIMEOUT_SECONDS, (
            "a check uses a short timeout"
        )
        yield Pacs()

    monkeypatch.setattr("pipeline.pacs.pacs.open_pacs", opened)
    assert connectivity.count_at_pacs(made) == (2, 0)
    (made.ct_folder / series_folder(made, "1.2", "1.2.1")).mkdir(parents=True)
    (made.ct_folder / series_folder(made, "1.2", "1.2.2")).mkdir()
    assert connectivity.count_at_pacs(made) == (2, 1)
    assert made.settings.pacs and made.settings.pacs.dicomweb
    assert made.settings.pacs.dicomweb.timeout_seconds == 60
