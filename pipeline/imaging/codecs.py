"""Decodes the pixels of one file, each encoding with the one library that survives damaged data.

Tried on thousands of damaged frames: GDCM ends the whole process on damaged JPEG 2000, JPEG-LS and JPEG
headers, pylibjpeg-rle panics, and OpenJPEG allocates whatever size a frame claims. So the choice is not left
to pydicom, which tries all that are installed, and the head of a frame is checked before a decoder sees it.
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
    uid.JPEGLossless: "gdcm",
    uid.JPEGLosslessSV1: "gdcm",
}
get_decoder(uid.RLELossless).add_plugin("pipeline.imaging.rle", ("pipeline.imaging.rle", "decode_frame"))
MAY_BE_LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K}

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
        """Of the frame, where it is not encapsulated."""
        return self.rows * self.columns * self.bits_allocated // 8

    def options(self, vr: str) -> Any:
        """The same in pydicom's words, with the VR of PixelData: to hand it a dataset costs more than to decode one."""
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


def is_readable(syntax: uid.UID) -> bool:
    """Whether pixels in this transfer syntax can be decoded here."""
    try:
        plugins = get_decoder(syntax).available_plugins
    except NotImplementedError:
        return False
    return not syntax.is_encapsulated or _PLUGINS.get(syntax) in plugins


def decode(pixels: bytes, form: Form, vr: str = "OW") -> NDArray[np.integer]:
    """The stored values of a grey frame, shape (rows, columns), from the value of PixelData; not to be written to.

    Raises `Refusal`: E_TRUNCATED, E_DECODE.
    """
    syntax, rows, columns = form.syntax, form.rows, form.columns
    try:
        if syntax.is_encapsulated:
            frame = get_frame(pixels, 0, number_of_frames=1)
            is_whole = syntax == uid.RLELossless or b"\xff\xd9" in frame[-16:]  # end of image; RLE counts
        else:
            is_whole = len(pixels) >= form.frame_bytes
    except Exception:  # no pixels at all, or fragments that do not add up
        is_whole = False
    if not is_whole:
        raise Refusal(reasons.TRUNCATED)
    if not syntax.is_encapsulated and syntax.is_little_endian:
        return _native(pixels, form)
    plugin = _PLUGINS.get(syntax, "")
    try:
        if plugin == "pylibjpeg":
            _check_jpeg2000(frame, rows, columns)
        elif plugin in ("pyjpegls", "pillow", "gdcm"):
            pixels = encapsulate([_checked_jpeg(frame, rows, columns)])
        stored, _ = get_decoder(syntax).as_array(pixels, raw=True, decoding_plugin=plugin, **form.options(vr))
    except Exception as error:  # each decoder fails in its own way
        raise Refusal(reasons.DECODE, private=str(error)) from None
    if stored.shape != (rows, columns):
        raise Refusal(reasons.DECODE)
    return stored


def _native(pixels: bytes, form: Form) -> NDArray[np.integer]:
    """Values in a row, perhaps padded, without what unused bits hold (DICOM PS3.5, 8.1.1)."""
    if len(pixels) >= 2 * form.frame_bytes:
        raise Refusal(reasons.DECODE)
    kind = np.dtype(f"<{'i' if form.is_signed else 'u'}{form.bits_allocated // 8}")
    stored = np.frombuffer(pixels, kind, form.rows * form.columns).reshape(form.rows, form.columns)
    unused = form.bits_allocated - form.bits_stored
    return stored << unused >> unused if unused else stored


def _check_jpeg2000(frame: bytes, rows: int, columns: int) -> None:
    """The image and tile size marker must come first and agree with the header (ITU-T T.800, A.5.1)."""
    width, height, left, top = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    if not frame.startswith(b"\xff\x4f\xff\x51") or (height - top, width - left) != (rows, columns):
        raise ValueError("the JPEG 2000 frame is not of the size in the header")


def _checked_jpeg(frame: bytes, rows: int, columns: int) -> bytes:
    """The frame without its notes (APPn, COM), if what is left is well-formed and agrees with the header."""
    kept = [frame[:2]]
    sizes = []
    at, marker = 2, 0
    while marker != _START_OF_SCAN:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        segment = frame[at : at + 2 + length]
        if frame[at] != 0xFF or length < 2 or len(segment) < 2 + length:
            raise ValueError("the JPEG frame is not a row of segments")
        if marker in _START_OF_FRAME and length == 11 and segment[4] <= 16:  # one component, bits
            sizes.append((int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[7:9], "big")))
        elif marker not in _TABLES | _NOTES and not (marker == _START_OF_SCAN and length == 8):
            raise ValueError("the JPEG frame is not that of one grey image")
        if marker not in _NOTES:
            kept.append(segment)
        at += 2 + length
    if sizes != [(rows, columns)]:
        raise ValueError("the JPEG frame is not of the size in the header")
    return b"".join([*kept, frame[at:]])
