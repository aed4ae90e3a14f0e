"""Decode encoded data inside bytes: compressed streams, hex, base64, percent encoding, decimal numbers.

Every function takes bytes and yields what it could decode, from any start. Decoding too much costs time but causes no
false alarm, because the result is searched like everything else.
"""

import base64
import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

MAX_STREAM = 64 << 20  # largest size that is read out of one compressed stream
_MIN_OUTPUT = 8
_CHUNK = 512
_LZMA_MEMORY = 256 << 20  # bytes; the default preset needs 9 MB and the largest preset 65 MB
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{12,}(?:\r?\n[A-Za-z0-9+/_-]{4,})*")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_HEX = re.compile(rb"[0-9A-Fa-fx\\ :,-]{16,}")
_HEX_SIGNS = re.compile(rb"(?<![0-9A-Fa-f])0x(?=[0-9A-Fa-f])|[^0-9A-Fa-f]")
_PRINTABLE = re.compile(rb"[\x21-\x7e]{12,}")
_DECIMALS = re.compile(rb"[-+0-9.eE,; \t\r\n]{24,}")
_MAGIC: dict[bytes, Callable[[], Any]] = {
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),
    b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(memlimit=_LZMA_MEMORY),  # .lzma with its default settings
}


class TooMuch(Exception):
    """A stream exceeds the size limit, so its content is unknown."""


def unpack(data: bytes) -> dict[str, bytes]:
    """Return everything decoded from `data`, by encoding. The results of one encoding are joined by zero bytes.

    Raises TooMuch.
    """
    # Bytes that only look compressed give the same meaningless result many times. It is searched once.
    found = {kind: (b"\0" * 16).join(dict.fromkeys(read(data))) for kind, read in READERS.items()}
    return {kind: content for kind, content in found.items() if content}


def from_base64(data: bytes) -> Iterator[bytes]:
    """Decode runs of either alphabet, from each of their first four characters: the text's start is unknown."""
    for run in _BASE64.finditer(data):
        digits = run[0].translate(_URL_SAFE, b"\r\n")
        for start in range(4):
            part = digits[start:]
            part = part[:-1] if len(part) % 4 == 1 else part
            yield base64.b64decode(part + b"=" * (-len(part) % 4))


def from_hex(data: bytes) -> Iterator[bytes]:
    """Decode runs of hex digits, also as 0x53, \\x53, 53:4d and 53 4d, from the first and from the second digit."""
    for run in _HEX.finditer(data):
        digits = _HEX_SIGNS.sub(b"", run[0])
        for start in (0, 1):
            whole = len(digits) - (len(digits) - start) % 2
            if whole - start >= 2 * _MIN_OUTPUT:
                yield bytes.fromhex(digits[start:whole].decode())


def from_percent(data: bytes) -> Iterator[bytes]:
    """Decode runs without spaces that contain percent signs, as in a URL."""
    for run in _PRINTABLE.finditer(data):
        if b"%" in run[0]:
            yield unquote_to_bytes(run[0])


def from_decimals(data: bytes) -> Iterator[bytes]:
    """Decode lists of decimal numbers: as float64, and as bytes if all are integers from 0 to 255."""
    for run in _DECIMALS.finditer(data):
        numbers = []
        for word in re.split(rb"[,; \t\r\n]+", run[0]):
            try:
                numbers.append(float(word))
            except ValueError:
                continue
        values = np.array(numbers)
        if len(values) < _MIN_OUTPUT:
            continue
        yield values.tobytes()
        if np.all((values >= 0) & (values <= 255) & (values == np.rint(values))):
            yield values.astype(np.uint8).tobytes()


def from_deflate(data: bytes) -> Iterator[bytes]:
    """Decompress deflate streams at any byte offset. zlib, gzip, zip and PNG contain such streams."""
    for start in deflate_starts(data):
        content = _inflate(data, start, zlib.decompressobj(-zlib.MAX_WBITS))
        if len(content) >= _MIN_OUTPUT:
            yield content


def from_other_compression(data: bytes) -> Iterator[bytes]:
    """Decompress bzip2, xz and lzma, which are recognised by their first bytes."""
    for magic, make in _MAGIC.items():
        for match in re.finditer(re.escape(magic), data):
            yield _inflate(data, match.start(), make())


READERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "deflate": from_deflate,
    "bzip2 or lzma": from_other_compression,
    "base64": from_base64,
    "hex": from_hex,
    "percent": from_percent,
    "decimals": from_decimals,
}


def _inflate(data: bytes, start: int, reader: Any) -> bytes:
    """Return the content of one stream, up to its end or to the first error.

    The input is given in small pieces, so that the data before an error is kept. A truncated stream counts too. Bytes
    that only look like a stream give a few meaningless bytes.
    """
    pieces, size, at = [], 0, start
    while not reader.eof and at < len(data):
        chunk = data[at : at + _CHUNK]
        at += len(chunk)
        try:
            pieces.append(reader.decompress(chunk))
        except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError):
            break
        size += len(pieces[-1])
        if size > MAX_STREAM:
            raise TooMuch
    return b"".join(pieces)


def deflate_starts(data: bytes) -> list[int]:
    """Yield the offsets at which a deflate stream may begin (RFC 1951), in order.

    The first block decides. A block with dynamic Huffman codes (BTYPE 2) is recognised by its code of code lengths,
    which is complete (Kraft's sum is one). A block with fixed codes (BTYPE 1) has only three bits to recognise it, so
    it is tried if it is marked as the only block, or if it follows a zlib or gzip header. Stored blocks are not
    compressed.
    """
    padded = np.frombuffer(data + b"\0" * 16, np.uint8)
    first, second = padded[: len(data)], padded[1 : len(data) + 1]
    fixed = np.flatnonzero((first & 7) == 3)
    behind_zlib = np.flatnonzero(
        ((first & 0x8F) == 8) & ((second & 0x20) == 0) & ((first.astype(np.uint16) * 256 + second) % 31 == 0)
    )
    behind_gzip = np.array([match.end() + 7 for match in re.finditer(b"\x1f\x8b\x08", data)], dtype=np.int64)
    starts = np.concatenate([fixed, behind_zlib + 2, behind_gzip, _dynamic_starts(padded, len(data))])
    return np.unique(starts[starts < len(data)]).tolist()


def _dynamic_starts(padded: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
    """Return the offsets at which a block with dynamic Huffman codes may begin."""
    first, second, third = (padded[k : size + k] for k in range(3))
    starts = np.flatnonzero(((first >> 1 & 3) == 2) & (first >> 3 <= 29) & (second & 31 <= 29))
    count = (second[starts] >> 5 | (third[starts] & 1) << 3).astype(np.int64) + 4
    bits = np.zeros(len(starts), np.uint64)
    for k in range(8):
        bits |= padded[starts + 2 + k].astype(np.uint64) << np.uint64(8 * k)
    kraft = np.zeros(len(starts), np.int64)
    for k in range(19):
        length = (bits >> np.uint64(3 * k + 1) & np.uint64(7)).astype(np.int64)
        kraft += np.where((length > 0) & (k < count), 128 >> length, 0)
    return starts[kraft == 128]
