"""Tests of the local audit: agreement, reasons, and comparisons that alert."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.clinic.local_audit import ALERT, local_audit
from pipeline.clinic.records import Answer, Correction, PcrResult
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.store import Store
from tests.pipeline.clinic.test_store import SCORE, answer_to, queued, taken

MODEL = "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        opened.models.add(MODEL, "trial", signed_by=None, by="test")
        opened.models.set_live(MODEL, by="test")
        yield opened


def answered(store: Store, pcr: PcrResult | None = None, **score: Any) -> Answer:
    queued(store)
    job = taken(store)
    answer = replace(answer_to(store, job), score={**SCORE, **score}, model_sha256=MODEL)
    store.answers.add(job, answer)
    if pcr:
        store.answers.set_pcr(answer.id, pcr, None, "entered", "test")
    return store.answers.get(answer.id)


def decided(store: Store, answer: Answer, verdict: Any, reason: Any = None, **levels: str) -> None:
    seen = store.answers.get(answer.id)
    proposal = Proposal(verdict, seen.revision, reason, correction=Correction(levels=levels))
    decide(store, answer.id, proposal, by="reader", person="Leser^Anna")


def test_only_the_newest_decision_of_an_answer_counts(store: Store) -> None:
    first, second, third, _ = (answered(store) for _ in range(4))
    decided(store, first, "rejected", "image_quality")
    decided(store, first, "accepted")
    decided(store, second, "corrected", "level", severe="high")
    decided(store, third, "rejected", "lungs")
    found = local_audit(store)
    assert found is not None
    assert found.answers == 4 and found.to_json()["undecided"] == 1
    assert found.verdicts == {"accepted": 1, "corrected": 1, "rejected": 1}
    assert found.reasons == {"level": 1, "lungs": 1}
    assert found.levels == {"severe": {("low", "low"): 1, ("low", "high"): 1}}
    assert found.agreement("severe") == 0.5
    assert found.agreement("pcr_positive") is None


def test_withheld_answers_and_other_models_do_not_count(store: Store) -> None:
    answered(store, trained_on_synthetic_data=True)
    found = local_audit(store)
    assert found is not None and found.answers == 0
    store.models.add("c" * 64, "next", signed_by=None, by="test")
    store.models.set_live("c" * 64, by="test")
    answered(store)
    found = local_audit(store)
    assert found is not None and (found.model_sha256, found.answers) == ("c" * 64, 0)


def test_no_live_model_has_no_audit(tmp_path: Path) -> None:
    with Store(tmp_path) as empty:
        assert local_audit(empty) is None


@pytest.mark.parametrize(("shift", "alerts"), [(0.0, False), (0.3, True), (-0.3, True)])
def test_familiarity_of_the_newest_scans_is_compared_with_all_before(shift: float, alerts: bool, store: Store) -> None:
    chance = random.Random(7)
    for number in range(100):
        distance = 1.0 + chance.gauss(0, 0.1) + (shift if number >= 50 else 0)
        answered(store, familiarity={"distance": distance, "limit": 2.0})
    found = local_audit(store)
    assert found is not None
    assert found.drift["familiarity"].is_alert is alerts
    assert found.drift["familiarity"].now == pytest.approx((1.0 + shift) / 2, abs=0.05)


@pytest.mark.parametrize(("positive", "alerts"), [(20, False), (38, True), (2, True)])
def test_pcr_results_are_compared_with_the_probabilities(positive: int, alerts: bool, store: Store) -> None:
    for number in range(40):
        answered(store, "positive" if number < positive else "negative", probability={"pcr_positive": 0.5})
    found = local_audit(store)
    assert found is not None
    drift = found.drift["pcr"]
    assert (drift.before, drift.now) == (0.5, positive / 40)
    assert drift.is_alert is alerts
    assert (abs(drift.errors or 0) > ALERT) is alerts


def test_few_answers_give_no_alert(store: Store) -> None:
    for _ in range(19):
        answered(store, "positive", probability={"pcr_positive": 0.01}, familiarity={"distance": 1.0, "limit": 2.0})
    found = local_audit(store)
    assert found is not None
    assert {each.errors for each in found.drift.values()} == {None}
