"""Decodes the pixels of one file, with one library for each encoding: the one that is safe with damaged data.

Tests with thousands of damaged frames showed: GDCM ends the whole process on damaged JPEG 2000, JPEG-LS and JPEG
headers, pylibjpeg-rle panics, and OpenJPEG allocates whatever size a frame states. pydicom would try all installed
libraries; so this module names the library, and checks the head of a frame before decoding.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import get_decoder

from models.refusal import Refusal
from pipeline.imaging import reasons

_PLUGINS = {
    uid.RLELossless: "pipeline.imaging.rle",
    uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg",
    uid.HTJ2KLossless: "pylibjpeg",
    uid.HTJ2KLosslessRPCL: "pylibjpeg",
    uid.HTJ2K: "pylibjpeg",
    uid.JPEGLSLossless: "pyjpegls",
    uid.JPEGLSNearLossless: "pyjpegls",
    uid.JPEGBaseline8Bit: "pillow",
    uid.JPEGExtended12Bit: "pipeline.imaging.jpeg_extended",
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
}
get_decoder(uid.RLELossless).add_plugin("pipeline.imaging.rle", ("pipeline.imaging.rle", "decode_frame"))
_EXTENDED = _PLUGINS[uid.JPEGExtended12Bit]
get_decoder(uid.JPEGExtended12Bit).add_plugin(_EXTENDED, (_EXTENDED, "decode_frame"))
MAY_BE_LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K}

# JPEG markers (ITU-T T.81, table B.1; JPEG-LS: T.87, annex C).
_START_OF_SCAN = 0xDA
_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xF7}
_TABLES = {0xC4, 0xDB, 0xDD, 0xF8}
_NOTES = {*range(0xE0, 0xF0), 0xFE}


@dataclass(frozen=True)
class Form:
    """How the pixels of one grey frame are stored (DICOM PS3.3, C.7.6.3.1)."""

    syntax: uid.UID
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool

    @property
    def frame_bytes(self) -> int:
        """Size of the frame in bytes, if it is not encapsulated."""
        return self.rows * self.columns * self.bits_allocated // 8

    def options(self, vr: str) -> Any:
        """Return the options of pydicom's decoders; passing a dataset instead takes longer than the decoding."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "samples_per_pixel": 1,
            "photometric_interpretation": "MONOCHROME2",
            "number_of_frames": 1,
            "bits_allocated": self.bits_allocated,
            "bits_stored": self.bits_stored,
            "pixel_representation": int(self.is_signed),
            "pixel_keyword": "PixelData",
            "pixel_vr": vr,
            "view_only": not self.syntax.is_encapsulated and self.bits_stored == self.bits_allocated,
        }


def unsupported(syntax: uid.UID) -> Refusal:
    """Return the refusal of a transfer syntax; a UID that is not in the dictionary may hold anything, and stays."""
    known = syntax.is_transfer_syntax and not syntax.is_private
    return Refusal(reasons.TRANSFER_SYNTAX, private=str(syntax), syntax=syntax.name if known else "unknown")


def is_readable(syntax: uid.UID) -> bool:
    """Whether an installed library can decode this transfer syntax."""
    try:
        plugins = get_decoder(syntax).available_plugins
    except NotImplementedError:
        return False
    return not syntax.is_encapsulated or _PLUGINS.get(syntax) in plugins


def decode(pixels: bytes, form: Form, vr: str = "OW") -> NDArray[np.integer]:
    """Return the stored values of a grey frame, shape (rows, columns), from the value of PixelData; read-only.

    Raises `Refusal`: E_TRUNCATED, E_DECODE.
    """
    syntax, rows, columns = form.syntax, form.rows, form.columns
    try:
        if syntax.is_encapsulated:
            frame = get_frame(pixels, 0, number_of_frames=1)
            is_whole = syntax == uid.RLELossless or b"\xff\xd9" in frame[-16:]  # end of image; RLE states lengths
        else:
            is_whole = len(pixels) >= form.frame_bytes
    except Exception:  # no pixels, or inconsistent fragments
        is_whole = False
    if not is_whole:
        raise Refusal(reasons.TRUNCATED)
    if not syntax.is_encapsulated and syntax.is_little_endian:
        return _native(pixels, form)
    plugin = _PLUGINS.get(syntax, "")
    try:
        if plugin == "pylibjpeg":
            _check_jpeg2000(frame, rows, columns)
        elif plugin in ("pyjpegls", "pillow", "gdcm", _EXTENDED):
            pixels = encapsulate([_checked_jpeg(frame, rows, columns)])
        stored, _ = get_decoder(syntax).as_array(pixels, raw=True, decoding_plugin=plugin, **form.options(vr))
    except Exception as error:  # each decoder has its own exceptions
        raise Refusal(reasons.DECODE, private=str(error)) from None
    if stored.shape != (rows, columns):
        raise Refusal(reasons.DECODE)
    return stored


def _native(pixels: bytes, form: Form) -> NDArray[np.integer]:
    """Decode native values, which may be padded, and ignore unused bits (DICOM PS3.5, 8.1.1)."""
    if len(pixels) >= 2 * form.frame_bytes:
        raise Refusal(reasons.DECODE)
    kind = np.dtype(f"<{'i' if form.is_signed else 'u'}{form.bits_allocated // 8}")
    stored = np.frombuffer(pixels, kind, form.rows * form.columns).reshape(form.rows, form.columns)
    unused = form.bits_allocated - form.bits_stored
    return stored << unused >> unused if unused else stored


def _check_jpeg2000(frame: bytes, rows: int, columns: int) -> None:
    """Check that the image and tile size marker comes first and agrees with the header (ITU-T T.800, A.5.1)."""
    width, height, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    if not frame.startswith(b"\xff\x4f\xff\x51") or (height - top, width - left) != (rows, columns):
        raise ValueError("the size of the JPEG 2000 frame differs from the header")


def _checked_jpeg(frame: bytes, rows: int, columns: int) -> bytes:
    """Return the frame without comments (APPn, COM), if the rest is well-formed and agrees with the header."""
    kept = [frame[:2]]
    sizes = []
    at, marker = 2, 0
    while marker != _START_OF_SCAN:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        segment = frame[at : at + 2 + length]
        if frame[at] != 0xFF or length < 2 or len(segment) < 2 + length:
            raise ValueError("the JPEG frame is not a sequence of segments")
        if marker in _START_OF_FRAME and length == 11 and segment[4] <= 16:  # one component, bits
            sizes.append((int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")))
        elif marker not in _TABLES | _NOTES and not (marker == _START_OF_SCAN and length == 8):
            raise ValueError("the JPEG frame is not one grey image")
        if marker not in _NOTES:
            kept.append(segment)
        at += 2 + length
    if sizes != [(rows, columns)]:
        raise ValueError("the size of the JPEG frame differs from the header")
    return b"".join([*kept, frame[at:]])
