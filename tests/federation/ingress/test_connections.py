"""Floods without certificates from many addresses: nodes are still served, and few connections are kept open."""

import contextlib
import itertools
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from federation.enrolment.certificates import client_tls
from federation.ingress import connections
from federation.ingress.connections import MAX_STRANGERS, MAX_STRANGERS_OF_ADDRESS
from tests.e2e.ingress_rig import Rig, open_rig
from tests.helpers.waiting import eventually

ADDRESSES = [f"127.0.1.{number}" for number in range(1, 18)]  # all are loopback addresses
CONNECTIONS_OF_ADDRESS = 60


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the limits of numbers close connections, not those of time."""
    for limit in ("HANDSHAKE_SECONDS", "STRANGER_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(connections, limit, 3600.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path / "server") as rig:
        yield rig


def silent(rig: Rig, address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", rig.port), timeout=60, source_address=(address, 0))


def half_a_hello(rig: Rig, address: str) -> socket.socket:
    """Sends the beginning of a TLS record and never completes it."""
    connection = silent(rig, address)
    connection.sendall(b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + bytes(200))
    return connection


def without_certificate(rig: Rig, address: str) -> socket.socket:
    """Completes the TLS handshake without a certificate and sends no request."""
    tls = ssl.create_default_context(cafile=rig.folder / "certificates" / "ca.crt")
    return tls.wrap_socket(silent(rig, address), server_hostname="localhost")


def without_certificate_in_time(rig: Rig) -> socket.socket | None:
    """The same; None if the time was over before the handshake."""
    with contextlib.suppress(OSError):
        return without_certificate(rig, ADDRESSES[1])
    return None


class Flood:
    """Opens connections from each address in turn. At its limit it replaces the oldest connection by a new one."""

    def __init__(self, rig: Rig, connect: Callable[[Rig, str], socket.socket]) -> None:
        self._rig, self._connect = rig, connect
        self.held: list[socket.socket] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for address in itertools.cycle(ADDRESSES):
            if self._ended.is_set():
                return
            with contextlib.suppress(OSError):
                self.held.append(self._connect(self._rig, address))
            if len(self.held) > CONNECTIONS_OF_ADDRESS * len(ADDRESSES):
                self.held.pop(0).close()

    def __enter__(self) -> "Flood":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        for connection in self.held:
            connection.close()

    def end(self) -> None:
        self._ended.set()
        self._thread.join(120)

    def still_open(self) -> int:
        return sum(is_open(connection) for connection in list(self.held))


def is_open(connection: socket.socket) -> bool:
    """Tell whether the server has not closed the connection."""
    connection.settimeout(0)
    try:
        return bool(connection.recv(1))
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("connect", [silent, half_a_hello, without_certificate])
def test_node_is_served_during_a_flood_without_certificates(
    rig: Rig, connect: Callable[[Rig, str], socket.socket]
) -> None:
    node = rig.enrol_node("north")
    with contextlib.closing(rig.connect(node)) as before, Flood(rig, connect) as flood:
        assert rig.ask(node, connection=before)[0] == 200
        assert eventually(lambda: len(flood.held) >= 2 * MAX_STRANGERS, seconds=300)
        for _ in range(5):
            assert rig.ask(node)[0] == 200
        assert rig.ask(node, connection=before)[0] == 200  # the open connection was not closed
        assert rig.ask(None, "/enrolment/ca.crt", method="GET", body=b"")[0] == 200
        flood.end()
        assert eventually(lambda: flood.still_open() <= MAX_STRANGERS + 5)
        lines = [line for line in rig.lines if "E_DOOR_BUSY" in line]
        assert 1 <= len(lines) <= len(ADDRESSES)  # one line per address and minute


def test_connections_per_address_are_limited_before_the_handshake(rig: Rig) -> None:
    held = [silent(rig, ADDRESSES[0]) for _ in range(MAX_STRANGERS_OF_ADDRESS + 10)]
    assert eventually(lambda: sum(map(is_open, held)) == MAX_STRANGERS_OF_ADDRESS)
    assert is_open(silent(rig, ADDRESSES[1]))
    for connection in held:
        connection.close()


@pytest.mark.slow
def test_connection_without_certificate_is_closed_after_a_short_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_rig(tmp_path / "server") as rig:
        node = rig.enrol_node("north")
        known = rig.connect(node)
        assert rig.ask(node, connection=known)[0] == 200
        idle = without_certificate(rig, ADDRESSES[1])
        with monkeypatch.context() as patch:
            patch.setattr(connections, "HANDSHAKE_SECONDS", 0.5)
            slow = silent(rig, ADDRESSES[0])
            assert eventually(lambda: not is_open(slow))
        assert is_open(idle)
        monkeypatch.setattr(connections, "STRANGER_SECONDS", 1.0)
        brief = eventually(lambda: without_certificate_in_time(rig))
        assert brief and eventually(lambda: not is_open(brief))
        assert is_open(idle)
        opened = known.sock
        assert rig.ask(node, connection=known)[0] == 200
        assert known.sock is opened


def test_connections_per_certificate_are_limited_over_all_addresses(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile hospital with many addresses cannot block the other hospitals."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS_OF_CERTIFICATE", 3)
    north, south = rig.enrol_node("north"), rig.enrol_node("south")
    tls = client_tls(rig.folder / "certificates" / "ca.crt", certificate=north.certificate, private_key=north.key)
    held = [tls.wrap_socket(silent(rig, address), server_hostname="localhost") for address in ADDRESSES[:5]]
    assert eventually(lambda: [is_open(connection) for connection in held] == [True] * 3 + [False] * 2)
    assert rig.ask(south)[0] == 200
    held[0].close()
    assert eventually(lambda: rig.ask(north)[0] == 200)


@pytest.mark.slow
def test_closed_connections_are_no_longer_counted(rig: Rig) -> None:
    node = rig.enrol_node("north")
    for connect in (silent, half_a_hello, without_certificate):
        for _ in range(3 * MAX_STRANGERS_OF_ADDRESS):
            connect(rig, ADDRESSES[0]).close()
            time.sleep(0.005)
    for _ in range(70):  # more than the limit of an address
        assert rig.ask(node)[0] == 200
    assert is_open(silent(rig, ADDRESSES[0]))


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_ipv6_addresses_are_counted_by_64_bit_prefix(host: str, counted: str) -> None:
    assert connections.counted_address(host) == counted


def test_file_descriptor_limit_is_raised_as_far_as_allowed() -> None:
    code = "import resource; from federation.ingress import connections\n"
    code += "room = connections.raise_descriptor_limit(); print(room, *resource.getrlimit(resource.RLIMIT_NOFILE))"

    def limited(soft: int, hard: int) -> list[int]:
        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        done = subprocess.run(
            [sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, timeout=300, check=True
        )
        return [int(word) for word in done.stdout.split()]

    assert limited(256, 1024) == [448, 1024, 1024]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard >= 16_384:
        assert limited(1024, 16_384) == [4096, 8320, 16_384]
        assert limited(10_000, 16_384) == [4096, 10_000, 16_384]  # never lowered
