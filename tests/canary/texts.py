"""Find texts in bytes (names, identifiers, UIDs, rows of a table) in every usual encoding, and numbers in binary form.

`layers` first undoes encodings that turn a text into other printable characters (hex, base64 ...).
"""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MIN_BITS = 36.0
_MIN_DISTINCT = 5
_ANCHOR = 6  # bytes by which a pattern is looked up
_SHORTEST = 7  # bytes of the shortest pattern
_WORD = 8
_MASK = np.uint64((1 << 8 * _ANCHOR) - 1)
_TABLE_BITS = 22
_MIX = np.uint64(0x9E3779B97F4A7C15)  # odd, 2^64 over the golden ratio: Fibonacci hashing (Knuth, TAOCP 6.4)
_MIN_DIGITS = 11
# Ten letters that stand for the digits from 0: of the alphabet and of a keyboard, from 0 or from 1, and backwards.
_ALPHABETS = ("abcdefghij", "jabcdefghi", "zyxwvutsrq", "qwertyuiop", "pqwertyuio", "klmnopqrst", "oizeasgtbp")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CAPITALS = re.compile(rb"[A-Z][A-Z_ -]{10,400}")
_MIN_REPEATS = 3  # repeated letters; with fewer, too many words would look like an identifier
_LETTER_FORMATS = ("<f8", ">f8", "<f4", ">f4", "<f2", ">f2", "<i8", ">i8", "<i4", ">i4")


class TooWeak(ValueError):
    """The text to be planted is too short or too common to be distinguished from chance."""


def strength_bits(text: str) -> float:
    """Return the improbability of the text among texts of its own characters: only digits, only hex digits, or any."""
    if len(set(text)) < _MIN_DISTINCT:
        return 0.0
    digits = sum(character.isdigit() for character in text)
    letters = len(re.sub(r"[\W_]", "", text)) - digits
    if letters == 0:
        return digits * math.log2(10)
    is_hex = not re.search(r"[^0-9A-Fa-f]", text)
    return (digits + letters) * math.log2(16 if is_hex else 26)


