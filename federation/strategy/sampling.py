"""Which sites are drawn: for a round, and for the models that single sites are compared by.

Drawn by name and not by node, whose numbers Flower draws anew in a simulation. So a run can be repeated, one that is
resumed asks whom it would have asked, and a site that is away changes nobody's place but its own.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

Choose = Callable[[int, Sequence[int]], list[int]]  # of a round's number and the nodes that are there, those to ask


def everybody(_: int, nodes: Sequence[int]) -> list[int]:
    """All that are there, in every round."""
    return list(nodes)


def draw(nodes: Iterable[int], name: Callable[[int], str], count: int, *, seed: int, what: int | str) -> list[int]:
    """`count` of the nodes, each as likely as any other; all of them where there are no more, or `count` is 0.

    The lowest SHA-256 of seed, `what` (a round's number, or another purpose) and the site's name win: sampling without
    replacement by random priorities, anew for each purpose.
    """

    def priority(node: int) -> bytes:
        return hashlib.sha256(f"{seed}|{what}|{name(node)}".encode()).digest()

    ranked = sorted(nodes, key=priority)
    return sorted(ranked[:count] if count else ranked)
