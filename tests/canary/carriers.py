"""Decode less obvious carriers: letters between other letters, decimal digits of figures, and lowest bits of numbers.

These readers work as those of `layers`: each takes bytes and yields what it could decode. The result is searched like
all other data.
"""

import base64
import re
from collections.abc import Callable, Iterator
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

_RUN = re.compile(rb"[\x20-\x7e]{12,}")
_NO_LETTER = re.compile(rb"[^A-Za-z0-9]+")
_BASE32 = re.compile(rb"[A-Z2-7]{14,}")
_STRIDES = (2, 3, 4)  # one of every 2, 3 or 4 letters carries the text
_DECIMAL = re.compile(rb"(?<![\w.])-?\d+\.\d+(?:[eE][-+]?\d+)?")
_METRICS = re.compile(rb"MetricRecord [^\x00]{0,2000}? (\d{1,7})\x00", re.DOTALL)
_DOUBLE = re.compile(rb"\x12\x09\x09(.{8})", re.DOTALL)  # a value of type double in a MetricRecord, in protobuf
_MIN_WORDS = 64  # smallest size of an array whose lowest bits are searched for a text
_LOW_BITS = (4, 8, 12, 16, 20, 24, 32, 40)
_DIGITS = 17  # significant digits of a double


def from_squeezed(data: bytes) -> Iterator[bytes]:
    """Yield runs of letters and digits, with the separators removed."""
    for run in _RUN.finditer(data):
        yield _NO_LETTER.sub(b"", run[0])


def from_between(data: bytes) -> Iterator[bytes]:
    """Yield every second, third and fourth character of a run, from each start, with and without separators."""
    for run in _RUN.finditer(data):
        for text in dict.fromkeys((run[0], _NO_LETTER.sub(b"", run[0]))):
            for stride in _STRIDES:
                for start in range(stride):
                    yield text[start::stride]


def from_base32(data: bytes) -> Iterator[bytes]:
    """Decode runs of base32 from each of their first eight characters, with and without separators."""
    for text in (data, *from_squeezed(data)):
        for run in _BASE32.finditer(text.upper() if text is not data else text):
            for start in range(8):
                part = run[0][start:]
                yield base64.b32decode(part + b"A" * (-len(part) % 8))


def from_figures(data: bytes) -> Iterator[bytes]:
    """Yield digits and lowest bits of figures, in their order: of each figure, and of all joined."""
    for values in figures_in(data):
        yield from _digits_of(values)
        words = np.array(values, "<f8").view(np.uint64)
        for bits in _LOW_BITS:
            yield from _joined_bits(words, bits)


def figures_in(data: bytes) -> Iterator[list[float]]:
    """Yield groups of figures: those of one MetricRecord, and the decimal fractions in a text."""
    for head in _METRICS.finditer(data):
        record = data[head.end() : head.end() + int(head[1])]
        values = np.frombuffer(b"".join(match[1] for match in _DOUBLE.finditer(record)), "<f8")
        if values.size:
            yield values[np.isfinite(values)].tolist()
    fractions = [float(match[0]) for match in _DECIMAL.finditer(data)]
    if fractions:
        yield [value for value in fractions if np.isfinite(value)]


def _digits_of(values: list[float]) -> Iterator[bytes]:
    """Yield all digits of each figure, and the same few digits of each, after the point or from the first nonzero."""
    # Use the shortest decimal form of the number, because that is the form in which somebody writes digits into it.
    written = [f"{Decimal(repr(abs(value))):f}" for value in values]
    whole = [each.replace(".", "").lstrip("0").ljust(_DIGITS, "0").encode() for each in written]
    fractions = [each.partition(".")[2].ljust(_DIGITS, "0").encode() for each in written]
    yield b" ".join(whole)
    for digits in (fractions, whole):
        for start in range(12):
            for count in range(1, 8):
                yield b"".join(each[start : start + count] for each in digits)


def _joined_bits(words: NDArray[np.uint64], bits: int) -> Iterator[bytes]:
    """Yield the joined lowest bits of all words, with the most and with the least significant bit first."""
    places = np.arange(bits, dtype=np.uint64)
    picked = (words[:, None] >> places & np.uint64(1)).astype(np.uint8)
    yield np.packbits(picked[:, ::-1]).tobytes()
    yield np.packbits(picked, bitorder="little").tobytes()
    if bits % 8 == 0:  # the bytes of each word's part in the machine's order
        yield np.packbits(picked.reshape(len(words), -1, 8)[:, :, ::-1]).tobytes()


def from_low_bits(data: bytes) -> Iterator[bytes]:
    """Yield the lowest bits of numbers of 2, 4 and 8 bytes, from each byte offset and packed from each bit offset."""
    for size in (2, 4, 8):
        for phase in range(size):
            words = np.frombuffer(data, f"<u{size}", count=(len(data) - phase) // size, offset=phase)
            if len(words) < _MIN_WORDS:
                continue
            bits = (words & np.array(1, words.dtype)).astype(np.uint8)
            for start in range(8):
                for order in ("big", "little"):
                    yield np.packbits(bits[start:], bitorder=order).tobytes()


READERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "letters alone": from_squeezed,
    "letters between others": from_between,
    "base32": from_base32,
    "figures": from_figures,
    "lowest bits": from_low_bits,
}
