"""When a run's validation losses show that it trained too long, and when they do not."""

from typing import Any

import pytest

from federation.runs.training_length import trained_long

FALLS = [0.69, 0.66, 0.61, 0.57, 0.55, 0.53, 0.52, 0.52, 0.51, 0.51]
FALLS_AND_RISES = [0.70, 2.80, 0.80, 0.61, 0.58, 0.60, 0.74, 0.90, 1.02, 1.08]


def history(severe: list[float], pcr_positive: list[float] = FALLS) -> list[dict[str, Any]]:
    losses = zip(severe, pcr_positive, strict=True)
    rounds = [
        {"round": number, "lost": False, "means": {"loss_severe": of_severe, "loss_pcr_positive": of_pcr}}
        for number, (of_severe, of_pcr) in enumerate(losses, start=1)
    ]
    return [{"step": "handshake"}, *rounds, {"step": "test"}]


def test_loss_that_rose_again_is_told_with_the_round_of_its_lowest_mean() -> None:
    (warning,) = trained_long(history(FALLS_AND_RISES))
    assert (warning.code, warning.numbers["label"], warning.numbers["rounds"]) == ("W_TRAINED_LONG", "severe", 5)
    assert "0.60" in warning.says
    assert "1.00" in warning.says


def test_each_label_is_looked_at() -> None:
    labels = [warning.numbers["label"] for warning in trained_long(history(FALLS_AND_RISES, FALLS_AND_RISES))]
    assert sorted(labels) == ["pcr_positive", "severe"]


@pytest.mark.parametrize(
    "losses",
    [
        FALLS,
        FALLS[::-1][:2] + FALLS[2:],
        [0.9, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.65],  # a rise within what eight rounds showed
        [0.7, 0.7, 0.6, 0.6, 0.1, 0.6, 0.6, 0.5, 0.6, 0.6],  # one low round
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.01, 0.01, 0.02],  # nearly perfect throughout
    ],
    ids=["falls", "rises at first", "rises little", "one low round", "near zero"],
)
def test_other_courses_are_no_reason_to_train_less(losses: list[float]) -> None:
    assert trained_long(history(losses)) == []


def test_lost_rounds_and_rounds_without_the_loss_do_not_count() -> None:
    entries = history(FALLS_AND_RISES)
    entries[7] |= {"lost": True, "means": {}}
    entries[8]["means"].pop("loss_severe")  # fewer validation patients than the hospitals tell figures of
    (warning,) = trained_long(entries)
    assert warning.numbers["rounds"] == 5


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_short_history_says_nothing(rounds: int) -> None:
    assert trained_long(history([0.1, 2.0][:rounds], FALLS[:rounds])) == []
