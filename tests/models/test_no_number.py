"""Which labels of a model get a number: those that were calibrated and judged, in old and new releases."""

import math

import pytest

from models.calibration import Platt
from models.description import NOT_CALIBRATED, NOT_JUDGED, Description
from models.model_card import card
from models.operating_points import OperatingPoint
from models.provenance import Provenance, SiteRecord
from tests.helpers.descriptions import AS_IT_IS, description

JUDGED = {"auroc_severe": 0.8, "auroc_severe_low": 0.7, "auroc_severe_high": 0.9}


def released(figures: dict[str, float], **changes: object) -> Description:
    """A release of one hospital with these figures of test patients; its candidate had a mean."""
    site = SiteRecord(
        patients="", software="", trained=True, rounds=1, dropouts={}, figures=figures, left_out={"auroc_severe": 0.8}
    )
    provenance = Provenance(
        candidate="",
        seed=1,
        rounds_planned=1,
        rounds_lost=0,
        stopped_early=False,
        strategy_options={},
        sites={"north": site},
        audit=None,
        study={},
    )
    return description(provenance=provenance, **changes)


@pytest.mark.parametrize(
    ("calibration", "metrics", "why"),
    [
        ({"severe": AS_IT_IS}, {"mean_auroc_severe": 0.8}, None),
        ({"severe": AS_IT_IS}, {"mean_auroc_pcr_positive": 0.8}, NOT_JUDGED),
        ({"severe": AS_IT_IS}, {"mean_brier_severe": 0.2}, NOT_JUDGED),
        ({"severe": AS_IT_IS}, {"mean_auroc_severe": math.nan}, NOT_JUDGED),
        ({"pcr_positive": AS_IT_IS}, {"mean_auroc_severe": 0.8}, NOT_CALIBRATED),
        ({"severe": Platt()}, {"mean_auroc_severe": 0.8}, NOT_CALIBRATED),  # as earlier versions wrote it
        ({}, {}, NOT_CALIBRATED),
    ],
)
def test_candidate_needs_a_calibration_and_an_auroc_for_a_number(
    calibration: dict[str, Platt], metrics: dict[str, float], why: str | None
) -> None:
    assert description(calibration=calibration, metrics=metrics).why_no_number("severe") == why


@pytest.mark.parametrize("absent", [None, "auroc_severe", "auroc_severe_low", "auroc_severe_high"])
def test_release_needs_an_auroc_with_its_interval_of_a_hospital(absent: str | None) -> None:
    figures = {name: value for name, value in JUDGED.items() if name != absent}
    assert released(figures).why_no_number("severe") == (NOT_JUDGED if absent else None)
    assert released(figures).why_no_number("pcr_positive") == NOT_JUDGED


def test_release_that_was_judged_but_not_calibrated_gives_no_number() -> None:
    assert released(JUDGED, calibration={"severe": Platt()}).why_no_number("severe") == NOT_CALIBRATED


def test_card_says_why_a_label_gets_no_number_and_has_no_threshold_and_no_band_of_it() -> None:
    known = Platt(slope=0.8, intercept=0.1, covariance=(0.1, 0.0, 0.1))
    both = {"pcr_positive": known, "severe": known}
    points = {label: {"rule_out": OperatingPoint(threshold=0.1234)} for label in both}
    figures = {"pcr_positive": "auroc_pcr_positive", "severe": "auroc_severe"}
    judged = {f"{name}{end}": 0.8 for name in figures.values() for end in ("", "_low", "_high")}
    told = card(released(judged, calibration=both, operating_points=points), "0" * 64)
    assert "Labels without a number" not in told
    assert "| severe | rule out below | 0.123 |" in told and "\n| severe | 0." in told
    del judged["auroc_severe"]
    told = card(released(judged, calibration=both, operating_points=points), "0" * 64)
    assert "## Labels without a number\n" in told and f"\n- **severe**: {NOT_JUDGED}\n" in told
    assert "| severe | rule out below" not in told and "\n| severe | 0." not in told
    assert "| pcr_positive | rule out below | 0.123 |" in told and "\n| pcr_positive | 0." in told


def test_card_of_a_candidate_says_that_nobody_released_it() -> None:
    assert "**W_NOT_RELEASED**, all:" in card(description(), "0" * 64)
    assert "W_NOT_RELEASED" not in card(released(JUDGED), "0" * 64)
