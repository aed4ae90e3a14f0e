"""Votes of hospitals inside a masked sum: the server learns how many there are of each kind, and not whose.

Each answer has many slots. Each hospital puts one ballot, the number 1, into a slot of its answer that it draws at
random, and 0 into all others. So all slots together hold as many ballots as there are hospitals. A hospital that
changes its gateway can add other numbers, but it does not know the slots of the others. To take away another's ballot
it must guess the slot; a wrong guess leaves less than 0 in a slot. More than one ballot makes the sum too large. Both
are seen.
"""

import secrets
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from federation.secure_aggregation import reasons
from federation.secure_aggregation.fixed_point import Words
from models.refusal import Refusal

Answer = Literal["worse", "not worse", "no vote"]
WORSE: Answer = "worse"
NOT_WORSE: Answer = "not worse"
NO_VOTE: Answer = "no vote"
_ANSWERS = (WORSE, NOT_WORSE, NO_VOTE)
SLOTS = 4096  # of each answer; one ballot is guessed with at most this chance
WORDS = len(_ANSWERS) * SLOTS


@dataclass(frozen=True)
class Votes:
    """How many hospitals gave which answer."""

    worse: int = 0
    not_worse: int = 0
    no_vote: int = 0

    @property
    def is_rejected(self) -> bool:
        """Whether more than half of those that vote find the model much worse."""
        return 2 * self.worse > self.worse + self.not_worse


@dataclass(frozen=True)
class Ballot:
    """The ballot of one hospital. `slot`: which of the slots of its answer it marks, drawn at random."""

    answer: Answer
    slot: int

    @classmethod
    def drawn(cls, answer: Answer) -> Self:
        return cls(answer, secrets.randbelow(SLOTS))

    @property
    def words(self) -> Words:
        slots = np.zeros(WORDS, np.uint32)
        slots[_ANSWERS.index(self.answer) * SLOTS + self.slot] = 1
        return slots


def count(total: Words, sites: int) -> Votes:
    """Count the ballots in the sum of the slots of `sites` hospitals. Raises Refusal E_SECAGG_VOTES if they do not add
    up to one for each.
    """
    if (total > sites).any() or int(total.sum(dtype=np.int64)) != sites:
        raise Refusal(reasons.SECAGG_VOTES)
    return Votes(*(int(part.sum()) for part in total.reshape(len(_ANSWERS), SLOTS)))
