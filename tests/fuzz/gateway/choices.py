"""An input's bytes, read as decisions, so that a fuzzer that changes a byte changes one decision."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """Decisions in turn; once the bytes are used up, each is the first of its alternatives."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def byte(self) -> int:
        self._place += 1
        return self._content[self._place - 1] if self._place <= len(self._content) else 0

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1."""
        number = self.byte() if count <= 256 else self.byte() << 8 | self.byte()
        return number % max(1, count)

    def pick(self, alternatives: Sequence[T]) -> T:
        return alternatives[self.below(len(alternatives))]

    def chance(self, one_in: int) -> bool:
        """Whether something rare happens; not in an input that is used up."""
        return self.below(one_in) == 1

    def take(self, count: int) -> bytes:
        return bytes(self.byte() for _ in range(count))
