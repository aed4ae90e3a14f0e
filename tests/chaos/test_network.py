"""The simulated bad network link really produces its faults.

Otherwise the chaos tests would prove nothing. These tests are fast, so they are part of every test run.
"""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.chaos.network import LOOPBACK, Link


@pytest.fixture
def echo() -> Iterator[int]:
    """Start an echo server and return its port."""
    listener = socket.create_server((LOOPBACK, 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    connection.sendall(data)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def dial(link: Link) -> socket.socket:
    return socket.create_connection((LOOPBACK, link.port), timeout=60)


def there_and_back(connection: socket.socket, data: bytes = b"ping") -> float:
    """Return the seconds until the same bytes are back, of which only the least is certain."""
    began = time.monotonic()
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionResetError
        got += piece
    assert got == data
    return time.monotonic() - began


def test_good_link_passes_all_bytes(echo):
    with Link(echo) as link, dial(link) as connection:
        there_and_back(connection, bytes(range(256)) * 4000)
        assert link.connections == 1


def test_delay_applies_to_each_direction(echo):
    with Link(echo) as link, dial(link) as connection:
        there_and_back(connection)
        link.delay_s, link.jitter_s = 0.2, 0.05
        assert there_and_back(connection) >= 0.3


def test_bandwidth_limit_slows_transfer(echo):
    with Link(echo) as link, dial(link) as connection:
        link.bytes_per_s = 100_000
        assert there_and_back(connection, b"x" * 50_000) > 0.5


def test_partition_delays_bytes_without_losing_any(echo):
    with Link(echo) as link, dial(link) as connection:
        there_and_back(connection)
        link.hold()
        connection.sendall(b"held")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        link.mend()
        connection.settimeout(60)
        assert connection.recv(10) == b"held"


def test_after_half_open_partition_only_new_connections_work(echo):
    with Link(echo) as link, dial(link) as old:
        there_and_back(old)
        link.hold()
        old.sendall(b"lost")
        link.mend(forget=True)
        with pytest.raises(OSError):
            there_and_back(old)
        with dial(link) as new:
            there_and_back(new)


def test_cut_link_resets_and_refuses_connections_until_mended(echo):
    with Link(echo) as link, dial(link) as connection:
        there_and_back(connection)
        link.cut()
        with pytest.raises(OSError):
            there_and_back(connection)
        with pytest.raises(OSError), dial(link) as refused:
            there_and_back(refused)
        link.mend()
        with dial(link) as again:
            there_and_back(again)
