"""RLE Lossless (DICOM PS3.5, annex G) as a plugin of pydicom: pydicom's rules, and pylibjpeg-rle for the runs.

pylibjpeg-rle's decoder of frames panics where a segment is too long; that of segments has no such bounds. What it
refuses goes to pydicom's own decoder, ten times as slow, which can read some of it all the same.
"""

from struct import Struct

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders import rle as in_python
from pydicom.pixels.decoders.base import DecodeRunner
from rle.rle import decode_segment

DECODER_DEPENDENCIES = {uid.RLELossless: ("pylibjpeg-rle>=2.0",)}
_HEADER = Struct("<16L")  # the number of segments, and where each of up to 15 begins


def is_available(syntax: str) -> bool:
    """As pydicom asks its plugins."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(frame: bytes, runner: DecodeRunner) -> memoryview | bytearray:
    """One frame of grey pixels with 8 or 16 bits, little endian. Raises ValueError."""
    try:
        return _decode(frame, runner.rows * runner.columns, runner.bits_allocated // 8)
    except ValueError:
        return in_python._decode_frame(frame, runner)


def _decode(frame: bytes, pixels: int, pixel_bytes: int) -> memoryview:
    """Raises ValueError, also where pydicom can read."""
    if len(frame) < _HEADER.size:
        raise ValueError("no room for the header")
    count, *begins = _HEADER.unpack_from(frame)
    if count != pixel_bytes:
        raise ValueError("not a segment for each byte of a pixel")
    stored = np.zeros(pixels, f"<u{pixel_bytes}")
    for begin, end in zip(begins, [*begins[1:count], len(frame)], strict=False):  # the highest byte comes first
        segment = frame[begin:end]
        unpacked = decode_segment(segment) if segment else b""  # an empty one makes it panic
        if len(unpacked) < pixels:
            raise ValueError("a segment is too short")
        if pixel_bytes > 1:
            stored <<= 8
        stored |= np.frombuffer(unpacked, np.uint8, pixels)  # what is too much was padding
    return stored.data.cast("B")
