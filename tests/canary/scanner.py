"""Search bytes for planted data: every encoding of texts, numbers and pixels, also nested.

All functions are pure functions of bytes. `layers` undoes compression and printable encodings, `carriers` decodes what
is hidden between letters and in the digits and bits of numbers, `texts` finds texts, and `pixels` finds lines of
pixels. Data that is encrypted, or encoded with a private code, is not found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tests.canary import carriers
from tests.canary.layers import TooMuch, unpack
from tests.canary.pixels import PixelSearch
from tests.canary.texts import DisguisedDigits, TextSearch

MAX_DEPTH = 3  # nested encodings
MAX_UNPACKED = 16.0  # multiple of the data's size: a decompression bomb is a finding and does not block the scanner
UNREAD = "(not read to its end)"


@dataclass(frozen=True)
class Planted:
    """The planted data of one patient: texts, and lines of pixels in their order in memory."""

    name: str
    texts: tuple[str, ...] = ()
    lines: tuple[NDArray, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, order=True)
class Hit:
    """One finding: what was planted, how it was encoded, and its offset in the innermost bytes."""

    planted: str
    disguise: str
    offset: int


class Scanner:
    """Search bytes for everything planted. Raises TooWeak if something planted is not distinctive."""

    def __init__(self, planted: Sequence[Planted]) -> None:
        texts: Mapping[str, Sequence[str]] = {each.name: each.texts for each in planted}
        self._texts = TextSearch(texts)
        self._digits = DisguisedDigits(texts)
        self._pixels = PixelSearch({each.name: each.lines for each in planted})

    def scan(self, data: bytes, depth: int = MAX_DEPTH) -> list[Hit]:
        """Return all findings, sorted, including those in nested encodings down to `depth`.

        Content that could not be read to its end is also a finding: `UNREAD`.
        """
        with threadpool_limits(1):  # the matrix products are small, so threads would mostly wait for each other
            return sorted(set(self._scan(data, "", depth, max(len(data), 1 << 20) * MAX_UNPACKED)))

    def _scan(self, data: bytes, above: str, depth: int, budget: float) -> Iterator[Hit]:
        for search in (self._texts, self._digits, self._pixels):
            for planted, disguise, offset in search.find(data):
                yield Hit(planted, above + disguise, offset)
        yield from self._carried(data, above)
        if depth == 0:
            return
        try:
            inner = unpack(data)
        except TooMuch:
            yield Hit(UNREAD, above, 0)
            return
        if sum(map(len, inner.values())) > budget:
            yield Hit(UNREAD, above, 0)
            return
        for kind, content in inner.items():
            yield from self._scan(content, f"{above}{kind} > ", depth - 1, budget)

    def _carried(self, data: bytes, above: str) -> Iterator[Hit]:
        """Yield what is hidden in or between letters and numbers. Nested encodings in it are not decoded."""
        for kind, read in carriers.READERS.items():
            joined = (b"\0" * 16).join(dict.fromkeys(read(data)))
            for search in (self._texts, self._digits):
                for planted, disguise, offset in search.find(joined):
                    yield Hit(planted, f"{above}{kind} > {disguise}", offset)
