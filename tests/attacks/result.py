"""What an attack found out."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """`learnt`: patients of whom the adversary knows something exactly; `wrong`: claims that are not true; `of`: all.

    `what`: what was learnt of each. `stopped_by`: the first code that the hospital answered in place of data, or "".
    """

    name: str
    adversary: str
    what: str
    learnt: int
    wrong: int
    of: int
    stopped_by: str = ""
    note: str = ""


Attack = Callable[[], Result]


def compare(claimed: Iterable[Hashable], true: Iterable[Hashable]) -> tuple[int, int]:
    """How many of the claimed rows are right and how many wrong, each true row counting once."""
    claims, truth = Counter(claimed), Counter(true)
    right = (claims & truth).total()
    return right, claims.total() - right
