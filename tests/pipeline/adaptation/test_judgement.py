"""The judgement on labelled patients: harm beyond noise refuses, operating points need this hospital's evidence."""

import numpy as np
import pytest
from numpy.typing import NDArray

from models.adaptation import are_judged_again
from models.refusal import Refusal
from pipeline.adaptation.judgement import judge
from tests.helpers.adapting import parent_description

PARENT = parent_description()
RNG = np.random.default_rng(4)


def patients(count: int, *, separation: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and targets of severe alone, half of them positive."""
    y = (np.arange(count) % 2).astype(np.float32)
    logits = np.zeros((count, 2), np.float32)
    logits[:, 1] = RNG.normal(0, 1, count) + separation * (y - 0.5)
    return logits, np.stack([np.full(count, np.nan, np.float32), y], axis=1)


def test_same_model_passes_and_its_figures_are_told() -> None:
    logits, targets = patients(60, separation=0)
    judged, points = judge(PARENT, logits, logits, targets)
    assert list(judged) == ["severe"]
    assert judged["severe"].auroc_change == (0, 0, 0)
    assert (judged["severe"].positives, judged["severe"].negatives) == (30, 30)
    assert points == {}


def test_worse_ranking_and_worse_calibration_are_refused() -> None:
    logits, targets = patients(200, separation=3)
    shuffled = logits[RNG.permutation(len(logits))]
    with pytest.raises(Refusal, match="AUROC") as caught:
        judge(PARENT, logits, shuffled, targets)
    assert caught.value.code == "E_ADAPT_WORSE"
    with pytest.raises(Refusal, match="log loss") as caught:
        judge(PARENT, logits, logits + 4, targets)
    assert caught.value.code == "E_ADAPT_WORSE"


def test_better_model_passes() -> None:
    logits, targets = patients(200, separation=1)
    judged, _ = judge(PARENT, logits, logits + targets[:, 1:2], targets)
    assert judged["severe"].auroc_change[1] > 0


def test_too_few_patients_are_not_judged() -> None:
    logits, targets = patients(18, separation=3)
    assert judge(PARENT, logits, -logits, targets) == ({}, {})
    nobody = np.zeros((0, 2), np.float32)
    assert judge(PARENT, nobody, nobody, nobody) == ({}, {})


def test_operating_points_stay_only_with_evidence_of_this_hospital() -> None:
    logits, targets = patients(200, separation=12)
    _, points = judge(PARENT, logits, logits, targets)
    assert {name: at.threshold for name, at in points["severe"].items()} == {"rule_out": 0.3, "rule_in": 0.7}
    assert all(at.evidence and at.evidence.sites == 1 for at in points["severe"].values())
    assert are_judged_again(points, PARENT)
    few, of_few = patients(30, separation=12)  # 15 of each class
    assert judge(PARENT, few, few, of_few)[1] == {}
