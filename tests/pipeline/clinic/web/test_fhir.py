"""Tests of the FHIR RiskAssessment, validated against the R4B structure (identical to R4 for this resource)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fhir.resources.R4B.riskassessment import RiskAssessment

from pipeline.clinic.records import Answer, Patient
from pipeline.clinic.web.fhir import risk_assessment
from tests.helpers.scored_answers import BAND, MODEL_SHA256, PCR_POSITIVE, SEVERE
from tests.pipeline.clinic.web.conftest import refused


def resource_of(answer: Answer) -> dict[str, Any]:
    resource = risk_assessment(answer)
    RiskAssessment.model_validate(resource)
    return resource


def test_risk_assessment_contains_the_answer(answer_to: Callable[..., Answer]) -> None:
    answer = answer_to(Patient("SYNTHETIC-1", "ward", "DOE^JANE", "F", 63.0))
    told = resource_of(answer)
    assert told["status"] == "preliminary"
    assert MODEL_SHA256 in told["method"]["text"]
    assert told["subject"]["identifier"] == {"value": "SYNTHETIC-1", "assigner": {"display": "ward"}}
    assert told["subject"]["display"] == "DOE^JANE"
    (basis,) = told["basis"]
    assert basis["identifier"] == {"system": "urn:dicom:uid", "value": f"urn:oid:{answer.study_uid}"}
    assert told["note"][0]["text"] == "Research use only. Not a medical device."
    assert any(note["text"].startswith("W_LUNGS_CUT") for note in told["note"])


def test_probabilities_are_percentages(answer_to: Callable[..., Answer]) -> None:
    by_outcome = {each["outcome"]["text"]: each for each in resource_of(answer_to())["prediction"]}
    severe = by_outcome["Severe COVID-19: intubation or death within 30 days of the CT"]
    pcr = by_outcome["SARS-CoV-2 detected by PCR"]
    assert severe["probabilityDecimal"] == round(100 * SEVERE, 2)
    assert pcr["probabilityDecimal"] == round(100 * PCR_POSITIVE, 2)
    assert severe["qualitativeRisk"]["coding"][0]["code"] == "moderate"  # between the operating points
    assert "qualitativeRisk" not in pcr  # the release has no operating points for it
    assert f"{100 * BAND[0]:.1f} % to {100 * BAND[1]:.1f} %" in severe["rationale"]
    assert "To rule out: The number of patients behind this threshold is not recorded" in severe["rationale"]
    assert pcr["rationale"] == "The release defines no operating points"


@pytest.mark.parametrize(
    ("probability", "end"),
    [(0.0, {"high": 0.1}), (4e-5, {"high": 0.1}), (0.99997, {"low": 99.9}), (1.0, {"low": 99.9})],
)
def test_probability_next_to_0_or_1_is_a_range_with_one_end(
    probability: float, end: dict[str, float], answer_to: Callable[..., Answer]
) -> None:
    answer = answer_to()
    score = {**answer.score, "probability": {"severe": probability}, "interval": {"severe": [0.0, 1.0]}}
    (severe,) = resource_of(replace(answer, score=score))["prediction"]
    assert "probabilityDecimal" not in severe
    assert {name: each["value"] for name, each in severe["probabilityRange"].items()} == end
    assert {(each["system"], each["code"]) for each in severe["probabilityRange"].values()} == {
        ("http://unitsofmeasure.org", "%")  # required by the invariant ras-1
    }
    assert "< 0.1 % to > 99.9 %" in severe["rationale"]


def test_unknown_values_are_omitted(answer_to: Callable[..., Answer]) -> None:
    answer = answer_to()
    score = {**answer.score, "level": None, "interval": None, "quality": [], "operating_points": {}}
    score["missing_points"] = {}
    told = resource_of(replace(answer, patient=None, study_uid="", score=score))
    assert told["subject"] == {"type": "Patient", "display": "unknown"}
    assert "basis" not in told
    assert all(set(each) == {"outcome", "probabilityDecimal"} for each in told["prediction"])


def test_uncertain_level_has_text_but_no_code(answer_to: Callable[..., Answer]) -> None:
    answer = answer_to()
    score = {**answer.score, "level": {**answer.score["level"], "severe": "uncertain"}}
    (severe,) = (each for each in resource_of(replace(answer, score=score))["prediction"] if "qualitativeRisk" in each)
    assert set(severe["qualitativeRisk"]) == {"text"}
    assert severe["qualitativeRisk"]["text"].startswith("uncertain: the 95 % band of the calibration crosses")


def test_phantom_model_gives_no_risk_assessment_for_a_patient(
    answer_to: Callable[..., Answer], client: Callable[..., TestClient]
) -> None:
    answer = answer_to()
    patients = answer_to(score={**answer.score, "input": {**answer.score["input"], "is_phantom": False}})
    given = client("read").get(f"/api/v1/answers/{patients.id}/risk-assessment")
    assert (given.status_code, refused(given)) == (409, "E_NOT_FOR_PATIENTS")


def test_control_characters_are_removed_from_texts(answer_to: Callable[..., Answer]) -> None:
    for text in ("\x00\u202e", " ", "", "\u2066<b>\n\r\t"):
        told = resource_of(answer_to(Patient(text, text, text)))
        assert not any(mark in str(told) for mark in ("\\x00", "\u202e", "\u2066", "\\n", "\\r", "\\t"))


def test_api_returns_fhir_json(answer_to: Callable[..., Answer], client: Callable[..., TestClient]) -> None:
    answer = answer_to()
    given = client("read").get(f"/api/v1/answers/{answer.id}/risk-assessment")
    assert given.headers["content-type"] == "application/fhir+json"
    assert given.json() == risk_assessment(answer)
