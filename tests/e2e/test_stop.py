"""A server that is asked to end does so, and leaves no process behind: during its start, and with an open request."""

import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.superlink.control import loopback_certificate, read_server_config
from federation.system.process import LOOPBACK, free_port
from federation.system.reaper import read_parents
from tests.e2e.conftest import Command, ok
from tests.helpers.waiting import eventually

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


def test_server_closes_a_request_that_does_not_end(folder: Path, start: Callable[..., Command]) -> None:
    """Otherwise its SuperLink, with the database, would be killed."""
    server = start("server", "start", folder)
    server.wait_for("The server is up", seconds=120)
    members = set(server.family())
    tls = ssl.create_default_context(cafile=str(loopback_certificate(folder)))
    tls.check_hostname = False
    connection = socket.create_connection((LOOPBACK, read_server_config(folder).control_port))
    with tls.wrap_socket(connection) as request:
        request.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nan unfinished request")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(seconds=120) == 128 + signal.SIGTERM
    log = (folder / "logs" / "superlink.log").read_text()
    assert "Application shutdown complete" in log
    assert "killed" not in log
    assert not members & set(read_parents())
