"""The mark in the headers of a synthetic phantom: how it is written, and how it is recognised.

Two parts must agree, so that no single attribute of a real scan is mistaken for it: the standard attribute
QualityControlImage (DICOM PS3.3, C.7.6.1), which scanners also write for phantoms of plastic, and a private block of
this project.
"""

from pydicom import Dataset
from pydicom.tag import BaseTag, Tag

CREATOR = "FEDTHORAX PHANTOM"
_GROUP = 0x0FED  # odd, as private groups are; no scanner is known to use it
_CREATOR_AT, _KIND_AT = Tag(_GROUP, 0x0010), Tag(_GROUP, 0x1010)
_MARK: dict[BaseTag, str] = {
    Tag("QualityControlImage"): "YES",
    _CREATOR_AT: CREATOR,
    _KIND_AT: "SYNTHETIC",
}
TAGS = tuple(_MARK)


def mark(image: Dataset) -> None:
    """Mark an image as one of a synthetic phantom."""
    image.QualityControlImage = "YES"
    block = image.private_block(_GROUP, CREATOR, create=True)
    block.add_new(0x10, "LO", _MARK[_KIND_AT])


def is_marked(header: Dataset) -> bool:
    """Whether the header has the whole mark. `header`: with `TAGS`, as far as the file has them."""
    return all(_text(header, tag) == value for tag, value in _MARK.items())


def _text(header: Dataset, tag: BaseTag) -> str:
    """Return the value as text; '' if it is absent or cannot be read, because a mark never makes a scan unreadable."""
    try:
        value = header[tag].value
    except Exception:  # pydicom converts values only on access
        return ""
    if isinstance(value, bytes):  # of a private element in implicit VR, whose type pydicom does not know
        value = value.decode("ascii", errors="replace")
    return str(value).strip(" \0")
