"""Draw sites at random: for a round, and for the comparison of single sites' models.

Sites are drawn by name, not by node id, which Flower assigns again in each simulation. So a run can be repeated, a
resumed run asks the same sites, and an absent site does not change the priority of the others.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

Choose = Callable[[int, Sequence[int]], list[int]]  # from a round's number and the connected nodes: the nodes to ask


def everybody(_: int, nodes: Sequence[int]) -> list[int]:
    """Choose all connected nodes, in every round."""
    return list(nodes)


def draw(nodes: Iterable[int], name: Callable[[int], str], count: int, *, seed: int, what: int | str) -> list[int]:
    """Draw `count` nodes with equal probability; all of them if there are no more, or if `count` is 0.

    The nodes with the lowest SHA-256 of seed, `what` (a round's number, or another purpose) and site name are drawn:
    sampling without replacement by random priorities, independently for each purpose.
    """

    def priority(node: int) -> bytes:
        return hashlib.sha256(f"{seed}|{what}|{name(node)}".encode()).digest()

    ranked = sorted(nodes, key=priority)
    return sorted(ranked[:count] if count else ranked)
