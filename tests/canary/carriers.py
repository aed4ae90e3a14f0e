"""What bytes carry besides texts and pixels: letters with others between them, decimals of figures, lowest bits.

Readers as those of `layers`: each takes bytes and yields what it could read out of them, to be searched like all else.
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
_STRIDES = (2, 3, 4)  # one of so many letters counts
_DECIMAL = re.compile(rb"(?<![\w.])-?\d+\.\d+(?:[eE][-+]?\d+)?")
_METRICS = re.compile(rb"MetricRecord [^\x00]{0,2000}? (\d{1,7})\x00", re.DOTALL)
_DOUBLE = re.compile(rb"\x12\x09\x09(.{8})", re.DOTALL)  # a MetricRecord's value that is a double, in protobuf
_MIN_WORDS = 64  # of an array in whose lowest bits a text may lie
_LOW_BITS = (4, 8, 12, 16, 20, 24, 32, 40)
_DIGITS = 17  # of a double


def from_squeezed(data: bytes) -> Iterator[bytes]:
    """Runs of letters and digits without the signs between them."""
    for run in _RUN.finditer(data):
        yield _NO_LETTER.sub(b"", run[0])


def from_between(data: bytes) -> Iterator[bytes]:
    """Every second, third and fourth sign of a run, from each of the first ones on, with and without signs between."""
    for run in _RUN.finditer(data):
        for text in dict.fromkeys((run[0], _NO_LETTER.sub(b"", run[0]))):
            for stride in _STRIDES:
                for start in range(stride):
                    yield text[start::stride]


def from_base32(data: bytes) -> Iterator[bytes]:
    """Runs of base32, from each of their first eight signs on; signs that only separate are taken out of runs too."""
    for text in (data, *from_squeezed(data)):
        for run in _BASE32.finditer(text.upper() if text is not data else text):
            for start in range(8):
                part = run[0][start:]
                yield base64.b32decode(part + b"A" * (-len(part) % 8))


def from_figures(data: bytes) -> Iterator[bytes]:
    """Digits and lowest bits of figures, in the order in which they are told: of each figure, and joined."""
    for values in figures_in(data):
        yield from _digits_of(values)
        words = np.array(values, "<f8").view(np.uint64)
        for bits in _LOW_BITS:
            yield from _joined_bits(words, bits)


def figures_in(data: bytes) -> Iterator[list[float]]:
    """Groups of figures: of one MetricRecord, and of decimal fractions that stand in text."""
    for head in _METRICS.finditer(data):
        record = data[head.end() : head.end() + int(head[1])]
        values = np.frombuffer(b"".join(match[1] for match in _DOUBLE.finditer(record)), "<f8")
        if values.size:
            yield values[np.isfinite(values)].tolist()
    fractions = [float(match[0]) for match in _DECIMAL.finditer(data)]
    if fractions:
        yield [value for value in fractions if np.isfinite(value)]


def _digits_of(values: list[float]) -> Iterator[bytes]:
    """All digits of each figure; and the same few digits of each, behind the point or from the first that counts."""
    # The shortest digits that make the number: those that somebody put into it.
    written = [f"{Decimal(repr(abs(value))):f}" for value in values]
    whole = [each.replace(".", "").lstrip("0").ljust(_DIGITS, "0").encode() for each in written]
    fractions = [each.partition(".")[2].ljust(_DIGITS, "0").encode() for each in written]
    yield b" ".join(whole)
    for digits in (fractions, whole):
        for start in range(12):
            for count in range(1, 8):
                yield b"".join(each[start : start + count] for each in digits)


def _joined_bits(words: NDArray[np.uint64], bits: int) -> Iterator[bytes]:
    """The lowest bits of each word, one after another, from the highest of them on and from the lowest on."""
    places = np.arange(bits, dtype=np.uint64)
    picked = (words[:, None] >> places & np.uint64(1)).astype(np.uint8)
    yield np.packbits(picked[:, ::-1]).tobytes()
    yield np.packbits(picked, bitorder="little").tobytes()
    if bits % 8 == 0:  # each word's part with its bytes in the machine's order
        yield np.packbits(picked.reshape(len(words), -1, 8)[:, :, ::-1]).tobytes()


def from_low_bits(data: bytes) -> Iterator[bytes]:
    """The lowest bit of every number of 2, 4 and 8 bytes, from every byte on, packed from every bit on."""
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
