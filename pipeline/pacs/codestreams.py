"""Find what a compressed frame holds beside its pixels: comments, unknown segments, and bytes after its end.

Only markers are read; no pixel is decoded. Each function returns the spans of a frame that are not image data. If a
stream is not built as its standard says, everything from there to its end is one of them: what it holds is not known,
and the reader refuses such a frame. Not found: bytes inside the compressed data that a decoder does not need.
"""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

Span = tuple[int, int]  # where it begins and ends in the frame

# Markers of JPEG and JPEG-LS (ITU-T T.81, table B.1; T.87, annex C), and the segments that decoders use.
_JPEG_BEGIN = b"\xff\xd8"
_SCAN, _END = 0xDA, 0xD9
_JPEG_SEGMENTS = {*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDA, 0xDE), 0xF7, 0xF8}
# In compressed data FF is followed by a byte below 80 (JPEG: 00), or by a restart marker.
_AFTER_SCAN = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")
# Markers of JPEG 2000 and HTJ2K (T.800, table A.2; T.814, A.2), and the segments that decoders use.
_J2K_BEGIN = b"\xff\x4f\xff\x51"
_TILE_PART, _DATA = 0x90, 0x93
_J2K_SEGMENTS = {*range(0x50, 0x54), *range(0x55, 0x5A), *range(0x5C, 0x62), 0x63}
_END_OF_J2K = re.compile(rb"\xff\x91\x00\x04..|\xff\xd9", re.DOTALL)  # the number in an SOP may look like an end

_RLE_HEADER = struct.Struct("<16L")  # the number of segments, and the offsets of up to 15 (DICOM PS3.5, G.5)


@dataclass(frozen=True)
class Stream:
    """A compressed frame. `end`: where it ends, None if it is damaged or cut short. `surplus`: what is not image data.

    What follows the end is not part of `surplus`.
    """

    end: int | None
    surplus: list[Span]


def jpeg(frame: bytes | bytearray, at: int) -> Stream:
    """Examine the JPEG or JPEG-LS stream that begins at `at`."""
    surplus: list[Span] = []
    if not frame.startswith(_JPEG_BEGIN, at):
        return Stream(None, [(at, len(frame))])
    at += 2
    while (marker := _marker(frame, at)) is not None:
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _END:
            return Stream(at + 2, surplus)
        segment_end = _segment_end(frame, at)
        if segment_end is None:
            break
        if marker not in _JPEG_SEGMENTS:
            surplus.append((at + 4, segment_end))
        at = segment_end
        if marker == _SCAN:
            found = _AFTER_SCAN.search(frame, at)
            if found is None:
                break
            at = found.start()
    return Stream(None, [*surplus, (at, len(frame))])


def jpeg_2000(frame: bytes | bytearray, at: int) -> Stream:
    """Examine the JPEG 2000 or HTJ2K stream that begins at `at`."""
    surplus: list[Span] = []
    if not frame.startswith(_J2K_BEGIN, at):
        return Stream(None, [(at, len(frame))])
    at += 2
    tile_end = 0  # of the tile-part; 0: it extends to the end of the stream
    while (marker := _marker(frame, at)) is not None:
        if marker == _END:
            return Stream(at + 2, surplus)
        if marker == _DATA:
            data_end = tile_end or _end_of_last_tile(frame, at + 2)
            if not at + 2 <= data_end < len(frame):
                break
            at = data_end
            continue
        segment_end = _segment_end(frame, at)
        if segment_end is None:
            break
        if marker == _TILE_PART:
            if segment_end != at + 12:
                break
            (size,) = struct.unpack_from(">L", frame, at + 6)
            tile_end = at + size if size else 0
        elif marker not in _J2K_SEGMENTS:
            surplus.append((at + 4, segment_end))
        at = segment_end
    return Stream(None, [*surplus, (at, len(frame))])


def rle(frame: bytes | bytearray, samples: int) -> list[Span]:
    """Return what an RLE frame of `samples` holds beside its segments, and after the last pixel of each."""
    if len(frame) < _RLE_HEADER.size:
        return [(0, len(frame))]
    count, *begins = _RLE_HEADER.unpack_from(frame)
    if not 1 <= count <= len(begins):
        return [(0, len(frame))]
    begins = begins[:count]
    ends = [*begins[1:], len(frame)]
    used = [(0, 4 + 4 * count)]
    for begin, end in zip(begins, ends, strict=True):
        if not _RLE_HEADER.size <= begin <= end <= len(frame):
            return [(0, len(frame))]
        used.append((begin, _end_of_run(frame, begin, end, samples)))
    return _between(used, len(frame))


def _marker(frame: bytes | bytearray, at: int) -> int | None:
    return frame[at + 1] if at + 2 <= len(frame) and frame[at] == 0xFF else None


def _segment_end(frame: bytes | bytearray, at: int) -> int | None:
    """Return where the segment of the marker at `at` ends; None if it has no valid length."""
    length = int.from_bytes(frame[at + 2 : at + 4], "big")
    end = at + 2 + length
    return end if length >= 2 and end <= len(frame) else None


def _end_of_last_tile(frame: bytes | bytearray, at: int) -> int:
    """Return where the data of a tile-part without a length ends; the end of the frame if nothing ends it."""
    return next((found.start() for found in _END_OF_J2K.finditer(frame, at) if len(found[0]) == 2), len(frame))


def _end_of_run(frame: bytes | bytearray, at: int, end: int, samples: int) -> int:
    """Return where the byte for the last of the samples ends (PackBits, DICOM PS3.5, G.3.2)."""
    left = samples
    while left > 0 and at < end:
        control = frame[at]
        if control < 128:  # so many bytes, and one, follow as they are
            at += 1 + min(control + 1, left)
            left -= control + 1
        elif control > 128:  # one byte is repeated
            at += 2
            left -= 257 - control
        else:
            at += 1
    return min(at, end)


def _between(used: Iterable[Span], size: int) -> list[Span]:
    """Return what lies between sorted spans, and after the last one."""
    gaps, at = [], 0
    for begin, end in used:
        if begin > at:
            gaps.append((at, begin))
        at = max(at, end)
    return [*gaps, (at, size)]
