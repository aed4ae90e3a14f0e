"""Systems that get results in tests: an MLLP receiver and a FHIR R4 server, on loopback, with or without TLS."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fhir.resources.R4B import get_fhir_model_class
from fhir.resources.R4B.bundle import Bundle

from pipeline.feeds.acknowledgement import acknowledge, read_header
from pipeline.feeds.mllp import END, START, frame


class Receiver:
    """An MLLP receiver that answers as `code` and `error` (of ERR-3) say, or with what `answer` holds.

    `received`: what came, by control id in `by_control_id`: a receiver keeps one message for each.
    """

    def __init__(
        self, code: str = "AA", answer: bytes | None = None, error: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self.code, self.answer, self.error, self.tls, self.received = code, answer, error, tls, list[bytes]()

    @property
    def by_control_id(self) -> dict[bytes, set[bytes]]:
        found: dict[bytes, set[bytes]] = {}
        for each in self.received:
            found.setdefault(each.split(b"|")[9], set()).add(each)
        return found

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError), self.tls.wrap_socket(plain, server_side=True) if self.tls else plain as connection:
            connection.settimeout(60)
            content = connection.recv(65_536)
            while content.startswith(START) and not content.endswith(END):
                if not (more := connection.recv(65_536)):
                    return  # a killed sender
                content += more
            if content.startswith(START):
                message = content.removeprefix(START).removesuffix(END)
                self.received.append(message)
                connection.sendall(self._answer(message))

    def _answer(self, content: bytes) -> bytes:
        if self.answer is not None:
            return self.answer
        header = read_header(content)
        made = acknowledge(header, None, control_id="1", now=datetime.now(UTC))  # type: ignore[arg-type]
        error = f"ERR|||{self.error}^^HL70357|E\r" if self.error else ""
        return frame((made or b"").replace(b"MSA|AA", f"MSA|{self.code}".encode()) + error.encode())

    @contextmanager
    def running(self) -> Iterator[int]:
        """Yield the port."""
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def accept() -> None:
                with suppress(OSError):
                    while True:
                        threading.Thread(target=self._serve, args=(listening.accept()[0],), daemon=True).start()

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            yield listening.getsockname()[1]
            listening.shutdown(socket.SHUT_RDWR)
        thread.join(60)


class FhirServer(ThreadingHTTPServer):
    """Keeps resources by id, or by identifier for conditional updates, and answers with `status`.

    `received`: the transactions. `kept`: the newest version of each resource by type and id. `body`: sent instead of
    the transaction response. `cut`: ends the connection within the response.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[dict[str, Any]] = []
        self.kept: dict[tuple[str, str], dict[str, Any]] = {}
        self.status, self.body, self.cut, self.tls = 200, b"", False, tls
        super().__init__(("127.0.0.1", 0), _Handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, *_: Any) -> None:
        """A killed client, or a handshake that fails, is what some tests want."""

    def take(self, bundle: dict[str, Any]) -> dict[str, Any]:
        """Keep the resources of a transaction; return the response."""
        Bundle.model_validate(bundle)
        self.received.append(bundle)
        if self.status != 200:
            return {"resourceType": "OperationOutcome"}
        made = []
        for entry in bundle["entry"]:
            resource = entry["resource"]
            get_fhir_model_class(resource["resourceType"]).model_validate(resource)
            key, is_new = self._key(entry["request"]["url"], resource)
            self.kept[key] = resource
            made.append({"response": {"status": "201 Created" if is_new else "200 OK"}})
        return {"resourceType": "Bundle", "type": "transaction-response", "entry": made}

    def _key(self, url: str, resource: dict[str, Any]) -> tuple[tuple[str, str], bool]:
        """Return type and id of the resource that a PUT replaces, and whether it is new."""
        kind = resource["resourceType"]
        if not (query := urlsplit(url).query):
            key = (kind, url.removeprefix(f"{kind}/"))
            assert key[1] == resource["id"]
            return key, key not in self.kept
        (wanted,) = parse_qs(query, strict_parsing=True)["identifier"]
        found = [key for key, each in self.kept.items() if key[0] == kind and wanted in _identifiers(each)]
        assert len(found) < 2 and wanted in _identifiers(resource) and "id" not in resource
        return (found[0], False) if found else ((kind, f"{len(self.kept)}"), True)

    @contextmanager
    def running(self) -> Iterator[str]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"{'https' if self.tls else 'http'}://127.0.0.1:{self.server_port}/fhir"
        finally:
            self.shutdown()
            self.server_close()


def _identifiers(resource: dict[str, Any]) -> set[str]:
    return {f"{each['system']}|{each['value']}" for each in resource["identifier"]}


class _Handler(BaseHTTPRequestHandler):
    server: FhirServer

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(self.server.take(content)).encode()
        self._send(self.server.status, self.server.body or body)

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/fhir+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.server.cut else body)

    def do_GET(self) -> None:
        self._send(200, b'{"resourceType": "CapabilityStatement"}')

    def log_message(self, *_: Any) -> None:
        pass
