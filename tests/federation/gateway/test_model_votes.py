"""What a hospital says of a model: it compares losses and AUROCs with those of the run's models before."""

import json
from pathlib import Path

import numpy as np
import pytest

from federation.gateway.model_votes import FALL, KEPT_RUNS, MARGIN, ModelVotes, has_fallen
from federation.protocol.patient_counts import Patients
from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, WORSE

RUN = "trial-1"


def patients(severe: int) -> Patients:
    """So many validation patients with each class of `severe`, and twice as many of the other label."""
    classes = {"severe": severe, "pcr_positive": 2 * severe}
    return Patients(
        with_value={("validation", label, value): n for label, n in classes.items() for value in (False, True)}
    )


MANY = patients(100)


def losses(severe: float, pcr: float | None = None) -> dict[str, float]:
    return {"loss_severe": severe, **({} if pcr is None else {"loss_pcr_positive": pcr}), "num-examples": 60}


def aurocs(severe: float, pcr: float | None = None) -> dict[str, float]:
    """Figures of models whose losses are the same."""
    return {**losses(0.5, 0.5), "auroc_severe": severe, **({} if pcr is None else {"auroc_pcr_positive": pcr})}


def cast(votes: ModelVotes, *found: dict[str, float], patients: Patients = MANY) -> list[str]:
    return [votes.cast(RUN, f"{place:064x}", each, patients) for place, each in enumerate(found)]


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
    assert ModelVotes(tmp_path / "votes").cast(RUN, "f" * 64, losses(0.5), MANY) == NOT_WORSE


def test_slow_rise_as_of_a_model_that_fits_too_closely_is_not_worse(tmp_path: Path) -> None:
    rising = [losses(0.4 + 0.2 * MARGIN * step) for step in range(12)]
    assert set(cast(ModelVotes(tmp_path / "votes"), *rising)) == {NOT_WORSE}


# --- the AUROC --------------------------------------------------------------------------------------------


def test_model_that_orders_patients_much_worse_is_worse_whatever_its_loss(tmp_path: Path) -> None:
    """As after a step of flipped labels, which raises the loss by less than MARGIN."""
    answers = cast(ModelVotes(tmp_path / "votes"), aurocs(0.88), aurocs(0.86), aurocs(0.45), aurocs(0.87))
    assert answers == [NOT_WORSE, NOT_WORSE, WORSE, NOT_WORSE]


def test_each_label_is_judged_alone(tmp_path: Path) -> None:
    assert cast(ModelVotes(tmp_path / "votes"), aurocs(0.8, 0.9), aurocs(0.85, 0.6)) == [NOT_WORSE, WORSE]


def test_small_fall_is_not_worse_however_many_patients_there_are(tmp_path: Path) -> None:
    small = aurocs(0.88 - 0.9 * FALL)
    assert cast(ModelVotes(tmp_path / "votes"), aurocs(0.88), small, patients=patients(10_000))[1] == NOT_WORSE


def test_fall_that_few_patients_explain_is_not_worse(tmp_path: Path) -> None:
    answers = [cast(ModelVotes(tmp_path / str(n)), aurocs(0.8), aurocs(0.6), patients=patients(n))[1] for n in (5, 100)]
    assert answers == [NOT_WORSE, WORSE]


@pytest.mark.parametrize(("best", "auroc"), [(1.0, 0.8), (1.0, 0.5), (0.7, 0.3)])
def test_three_patients_of_each_class_never_prove_such_a_fall(best: float, auroc: float) -> None:
    """Also not from 1.0, where the standard error of an AUROC alone is 0."""
    assert not has_fallen(auroc, best, 3, 3)


def test_falls_between_random_draws_of_a_model_are_rare() -> None:
    """The standard error is that of other patients each time, so at most 5 % of the falls exceed it."""
    rng = np.random.default_rng(5)

    def drawn(count: int) -> float:
        return float((rng.normal(1, 1, (count, 1)) > rng.normal(0, 1, count)).mean())

    for count in (6, 20):
        alarms = sum(has_fallen(drawn(count), drawn(count), count, count) for _ in range(2000))
        assert alarms / 2000 < 0.065


def test_label_without_an_auroc_is_not_judged_by_it(tmp_path: Path) -> None:
    answers = cast(ModelVotes(tmp_path / "votes"), aurocs(0.9), losses(0.5, 0.5), aurocs(0.9), losses(0.5, 0.5))
    assert set(answers) == {NOT_WORSE}


def test_file_of_an_earlier_version_opens(tmp_path: Path) -> None:
    votes = ModelVotes(tmp_path / "votes")
    cast(votes, aurocs(0.9))
    file = next((tmp_path / "votes").iterdir())
    kept = [{key: value for key, value in each.items() if key != "aurocs"} for each in json.loads(file.read_text())]
    file.write_text(json.dumps(kept))
    assert votes.cast(RUN, "b" * 64, aurocs(0.4), MANY) == NOT_WORSE
    assert votes.cast(RUN, "c" * 64, losses(0.6 + MARGIN), MANY) == WORSE


# --- runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["trial-2"])
def test_other_runs_are_not_compared(tmp_path: Path, other: str) -> None:
    votes = ModelVotes(tmp_path / "votes")
    cast(votes, losses(0.1))
    assert votes.cast(other, "a" * 64, losses(2.0), MANY) == NOT_WORSE


def test_old_runs_are_forgotten(tmp_path: Path) -> None:
    votes = ModelVotes(tmp_path / "votes")
    for number in range(KEPT_RUNS + 3):
        votes.cast(f"trial-{number}", "a" * 64, losses(0.5), MANY)
    assert len(list((tmp_path / "votes").iterdir())) == KEPT_RUNS
