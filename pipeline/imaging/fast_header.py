"""A quick look at the head of an ordinary DICOM file: enough to tell that it says what another file has said.

The files of a series differ in a few elements alone, and to read a header takes pydicom ten times as long as to see
that it is the same. So one file is read and checked in full, by pydicom, and its answer also stands for those whose
elements are the same bytes. What is not plainly laid out is not judged here: there is no `Head`, and pydicom reads.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from pydicom import uid
from pydicom.tag import Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

_READ_BYTES = (2**13, 2**18)  # at first, and where the head is longer
_META_AT = 132
_META_BEGINS = b"DICM\x02\0\0\0UL\x04\0"  # with the length of the group, as it must
_META_ENDS = 0x00030000
_SYNTAX = int(Tag("TransferSyntaxUID"))
_PIXELS_BEGIN = int(Tag("FloatPixelData"))
_PIXEL_DATA = b"\xe0\x7f\x10\0"
_IMPLICIT = uid.ImplicitVRLittleEndian.encode()
_OTHERWISE_LAID_OUT = {uid.ExplicitVRBigEndian.encode(), uid.DeflatedExplicitVRLittleEndian.encode()}
_SHORT = {vr.encode() for vr in EXPLICIT_VR_LENGTH_16}
_LONG = {vr.encode() for vr in EXPLICIT_VR_LENGTH_32}
_UNDEFINED = 0xFFFFFFFF
# An element (DICOM PS3.5, 7.1): tag, perhaps VR, length of the value; a long one comes two bytes later.
_explicit, _implicit, _length = Struct("<HH2sH").unpack_from, Struct("<HHL").unpack_from, Struct("<L").unpack_from


@dataclass(frozen=True)
class Head:
    """`elements`: those that were asked for and are there, each whole, as it stands in the file; by tag.

    `pixels_at`: where the element PixelData begins. `native`: where its value does, and how many bytes it says to
    have; None where it is encapsulated (DICOM PS3.5, A.4), or said to be of an unusual VR.
    """

    elements: dict[int, bytes]
    pixels_at: int
    native: tuple[int, int] | None

    @property
    def same(self) -> bytes:
        """What two heads have in common whose elements are the same."""
        return b"".join(self.elements.values())


def head_tags(*keywords: str) -> frozenset[int]:
    """What to ask `read_head` for; what the meaning of the others hangs on is always among it."""
    always = ("MediaStorageSOPClassUID", "TransferSyntaxUID", "SpecificCharacterSet")
    return frozenset(int(Tag(keyword)) for keyword in (*always, *keywords))


def read_head(path: Path, wanted: Collection[int]) -> Head | None:
    """Look at one file; `wanted` as `head_tags` makes it.

    None for all but plain elements, in order and with their lengths, up to the pixels, in little endian. pydicom
    reads the header of a file that has a head without error, and finds these elements in it.
    """
    try:
        with path.open("rb", buffering=0) as file:
            data = b""
            for size in _READ_BYTES:
                data += file.read(size - len(data))
                head = _parse(data, wanted)
                if head or len(data) < size:
                    return head
    except OSError:  # whoever reads it in full says so
        pass
    return None


def _parse(data: bytes, wanted: Collection[int]) -> Head | None:
    found: dict[int, bytes] = {}
    if not data.startswith(_META_BEGINS, _META_AT - 4):
        return None
    at = _take(data, _META_AT, _META_ENDS, wanted, found, is_implicit=False)
    syntax = found.get(_SYNTAX, b"")[8:].rstrip(b"\0")
    if not at or not syntax.replace(b".", b"").isdigit() or syntax in _OTHERWISE_LAID_OUT:
        return None
    is_implicit = syntax == _IMPLICIT
    if is_implicit and data[at + 4 : at + 6].isupper():  # pydicom believes this VR, not the transfer syntax
        return None
    at = _take(data, at, _PIXELS_BEGIN, wanted, found, is_implicit=is_implicit)
    if not at or not data.startswith(_PIXEL_DATA, at):
        return None
    return Head(found, at, _native(data, at, is_implicit=is_implicit))


def _native(data: bytes, at: int, *, is_implicit: bool) -> tuple[int, int] | None:
    begins, (length,) = (at + 8, _length(data, at + 4)) if is_implicit else (at + 12, _length(data, at + 8))
    is_plain = is_implicit or data[at + 4 : at + 6] in (b"OB", b"OW")
    return (begins, length) if is_plain and length != _UNDEFINED else None


def _take(
    data: bytes, at: int, stop: int, wanted: Collection[int], found: dict[int, bytes], *, is_implicit: bool
) -> int:
    """Put the wanted elements into `found`; returns where the first one with the tag `stop` or a higher one begins.

    0 where the data end before, or are not plain.
    """
    last_tag, last_at = 0, len(data) - 12
    while at <= last_at:
        if is_implicit:
            group, number, length = _implicit(data, at)
            end = at + 8 + length
        else:
            group, number, vr, length = _explicit(data, at)
            end = at + 8 + length
            if vr in _LONG:
                (length,) = _length(data, at + 8)
                end = at + 12 + length
            elif vr not in _SHORT:
                length = _UNDEFINED
        tag = group << 16 | number
        if tag >= stop:
            return at
        if tag <= last_tag or length == _UNDEFINED:
            return 0
        if tag in wanted:
            if end > len(data):
                return 0
            found[tag] = data[at:end]
        last_tag, at = tag, end
    return 0
