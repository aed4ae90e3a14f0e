"""A server that is asked to end does so, and leaves no process behind: during its start, and with an open request."""

import signal
import ssl
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from federation.superlink.control import loopback_certificate, read_server_config
from federation.system.process import LOOPBACK, free_port
from federation.system.reaper import read_parents
from tests.e2e.conftest import Command, ok
from tests.helpers.waiting import eventually

IDLE_S = 17  # longer than any client of ours keeps an idle connection

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop") / "server"
    ok("server", "init", folder, "--port", str(free_port()))
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_that_is_stopped_during_its_start_leaves_no_process(
    folder: Path, start: Callable[..., Command], number: int
) -> None:
    log = folder / "logs" / "superlink.log"
    log.unlink(missing_ok=True)
    server = start("server", "start", folder)
    assert eventually(lambda: log.exists() and log.stat().st_size)  # the SuperLink has begun, and does not answer yet
    members = set(server.family())
    assert len(members) >= 3
    server.process.send_signal(number)
    assert server.wait(seconds=120) == 128 + number
    assert "The server is up" not in server.text()
    assert not members & set(read_parents())


@pytest.fixture(scope="module")
def server(folder: Path, start: Callable[..., Command]) -> Command:
    server = start("server", "start", folder)
    server.wait_for("The server is up", seconds=120)
    return server


def superlink(folder: Path) -> HTTPSConnection:
    """Return a connection to the server's SuperLink."""
    tls = ssl.create_default_context(cafile=str(loopback_certificate(folder)))
    tls.check_hostname = False
    return HTTPSConnection(LOOPBACK, read_server_config(folder).control_port, context=tls, timeout=60)


def test_client_closes_an_idle_connection_before_the_superlink_does(folder: Path, server: Command) -> None:
    """A SuperLink that closes first can do so just when the client sends its next request, which then fails."""
    with closing(superlink(folder)) as connection:
        connection.connect()
        same = connection.sock
        for pause_s in (0, IDLE_S):
            time.sleep(pause_s)
            connection.request("GET", "/nothing")
            answer = connection.getresponse()
            assert answer.read() and answer.status == 404
            assert connection.sock is same


def test_server_closes_a_request_that_does_not_end(folder: Path, server: Command) -> None:
    """Otherwise its SuperLink, with the database, would be killed."""
    members = set(server.family())
    with closing(superlink(folder)) as connection:
        connection.connect()
        connection.sock.sendall(
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nan unfinished request"
        )
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(seconds=120) == 128 + signal.SIGTERM
    log = (folder / "logs" / "superlink.log").read_text()
    assert "Application shutdown complete" in log
    assert "killed" not in log
    assert not members & set(read_parents())
