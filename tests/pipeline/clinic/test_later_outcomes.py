"""Tests of outcomes that arrive later: joined by the node's rules, and compared with probabilities and levels."""

import json
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from scipy.stats import binomtest

from pipeline.clinic.calibration import Scored, local_calibration, wilson
from pipeline.clinic.later_outcomes import later_outcomes
from pipeline.clinic.local_audit import LocalAudit, local_audit
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Tokens
from pipeline.site.withdrawn import Withdrawn
from tests.pipeline.clinic.later_hospital import SCAN, LaterHospital
from tests.pipeline.records.laboratory.test_fhir import MRN, bundle, patient
from tests.pipeline.records.test_fhir_histories import GOOD, encounter, procedure

FHIR = """
[outcomes]
format = "fhir"
file = "synthetic.json"
issuer = "{issuer}"
from_date = 2020-03-01
[outcomes.codes]
intubated = ["ops|8-701"]
"""


@pytest.fixture
def hospital(tmp_path: Path) -> LaterHospital:
    return LaterHospital.make(tmp_path)


def audited(hospital: LaterHospital) -> LocalAudit:
    with hospital.clinic.store() as store:
        found = local_audit(store, later_outcomes(hospital.clinic))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("intubated", "died", "until", "severe"),
    [
        (3, None, 3, True),
        (None, 30, 30, True),
        (None, 31, 31, False),
        (None, None, 30, False),
        (None, None, 29, None),
        (-1, None, 40, None),
        (None, None, None, None),
    ],
)
def test_course_after_the_scan_follows_the_nodes_rules(
    intubated: int | None, died: int | None, until: int | None, severe: bool | None, hospital: LaterHospital
) -> None:
    answer = hospital.scored()
    assert later_outcomes(hospital.clinic).refusal is not None  # there is no file yet
    hospital.know(("P1", intubated, died, until))
    assert later_outcomes(hospital.clinic).severe(answer) is severe


def test_day_of_the_scan_is_the_one_at_the_hospital(hospital: LaterHospital) -> None:
    """At 23:30 UTC it is the next day in Berlin, and the patient was intubated the day before it."""
    hospital.know(("P1", 0, None, 60))
    answer = hospital.scored()
    late = SCAN.replace(hour=23, minute=30)
    known = later_outcomes(hospital.clinic)
    assert known.severe(replace(answer, acquired_at=late)) is True
    assert known.severe(replace(answer, acquired_at=late.replace(tzinfo=UTC))) is None
    assert known.site is not None
    known.site.settings.site.time_zone = ""
    assert known.acquired(replace(answer, acquired_at=late.replace(tzinfo=UTC))) == late


def test_outcome_that_arrives_later_is_in_the_next_audit(hospital: LaterHospital) -> None:
    hospital.scored("P1", 0.1)
    hospital.scored("P2", 0.7)
    hospital.know(("P1", None, None, 10), ("P2", None, None, 10))
    assert audited(hospital).calibration.keys() == {"pcr_positive"}
    hospital.know(("P1", None, None, 60), ("P2", 4, None, 60))
    severe = audited(hospital).calibration["severe"].to_json()
    assert (severe["patients"], severe["events"], severe["expected"], severe["observed"]) == (2, 1, 0.4, 0.5)
    assert (severe["low"], severe["high"]) == tuple(round(each, 4) for each in wilson(1, 2))
    assert [(each["from"], each["events"]) for each in severe["bins"]] == [(0.0, 0), (0.6, 1)]


def test_outcomes_from_fhir_are_joined_alike(tmp_path: Path) -> None:
    hospital = LaterHospital.make(tmp_path, outcomes=FHIR.format(issuer=MRN))
    answers = [hospital.scored("GX"), hospital.scored("GY")]
    resources = [patient("GX"), encounter("GX", "2021-03-01", "2021-05-01"), procedure("GX", at="2021-03-06")]
    resources += [patient("GY"), encounter("GY", "2021-03-01", "2021-05-01"), encounter("GY", "2021-04-20")]
    (hospital.site.folder / "synthetic.json").write_text(json.dumps(bundle(*GOOD, *resources)))
    later = later_outcomes(hospital.clinic)
    assert later.refusal is None
    assert [later.severe(answer) for answer in answers] == [True, False]


def test_only_the_first_scan_of_patients_with_a_positive_pcr_counts(hospital: LaterHospital) -> None:
    hospital.scored("P1", 0.2)
    hospital.scored("P1", 0.9, days=1)
    hospital.scored("P2", 0.9, pcr="negative")
    hospital.scored("P3", 0.9, pcr=None)
    hospital.scored("P4", 0.9, issuer="ELSEWHERE")
    hospital.know(*((patient, 2, None, 60) for patient in ("P1", "P2", "P3", "P4")))
    found = audited(hospital).calibration["severe"].whole
    assert (found.patients, found.events, found.expected) == (1, 1, 0.2)


