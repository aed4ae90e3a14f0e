"""Tests of the verdict on a probability: which thresholds are met, the level, and what is withheld."""

import json
import subprocess
import sys
from typing import Any

import pytest

from pipeline.scoring.verdict import NO_MAP_WITHHELD, SYNTHETIC, decide_points, level, redecided, withheld

APART, OVERLAPPING = {"rule_out": 0.2, "rule_in": 0.6}, {"rule_out": 0.6, "rule_in": 0.2}


def decided(p: float, band: tuple[float, float] | None, thresholds: dict[str, float]) -> tuple[Any, Any, Any]:
    """Return the level, and whether rule_out and rule_in are met."""
    bands = {"severe": band} if band else {}
    points = decide_points({"severe": p}, {"severe": thresholds}, bands)["severe"]
    return level(points), points["rule_out"]["met"], points["rule_in"]["met"]


@pytest.mark.parametrize(
    ("p", "band", "thresholds", "expected"),
    [
        (0.1, None, APART, ("low", True, False)),
        (0.2, None, APART, ("intermediate", False, False)),
        (0.6, None, APART, ("high", False, True)),
        (0.3, None, OVERLAPPING, ("intermediate", True, True)),
        (0.1, (0.05, 0.15), APART, ("low", True, False)),
        (0.1, (0.05, 0.25), APART, ("uncertain", None, False)),
        (0.3, (0.1, 0.4), APART, ("uncertain", None, False)),
        (0.5, (0.3, 0.7), APART, ("uncertain", False, None)),
        (0.7, (0.5, 0.8), APART, ("uncertain", False, None)),
        (0.4, (0.1, 0.8), APART, ("uncertain", None, None)),
        (0.3, (0.19, 0.62), {"rule_out": 0.46, "rule_in": 0.7}, ("uncertain", None, False)),
        (0.4, (0.3, 0.5), OVERLAPPING, ("intermediate", True, True)),
        (0.3, (0.1, 0.5), OVERLAPPING, ("uncertain", True, None)),
        # The band touches a threshold. The band includes its ends; a probability equal to a threshold is not below it.
        (0.3, (0.2, 0.4), APART, ("intermediate", False, False)),
        (0.1, (0.05, 0.2), APART, ("uncertain", None, False)),
        (0.7, (0.6, 0.8), APART, ("high", False, True)),
        (0.5, (0.4, 0.6), APART, ("uncertain", False, None)),
        (0.2, (0.2, 0.2), APART, ("intermediate", False, False)),
    ],
)
def test_level_takes_the_band_into_account(
    p: float, band: tuple[float, float] | None, thresholds: dict[str, float], expected: tuple[Any, Any, Any]
) -> None:
    assert decided(p, band, thresholds) == expected


def test_verdict_module_does_not_import_pytorch() -> None:
    """The clinic's web server does not import PyTorch either."""
    code = "import sys, pipeline.scoring.verdict, pipeline.clinic.web.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_level_without_both_thresholds() -> None:
    points = decide_points({"severe": 0.1}, {"severe": {"rule_out": 0.2}}, {"severe": (0.0, 0.3)})
    assert points == {"severe": {"rule_out": {"threshold": 0.2, "met": None}}}
    assert level(points["severe"]) is None
    assert level({}) is None


@pytest.mark.parametrize(
    ("is_synthetic", "told", "reason"),
    [
        (True, {"is_phantom": True}, None),
        (True, {"is_phantom": False}, SYNTHETIC),
        (True, {}, SYNTHETIC),
        (False, {"is_phantom": True}, None),
        (False, {"is_phantom": False}, None),
        (False, {}, None),
    ],
)
def test_verdict_is_withheld_only_for_phantom_models_on_patient_scans(
    is_synthetic: bool, told: dict[str, bool], reason: str | None
) -> None:
    assert withheld({"trained_on_synthetic_data": is_synthetic, "input": told}) == reason


def stored(*, is_synthetic: bool = False, interval: Any = None, p: float = 0.3) -> dict[str, Any]:
    """A score as stored by an earlier version, in which the level ignored the band."""
    points = {"rule_out": {"threshold": 0.46, "met": True}, "rule_in": {"threshold": 0.7, "met": False}}
    return {
        "trained_on_synthetic_data": is_synthetic,
        "probability": {"severe": p, "pcr_positive": 0.5},
        "operating_points": {"severe": points},
        "level": {"severe": "low", "pcr_positive": None},
        "interval": interval,
        "saliency": {"shown": False, "label": None, "method": None, "why_not": "the probabilities are low"},
        "input": {"hu_sha256": "f" * 64},
    }


def test_old_score_without_a_band_is_unchanged() -> None:
    assert redecided(stored()) == {**stored(), "withheld": None}


def test_old_score_becomes_uncertain_if_its_band_crosses_a_threshold() -> None:
    again = redecided(json.loads(json.dumps(stored(interval={"severe": (0.19, 0.62)}))))
    assert again["level"] == {"severe": "uncertain", "pcr_positive": None}
    assert again["operating_points"]["severe"]["rule_out"] == {"threshold": 0.46, "met": None}


def test_old_score_of_a_phantom_model_is_withheld() -> None:
    again = redecided(stored(is_synthetic=True))
    assert again["withheld"] == SYNTHETIC
    assert again["level"] == {"severe": None, "pcr_positive": None}
    assert again["operating_points"] == {}
    assert again["saliency"]["why_not"] == NO_MAP_WITHHELD
    assert again["probability"] == stored()["probability"]
    assert redecided(again) == again
    forged = {
        **again,
        "withheld": None,
        "level": {"severe": "low"},
        "operating_points": {"severe": {}},
        "no_number": {},
    }
    assert redecided(forged) == {**again, "no_number": {}}, "a level is never shown, whoever stored it"
