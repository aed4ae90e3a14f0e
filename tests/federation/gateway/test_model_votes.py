"""What a hospital says of a model: it compares the losses with those of the run's models before."""

from pathlib import Path

import pytest

from federation.gateway.model_votes import KEPT_RUNS, MARGIN, ModelVotes
from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, WORSE

RUN = "trial-1"


def losses(severe: float, pcr: float | None = None) -> dict[str, float]:
    return {"loss_severe": severe, **({} if pcr is None else {"loss_pcr_positive": pcr}), "num-examples": 60}


def cast(votes: ModelVotes, *found: dict[str, float]) -> list[str]:
    return [votes.cast(RUN, f"{place:064x}", each) for place, each in enumerate(found)]


def test_model_with_a_much_higher_loss_is_worse(tmp_path: Path) -> None:
    votes = ModelVotes(tmp_path / "votes")
    answers = cast(votes, losses(0.6), losses(0.5), losses(0.49 + MARGIN), losses(0.51 + MARGIN), losses(0.5))
    assert answers == [NOT_WORSE, NOT_WORSE, NOT_WORSE, WORSE, NOT_WORSE]


def test_mean_over_the_labels_counts(tmp_path: Path) -> None:
    votes = ModelVotes(tmp_path / "votes")
    better, worse = losses(0.5 + 1.5 * MARGIN, 0.3), losses(0.5 + 1.5 * MARGIN, 0.5 + MARGIN)
    assert cast(votes, losses(0.5, 0.5), better, worse) == [NOT_WORSE, NOT_WORSE, WORSE]


def test_model_that_diverged_is_worse_though_its_losses_are_too_large_to_be_reported(tmp_path: Path) -> None:
    assert cast(ModelVotes(tmp_path / "votes"), losses(0.5, 0.5), {"num-examples": 60}) == [NOT_WORSE, WORSE]


def test_site_with_too_few_validation_patients_does_not_vote(tmp_path: Path) -> None:
    assert cast(ModelVotes(tmp_path / "votes"), {"num-examples": 60}, {"num-examples": 60}) == [NO_VOTE, NO_VOTE]


def test_answer_about_a_model_is_the_same_again_and_after_a_restart(tmp_path: Path) -> None:
    before = cast(ModelVotes(tmp_path / "votes"), losses(0.5), losses(2.0))
    assert cast(ModelVotes(tmp_path / "votes"), losses(0.5), losses(2.0)) == before == [NOT_WORSE, WORSE]
    assert ModelVotes(tmp_path / "votes").cast(RUN, "f" * 64, losses(0.5)) == NOT_WORSE


def test_slow_rise_as_of_a_model_that_fits_too_closely_is_not_worse(tmp_path: Path) -> None:
    rising = [losses(0.4 + 0.2 * MARGIN * step) for step in range(12)]
    assert set(cast(ModelVotes(tmp_path / "votes"), *rising)) == {NOT_WORSE}


@pytest.mark.parametrize("other", ["trial-2"])
def test_other_runs_are_not_compared(tmp_path: Path, other: str) -> None:
    votes = ModelVotes(tmp_path / "votes")
    cast(votes, losses(0.1))
    assert votes.cast(other, "a" * 64, losses(2.0)) == NOT_WORSE


def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    votes = ModelVotes(tmp_path / "votes")
    for number in range(KEPT_RUNS + 3):
        votes.cast(f"trial-{number}", "a" * 64, losses(0.5))
    assert len(list((tmp_path / "votes").iterdir())) == KEPT_RUNS
