"""Reading the labels file of a data set as declared. All rows are synthetic."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import configs
from models.refusal import Refusal
from pipeline.records.labels import Label, LabelsFile, read_labels
from pipeline.site.folder import SiteSettings

HEADER = "patient_id,pcr_positive,severe"
GOOD = [f"P{number},1,0" for number in range(10)]


def written(folder: Path, content: str | bytes, **declared: Any) -> LabelsFile:
    table = LabelsFile(file=folder / "synthetic-labels.csv", **declared)
    table.file.write_bytes(content if isinstance(content, bytes) else content.encode(table.encoding))
    return table


def read(folder: Path, *rows: str, **declared: Any) -> tuple[dict[str, Label], list[tuple[str, str]]]:
    """Labels, and findings as (code, patient)."""
    labels, findings = read_labels(written(folder, "".join(f"{row}\n" for row in rows), **declared))
    return labels, [(finding.reason.code, finding.patient_id) for finding in findings]


def test_each_row_becomes_a_label_and_empty_cells_are_unknown(tmp_path: Path) -> None:
    labels, findings = read(tmp_path, HEADER, "001,1,0", "002,1,", "003,,1", "004,0,")
    assert labels == {
        "001": Label(True, False),
        "002": Label(True, None),
        "003": Label(None, True),
        "004": Label(False, None),
    }
    assert findings == []


def test_row_without_any_label_is_ignored(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER, "001,,") == ({}, [])


def test_file_with_declared_column_names_encoding_and_separator(tmp_path: Path) -> None:
    labels, findings = read(
        tmp_path,
        "grave;IPP;âge;sexe;covid",
        "0;0042;63,5;F;1",
        "1;0043;63.5;M;1",
        "1;0044;-1;X;1",
        encoding="latin-1",
        separator=";",
        patient_id="IPP",
        pcr_positive="covid",
        severe="grave",
        age_years="âge",
        sex="sexe",
    )
    assert labels == {
        "0042": Label(True, False, None, "F"),  # a comma is not a decimal point; the age stays unknown
        "0043": Label(True, True, 63.5, "M"),
        "0044": Label(True, True),
    }
    assert findings == []


@pytest.mark.parametrize("row", ["P99,2,0", "P99,1,yes", "P99,1.0,0", "P99,1,-1", "P99,TRUE,0"])
def test_values_other_than_0_and_1_leave_the_patient_without_labels(tmp_path: Path, row: str) -> None:
    labels, findings = read(tmp_path, HEADER, *GOOD, row, "P99,1,1")
    assert labels.keys() == {f"P{number}" for number in range(10)}
    assert findings == [("E_LABEL", "P99")]


@pytest.mark.parametrize("row", ["P99,1,1,died, in ICU", "P99,1"])
def test_row_of_wrong_length_leaves_the_patient_without_labels(tmp_path: Path, row: str) -> None:
    labels, findings = read(tmp_path, HEADER, *GOOD, row, "P99,0,0")
    assert labels.keys() == {f"P{number}" for number in range(10)}
    assert findings == [("E_ROW", "P99")]


def test_contradictory_rows_are_a_conflict_and_equal_rows_are_one_label(tmp_path: Path) -> None:
    labels, findings = read(tmp_path, HEADER, "P1,1,0", "P2,1,0", "P1,1,1", "P2,1,0")
    assert labels == {"P2": Label(True, False)}
    assert findings == [("E_LABEL_CONFLICT", "P1")]


def test_file_with_many_invalid_labels_is_refused(tmp_path: Path) -> None:
    table = written(tmp_path, "\n".join([HEADER, *GOOD[:7], "P98,severe,1", "P99,mild,1"]))
    with pytest.raises(Refusal) as caught:
        read_labels(table)
    assert caught.value.code == "E_LABELS"
    assert "22 % of the labels file" in caught.value.says


@pytest.mark.parametrize("column", [*HEADER.split(","), "age", "sex"])
def test_each_declared_column_must_occur_exactly_once(tmp_path: Path, column: str) -> None:
    whole = f"{HEADER},age,sex"
    for header in (whole.replace(column, "other"), f"{whole},{column}"):
        with pytest.raises(Refusal) as caught:
            read_labels(written(tmp_path, header, age_years="age", sex="sex"))
        assert caught.value.code == "E_SCHEMA"
        assert repr(column) in caught.value.says


def test_labels_file_accepts_no_date_format() -> None:
    with pytest.raises(ValidationError):
        LabelsFile.model_validate({"file": "synthetic-labels.csv", "date_format": "%Y-%m-%d"})


def test_labels_and_records_are_mutually_exclusive() -> None:
    site, labels = {"name": "ward"}, {"file": "labels.csv"}
    records = {"laboratory": {"file": "pcr.csv"}, "outcomes": {"file": "outcomes.csv"}}
    assert SiteSettings.model_validate({"site": site, "labels": labels}).labels == LabelsFile(file=Path("labels.csv"))
    for wrong in ({"site": site, "labels": labels, **records}, {"site": site}):
        with pytest.raises(ValidationError):
            SiteSettings.model_validate(wrong)


def test_the_site_template_shows_the_defaults() -> None:
    import tomllib

    text = Path(configs.__file__).with_name("site.toml").read_text()
    start = text.index("# [labels]\n")
    block = text[start : text.index("\n\n", start)]
    table = tomllib.loads("\n".join(line.removeprefix("# ") for line in block.splitlines()))["labels"]
    assert LabelsFile.model_validate(table) == LabelsFile(file=Path("labels.csv"))
    assert table.keys() == LabelsFile.model_fields.keys()


@settings(max_examples=150, deadline=None)
@given(
    content=st.binary() | st.text(alphabet="P1,-0\n\r\t\"'é\0").map(str.encode),
    encoding=st.sampled_from(["utf-8-sig", "latin-1", "utf-16"]),
)
def test_arbitrary_bytes_give_labels_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, encoding: str
) -> None:
    table = written(tmp_path_factory.getbasetemp(), f"{HEADER}\n".encode(encoding) + content, encoding=encoding)
    try:
        labels, _ = read_labels(table)
    except Refusal as refusal:
        assert refusal.code in {"E_ENCODING", "E_FILE_CUT", "E_SCHEMA", "E_ROWS", "E_IDENTIFIERS", "E_LABELS"}
    else:
        assert all({label.pcr_positive, label.severe} != {None} for label in labels.values())
