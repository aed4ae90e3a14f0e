"""Which labels of a model get a number: those that were calibrated and judged, in old and new releases."""

import math

import pytest

from models.calibration import Platt
from models.description import NOT_CALIBRATED, NOT_JUDGED, Description
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