class TextSearch:
    """Search for all texts at once. The keys of `texts` name the findings. Raises TooWeak."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._patterns: dict[int, list[tuple[bytes, int, str, str]]] = {}
        for name, planted in texts.items():
            for text in planted:
                if strength_bits(text) < MIN_BITS:
                    raise TooWeak(f"{name}: {text!r} could be anything")
                for pattern, disguise in spellings(text).items():
                    anchor = _anchor(pattern)
                    key = int.from_bytes(pattern[anchor : anchor + _ANCHOR], "little")
                    self._patterns.setdefault(key, []).append((pattern, anchor, name, disguise))
        self._keys = np.array(sorted(self._patterns), dtype=np.uint64)
        self._table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        self._table[_hash(self._keys)] = True

    def find(self, data: bytes) -> Iterator[tuple[str, str, int]]:
        """Yield (name, disguise, offset) of every text found. Case is ignored."""
        folded = data.lower()
        padded = folded + b"\0" * _WORD
        for phase in range(_WORD):
            words = np.frombuffer(padded, "<u8", count=(len(padded) - phase) // _WORD, offset=phase) & _MASK
            likely = np.flatnonzero(self._table[_hash(words)])
            for index in likely[np.isin(words[likely], self._keys)].tolist():
                place = phase + index * _WORD
                for pattern, anchor, name, disguise in self._patterns[int(words[index])]:
                    if place >= anchor and folded.startswith(pattern, place - anchor):
                        yield name, disguise, place - anchor


def _anchor(pattern: bytes) -> int:
    """Return the offset of the most distinctive bytes: the last of the stretches with the most different bytes, because
    identifiers differ at their ends.
    """
    places = range(len(pattern) - _ANCHOR + 1)
    return max(places, key=lambda place: (len(set(pattern[place : place + _ANCHOR]) - {0}), place))


def _hash(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        return (words * _MIX) >> np.uint64(64 - _TABLE_BITS)


def spellings(text: str) -> dict[bytes, str]:
    """Return the bytes, in lower case, that represent a text or the numbers in it, and a name for each encoding."""
    found: dict[bytes, str] = {}
    for cased in (text, text.lower(), text.upper()):
        for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be"):
            for written, way in ((cased, ""), (cased[::-1], " reversed")):
                try:
                    found.setdefault(written.encode(encoding).lower(), encoding + way)
                except UnicodeEncodeError:
                    continue
        found.setdefault(json.dumps(cased)[1:-1].encode().lower(), "JSON escapes")
        letters = np.array([ord(letter) for letter in cased])
        for kind in _LETTER_FORMATS:
            found.setdefault(letters.astype(kind).tobytes().lower(), f"letters as {np.dtype(kind).name}")
    for run in re.findall(rf"\d{{{_MIN_DIGITS},}}", text):
        found |= _as_numbers(run) | _as_letters(run)
    found |= _without_signs(text)
    return {pattern: disguise for pattern, disguise in found.items() if len(pattern) >= _SHORTEST}


def _as_numbers(digits: str) -> dict[bytes, str]:
    """Return a run of digits as integers and floats of either byte order, protobuf varint and packed decimals."""
    value = int(digits)
    size = max(8, (value.bit_length() + 7) // 8)
    found = {value.to_bytes(size, order): f"integer, {order} endian" for order in ("little", "big")}
    found |= {struct.pack(f"{sign}d", float(value)): "float64" for sign in "<>" if value < 2**1000}
    found |= {_varint(value): "varint", _varint(2 * value): "zigzag varint"}
    found[bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2))] = "packed decimals"
    return {pattern.lower(): disguise for pattern, disguise in found.items()}


def _as_letters(digits: str) -> dict[bytes, str]:
    """Return a run of digits with letters in their place, forwards and backwards, and as number words."""
    found = {}
    for run in (digits, digits[::-1]):
        for alphabet in _ALPHABETS:
            found[run.translate(str.maketrans("0123456789", alphabet)).encode()] = "letters for digits"
        found["".join(_WORDS[int(digit)] for digit in run).encode()] = "digits as words"
        found[run.encode()] = "digits alone"
    return found


def _without_signs(text: str) -> dict[bytes, str]:
    """Return a text's letters and digits without separators, and its letters' numbers, if they are distinctive."""
    letters = re.sub(r"[\W_]", "", text)
    if strength_bits(letters) < MIN_BITS:
        return {}
    found = {letters[::step].lower().encode(): "letters alone" for step in (1, -1) if letters.isascii()}
    for cased in (text.upper(), text.lower(), text, letters.upper(), letters.lower()):
        if cased.isascii():
            found["".join(str(ord(letter)) for letter in cased).encode()] = "numbers of letters"
            found["".join(f"{ord(letter):03}" for letter in cased).encode()] = "numbers of letters"
    if letters.isascii() and letters.isalpha():
        places = [ord(letter) - ord("a") for letter in letters.lower()]
        for first in (0, 1):
            found["".join(f"{place + first:02}" for place in places).encode()] = "places in the alphabet"
    return found


class DisguisedDigits:
    """Search runs of capitals, the form of codes, for identifiers written with any letter for each digit.

    The assignment of letters to digits does not matter: equal digits are equal letters, at the same positions.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self._shapes: dict[tuple[int, ...], str] = {}
        for name, planted in texts.items():
            for run in (run for text in planted for run in re.findall(rf"\d{{{_MIN_DIGITS},}}", text)):
                if len(run) - len(set(run)) >= _MIN_REPEATS:
                    self._shapes |= {_shape(run): name, _shape(run[::-1]): name}
        self._lengths = sorted({len(shape) for shape in self._shapes})

    def find(self, data: bytes) -> Iterator[tuple[str, str, int]]:
        """Yield (name, disguise, offset) of every identifier found."""
        for run in _CAPITALS.finditer(data):
            letters = re.sub(r"[_ -]", "", run[0].decode())
            for length in self._lengths:
                for start in range(len(letters) - length + 1):
                    if name := self._shapes.get(_shape(letters[start : start + length])):
                        yield name, "any letters for digits", run.start()


def _shape(text: str) -> tuple[int, ...]:
    """Return for each character the position of its first occurrence."""
    return tuple(map(text.index, text))


def _varint(value: int) -> bytes:
    """Return a varint: seven bits per byte, the lowest first (protobuf's encoding guide, "Base 128 Varints")."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
