"""Tests of the status of a file sent to a PACS: STOW-RS to a scripted web server, and C-STORE."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from pynetdicom import AE, evt
from pynetdicom.events import Event

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.pacs.dicomweb import DicomWebPacs
from pipeline.pacs.dimse import DimsePacs
from pipeline.pacs.store_status import not_stored
from pipeline.site.pacs_settings import DicomWebTable, DimseTable
from tests.helpers.dicom_files import ct_slice, save
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE

UIDS = ("2.25.901", "2.25.902")
CLASSES = (Comprehensive3DSRStorage, SecondaryCaptureImageStorage)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for uid, sop_class in zip(UIDS, CLASSES, strict=True):
        paths.append(tmp_path / f"{uid}.dcm")
        save(ct_slice([[0]], position_mm=(0, 0, 0), SOPInstanceUID=uid, SOPClassUID=sop_class), paths[-1])
    return paths


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (0x0000, None),
        (0xB000, None),
        (0xB006, None),
        (0xB007, None),
        (0x0111, None),  # the PACS already has the file
        (0xA700, "E_PACS_SILENT"),
        (0xA7FF, "E_PACS_SILENT"),
        (0x0124, "E_PACS_AUTH"),
        (0x0110, "E_PACS_ANSWER"),
        (0x0122, "E_PACS_STORE"),
        (0xA900, "E_PACS_STORE"),
        (0xA9FF, "E_PACS_STORE"),
        (0xC000, "E_PACS_STORE"),
        (0xC122, "E_PACS_STORE"),
        (0xCFFF, "E_PACS_STORE"),
        (0xD000, "E_PACS_ANSWER"),
    ],
)
def test_status_maps_to_its_code(status: int, code: str | None) -> None:
    refusal = not_stored(status)
    assert (refusal and refusal.code) == code


class Web:
    """Answers every POST alike, and records the request."""

    def __init__(self, status: int, body: bytes, *, tls: ssl.SSLContext | None = None) -> None:
        self.path, self.headers, self.received = "", {}, b""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.path, outer.headers = self.path, dict(self.headers)
                outer.received = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(body)))
                if status // 100 == 3:
                    self.send_header("Location", "/signed-out")
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """No logging."""

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Ignore failed TLS handshakes."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        if tls:  # each handshake runs in the thread of its connection
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)

    @contextmanager
    def running(self) -> Iterator["Web"]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()

    def client(self, folder: Path) -> DicomWebPacs:
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text("synthetic-token\n")
        url = f"http://127.0.0.1:{self.port}/dicom-web/"
        return DicomWebPacs(DicomWebTable(url=url, token_file="token", timeout_seconds=60), folder)


def failed(**reasons: int | None) -> bytes:
    """The STOW-RS response that names the instances that were not stored."""
    items = [
        {"00081155": {"vr": "UI", "Value": [uid]}} | ({"00081197": {"vr": "US", "Value": [why]}} if why else {})
        for uid, why in reasons.items()
    ]
    return json.dumps({"00081198": {"vr": "SQ", "Value": items}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "statuses"),
    [
        (200, b"{}", [0, 0]),
        (200, b"", [0, 0]),
        (202, b"{}", [0, 0]),  # stored, with warnings
        (202, failed(**{UIDS[1]: 0xA700}), [0, 0xA700]),
        (409, failed(**{UIDS[0]: 0xC000, UIDS[1]: 0x0111}), [0xC000, 0x0111]),
        (409, failed(**{UIDS[0]: None, UIDS[1]: 0xA900}), [0x0110, 0xA900]),
    ],
)
def test_stow_response_gives_the_status_of_each_file(
    status: int, body: bytes, statuses: list[int], files: list[Path], tmp_path: Path
) -> None:
    with Web(status, body).running() as web, web.client(tmp_path) as client:
        assert client.store(files) == statuses
    assert web.path == "/dicom-web/studies"
    assert web.headers["Authorization"] == "Bearer synthetic-token"
    assert web.headers["Host"] == f"127.0.0.1:{web.port}"
    kind = Message()
    kind["Content-Type"] = web.headers["Content-Type"]
    assert (kind.get_content_type(), kind.get_param("type")) == ("multipart/related", "application/dicom")
    parts = web.received.split(b"--" + str(kind.get_boundary()).encode())[1:-1]
    bodies = [part.split(b"\r\n\r\n", 1)[1][:-2] for part in parts]
    assert bodies == [path.read_bytes() for path in files]


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, b"", "E_PACS_STORE"),
        (413, b"", "E_PACS_STORE"),
        (415, b"", "E_PACS_STORE"),
        (401, b"", "E_PACS_AUTH"),
        (403, b"", "E_PACS_AUTH"),
        (404, b"", "E_PACS_ANSWER"),
        (302, b"", "E_PACS_ANSWER"),  # the login page that follows answers with 200
        (307, b"", "E_PACS_ANSWER"),
        (500, b"", "E_PACS_ANSWER"),
        (503, b"", "E_PACS_SILENT"),
        (409, b"{}", "E_PACS_ANSWER"),
        (202, b"<NativeDicomModel/>", "E_PACS_ANSWER"),
        (409, b"[]", "E_PACS_ANSWER"),
    ],
)
def test_web_service_error_gives_its_code(
    status: int, body: bytes, code: str, files: list[Path], tmp_path: Path
) -> None:
    with Web(status, body).running() as web, web.client(tmp_path) as client, pytest.raises(Refusal) as caught:
        client.store(files)
    assert caught.value.code == code
    assert "127.0.0.1" not in str(caught.value)


@contextmanager
def keeper(
    answer: Callable[[Event], int],
    *,
    classes: Any = CLASSES,
    syntax: Any = ExplicitVRLittleEndian,
    tls: ssl.SSLContext | None = None,
) -> Iterator[int]:
    """A PACS that accepts C-STORE; yields its port."""
    entity = AE(ae_title=PACS_TITLE)
    entity.require_calling_aet = [OUR_TITLE]
    for each in classes:
        entity.add_supported_context(each, syntax)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, ssl_context=tls, evt_handlers=[(evt.EVT_C_STORE, answer)]
    )
    assert server is not None
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def client(port: int, folder: Path) -> DimsePacs:
    titles = {"called_aet": PACS_TITLE, "calling_aet": OUR_TITLE}
    return DimsePacs(DimseTable(host="127.0.0.1", port=port, timeout_seconds=60, connect_seconds=60, **titles), folder)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_c_store_sends_files_and_returns_their_statuses(syntax: Any, files: list[Path], tmp_path: Path) -> None:
    came: list[Dataset] = []

    def answer(event: Event) -> int:
        came.append(event.dataset)
        return 0x0000 if event.dataset.SOPInstanceUID == UIDS[0] else 0xC001

    with keeper(answer, syntax=syntax) as port:
        assert client(port, tmp_path).store(files) == [0x0000, 0xC001]
    assert [image.SOPInstanceUID for image in came] == list(UIDS)
    assert came[0].PatientID == "CANARY-0042"


def test_c_store_to_a_pacs_without_the_sop_class_is_refused(files: list[Path], tmp_path: Path) -> None:
    with keeper(lambda event: 0, classes=CLASSES[1:]) as port, pytest.raises(Refusal) as caught:
        client(port, tmp_path).store(files)
    assert caught.value.code == "E_PACS_SERVICE"
    assert "Comprehensive 3D SR" in caught.value.says


def test_c_store_without_a_pacs_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="E_PACS_REFUSED"):
        client(free_port(), tmp_path).store(files)


def test_c_store_aborted_by_the_pacs_is_refused(files: list[Path], tmp_path: Path) -> None:
    def abort(event: Event) -> int:
        event.assoc.abort()
        return 0

    with keeper(abort) as port, pytest.raises(Refusal, match="E_PACS_SILENT"):
        client(port, tmp_path).store(files)
