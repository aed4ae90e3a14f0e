"""A label that was not calibrated or not judged has no number on any output of the clinic, and each says why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from highdicom.sr import srread

from models.calibration import Platt
from models.description import NOT_CALIBRATED, NOT_JUDGED
from pipeline.clinic.records import Answer
from pipeline.clinic.results.fhir_report import diagnostic_report
from pipeline.clinic.results.oru_message import oru_message
from pipeline.clinic.results.picture import heading
from pipeline.clinic.results.write import REPORT, write_results
from pipeline.clinic.web.fhir import risk_assessment
from pipeline.scoring.html_report import render
from pipeline.scoring.score import Score
from pipeline.scoring.verdict import NO_NUMBER, redecided
from tests.helpers.descriptions import AS_IT_IS
from tests.helpers.scored_answers import PCR_POSITIVE, SEVERE, answer_to, series_of

CASES = {
    "judged, not calibrated": ({"pcr_positive": AS_IT_IS, "severe": Platt()}, 0.8, NOT_CALIBRATED),
    "calibrated, not judged": (dict.fromkeys(("pcr_positive", "severe"), AS_IT_IS), None, NOT_JUDGED),
    "neither": ({"pcr_positive": AS_IT_IS}, None, NOT_CALIBRATED),
}


@pytest.fixture(params=CASES.values(), ids=list(CASES))
def case(request: pytest.FixtureRequest, score: Score) -> tuple[Score, str]:
    """A score of a model that answers one label, and why it does not answer `severe`."""
    calibration, auroc, why = request.param
    metrics = {"mean_auroc_pcr_positive": 0.8} | ({} if auroc is None else {"mean_auroc_severe": auroc})
    model = score.model.model_copy(update={"calibration": calibration, "metrics": metrics})
    seconds = dict.fromkeys(("read", "prepare", "predict", "explain", "total"), 1.0)
    one = {"pcr_positive": PCR_POSITIVE}
    return replace(score, model=model, probabilities=one, intervals={}, saliency=None, seconds=seconds), why


@pytest.fixture
def answer(case: tuple[Score, str], scan: Path, tmp_path: Path) -> Answer:
    return answer_to(case[0], series_of(scan), tmp_path / "answer")


def test_json_and_page_say_why(case: tuple[Score, str]) -> None:
    score, why = case
    told = score.to_json()
    assert told["no_number"] == {"severe": why}
    for key in ("probability", "level", "operating_points", "interval"):
        assert "severe" not in (told[key] or {})
    page = render(score)
    assert why in page
    assert f"{100 * PCR_POSITIVE:.1f} %" in page and f"{100 * SEVERE:.1f} %" not in page


def test_structured_report_has_no_group_for_it_and_says_why(answer: Answer, case: tuple[Score, str]) -> None:
    assert write_results(answer, answer.folder) is None
    report = srread(answer.folder / REPORT)
    groups = {each.tracking_identifier for each in report.content.get_image_measurement_groups()}
    assert "pcr_positive" in groups and "severe" not in groups
    assert f"severe: {case[1]}" in report.to_json()


def test_picture_and_fhir_say_why(answer: Answer, case: tuple[Score, str]) -> None:
    assert any(line.endswith(case[1]) for line in heading(answer, has_map=False))
    resource = risk_assessment(answer)
    assert [each["outcome"]["text"] for each in resource["prediction"]] == ["SARS-CoV-2 detected by PCR"]
    assert any(note["text"].endswith(case[1]) for note in resource["note"])


def test_messages_to_other_systems_say_why(answer: Answer, case: tuple[Score, str]) -> None:
    resources = [entry["resource"] for entry in diagnostic_report(answer)["entry"]]
    told = [each["code"]["text"] for each in resources if each["resourceType"] == "Observation"]
    assert "Probability of: SARS-CoV-2 detected by PCR" in told
    assert not any("Severe" in each for each in told)
    (report,) = (each for each in resources if each["resourceType"] == "DiagnosticReport")
    assert case[1] in report["conclusion"]
    lines = oru_message(answer).decode().split("\r")
    assert any("|pcr_positive^" in line for line in lines) and not any("|severe" in line for line in lines)
    assert any(line.startswith("OBX|") and case[1] in line for line in lines)


def test_stored_score_of_an_earlier_version_loses_the_number_that_its_release_doubts(score: Score) -> None:
    stored = score.to_json()
    del stored["no_number"]
    says = "severe was not calibrated on validation patients, or not judged on test patients"
    stored["model"] = {**stored["model"], "doubts": [says]}
    shown = redecided(json.loads(json.dumps(stored)))
    assert shown["no_number"] == {"severe": NO_NUMBER}
    assert set(shown["probability"]) == {"pcr_positive"}
    assert "severe" not in (shown["interval"] or {}) and "severe" not in shown["level"]
    assert stored["saliency"]["label"] == "severe" and not shown["saliency"]["shown"]
