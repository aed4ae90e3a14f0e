"""What the value of PixelData holds beside pixels: overlays in unused bits, bytes after the last pixel, JPEG comments.

Bytes after the last native pixel are cut. The rest is overwritten in place: no offset changes, and no pixel that the
reader decodes. Not looked at: bits above BitsStored in compressed values, bytes after the end of a JPEG stream, and
comments after the first scan or tile.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataelem import RawDataElement

UNDEFINED = 0xFFFFFFFF  # the length of compressed pixels, which end with a delimiter
_ITEM = b"\xfe\xff\x00\xe0"
# Of each kind of stream: how it begins, the markers that end its header, and those of comments and applications
# (JPEG and JPEG-LS: ITU-T T.81, table B.1; JPEG 2000: T.800, table A.2).
_JPEG = b"\xff\xd8\xff", {0xDA}, {*range(0xE0, 0xF0), 0xFE}
_JPEG_2000 = b"\xff\x4f\xff\x51", {0x90}, {0x64}
_END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class Pixels:
    """The value of PixelData."""

    vr: str
    value: bytes | bytearray
    is_encapsulated: bool


@dataclass(frozen=True)
class Layout:
    """How native pixels are stored. `bits`: BitsAllocated, BitsStored, HighBit and PixelRepresentation, None if absent.

    `frame_samples`: the samples of all pixels of a frame; 0 if unknown. `order`: of the bytes, < or >.
    """

    bits: Sequence[int | None]
    frame_samples: int
    frames: int
    order: str


def clean(element: RawDataElement, layout: Layout) -> Pixels | None:
    """Return the pixels with nothing beside them; None if there are none, or in a layout that the reader refuses."""
    vr, value = element.VR if element.VR == "OB" else "OW", element.value
    if not isinstance(value, bytes):
        return None
    if element.length == UNDEFINED:
        return Pixels(vr, without_comments(value), is_encapsulated=True)
    allocated, stored, high, signed = layout.bits
    if allocated not in (8, 16) or stored is None or not 1 <= stored <= allocated or high not in (None, stored - 1):
        return None
    if not layout.frame_samples:  # the value cannot be told from what follows it
        return None
    is_swapped = (allocated, vr, layout.order) == (8, "OW", ">")
    frame_bytes = layout.frame_samples * allocated // 8
    value = without_surplus(value, frame_bytes=frame_bytes, frames=layout.frames, is_swapped=is_swapped)
    kept = without_unused_bits(value, allocated=allocated, stored=stored, is_signed=signed == 1, order=layout.order)
    return Pixels(vr, kept, is_encapsulated=False)


def without_surplus(value: bytes, *, frame_bytes: int, frames: int, is_swapped: bool = False) -> bytes:
    """Return native pixels without what follows the last one; a byte that makes the length even is zero.

    The reader refuses a value with room for one more frame, because it cannot know which frames are the image: such a
    value keeps the room, filled with zeros, so that it is still refused.

    `is_swapped`: pairs of pixels of one byte are stored as words, in which the second pixel comes first (PS3.5, A.3).
    """
    needed = frame_bytes * frames
    if len(value) <= needed:
        return value
    if len(value) >= needed + frame_bytes:
        return value[:needed] + bytes(frame_bytes + (needed + frame_bytes) % 2)
    if is_swapped and needed % 2:
        return value[: needed - 1] + b"\0" + value[needed : needed + 1]
    return value[:needed] + bytes(needed % 2)


def without_unused_bits(value: bytes, *, allocated: int, stored: int, is_signed: bool, order: str) -> bytes | bytearray:
    """Return native pixels whose bits above `stored` repeat the sign, or are zero. `allocated`: 8 or 16.

    `order`: of the bytes, < or >.
    """
    unused = allocated - stored
    if not unused:
        return value
    kept = bytearray(value)
    size = allocated // 8
    pixels = np.frombuffer(kept, f"{order}{'i' if is_signed else 'u'}{size}", len(kept) // size)
    pixels <<= unused
    pixels >>= unused
    return kept


def without_comments(value: bytes) -> bytes | bytearray:
    """Return encapsulated pixels (PS3.5, A.4) with zeros for the comments in the header of each JPEG frame."""
    notes: list[tuple[int, int]] = []
    at, is_start = 0, False
    while value[at : at + 4] == _ITEM and len(value) >= at + 8:
        (length,) = struct.unpack_from("<L", value, at + 4)
        start, end = at + 8, min(at + 8 + length, len(value))
        for magic, ends, markers in (_JPEG, _JPEG_2000):
            if is_start and value.startswith(magic, start, end):
                notes += _notes(value, start + 2, end, ends, markers)
        # The first item is the offset table. A frame may have several fragments.
        is_start = at == 0 or value[max(start, end - 16) : end].rstrip(b"\0").endswith(_END_OF_IMAGE)
        at = end
    if not notes:
        return value
    kept = bytearray(value)
    for start, end in notes:
        kept[start:end] = bytes(end - start)
    return kept


def _notes(value: bytes, at: int, end: int, ends: set[int], markers: set[int]) -> list[tuple[int, int]]:
    """Return where the contents of the comments are, up to the end of the header or to a damaged segment."""
    found = []
    while at + 4 <= end and value[at] == 0xFF and (marker := value[at + 1]) not in ends:
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        segment_end = at + 2 + int.from_bytes(value[at + 2 : at + 4], "big")
        if segment_end < at + 4:
            break
        if marker in markers:
            found.append((at + 4, min(segment_end, end)))
        at = segment_end
    return found
