"""The ingress logs refusals, and limits how many resources one client can use."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import aiohttp
import pytest

from federation.enrolment import invitations as enrolment
from federation.ingress import authorization, connections, listener
from federation.ingress.authorization import CONNECT
from federation.protocol.versions import OLDEST_NODE, VERSION_HEADER
from tests.e2e.ingress_rig import PULL, Node, Rig, open_rig
from tests.federation.enrolment.test_certificates import group_authority
from tests.helpers.module_time import set_time
from tests.helpers.waiting import eventually


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path / "server") as rig:
        yield rig


@pytest.fixture
def north(rig: Rig) -> Node:
    return rig.enrol_node("north")


def test_refusal_is_logged_in_one_line_with_site_code_and_reason(rig: Rig, north: Node) -> None:
    rig.ask(north, headers=north.headers(seconds_ago=412))
    (line,) = rig.lines
    assert line.startswith(f"refused site=north from=127.0.0.1 POST '{PULL}'  E_CLOCK")
    assert "412 s before" in line
    enrolment.revoke(rig.folder, "north")
    rig.ask(north)
    assert "site=north" in rig.lines[-1]
    assert "E_CERTIFICATE_REVOKED" in rig.lines[-1]


def test_path_of_a_request_cannot_inject_log_lines(rig: Rig, north: Node) -> None:
    rig.ask(north, "/%0arefused'" + "a" * 500, method="PROPFIND")
    (line,) = rig.lines
    assert line.startswith("refused site=north ")
    assert "\n" not in line
    assert len(line) < 300
    tls = ssl.create_default_context(cafile=rig.folder / "certificates" / "ca.crt")
    with tls.wrap_socket(socket.create_connection(("127.0.0.1", rig.port)), server_hostname="localhost") as raw:
        raw.sendall(b"POST /\x1b[2J\x85\nrefused site=south HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 400 " in raw.recv(1000)
    assert rig.lines == [line]


def test_accepted_request_is_not_logged(rig: Rig, north: Node) -> None:
    assert rig.ask(north)[0] == 200
    assert rig.lines == []


def test_proxy_headers_and_cookies_are_not_forwarded(rig: Rig, north: Node) -> None:
    extra = {"X-Forwarded-For": "192.0.2.1", "Cookie": "a=b", "Authorization": "Bearer x", "flwr-package-name": "flwr"}
    rig.ask(north, headers=north.headers() | extra)
    assert set(rig.seen[0].headers) == {
        *("host", "content-type", "content-length", "accept"),
        *("flwr-public-key", "flwr-timestamp", "flwr-signature", "flwr-package-name"),
    }


@pytest.mark.parametrize(
    ("theirs", "answer"),
    [
        (version("fedthorax"), (200, "from the SuperLink")),
        (OLDEST_NODE + ".0", (200, "from the SuperLink")),
        ("0.0.9", (403, "E_SITE_OUTDATED")),
        ("999.0.0", (403, "E_SERVER_OUTDATED")),
        ("1e9.0\x85", (403, "E_SITE_OUTDATED")),
    ],
)
def test_node_of_a_version_that_is_not_accepted_learns_who_must_upgrade(
    rig: Rig, north: Node, theirs: str, answer: tuple[int, str]
) -> None:
    """It is refused when it connects, and its version does not reach the SuperLink or the log."""
    headers = {**north.headers(), VERSION_HEADER: theirs}
    assert rig.ask(north, CONNECT, headers=headers) == answer
    assert all(VERSION_HEADER not in seen.headers for seen in rig.seen)
    assert not any(theirs in line for line in rig.lines)


def test_node_that_does_not_send_its_version_is_judged_in_the_handshake(rig: Rig, north: Node) -> None:
    assert rig.ask(north, CONNECT)[0] == 200


def test_body_of_unknown_length_is_refused(rig: Rig, north: Node) -> None:
    connection = rig.connect(north)
    connection.request("POST", PULL, body=iter([b"a", b"b"]), headers=north.headers(), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert not rig.seen


def test_open_requests_per_site_are_limited(rig: Rig, north: Node) -> None:
    """One site holds requests open whose bodies never arrive. Another site is still served."""
    south = rig.enrol_node("south")
    held = []
    for _ in range(authorization.MAX_REQUESTS_OF_SITE):
        connection = rig.connect(north)
        connection.putrequest("POST", PULL)
        for name, value in (north.headers() | {"content-length": "10"}).items():
            connection.putheader(name, value)
        connection.endheaders()
        held.append(connection)
    assert eventually(lambda: rig.ask(north) == (503, "E_DOOR_BUSY"))
    assert rig.ask(south)[0] == 200
    for connection in held:
        connection.close()
    assert eventually(lambda: rig.ask(north)[0] == 200)


def test_missing_body_ends_in_a_timeout(rig: Rig, north: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authorization, "REQUEST_SECONDS", 0.5)
    connection = rig.connect(north)
    connection.request("POST", PULL, headers=north.headers() | {"content-length": "10"})
    response = connection.getresponse()
    assert (response.status, b"E_TOO_SLOW" in response.read()) == (504, True)


def test_connections_per_address_are_limited(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS_OF_ADDRESS", 3)
    tls = ssl.create_default_context(cafile=rig.folder / "certificates" / "ca.crt")
    held = [
        tls.wrap_socket(socket.create_connection(("127.0.0.1", rig.port)), server_hostname="localhost")
        for _ in range(3)
    ]
    assert eventually(lambda: rig.ask(None, "/enrolment/ca.crt", method="GET", body=b"")[0] == 0)
    assert eventually(lambda: any("E_DOOR_BUSY" in line for line in rig.lines))
    for connection in held:
        connection.close()
    assert eventually(lambda: rig.ask(None, "/enrolment/ca.crt", method="GET", body=b"")[0] == 200)


def test_slow_header_ends_in_a_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "IDLE_SECONDS", 1.0)
    with open_rig(tmp_path / "server") as rig:
        tls = ssl.create_default_context(cafile=rig.folder / "certificates" / "ca.crt")
        with tls.wrap_socket(socket.create_connection(("127.0.0.1", rig.port)), server_hostname="localhost") as slow:
            slow.settimeout(60)
            trickle = threading.Thread(target=_trickle, args=(slow,), daemon=True)
            trickle.start()
            with contextlib.suppress(ConnectionError):
                assert slow.recv(1) == b""


def _trickle(connection: ssl.SSLSocket) -> None:
    """Send bytes of a header for some minutes, or until the connection is closed."""
    try:
        for byte in b"POST / HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
            connection.send(bytes([byte]))
            time.sleep(0.2)
    except OSError:
        return


def test_join_attempts_per_minute_are_limited(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    set_time(monkeypatch, authorization, monotonic=lambda: 1000.0)  # all attempts are in the same minute
    codes = [rig.ask(None, "/enrolment/join", body=b"{}")[1] for _ in range(authorization.MAX_TRIES_A_MINUTE + 1)]
    assert codes == ["E_INVITATION"] * authorization.MAX_TRIES_A_MINUTE + ["E_DOOR_BUSY"]


def test_unreachable_superlink_returns_a_code_that_nodes_retry(
    rig: Rig, north: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise aiohttp.ClientConnectionError("nobody there")

    monkeypatch.setattr(aiohttp.ClientSession, "post", fail)
    assert rig.ask(north) == (502, "E_SUPERLINK_SILENT")


def test_authority_of_a_hospital_group_is_supported(tmp_path: Path) -> None:
    """The group's authority is signed by a root authority that neither ingress nor node needs to know."""
    with open_rig(tmp_path / "server", authority=group_authority(tmp_path / "group")) as rig:
        assert rig.ask(rig.enrol_node("north"))[0] == 200
        assert rig.ask(rig.make_node("payroll")) == (401, "E_CERTIFICATE_UNKNOWN")


def test_old_tls_version_is_refused(rig: Rig) -> None:
    tls = ssl.create_default_context(cafile=rig.folder / "certificates" / "ca.crt")
    tls.minimum_version = ssl.TLSVersion.TLSv1
    tls.maximum_version = ssl.TLSVersion.TLSv1_1
    tls.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", rig.port)) as plain:
        tls.wrap_socket(plain, server_hostname="localhost")
