"""A hostile hospital in a masked study of real small networks: what the hospitals' vote stops, and what it does not."""

import pytest

from federation.secure_aggregation.ballots import WORSE
from tests.helpers.masked_task import HostileHospital, Outcome, play_masked
from tests.helpers.toy_task import auroc, hospitals

pytestmark = pytest.mark.slow
LOSS = 0.03  # of AUROC, as in test_attackers


def lost(outcome: Outcome, honest: Outcome) -> float:
    return auroc(honest.model) - auroc(outcome.model)


@pytest.fixture(scope="module")
def honest() -> Outcome:
    return play_masked(hospitals("alike", 3))


def test_honest_rounds_are_never_taken_back(honest: Outcome) -> None:
    assert honest.stopped == "" and not any(report.lost for report in honest.reports)
    assert all(report.votes == {"worse": 0, "not_worse": 3, "no_vote": 0} for report in honest.reports)
    assert auroc(honest.model) > 0.85


@pytest.mark.parametrize("attack", ["reversed update", "label flip, at the bound"])
def test_hospital_that_spoils_one_round_is_taken_back(honest: Outcome, attack: str) -> None:
    """Its gateway is changed: it chooses the mean, in the round in which that may be longest."""
    hostile = HostileHospital(attack, place=2, begins=1, ends=1, clips=False)
    outcome = play_masked(hospitals("alike", 3), hostile)
    assert [report.undone for report in outcome.reports if report.lost] == [(1,)]
    assert outcome.stopped == ""
    assert lost(outcome, honest) < LOSS


def test_hospital_that_spoils_the_last_round_changes_nothing(honest: Outcome) -> None:
    hostile = HostileHospital("reversed update", place=2, begins=9, clips=False)
    outcome = play_masked(hospitals("alike", 3), hostile)
    assert lost(outcome, honest) == 0


def test_hospital_that_spoils_each_round_ends_the_study_and_keeps_the_accepted_model() -> None:
    hostile = HostileHospital("reversed update", place=2, begins=5, clips=False)
    outcome = play_masked(hospitals("alike", 3), hostile)
    without = play_masked(hospitals("alike", 3), hostile, votes=False)
    assert outcome.stopped == "E_MODEL_REJECTED"
    assert auroc(outcome.model) > auroc(without.model) + 0.2


def test_hostile_minority_that_votes_against_each_model_changes_nothing(honest: Outcome) -> None:
    outcome = play_masked(hospitals("alike", 3), HostileHospital("", place=2, answer=WORSE))
    assert not any(report.lost for report in outcome.reports)
    assert lost(outcome, honest) == 0
