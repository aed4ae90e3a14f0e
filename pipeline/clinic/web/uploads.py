"""Uploads: written to the disk chunk by chunk, and removed if they are incomplete.

File names are not stored, because they may name a patient. Files are numbered; only the suffix is kept, which
distinguishes volumes from DICOM. A zip is checked when it is scored, by `pipeline/imaging/archive.py`.
"""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from models.refusal import Refusal
from pipeline.clinic.reasons import REQUEST_TYPE, UPLOAD_BROKEN, UPLOAD_EMPTY, UPLOAD_FILES, UPLOAD_NO_SCAN
from pipeline.imaging.archive import MAX_ENTRIES
from pipeline.imaging.discovery import VOLUME_SUFFIXES, is_companion

INCOMING = ".incoming-"  # prefix of the folders of running uploads
_WRITE_BYTES = 2**18
_ZIP = ("application/zip", "application/x-zip-compressed", "application/octet-stream")
_FORM = "multipart/form-data"


async def receive(request: Request, folder: Path) -> None:
    """Write the files of a request (a form or one zip) into the new `folder`; remove it on any failure.

    Raises Refusal E_REQUEST_TYPE, E_REQUEST_SIZE, E_UPLOAD_BROKEN, E_UPLOAD_EMPTY, E_UPLOAD_NO_SCAN, E_UPLOAD_FILES;
    ClientDisconnect.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind.decode("latin-1") not in (_FORM, *_ZIP):
        raise Refusal(REQUEST_TYPE)
    await run_in_threadpool(folder.mkdir, mode=0o700)
    try:
        if kind.decode("latin-1") == _FORM:
            await _receive_form(request, options.get(b"boundary", b""), folder)
        else:
            await _receive_zip(request, folder)
    except BaseException:  # the client may be gone, or the timeout reached
        shutil.rmtree(folder, ignore_errors=True)
        raise


async def _receive_zip(request: Request, folder: Path) -> None:
    is_empty = True
    with (folder / "1.zip").open("wb") as file:
        async for piece in _pieces(request):
            is_empty = False
            await run_in_threadpool(file.write, piece)
    if is_empty:
        raise Refusal(UPLOAD_EMPTY)


async def _receive_form(request: Request, boundary: bytes, folder: Path) -> None:
    try:
        form = _Form(boundary, folder)
        try:
            async for piece in _pieces(request):
                await run_in_threadpool(form.write, piece)
        finally:
            form.close()
    except FormParserError as error:
        raise Refusal(UPLOAD_BROKEN) from error
    if not form.is_whole:
        raise Refusal(UPLOAD_BROKEN)
    if not form.files:
        raise Refusal(UPLOAD_NO_SCAN if form.skipped else UPLOAD_EMPTY)


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in pieces of at least _WRITE_BYTES, except the last."""
    kept = bytearray()
    async for chunk in request.stream():
        kept += chunk
        if len(kept) >= _WRITE_BYTES:
            yield bytes(kept)
            kept.clear()
    if kept:
        yield bytes(kept)


class _Form:
    """A multipart form (RFC 7578) that is written to a folder; files that are not scans are skipped by their name."""

    def __init__(self, boundary: bytes, folder: Path) -> None:
        """Raises FormParserError if there is no boundary."""
        if not boundary:
            raise FormParserError("no boundary")
        self._folder = folder
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._field,
                "on_header_value": self._value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._open,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._whole,
            },
        )
        self._file: BinaryIO | None = None
        self._header, self._content, self._disposition = b"", b"", b""
        self.files = self.skipped = 0
        self.is_whole = False

    def write(self, piece: bytes) -> None:
        """Parse the next piece. Raises FormParserError, Refusal E_UPLOAD_FILES."""
        self._parser.write(piece)

    def close(self) -> None:
        self._end()

    def _begin(self) -> None:
        self._disposition = b""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _value(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._content
        self._header, self._content = b"", b""

    def _open(self) -> None:
        given = parse_options_header(self._disposition)[1].get(b"filename", b"").decode("latin-1").lower()
        name = given.replace("\\", "/").rpartition("/")[2]
        ending = next((known for known in (*VOLUME_SUFFIXES, ".zip") if name.endswith(known)), ".dcm")
        if not name:
            return
        if ending == ".dcm" and is_companion(name):
            self.skipped += 1
            return
        self.files += 1
        if self.files > MAX_ENTRIES:
            raise Refusal(UPLOAD_FILES, files=MAX_ENTRIES)
        self._file = (self._folder / f"{self.files}{ending}").open("wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file:
            self._file.write(data[start:end])

    def _end(self) -> None:
        if self._file:
            self._file.close()
            self._file = None

    def _whole(self) -> None:
        self.is_whole = True
