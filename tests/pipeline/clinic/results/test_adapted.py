"""A result of a model that was adapted here says so on the page, in the report and in FHIR, and has no level."""

from dataclasses import replace
from pathlib import Path

import pytest
from highdicom.sr import srread

from models.adaptation import derive
from models.reasons import ADAPTED
from pipeline.clinic.records import Answer
from pipeline.clinic.results import sr_codes
from pipeline.clinic.results.fhir_report import diagnostic_report
from pipeline.clinic.results.write import REPORT, write_results
from pipeline.scoring.html_report import render
from pipeline.scoring.score import Score
from tests.helpers.adapting import adaptation, parent_description
from tests.helpers.scored_answers import answer_to, series_of


@pytest.fixture
def adapted(score: Score) -> Score:
    parent = parent_description(familiarity=score.model.familiarity)
    seconds = dict.fromkeys(("read", "prepare", "predict", "explain", "total"), 1.0)
    assert replace(score, model=parent).levels["severe"]
    return replace(score, model=derive(parent, adaptation(), {}), seconds=seconds, saliency=None)


@pytest.fixture
def answer(adapted: Score, scan: Path, tmp_path: Path) -> Answer:
    return answer_to(adapted, series_of(scan), tmp_path / "answer", model_name=adapted.model.study)


def test_json_and_page_say_it_and_have_no_level(adapted: Score) -> None:
    told = adapted.to_json()
    assert told["level"] == {"pcr_positive": None, "severe": None}
    assert told["operating_points"] == {}
    assert told["model"]["study"] == "trial, adapted at north"
    assert ADAPTED.says in told["model"]["doubts"]
    assert "adapted at this hospital" in told["missing_points"]["severe"]["rule_out"].lower()
    page = render(adapted)
    assert ADAPTED.says in page
    assert "trial, adapted at north" in page


@pytest.mark.slow
def test_report_and_fhir_say_it_and_have_no_level(answer: Answer) -> None:
    assert write_results(answer, answer.folder, picture=False) is None
    report = srread(answer.folder / REPORT)
    assert "study: trial, adapted at north" in report.to_json()
    assert "Adapted at this hospital" in report.to_json() or "adapted at this hospital" in report.to_json()
    groups = {each.tracking_identifier: each for each in report.content.get_image_measurement_groups()}
    assert groups["severe"].get_qualitative_evaluations(name=sr_codes.LEVEL) == []
    resources = [entry["resource"] for entry in diagnostic_report(answer)["entry"]]
    severe = next(each for each in resources if each.get("id", "").endswith("-severe"))
    assert "trial, adapted at north" in severe["method"]["text"]
    assert "interpretation" not in severe
