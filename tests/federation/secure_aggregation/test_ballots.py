"""Votes inside a sum: one for each hospital, also if a hospital's gateway was changed."""

import numpy as np
import pytest

from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, SLOTS, WORDS, WORSE, Ballot, Votes, count
from tests.federation.secure_aggregation.rig import refused


def sum_of(*answers: str) -> np.ndarray:
    return np.sum([Ballot.drawn(answer).words for answer in answers], axis=0, dtype=np.uint32)  # type: ignore[arg-type]


def test_votes_are_counted_once_for_each_hospital() -> None:
    total = sum_of(WORSE, WORSE, NOT_WORSE, NO_VOTE, NO_VOTE)
    assert count(total, 5) == Votes(worse=2, not_worse=1, no_vote=2)


@pytest.mark.parametrize(
    ("votes", "is_rejected"),
    [
        (Votes(2, 1, 0), True),
        (Votes(2, 2, 0), False),
        (Votes(1, 0, 4), True),
        (Votes(0, 0, 5), False),
        (Votes(2, 3, 9), False),
    ],
)
def test_more_than_half_of_those_that_vote_reject_a_model(votes: Votes, is_rejected: bool) -> None:
    assert votes.is_rejected is is_rejected


def test_slots_are_drawn_anew() -> None:
    assert len({Ballot.drawn(WORSE).slot for _ in range(50)}) > 40
    assert all(0 <= Ballot.drawn(WORSE).slot < SLOTS for _ in range(50))


def test_hospital_that_stuffs_the_ballot_is_seen() -> None:
    honest = sum_of(NOT_WORSE, NOT_WORSE, NOT_WORSE, NOT_WORSE)
    for extra in (0, 2, 5):
        stuffed = honest.copy()
        stuffed[:extra] += 1
        assert refused(lambda stuffed=stuffed: count(stuffed, 5)) == "E_SECAGG_VOTES"


def test_hospital_that_takes_votes_away_is_seen_unless_it_guesses_their_slots() -> None:
    """It moves two of the others' ballots to the other answer, in slots that it must guess."""
    rng = np.random.default_rng(1)
    seen = 0
    for _ in range(200):
        total = sum_of(WORSE, WORSE, WORSE, NO_VOTE)
        own = np.zeros(WORDS, np.int64)
        own[rng.choice(SLOTS, 2, replace=False)] = -1
        own[SLOTS : SLOTS + 3] = 1
        seen += refused(lambda total=total, own=own: count(total + own.astype(np.uint32), 5)) == "E_SECAGG_VOTES"
    assert seen >= 199


def test_sum_with_masks_that_do_not_cancel_is_seen() -> None:
    noise = np.random.default_rng(1).integers(0, 2**32, WORDS, dtype=np.uint32)
    assert refused(lambda: count(noise, 5)) == "E_SECAGG_VOTES"
