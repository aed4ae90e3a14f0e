"""The result of an attack."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from tests.attacks.score import Score


@dataclass(frozen=True)
class Result:
    """The result of an attack.

    `adversary`: what the hostile server chooses. `what`: what it seeks about each patient. `learnt`: claims that are
    right; `wrong`: claims that are not; `of`: the number of all facts. `by_chance`: right claims that guessing gives, 0
    if it gives none. `stopped_by`: the first code that the hospital returned instead of data, or "". `is_learnt`:
    whether more claims are right than guessing gives.
    """

    name: str
    adversary: str
    what: str
    learnt: int
    wrong: int
    of: int
    stopped_by: str = ""
    note: str = ""
    by_chance: float = 0.0
    guessed: bool = False  # guessing gives as many right claims

    @property
    def is_learnt(self) -> bool:
        return self.learnt > 0 and not self.guessed

    @classmethod
    def scored(cls, name: str, adversary: str, what: str, scored: Score, *, note: str = "") -> "Result":
        """Create the result of an attack that always answers."""
        more = f"{note}; p = {scored.p:.2f}" if note else f"p = {scored.p:.2f}"
        return cls(
            name,
            adversary,
            what,
            scored.right,
            scored.wrong,
            scored.of,
            note=more,
            by_chance=scored.by_chance,
            guessed=not scored.is_learnt,
        )


Attack = Callable[[], Result]


def compare(claimed: Iterable[Hashable], true: Iterable[Hashable]) -> tuple[int, int]:
    """Count how many of the claimed rows are right and how many wrong; each true row counts once."""
    claims, truth = Counter(claimed), Counter(true)
    right = (claims & truth).total()
    return right, claims.total() - right
