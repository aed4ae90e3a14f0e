"""Compare what an attack learnt with guessing: the same claims are also compared with the patients of other hospitals.

An attack runs at several hospitals, whose patients are drawn by the same rule from seeds that were not used for its
decoder. Its claims about one hospital are compared with that hospital's patients, and with those of each of the others.
An attack that only guesses well has as many right claims about the others.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

HOSPITALS = 5
_LEVEL = 0.01  # significance level of learning; with five hospitals, 1 of 120 orders


@dataclass(frozen=True)
class Score:
    """Sums over the hospitals. `by_chance`: right claims by guessing. `p`: probability that guessing is as right."""

    right: int
    wrong: int
    of: int
    by_chance: float
    p: float

    @property
    def is_learnt(self) -> bool:
        return self.right > self.by_chance and self.p <= _LEVEL


def score(claims: Sequence[Sequence[Hashable]], truths: Sequence[Sequence[Hashable]]) -> Score:
    """Compare `claims` and `truths` of each hospital, in the same order. Each true row counts once."""
    right = np.array([[(Counter(claim) & Counter(truth)).total() for truth in truths] for claim in claims])
    return from_matrix(right, claimed=sum(map(len, claims)), of=sum(map(len, truths)))


def from_matrix(right: NDArray[np.int64], *, claimed: int, of: int) -> Score:
    """`right`: right claims about each hospital (rows), compared with the patients of each (columns)."""
    here = int(np.trace(right))
    elsewhere = (right.sum() - here) / max(1, len(right) - 1)
    return Score(here, claimed - here, of, float(elsewhere), _by_permutation(right))


def _by_permutation(right: NDArray[np.int64]) -> float:
    """Return the share of all assignments of claims to hospitals, the true one included, that are at least as right."""
    rows = range(len(right))
    sums = [sum(int(right[row, column]) for row, column in enumerate(order)) for order in permutations(rows)]
    return float(np.mean(np.array(sums) >= np.trace(right)))
