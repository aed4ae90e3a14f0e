"""Read an input's bytes as decisions, so that a fuzzer that changes one byte changes one decision."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Return one decision after the other. When the bytes are used up, each decision is the first alternative."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def byte(self) -> int:
        self._place += 1
        return self._content[self._place - 1] if self._place <= len(self._content) else 0

    def below(self, count: int) -> int:
        """Return a number from 0 to `count` - 1."""
        number = self.byte() if count <= 256 else self.byte() << 8 | self.byte()
        return number % max(1, count)

    def pick(self, alternatives: Sequence[T]) -> T:
        return alternatives[self.below(len(alternatives))]

    def chance(self, one_in: int) -> bool:
        """Return whether a rare event happens; always False when the bytes are used up."""
        return self.below(one_in) == 1

    def take(self, count: int) -> bytes:
        return bytes(self.byte() for _ in range(count))
