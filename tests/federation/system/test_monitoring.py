"""Health and metrics over HTTP: on loopback, for this machine's own names only, and harmless to the node."""

import http.client
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from prometheus_client.core import Metric

from federation.system.monitoring import gauge, gauges, monitored
from federation.system.process import LOOPBACK, free_port
from models.refusal import Refusal


def get(port: int, path: str, host: str = LOOPBACK) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=60)
    try:
        connection.request("GET", path, headers={"Host": f"{host}:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def figures() -> Iterator[Metric]:
    yield gauge("trial_patients", "Patients", 3)
    yield gauges("trial_online", "Sites", "site", {"north": True, "south": False})


def test_health_and_metrics_are_served_on_loopback() -> None:
    state = {"processes": True, "connected": False}
    with monitored(port := free_port(), figures, lambda: state):
        assert get(port, "/health/live") == (200, b'{"live": true}')
        assert get(port, "/health/ready") == (503, b'{"ready": false, "processes": true, "connected": false}')
        state["connected"] = True
        assert get(port, "/health/ready")[0] == 200
        status, text = get(port, "/metrics")
        assert status == 200
        assert b'fedthorax_trial_online{site="south"} 0.0' in text and b"fedthorax_trial_patients 3.0" in text
        assert get(port, "/")[0] == get(port, "/logs/node.log")[0] == 404
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.2", port), timeout=60)
    with pytest.raises(OSError, match="refused"):
        get(port, "/health/live")


def test_web_page_cannot_read_the_metrics_by_a_name_of_its_own() -> None:
    with monitored(port := free_port(), figures, dict):
        assert get(port, "/metrics", "localhost")[0] == 200
        assert get(port, "/metrics", "evil.example") == (403, b"")


def test_metrics_that_cannot_be_computed_end_nothing() -> None:
    def broken() -> Iterator[Metric]:
        raise OSError("the disk")
        yield

    with monitored(port := free_port(), broken, dict):
        assert get(port, "/metrics") == (500, b"")
        assert get(port, "/health/live")[0] == 200


def test_port_in_use_is_refused_and_port_0_serves_nothing() -> None:
    with monitored(0, figures, dict):
        pass
    is_refused = pytest.raises(Refusal, match="E_MONITORING_PORT")
    with monitored(port := free_port(), figures, dict), is_refused, monitored(port, figures, dict):
        pass


def test_scraper_that_gives_up_is_no_error(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    asked, gone = threading.Event(), threading.Event()

    def slow() -> Iterator[Metric]:
        asked.set()
        gone.wait(60)
        yield from (gauge(f"trial_{number}", "Patients", number) for number in range(5000))

    with monitored(port := free_port(), slow, dict):
        with socket.create_connection((LOOPBACK, port), timeout=60) as scraper:
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert asked.wait(60)
            scraper.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closed by a reset
        (answering,) = (each for each in threading.enumerate() if "process_request" in each.name)
        gone.set()
        answering.join(60)
        assert get(port, "/health/live")[0] == 200
    assert not caplog.records
    assert capfd.readouterr().err == ""
