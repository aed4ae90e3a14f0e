"""NDJSON files that were cut within their last line. All data are synthetic."""

import json
from pathlib import Path

import pytest

from models.refusal import Refusal
from pipeline.records.laboratory import FhirLaboratory, read_pcr
from tests.pipeline.records.laboratory.test_fhir import GOOD, TODAY, observation, patient, read, refused

LINES = "".join(json.dumps(each) + "\n" for each in [*GOOD, patient("A")])
LAST = json.dumps(observation("A"))


@pytest.mark.parametrize("size", [1, 20, len(LAST) // 2, len(LAST) - 1])
@pytest.mark.parametrize("end", ["", "\n", "\r\n \n"], ids=repr)
@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONL"])
def test_file_that_ends_within_a_line_is_refused(tmp_path: Path, size: int, end: str, name: str) -> None:
    refusal = refused(tmp_path, (LINES + LAST[:size] + end).encode(), name=name)
    assert refusal.code == "E_FILE_CUT"
    assert refusal.says == "the laboratory file is not whole: its last line is not JSON"
    assert refusal.private == name


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n  \n"], ids=repr)
def test_whole_last_line_needs_no_line_end(tmp_path: Path, end: str) -> None:
    results, findings = read(tmp_path, (LINES + LAST + end).encode(), name="a.ndjson")
    assert (len(results), findings) == (11, [])


def test_one_file_of_a_folder_that_was_cut_is_enough(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ndjson").write_text(LINES + LAST[:-5])
    (tmp_path / "in" / "b.ndjson").write_text(LINES)
    with pytest.raises(Refusal, match="E_FILE_CUT"):
        read_pcr(FhirLaboratory(format="fhir", file=tmp_path / "in"), time_zone="Europe/Paris", today=TODAY)


def test_line_before_the_last_that_is_not_json_is_a_finding_of_its_own(tmp_path: Path) -> None:
    results, findings = read(tmp_path, ("{\n" + LINES + LAST).encode(), name="a.ndjson")
    assert len(results) == 11
    assert findings == [("E_FHIR", "", "a.ndjson, line 1: not a resource in JSON")]


def test_end_of_an_oversized_line_does_not_look_like_a_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.records.laboratory.fhir_files.MAX_BYTES", 2000)
    content = (LINES + json.dumps({"resourceType": "Observation", "note": "x" * 3000})).encode()
    results, findings = read(tmp_path, content, name="a.ndjson")
    assert len(results) == 10
    assert {finding[0] for finding in findings} == {"E_FHIR"}
