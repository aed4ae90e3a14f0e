"""Reads the frames of an Enhanced CT or Legacy Converted Enhanced CT image: a header and a place in the file for each.

The pixels stay in the file until a frame is decoded, so that a file with 2,000 frames needs the memory of one.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread, uid
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag

from models.refusal import Refusal
from pipeline.imaging import codecs, reasons
from pipeline.imaging.dicom_header import BoundedFile, read_header, tags, text
from pipeline.imaging.functional_groups import PER_FRAME, SHARED, first_frame, frame_headers

_DESCRIPTION = tags("SOPClassUID", SHARED, PER_FRAME)
_OF_THE_IMAGE = tags(
    *("NumberOfFrames", SHARED, PER_FRAME, "DimensionIndexSequence", "ContrastBolusAgentSequence"),
    "ExtendedOffsetTable",
)
_PIXEL_DATA, _ITEM, _SEQUENCE_END, _UNDEFINED = 0x7FE00010, 0xFFFEE000, 0xFFFEE0DD, 0xFFFFFFFF
_JPEG_ENDS = b"\xff\xd9"
_MAX_FRAGMENTS = 2**17

Span = tuple[int, int]  # offset in the file, length


@dataclass(frozen=True)
class Frame:
    """One frame. `header`: flat, as of a single-frame image. `spans`: where its encapsulated fragments are.

    `native`: where its native pixels are. Without pixels both are empty.
    """

    header: Dataset
    spans: tuple[Span, ...] = ()
    native: Span | None = None


def read_first_header(path: Path, wanted: list[BaseTag]) -> Dataset:
    """Read the `wanted` attributes of one file; of a multi-frame image, those of its first frame.

    Raises `Refusal`: E_NOT_DICOM, E_PARSE.
    """
    return first_frame(read_header(path, [*wanted, *_DESCRIPTION]))


def read_frames(path: Path, wanted: list[BaseTag]) -> list[Frame]:
    """Read the header of each frame, with the `wanted` attributes as far as the file has them, and find its pixels.

    Raises `Refusal`: E_NOT_DICOM, E_PARSE, E_MULTIFRAME, E_SEVERAL_VOLUMES, E_TRANSFER_SYNTAX, E_TRUNCATED.
    """
    try:
        with path.open("rb") as file:
            bounded = BoundedFile(file)
            header = dcmread(bounded, specific_tags=[*wanted, *_OF_THE_IMAGE], stop_before_pixels=True)
            syntax = uid.UID(text(header.file_meta, "TransferSyntaxUID"))
            if syntax.is_deflated:  # frames of a deflated file cannot be read one by one
                raise codecs.unsupported(syntax)
            headers = frame_headers(header)
            pixels = _Pixels(file, syntax, len(headers))
            return [pixels.frame(number, each, header) for number, each in enumerate(headers)]
    except Refusal:
        raise
    except InvalidDicomError:
        raise Refusal(reasons.NOT_DICOM, private=str(path)) from None
    except Exception as error:  # on damaged files pydicom raises many kinds of exceptions
        raise Refusal(reasons.PARSE, private=f"{path}: {error}") from None


class _Pixels:
    """The element PixelData of a file that is positioned at its beginning (DICOM PS3.5, 7.1 and A.4)."""

    def __init__(self, file: BinaryIO, syntax: uid.UID, count: int) -> None:
        self._file, self._count, self._order = file, count, "<" if syntax.is_little_endian else ">"
        self._begin, self._length = self._find(is_implicit=syntax.is_implicit_VR)
        self._spans: list[tuple[Span, ...]] | None = None

    def _find(self, *, is_implicit: bool) -> Span:
        """Return offset and length of the value; length 0 if there are no pixels."""
        head = self._file.read(12)
        if len(head) < 12 or self._tag(head) != _PIXEL_DATA:
            return 0, 0
        at = self._file.tell() - 12
        place = 4 if is_implicit else 8
        (length,) = struct.unpack_from(f"{self._order}L", head, place)
        return at + place + 4, length

    def frame(self, number: int, frame: Dataset, header: Dataset) -> Frame:
        """Return the frame with the place of its pixels. Raises `Refusal` E_TRUNCATED."""
        if not self._length:
            return Frame(frame)
        if self._length == _UNDEFINED:
            if self._spans is None:
                self._spans = self._fragments(header)
            return Frame(frame, spans=self._spans[number])
        size = int(frame.Rows) * int(frame.Columns) * int(frame.BitsAllocated) // 8
        if self._length // size != self._count:  # an even number of bytes: one may be padding
            raise Refusal(reasons.TRUNCATED if self._length < self._count * size else reasons.MULTIFRAME)
        return Frame(frame, native=(self._begin + number * size, size))

    def _fragments(self, header: Dataset) -> list[tuple[Span, ...]]:
        """Return the fragments of each frame: one each, or as an offset table or the ends of JPEG images tell."""
        table, items = self._items()
        offsets = self._offsets(header, table)
        if len(items) == self._count:
            return [(span,) for span in items]
        found: list[list[Span]] = []
        first = items[0][0] - 8 if items else 0  # offsets count from the head of the first fragment
        is_new = True
        for at, length in items:
            if offsets:
                is_new = at - 8 - first in offsets
            if is_new:
                found.append([])
            if found:
                found[-1].append((at, length))
            if not offsets:
                self._file.seek(at + max(0, length - 16))
                is_new = _JPEG_ENDS in self._file.read(min(length, 16))
        if len(found) != self._count:
            raise Refusal(reasons.TRUNCATED)
        return [tuple(spans) for spans in found]

    def _items(self) -> tuple[Span, list[Span]]:
        """Return the places of the offset table and of all fragments. Raises `Refusal` E_TRUNCATED."""
        items: list[Span] = []
        at = self._begin
        while len(items) <= _MAX_FRAGMENTS:
            self._file.seek(at)
            head = self._file.read(8)
            if len(head) < 8:
                break
            (length,) = struct.unpack_from(f"{self._order}L", head, 4)
            if self._tag(head) == _SEQUENCE_END and items:
                return items[0], items[1:]
            if self._tag(head) != _ITEM:
                break
            items.append((at + 8, length))
            at += 8 + length
        raise Refusal(reasons.TRUNCATED)

    def _offsets(self, header: Dataset, table: Span) -> set[int]:
        """Return the offsets of the frames, from the extended or the basic offset table; none if there is no table."""
        at, length = table
        if extended := header.get("ExtendedOffsetTable"):
            return set(struct.unpack(f"<{len(extended) // 8}Q", extended))
        if not length or length != 4 * self._count:
            return set()
        self._file.seek(at)
        return set(struct.unpack(f"{self._order}{self._count}L", self._file.read(length)))

    def _tag(self, head: bytes) -> int:
        group, element = struct.unpack_from(f"{self._order}HH", head)
        return int(group << 16 | element)
