"""Hostile hospitals in masked studies of real small networks: what the vote and the groups stop, and what not."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from federation.protocol.flat_weights import WEIGHTS, pack
from federation.secure_aggregation.ballots import WORSE
from tests.helpers.masked_task import HostileHospitals, Outcome, groups_in, play_masked
from tests.helpers.toy_task import Model, auroc, fresh, hospitals, train

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
    hostile = HostileHospitals(attack, places=(2,), begins=1, ends=1, clips=False)
    outcome = play_masked(hospitals("alike", 3), hostile)
    assert [report.undone for report in outcome.reports if report.lost] == [(1,)]
    assert outcome.stopped == ""
    assert lost(outcome, honest) < LOSS


def test_hospital_that_spoils_the_last_round_changes_nothing(honest: Outcome) -> None:
    hostile = HostileHospitals("reversed update", places=(2,), begins=9, clips=False)
    outcome = play_masked(hospitals("alike", 3), hostile)
    assert lost(outcome, honest) == 0


def test_hospital_that_spoils_each_round_ends_the_study_and_keeps_the_accepted_model() -> None:
    hostile = HostileHospitals("reversed update", places=(2,), begins=5, clips=False)
    outcome = play_masked(hospitals("alike", 3), hostile)
    without = play_masked(hospitals("alike", 3), hostile, votes=False)
    assert outcome.stopped == "E_MODEL_REJECTED"
    assert auroc(outcome.model) > auroc(without.model) + 0.2


def test_hostile_minority_that_votes_against_each_model_changes_nothing(honest: Outcome) -> None:
    outcome = play_masked(hospitals("alike", 3), HostileHospitals("", places=(2,), answer=WORSE))
    assert not any(report.lost for report in outcome.reports)
    assert lost(outcome, honest) == 0


def test_flipped_labels_are_taken_back_before_the_model_is_ruined(honest: Outcome) -> None:
    """Their first step raises the loss by less than half a nat; the AUROC shows it."""
    hostile = HostileHospitals("label flip", places=(2,), begins=5, clips=False)
    by_loss = play_masked(hospitals("alike", 3), hostile, by_auroc=False)
    outcome = play_masked(hospitals("alike", 3), hostile)
    assert lost(by_loss, honest) > 0.2
    assert lost(outcome, honest) < LOSS and outcome.stopped == "E_MODEL_REJECTED"


@pytest.mark.parametrize("spoils", [(6,), (6, 7), (6, 7, 8)])
def test_hospital_that_loses_the_rounds_which_judge_its_step_does_not_get_it_accepted(
    honest: Outcome, spoils: tuple[int, ...]
) -> None:
    """Each lost round changes the model's digest, and hospitals judge it anew; they must not get used to it."""
    hostile = HostileHospitals("reversed update", (2,), begins=5, ends=5, clips=False, spoils=spoils)
    outcome = play_masked(hospitals("alike", 3), hostile)
    assert not any(report.unjudged == (5,) for report in outcome.reports if report.round > 5 + len(spoils) + 1)
    assert lost(outcome, honest) < 0.1


# --- together with groups -----------------------------------------------------------------------------------

NINE, GROUPS = 9, 3
TWO = tuple(group[0] for group in groups_in(NINE, GROUPS)[:2])  # in two of three groups


@pytest.fixture(scope="module")
def nine() -> Outcome:
    return play_masked(hospitals("alike", NINE), groups=GROUPS)


def test_honest_groups_never_take_a_step_back(nine: Outcome) -> None:
    assert nine.stopped == "" and not any(report.lost for report in nine.reports)
    assert all(report.votes == {"worse": 0, "not_worse": NINE, "no_vote": 0} for report in nine.reports)
    assert auroc(nine.model) > 0.85


def test_released_model_is_the_median_of_the_groups_means() -> None:
    at = hospitals("alike", NINE)
    released = play_masked(at, groups=GROUPS, rounds=2).model
    before = Model(*pack(copy.deepcopy(fresh())))
    after = {node: train(before, each)[0].arrays[WEIGHTS] for node, each in enumerate(at, start=1)}
    means = [
        np.average([after[node] for node in group], axis=0, weights=[at[node - 1].patients for node in group])
        for group in groups_in(NINE, GROUPS)
    ]
    np.testing.assert_allclose(released.arrays[WEIGHTS], np.median(means, axis=0), atol=1e-5)


@pytest.mark.parametrize("attack", ["reversed update", "label flip"])
def test_hostile_hospital_in_one_group_needs_no_vote(nine: Outcome, attack: str) -> None:
    outcome = play_masked(hospitals("alike", NINE), HostileHospitals(attack, TWO[:1], clips=False), groups=GROUPS)
    assert not any(report.lost for report in outcome.reports)
    assert lost(outcome, nine) < LOSS


@pytest.mark.parametrize(("attack", "at"), [("reversed update", 1), ("label flip", 5)])
def test_vote_takes_back_a_step_of_hostile_hospitals_in_two_groups(nine: Outcome, attack: str, at: int) -> None:
    hostile = HostileHospitals(attack, TWO, begins=at, ends=at, clips=False)
    outcome = play_masked(hospitals("alike", NINE), hostile, groups=GROUPS)
    without = play_masked(hospitals("alike", NINE), replace(hostile, ends=9), groups=GROUPS, votes=False)
    assert [(report.round, report.undone) for report in outcome.reports if report.lost] == [(at + 1, (at,))]
    assert outcome.stopped == "" and lost(outcome, nine) < LOSS
    assert lost(without, nine) > 0.2


def test_hostile_hospitals_in_two_groups_that_spoil_each_round_end_the_study(nine: Outcome) -> None:
    hostile = HostileHospitals("reversed update", TWO, begins=5, clips=False)
    outcome = play_masked(hospitals("alike", NINE), hostile, groups=GROUPS)
    assert outcome.stopped == "E_MODEL_REJECTED"
    assert lost(outcome, nine) < 0.15


def test_hostile_hospital_that_spoils_its_groups_sum_silences_only_its_group(nine: Outcome) -> None:
    """In the round that judges, its group's votes do not count. The others take the step back."""
    hostile = HostileHospitals("label flip", TWO, begins=5, ends=5, clips=False, spoils=(6,), spoilers=TWO[:1])
    outcome = play_masked(hospitals("alike", NINE), hostile, groups=GROUPS)
    (taken,) = [report for report in outcome.reports if report.undone]
    assert (taken.round, taken.undone) == (6, (5,)) and sum(taken.votes.values()) == 6
    assert lost(outcome, nine) < LOSS


def test_hostile_hospitals_that_spoil_two_groups_sums_lose_the_round_and_not_the_study(nine: Outcome) -> None:
    hostile = HostileHospitals("", TWO, begins=5, ends=5, clips=False, spoils=(5,))
    outcome = play_masked(hospitals("alike", NINE), hostile, groups=GROUPS)
    assert [report.lost_for for report in outcome.reports if report.lost] == ["E_SECAGG_GROUPS"]
    assert outcome.stopped == "" and lost(outcome, nine) < LOSS
