"""CSV files that were cut within their last row, and columns with two meanings. All data are synthetic."""

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from models.refusal import Refusal
from pipeline.records.csv_tables import CsvTable
from pipeline.records.labels import LabelsFile, read_labels
from pipeline.records.laboratory import CsvLaboratory, read_pcr
from pipeline.records.outcomes import OutcomeFile, read_outcomes

TODAY = date(2020, 5, 1)
LABORATORY = ["patient_id,collected,result", *(f"P{number},2020-04-01T08:30,negative" for number in range(10))]
OUTCOMES = ["patient_id,intubated,died,followed_until", *(f"P{number},,,2020-04-30" for number in range(10))]
LABELS = ["patient_id,pcr_positive,severe", *(f"P{number},1,0" for number in range(10))]
READERS: dict[str, tuple[list[str], Callable[[Path], Any]]] = {
    "laboratory": (LABORATORY, lambda file: read_pcr(CsvLaboratory(file=file), today=TODAY)),
    "outcome": (OUTCOMES, lambda file: read_outcomes(OutcomeFile(file=file), today=TODAY)),
    "labels": (LABELS, lambda file: read_labels(LabelsFile(file=file))),
}


def read(folder: Path, content: str, name: str = "laboratory", **declared: Any) -> int:
    """Number of patients or results. Asserts that there are no findings."""
    (folder / "synthetic.csv").write_text(content, newline="")
    if declared:
        found, findings = read_pcr(CsvLaboratory(file=folder / "synthetic.csv", **declared), today=TODAY)
    else:
        found, findings = READERS[name][1](folder / "synthetic.csv")
    assert findings == []
    return len(found)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_file_that_ends_within_a_row_is_refused(tmp_path: Path, name: str, end: str) -> None:
    rows = READERS[name][0]
    whole = end.join(rows)
    last = whole.rindex(rows[-1])
    for size in range(last + 1, whole.rindex(",")):
        with pytest.raises(Refusal) as caught:
            read(tmp_path, whole[:size], name)
        assert caught.value.code == "E_FILE_CUT"
        assert caught.value.says == f"the {name} file is not whole: its last row has no end"
        assert "P9" not in str(caught.value)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n", "\n  "], ids=repr)
def test_whole_last_row_needs_no_line_end(tmp_path: Path, name: str, end: str) -> None:
    assert read(tmp_path, "\n".join(READERS[name][0]) + end, name) == 10


def test_last_row_that_begins_with_empty_cells_can_be_cut_too(tmp_path: Path) -> None:
    rows = [f"\t{row}".replace(",", "\t") for row in LABORATORY]
    assert read(tmp_path, "\n".join(rows).replace("\t", "note\t", 1), separator="\t") == 10
    with pytest.raises(Refusal, match="E_FILE_CUT"):
        read(tmp_path, "\n".join([*rows, "\t"]).replace("\t", "note\t", 1), separator="\t")


@pytest.mark.parametrize("last", ["P10,2020-04-01\n", "\x1a"], ids=["short row", "mark of the end, as DOS writes it"])
def test_last_line_that_was_not_cut_is_a_finding_of_its_own(tmp_path: Path, last: str) -> None:
    (tmp_path / "synthetic.csv").write_text("\n".join([*LABORATORY, last]))
    results, findings = read_pcr(CsvLaboratory(file=tmp_path / "synthetic.csv"), today=TODAY)
    assert len(results) == 10
    assert [finding.reason.code for finding in findings] == ["E_ROW"]


@pytest.mark.parametrize(
    ("table", "key", "same"),
    [
        (CsvLaboratory, "patient_id", "result"),
        (CsvLaboratory, "patient_id", "collected"),
        (CsvLaboratory, "collected", "result"),
        (OutcomeFile, "patient_id", "died"),
        (OutcomeFile, "followed_until", "intubated"),
        (OutcomeFile, "followed_until", "died"),
        (OutcomeFile, "followed_until", "icu"),
        (LabelsFile, "patient_id", "severe"),
        (LabelsFile, "pcr_positive", "severe"),
    ],
)
def test_column_with_two_meanings_is_refused(table: type[CsvTable], key: str, same: str) -> None:
    with pytest.raises(ValidationError, match=f"{key} and {same} name the same column"):
        table.model_validate({"file": "synthetic.csv", key: "x", same: "x"})


def test_events_may_share_a_column() -> None:
    """As where the hospital has one day for intubation or death."""
    assert OutcomeFile(file=Path("synthetic.csv"), intubated="event", died="event").died == "event"
