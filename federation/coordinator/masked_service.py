"""The HTTP server of masked rounds, on loopback: the ingress passes on what the hospitals' gateways send.

The coordinator holds the state of a round, because it decides when a round begins and ends.
"""

import hmac
import logging
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from federation.secure_aggregation import reasons
from federation.secure_aggregation.canonical import canonical
from federation.secure_aggregation.messages import MAX_BYTES
from federation.superlink.masked_address import (
    PATH,
    ROUND_HEADER,
    SITE_HEADER,
    STEPS,
    WORD_HEADER,
    MaskedAddress,
    remove_address,
    write_address,
)
from federation.system.process import LOOPBACK
from models.refusal import Refusal

log = logging.getLogger(__name__)


class Answering(Protocol):
    """A masked round, or the rounds of several groups."""

    def answer(self, site: str, step: str, content: bytes, about: str) -> bytes | None:
        """See `MaskedRound.answer`."""
        ...


Current = Callable[[], Answering | None]


class MaskedService:
    """Answers questions about the round that `current` returns, while it is used as a context manager."""

    def __init__(self, server_folder: Path, current: Current) -> None:
        self._folder = server_folder
        self._word = secrets.token_hex(32)
        self._server = _Server((LOOPBACK, 0), _Handler)
        self._server.word, self._server.current = self._word, current

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        write_address(self._folder, MaskedAddress(self._server.server_address[1], self._word))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remove_address(self._folder)
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    word: str
    current: Current


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60.0
    server: _Server

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        step = self.path.removeprefix(PATH)
        word = self.headers.get(WORD_HEADER, "")
        if not hmac.compare_digest(word.encode(), self.server.word.encode()) or step not in STEPS:
            self._send(HTTPStatus.FORBIDDEN, b"")
            return
        if not length.isdecimal() or int(length) > MAX_BYTES:
            self._send(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"")
            return
        content = self.rfile.read(int(length))
        self._answer(self.headers.get(SITE_HEADER, ""), step, content)

    def _answer(self, site: str, step: str, content: bytes) -> None:
        current = self.server.current()
        try:
            answer = current.answer(site, step, content, self.headers.get(ROUND_HEADER, "")) if current else None
        except Refusal as refusal:
            log.warning("%s of %s refused: %s", step, site, refusal)
            self._send(HTTPStatus.CONFLICT, canonical({"code": 409, "detail": refusal.code}))
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s of %s is malformed: %s", step, site, type(error).__name__)
            self._send(HTTPStatus.CONFLICT, canonical({"code": 409, "detail": reasons.SECAGG_MESSAGE.code}))
        else:
            self._send(HTTPStatus.OK if answer is not None else HTTPStatus.NO_CONTENT, answer or b"")

    def _send(self, status: HTTPStatus, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the ingress logs requests."""
