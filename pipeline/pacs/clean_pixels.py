"""What the value of PixelData holds beside pixels: overlays in unused bits, JPEG comments, bytes after the last pixel.

Bytes after the last native pixel are cut. Everything else, as what follows the end of a compressed frame, is
overwritten with zeros in place: no offset changes, and no pixel that the reader decodes. Not looked at: bits above
BitsStored in compressed values, and bytes within the compressed data that a decoder does not need.
"""

import struct
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from pydicom import uid
from pydicom.dataelem import RawDataElement

from pipeline.pacs import codestreams

UNDEFINED = 0xFFFFFFFF  # the length of compressed pixels, which end with a delimiter
_ITEM = b"\xfe\xff\x00\xe0"
_HEAD_BYTES = 8  # of an item: tag and length
_RLE = {uid.RLELossless}
_JPEG = {*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes}
_JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}


@dataclass(frozen=True)
class Pixels:
    """The value of PixelData."""

    vr: str
    value: bytes | bytearray
    is_encapsulated: bool


@dataclass(frozen=True)
class Layout:
    """How native pixels are stored. `bits`: BitsAllocated, BitsStored, HighBit and PixelRepresentation, None if absent.

    `frame_samples`: the samples of all pixels of a frame; 0 if unknown. `order`: of the bytes, < or >. `syntax`: the
    transfer syntax.
    """

    bits: Sequence[int | None]
    frame_samples: int
    frames: int
    order: str
    syntax: str


def clean(element: RawDataElement, layout: Layout) -> Pixels | None:
    """Return the pixels with nothing beside them; None if there are none, or in a form that the reader refuses."""
    vr, value = element.VR if element.VR == "OB" else "OW", element.value
    if not isinstance(value, bytes):
        return None
    if element.length == UNDEFINED:
        streams = only_streams(value, syntax=layout.syntax, frames=layout.frames, samples=layout.frame_samples)
        return Pixels(vr, streams, is_encapsulated=True) if streams else None
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


def only_streams(value: bytes, *, syntax: str, frames: int, samples: int) -> bytes | bytearray | None:
    """Return encapsulated pixels (PS3.5, A.4) with zeros for all that is no compressed frame; None if none is known.

    A frame may have several fragments, and each frame begins a fragment. `samples`: of a frame; RLE does not state it.
    """
    if syntax not in _RLE | _JPEG | _JPEG_2000 or (syntax in _RLE and not samples):
        return None
    items = _items(value)
    if not items:
        return bytes(len(value))
    table, *fragments = items
    content = [bytearray(value[begins:ends]) for begins, ends in fragments]
    if len(content) == frames:
        for fragment in content:
            _clean_frames(fragment, [0], syntax, 1, samples)
    else:
        joined = bytearray().join(content)
        _clean_frames(joined, _starts(content), syntax, frames, samples)
        content = _divided(joined, [len(fragment) for fragment in content])
    kept = bytearray(len(value))
    offsets = _only_offsets(value[slice(*table)], {begins - fragments[0][0] for begins, _ in fragments})
    for (begins, ends), part in zip(items, [offsets, *content], strict=True):
        kept[begins - _HEAD_BYTES : begins] = value[begins - _HEAD_BYTES : begins]
        kept[begins:ends] = part
    return kept


def _clean_frames(content: bytearray, starts: list[int], syntax: str, frames: int, samples: int) -> None:
    """Overwrite what is not image data of so many frames; each begins at one of `starts`."""
    if syntax in _RLE:  # a frame has one fragment
        surplus = codestreams.rle(content, samples) if frames == 1 else [(0, len(content))]
        return _overwrite(content, surplus)
    examine = codestreams.jpeg if syntax in _JPEG else codestreams.jpeg_2000
    at = 0
    for _ in range(frames):
        stream = examine(content, at)
        _overwrite(content, stream.surplus)
        if stream.end is None:
            return None
        place = bisect_left(starts, stream.end)
        at = starts[place] if place < len(starts) else len(content)
        _overwrite(content, [(stream.end, at)])
    return _overwrite(content, [(at, len(content))])


def _overwrite(content: bytearray, spans: Iterable[codestreams.Span]) -> None:
    for begins, ends in spans:
        content[begins:ends] = bytes(ends - begins)


def _items(value: bytes) -> list[codestreams.Span]:
    """Return where the contents of the items are, of which the first is the offset table."""
    items, at = [], 0
    while value[at : at + 4] == _ITEM and len(value) >= at + _HEAD_BYTES:
        (length,) = struct.unpack_from("<L", value, at + 4)
        begins = at + _HEAD_BYTES
        at = min(begins + length, len(value))
        items.append((begins, at))
    return items


def _only_offsets(table: bytes, known: set[int]) -> bytes:
    """Return the offset table with zeros for all that is no offset of a fragment."""
    count = len(table) // 4
    offsets = [each if each in known else 0 for each in struct.unpack_from(f"<{count}L", table)]
    return struct.pack(f"<{count}L", *offsets) + bytes(len(table) % 4)


def _starts(content: Iterable[bytes | bytearray]) -> list[int]:
    """Return where each fragment begins after they are joined."""
    return [0, *accumulate(len(fragment) for fragment in content)][:-1]


def _divided(joined: bytearray, lengths: list[int]) -> list[bytearray]:
    """Divide what was joined into fragments of the same lengths as before."""
    ends = list(accumulate(lengths))
    return [joined[end - length : end] for end, length in zip(ends, lengths, strict=True)]