@pytest.mark.parametrize("reason", ["wrong_scan", "image_quality"])
def test_scan_that_a_reader_rejected_has_no_outcome(reason: str, hospital: LaterHospital) -> None:
    hospital.decided(hospital.scored("P1", 0.9), "rejected", reason)
    hospital.scored("P1", 0.2, days=1)
    hospital.decided(hospital.scored("P2", 0.4), "rejected", "other")
    hospital.know(("P1", 2, None, 60), ("P2", None, None, 60))
    found = audited(hospital)
    assert found.reasons == {reason: 1, "other": 1}
    assert found.drift["pcr"].answers == found.drift["severe"].answers == 2
    severe = found.calibration["severe"].whole
    assert (severe.patients, severe.events, severe.expected) == (2, 1, pytest.approx(0.3))
    assert found.calibration["pcr_positive"].whole.patients == 2


def test_pcr_result_of_another_time_does_not_count(hospital: LaterHospital) -> None:
    early, late = hospital.scored("P1"), hospital.scored("P2")
    with hospital.clinic.store() as store:
        store.answers.set_pcr(early.id, "positive", (SCAN - timedelta(days=8)).date(), "entered", "test")
        store.answers.set_pcr(late.id, "positive", (SCAN - timedelta(days=7)).date(), "entered", "test")
    hospital.know(("P1", 2, None, 60), ("P2", 2, None, 60))
    found = audited(hospital)
    assert found.drift["pcr"].answers == found.drift["severe"].answers == 1
    assert {label: each.whole.patients for label, each in found.calibration.items()} == {"severe": 1, "pcr_positive": 1}


def test_levels_of_model_and_reader_are_compared_with_the_course(hospital: LaterHospital) -> None:
    for number in range(4):
        answer = hospital.scored(f"P{number}", level={"severe": "low"})
        if number < 2:
            hospital.decided(answer, "corrected", "clinical", severe="high")
        elif number == 2:
            hospital.decided(answer, "rejected", "other")
    hospital.know(*((f"P{number}", 2 if number < 2 else None, None, 60) for number in range(4)))
    levels = audited(hospital).calibration["severe"].to_json()["levels"]
    assert {level: (each["events"], each["patients"]) for level, each in levels["model"].items()} == {"low": (2, 4)}
    assert {level: (each["events"], each["patients"]) for level, each in levels["reader"].items()} == {"high": (2, 2)}


@pytest.mark.parametrize(("events", "alerts"), [(4, False), (16, True)])
def test_more_severe_courses_than_expected_alert(events: int, alerts: bool, hospital: LaterHospital) -> None:
    for number in range(20):
        hospital.scored(f"P{number}", 0.25)
    hospital.know(*((f"P{number}", 2 if number < events else None, None, 60) for number in range(20)))
    drift = audited(hospital).drift["severe"]
    assert (drift.before, drift.now, drift.is_alert) == (0.25, events / 20, alerts)


def test_withdrawn_patient_does_not_count(hospital: LaterHospital) -> None:
    hospital.scored("P1")
    hospital.know(("P1", 2, None, 60))
    Withdrawn(hospital.site).add([hospital.site.pseudonym("P1")])
    assert "severe" not in audited(hospital).calibration


def test_broken_records_do_not_break_the_audit(hospital: LaterHospital) -> None:
    hospital.scored("P1")
    (hospital.site.folder / "outcomes.csv").write_text("patient_id,died\nP1,2021-03-05\n")
    found = audited(hospital)
    assert found.outcomes_code == "E_SCHEMA" and "severe" not in found.calibration
    client = TestClient(make_app(hospital.clinic), base_url="http://localhost:8765")
    headers = {"Authorization": f"Bearer {Tokens(hospital.clinic.folder).make('x', 'read', by='test')}"}
    assert client.get("/api/v1/local-audit", headers=headers).json()["outcomes_code"] == "E_SCHEMA"
    hospital.know(("P1", 2, None, 60))
    told = client.get("/api/v1/local-audit", headers=headers).json()
    assert told["outcomes_code"] is None and told["calibration"]["severe"]["events"] == 1
    assert [each["from"] for each in told["calibration"]["severe"]["bins"]] == [0.2]
    metrics = client.get("/metrics", headers=headers).text
    assert 'fedthorax_outcomes{label="severe"} 1.0' in metrics
    assert 'fedthorax_calibration{label="severe",what="observed"} 1.0' in metrics
    assert "P1" not in json.dumps(told) + metrics


@pytest.mark.parametrize(("events", "patients"), [(0, 1), (1, 1), (3, 10), (0, 400), (399, 400)])
def test_interval_equals_that_of_scipy(events: int, patients: int) -> None:
    known = binomtest(events, patients).proportion_ci(method="wilson")
    assert wilson(events, patients) == pytest.approx((known.low, known.high), abs=1e-6)


def test_probability_of_one_is_in_the_last_bin_and_nobody_gives_no_figures() -> None:
    found = local_calibration([Scored("a", 1.0, True), Scored("b", 0.0, False)])
    assert found is not None and list(found.bins) == [0.0, 0.8]
    assert local_calibration([]) is None
