"""Reads the header of one DICOM file, with limits on damaged and hostile files."""

import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag

from models.refusal import Refusal
from pipeline.imaging import reasons

PIXEL_DATA = Tag("PixelData")
# Reads of one file; an ordinary header takes a few hundred, a radiotherapy plan about ten thousand. The description of
# a frame takes about a hundred, beside pixels of several kB.
_MAX_READS, _BYTES_A_READ = 100_000, 256
_MAX_INFLATED_BYTES = 2**26


def tags(*keywords: str) -> list[BaseTag]:
    """Return tags for `read_header`; given keywords, pydicom looks them up per file and takes 1.5 times as long."""
    return [Tag(keyword) for keyword in keywords]


class BoundedFile:
    """A file object for pydicom that limits the number of reads and the size of inflated data.

    pydicom reads the head of each element and item separately, and inflates a deflated file in one piece. Without
    limits a hostile file of a few megabytes can occupy it for minutes or expand to gigabytes.
    """

    def __init__(self, file: BinaryIO, most_reads: int = _MAX_READS) -> None:
        self.seek, self.tell = file.seek, file.tell
        self._size = file.seek(0, os.SEEK_END)
        self._file, self._reads_left = file, most_reads + self._size // _BYTES_A_READ
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes. Raises ValueError beyond a limit."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ValueError("the header has too many elements")
        if size >= 0:
            return self._file.read(min(size, self._size))  # a read allocates as much memory as is requested
        deflated = self._file.read(_MAX_INFLATED_BYTES)  # only a deflated file is read without a size
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(deflated, _MAX_INFLATED_BYTES)
        if inflater.unconsumed_tail:
            raise ValueError("the file is inflated to too many bytes")
        return deflated


def read_header(path: Path, wanted: Collection[BaseTag], most_reads: int = _MAX_READS) -> Dataset:
    """Read the `wanted` tags of one file; the pixels are read only if `wanted` contains them.

    `most_reads`: limit for a hostile file. A file with many frames needs more than the header of an image.
    Raises `Refusal`: E_NOT_DICOM, E_PARSE.
    """
    try:
        with path.open("rb") as file:
            header = dcmread(
                BoundedFile(file, most_reads),
                specific_tags=list(wanted),
                stop_before_pixels=PIXEL_DATA not in wanted,
            )
    except InvalidDicomError:
        raise Refusal(reasons.NOT_DICOM, private=str(path)) from None
    except Exception as error:  # on damaged files pydicom raises many kinds of exceptions
        raise Refusal(reasons.PARSE, private=f"{path}: {error}") from None
    # If garbage follows the magic word, pydicom returns an empty dataset. A DICOMDIR has none of the wanted tags.
    if not header and "MediaStorageSOPClassUID" not in header.file_meta:
        raise Refusal(reasons.NOT_DICOM, private=str(path))
    return header


def text(header: Dataset, keyword: str) -> str:
    """Return the value of a text attribute, '' if absent or empty; several values are joined by backslashes.

    Raises `Refusal`: E_PARSE.
    """
    try:
        value = header.get(keyword)
        parts = value if isinstance(value, MultiValue) else [value]
        return "\\".join("" if part is None else str(part) for part in parts)
    except Exception as error:  # pydicom converts values only on access
        raise Refusal(reasons.PARSE, private=f"{keyword}: {error}") from None


def text_or_nothing(header: Dataset, keyword: str) -> str:
    """Return the value of a text attribute, '' also if it cannot be read; for attributes that may be missing."""
    try:
        return text(header, keyword)
    except Refusal:
        return ""


def identifier(header: Dataset, keyword: str) -> str:
    """Return an identifier without its padding, '' if absent: spaces on both sides mean nothing (DICOM PS3.5, 6.2).

    Raises `Refusal`: E_PARSE.
    """
    return text(header, keyword).strip(" \0")


def is_decoded(*texts: str) -> bool:
    """Whether all texts of a header were read without loss.

    Where bytes do not fit the header's character set, pydicom puts U+FFFD: identifiers of two patients can look alike.
    """
    return not any("\N{REPLACEMENT CHARACTER}" in each for each in texts)
