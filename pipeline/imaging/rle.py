"""Decodes RLE Lossless (DICOM PS3.5, annex G) as a plugin of pydicom, with pylibjpeg-rle for the segments.

The frame decoder of pylibjpeg-rle panics if a segment is too long; its segment decoder does not. Frames that fail here
go to pydicom's own decoder, which takes ten times as long and can read some of them.
"""

from struct import Struct

import numpy as np
from pydicom import uid
from pydicom.pixels.decoders import rle as in_python
from pydicom.pixels.decoders.base import DecodeRunner
from rle.rle import decode_segment

DECODER_DEPENDENCIES = {uid.RLELossless: ("pylibjpeg-rle>=2.0",)}
_HEADER = Struct("<16L")  # the number of segments, and the offsets of up to 15 segments


def is_available(syntax: str) -> bool:
    """Whether this plugin decodes `syntax`; pydicom calls this."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(frame: bytes, runner: DecodeRunner) -> memoryview | bytearray:
    """Decode one frame of grey pixels with 8 or 16 bits, little endian. Raises ValueError."""
    try:
        return _decode(frame, runner.rows * runner.columns, runner.bits_allocated // 8)
    except ValueError:
        return in_python._decode_frame(frame, runner)


def _decode(frame: bytes, pixels: int, pixel_bytes: int) -> memoryview:
    """Decode a frame with pylibjpeg-rle. Raises ValueError, also for some frames that pydicom can read."""
    if len(frame) < _HEADER.size:
        raise ValueError("the frame is shorter than its header")
    count, *begins = _HEADER.unpack_from(frame)
    if count != pixel_bytes:
        raise ValueError("the number of segments is not the number of bytes of a pixel")
    stored = np.zeros(pixels, f"<u{pixel_bytes}")
    for begin, end in zip(begins, [*begins[1:count], len(frame)], strict=False):  # the highest byte comes first
        segment = frame[begin:end]
        unpacked = decode_segment(segment) if segment else b""  # an empty segment makes the decoder panic
        if len(unpacked) < pixels:
            raise ValueError("a segment is too short")
        if pixel_bytes > 1:
            stored <<= 8
        stored |= np.frombuffer(unpacked, np.uint8, pixels)  # additional bytes are padding
    return stored.data.cast("B")
