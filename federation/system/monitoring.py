"""Health and metrics of a node or a server for Prometheus, over HTTP on loopback only.

    /health/live    the process responds
    /health/ready   200 if it works, otherwise 503, with what does not
    /metrics        Prometheus' text format

The metrics are computed at each request from files and states, as those of the clinic are. They hold counts, times and
codes, and nothing about a patient. Every user of the machine can read them.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from federation.system import reasons
from federation.system.process import LOOPBACK, port_is_taken
from models.refusal import Refusal

_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")  # otherwise a web page could read it by its own host name
_SECONDS = 10.0  # of one request

log = logging.getLogger("fedthorax")
Collect = Callable[[], Iterator[Metric]]
Ready = Callable[[], Mapping[str, bool]]


class _Computed(Collector):
    """Metrics that `collect` computes."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect

    def describe(self) -> list[Metric]:
        return []  # otherwise the registry would call `collect` to learn the names

    def collect(self) -> Iterator[Metric]:
        return self._collect()


def gauge(name: str, says: str, value: float) -> Metric:
    """Return a metric without labels."""
    return GaugeMetricFamily(f"fedthorax_{name}", says, float(value))


def gauges(name: str, says: str, label: str, values: Mapping[str, float]) -> Metric:
    """Return a metric with one label; `values` by the label's value."""
    family = GaugeMetricFamily(f"fedthorax_{name}", says, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


@contextmanager
def monitored(port: int, collect: Collect, ready: Ready) -> Iterator[None]:
    """Serve the metrics of `collect` and the state of `ready` on a port of loopback; with port 0 nothing is served.

    Both functions are called in another thread. Raises Refusal E_MONITORING_PORT if the port is in use.
    """
    if not port:
        yield
        return
    if port_is_taken(LOOPBACK, port):
        raise Refusal(reasons.MONITORING_PORT, port=port)
    registry = CollectorRegistry()
    registry.register(_Computed(collect))

    class Handler(_Handler):
        content = staticmethod(lambda: generate_latest(registry))
        state = staticmethod(ready)

    server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers GET; a subclass has `content`, which returns the metrics, and `state`."""

    content: Callable[[], bytes]
    state: Ready
    timeout = _SECONDS

    def do_GET(self) -> None:
        if not _HOST.fullmatch(self.headers.get("Host", "")):
            return self._answer(HTTPStatus.FORBIDDEN, b"")
        try:
            match self.path:
                case "/health/live":
                    self._answer(HTTPStatus.OK, b'{"live": true}')
                case "/health/ready":
                    state = {name: bool(value) for name, value in self.state().items()}
                    is_ready = all(state.values())
                    status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
                    self._answer(status, json.dumps({"ready": is_ready, **state}).encode())
                case "/metrics":
                    self._answer(HTTPStatus.OK, self.content(), CONTENT_TYPE_LATEST)
                case _:
                    self._answer(HTTPStatus.NOT_FOUND, b"")
        except ConnectionError:
            self.close_connection = True  # who asked has given up
        except Exception:  # a scrape must never end the node
            log.exception("the metrics could not be computed")
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log no requests."""
