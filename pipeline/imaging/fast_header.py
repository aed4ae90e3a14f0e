"""Reads the head of an ordinary DICOM file quickly, to detect that its elements are those of another file.

The headers of a series differ only in a few elements. Comparing them takes a tenth of the time of reading them with
pydicom. So pydicom reads and checks one file in full, and the result is reused for files whose elements hold the same
bytes. If the layout of a file is unusual, there is no `Head` and pydicom reads the file.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from pydicom import uid
from pydicom.tag import Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

_READ_BYTES = (2**13, 2**18)  # at first, and if the head is longer
_META_AT = 132
_META_BEGINS = b"DICM\x02\0\0\0UL\x04\0"  # the first element is the length of the group, as DICOM requires
_META_ENDS = 0x00030000
_SYNTAX = int(Tag("TransferSyntaxUID"))
_PIXELS_BEGIN = int(Tag("FloatPixelData"))
_PIXEL_DATA = b"\xe0\x7f\x10\0"
_IMPLICIT = uid.ImplicitVRLittleEndian.encode()
_OTHERWISE_LAID_OUT = {uid.ExplicitVRBigEndian.encode(), uid.DeflatedExplicitVRLittleEndian.encode()}
_SHORT = {vr.encode() for vr in EXPLICIT_VR_LENGTH_16}
_LONG = {vr.encode() for vr in EXPLICIT_VR_LENGTH_32}
_UNDEFINED = 0xFFFFFFFF
# An element (DICOM PS3.5, 7.1): tag, VR unless implicit, length of the value. A long VR has the length two bytes later.
_explicit, _implicit, _length = Struct("<HH2sH").unpack_from, Struct("<HHL").unpack_from, Struct("<L").unpack_from


@dataclass(frozen=True)
class Head:
    """The head of a file. `elements`: the wanted elements that exist, by tag, each with all of its bytes in the file.

    `pixels_at`: offset of the element PixelData. `native`: offset and stated length of its value; None if it is
    encapsulated (DICOM PS3.5, A.4) or has an unusual VR.
    """

    elements: dict[int, bytes]
    pixels_at: int
    native: tuple[int, int] | None

    @property
    def same(self) -> bytes:
        """The bytes of all elements: equal for two heads with the same elements."""
        return b"".join(self.elements.values())


def head_tags(*keywords: str) -> frozenset[int]:
    """Return tags for `read_head`, always with those on which the meaning of other elements depends."""
    always = ("MediaStorageSOPClassUID", "TransferSyntaxUID", "SpecificCharacterSet")
    return frozenset(int(Tag(keyword)) for keyword in (*always, *keywords))


def read_head(path: Path, wanted: Collection[int]) -> Head | None:
    """Read the head of one file; `wanted` comes from `head_tags`.

    Returns None unless all elements up to the pixels are in ascending order, have a defined length and are little
    endian. For a file with a head, pydicom reads the header without error and finds the same elements.
    """
    try:
        with path.open("rb", buffering=0) as file:
            data = b""
            for size in _READ_BYTES:
                data += file.read(size - len(data))
                head = _parse(data, wanted)
                if head or len(data) < size:
                    return head
    except OSError:  # reading the file in full reports the error
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
    if is_implicit and data[at + 4 : at + 6].isupper():  # pydicom uses this VR despite the transfer syntax
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
    """Put the wanted elements into `found`, and return the offset of the first element with tag `stop` or higher.

    Returns 0 if the data end earlier or their layout is unusual.
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
