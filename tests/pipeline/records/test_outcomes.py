"""Reading the outcome file: how rows become outcomes, and which patients get no outcome because it is uncertain."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.refusal import Refusal
from pipeline.records.outcomes import Outcome, OutcomeFile, read_outcomes

TODAY = date(2020, 6, 1)
HEADER = "patient_id,intubated,died,followed_until"
GOOD = [f"P{number},,,2020-05-20" for number in range(10)]


def written(folder: Path, content: str | bytes, **declared: Any) -> OutcomeFile:
    table = OutcomeFile(file=folder / "synthetic-outcomes.csv", **declared)
    table.file.write_bytes(content if isinstance(content, bytes) else content.encode(table.encoding))
    return table


def read(folder: Path, *rows: str, **declared: Any) -> tuple[dict[str, Outcome], list[tuple[str, str]]]:
    """Outcomes, and findings as (code, patient)."""
    outcomes, findings = read_outcomes(written(folder, "".join(f"{row}\n" for row in rows), **declared), today=TODAY)
    return outcomes, [(finding.reason.code, finding.patient_id) for finding in findings]


def test_dates_that_could_be_swapped_are_refused_unless_confirmed(tmp_path: Path) -> None:
    """An export of the United States, read with the day first: no date is unreadable, and all are wrong."""
    days = [f"{month:02}/{day:02}/2020" for month in (1, 2) for day in range(1, 6)]
    rows = [f"{number},,,{day}" for number, day in enumerate(days)]
    for date_format in ("%d/%m/%Y", "%m/%d/%Y"):
        with pytest.raises(Refusal, match="E_EARLY_DAYS"):
            read(tmp_path, HEADER, *rows, date_format=date_format)
        assert len(read(tmp_path, HEADER, *rows, date_format=date_format, may_lack_late_days=True)[0]) == 10
        assert len(read(tmp_path, HEADER, *rows[1:], date_format=date_format)[0]) == 9  # too few to say
    assert len(read(tmp_path, HEADER, *rows, "11,,,01/13/2020", date_format="%m/%d/%Y")[0]) == 11
    dashed = [f"{number},,,2020-01-{number:02}" for number in range(1, 12)]
    assert len(read(tmp_path, HEADER, *dashed)[0]) == 11


def test_each_row_becomes_an_outcome(tmp_path: Path) -> None:
    outcomes, findings = read(
        tmp_path,
        HEADER,
        "001,2020-04-02,2020-04-09,2020-04-09",
        "002,,,2020-05-20",
        "003,2020-04-02,,",
        "004,,,",
    )
    intubated, died, followed = date(2020, 4, 2), date(2020, 4, 9), date(2020, 5, 20)
    assert outcomes == {
        "001": Outcome("001", intubated, died, died),
        "002": Outcome("002", None, None, followed),
        "003": Outcome("003", intubated, None, None),
        "004": Outcome("004", None, None, None),
    }
    assert findings == []


def test_french_file_with_times_and_declared_column_names(tmp_path: Path) -> None:
    outcomes, findings = read(
        tmp_path,
        "décès;IPP;suivi;intubé",
        "09/04/2020 23:10;0042;;02/04/2020 05:00",
        encoding="latin-1",
        separator=";",
        date_format="%d/%m/%Y %H:%M",
        patient_id="IPP",
        intubated="intubé",
        died="décès",
        followed_until="suivi",
    )
    assert outcomes == {"0042": Outcome("0042", date(2020, 4, 2), date(2020, 4, 9), None)}
    assert findings == []


def test_intensive_care_is_read_from_its_declared_column(tmp_path: Path) -> None:
    rows = [f"{HEADER},admitted", "P1,2020-04-03,,,2020-04-02", "P2,,,2020-05-20,", "P3,,2020-04-01,,2020-04-02"]
    outcomes, findings = read(tmp_path, *rows, icu="admitted")
    assert {patient: outcome.icu for patient, outcome in outcomes.items()} == {"P1": date(2020, 4, 2), "P2": None}
    assert findings == [("E_OUTCOME_ORDER", "P3")]
    outcomes, _ = read(tmp_path, *rows)
    assert all(outcome.icu is None for outcome in outcomes.values())
    with pytest.raises(Refusal, match="'icu'"):
        read(tmp_path, *rows, icu="icu")


def test_follow_up_extends_to_the_last_event() -> None:
    early, late = date(2020, 4, 2), date(2020, 4, 9)
    assert Outcome("P", early, late, None).known_until == late
    assert Outcome("P", late, None, early).known_until == late
    assert Outcome("P", None, early, late).known_until == late
    assert Outcome("P", None, None, None).known_until is None
    assert Outcome("P", None, None, early, icu=late).known_until == late


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("P99,02.04.2020,,", "E_DATE"),
        ("P99,,yes,2020-05-20", "E_DATE"),
        ("P99,,,2020-02-30", "E_DATE"),
        ("P99,,,2099-12-31", "E_OUTCOME_DATE"),
        ("P99,2020-06-02,,", "E_OUTCOME_DATE"),
        ("P99,2020-04-10,2020-04-09,", "E_OUTCOME_ORDER"),
    ],
)
def test_impossible_row_leaves_its_patient_without_outcome(tmp_path: Path, row: str, code: str) -> None:
    outcomes, findings = read(tmp_path, HEADER, *GOOD, row, "P99,,,2020-05-20")
    assert outcomes.keys() == {f"P{number}" for number in range(10)}
    assert (code, "P99") in findings
    assert {patient for _, patient in findings} == {"P99"}


@pytest.mark.parametrize(
    "row", ["P99,2020-04-05,2020-04-09,2020-04-09, palliative", "P99,2020-04-05", "P99,,2020-04-09,,,"]
)
def test_row_of_wrong_length_leaves_its_patient_without_outcome(tmp_path: Path, row: str) -> None:
    for rows in ([row, "P99,,,2020-05-20"], ["P99,,,2020-05-20", row]):
        outcomes, findings = read(tmp_path, HEADER, *GOOD, *rows)
        assert outcomes.keys() == {f"P{number}" for number in range(10)}
        assert findings == [("E_ROW", "P99")]


def test_row_that_may_be_of_two_patients_leaves_both_without_outcome(tmp_path: Path) -> None:
    header, good = "ward,patient_id,intubated,died,followed_until", [f"A,{row}" for row in GOOD]
    outcomes, findings = read(tmp_path, header, *good, "A, P1,P2,2020-04-05,,2020-05-20")
    assert outcomes.keys() == {f"P{number}" for number in (0, *range(3, 10))}
    assert findings == [("E_ROW", ""), ("W_UNREAD_RECORD", "P1"), ("W_UNREAD_RECORD", "P2")]


def test_event_today_and_death_on_the_day_of_intubation_are_accepted(tmp_path: Path) -> None:
    outcomes, findings = read(tmp_path, HEADER, "P1,,,2020-06-01", "P2,2020-04-09,2020-04-09,2020-04-01")
    assert outcomes.keys() == {"P1", "P2"}
    assert findings == []


def test_contradictory_rows_are_a_conflict_and_equal_rows_are_one_outcome(tmp_path: Path) -> None:
    outcomes, findings = read(
        tmp_path, HEADER, "P1,2020-04-02,,", "P2,,,2020-05-20", "P1,2020-04-03,,", "P2,,,2020-05-20"
    )
    assert outcomes.keys() == {"P2"}
    assert findings == [("E_OUTCOME_CONFLICT", "P1")]


def test_row_without_patient_is_skipped(tmp_path: Path) -> None:
    outcomes, findings = read(tmp_path, HEADER, *GOOD, ",2020-04-02,,")
    assert len(outcomes) == len(GOOD)
    assert findings == [("E_NO_IDENTIFIER", "")]


def test_file_with_many_unreadable_dates_is_refused(tmp_path: Path) -> None:
    table = written(tmp_path, "\n".join([HEADER, *GOOD[:7], "P98,-,,", "P99,-,,"]))
    with pytest.raises(Refusal) as caught:
        read_outcomes(table, today=TODAY)
    assert caught.value.code == "E_DATES"
    assert "22 %" in caught.value.says
    assert "outcome" in caught.value.says


@pytest.mark.parametrize("column", HEADER.split(","))
def test_each_column_must_occur_exactly_once(tmp_path: Path, column: str) -> None:
    for header in (HEADER.replace(column, "other"), f"{HEADER},{column}"):
        with pytest.raises(Refusal) as caught:
            read_outcomes(written(tmp_path, header))
        assert caught.value.code == "E_SCHEMA"
        assert repr(column) in caught.value.says


def test_unknown_key_of_the_declaration_is_refused() -> None:
    with pytest.raises(ValidationError):
        OutcomeFile.model_validate({"file": "synthetic-outcomes.csv", "death": "died"})


@settings(max_examples=200, deadline=None)
@given(
    content=st.binary() | st.text(alphabet="P1,-02\n\r\t\"'é\0").map(str.encode),
    encoding=st.sampled_from(["utf-8-sig", "latin-1", "utf-16"]),
)
def test_arbitrary_bytes_give_outcomes_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, encoding: str
) -> None:
    header = f"{HEADER}\n".encode(encoding)
    table = written(tmp_path_factory.getbasetemp(), header + content, encoding=encoding)
    try:
        outcomes, _ = read_outcomes(table, today=TODAY)
    except Refusal as refusal:
        assert refusal.code in {"E_ENCODING", "E_FILE_CUT", "E_SCHEMA", "E_ROWS", "E_IDENTIFIERS", "E_DATES"}
    else:
        assert all(patient_id == outcome.patient_id for patient_id, outcome in outcomes.items())


DAY = st.sampled_from(["", "2020-04-02", "2020-04-09", "2099-01-01", "never"])


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.builds("{},{},{},{}".format, st.sampled_from(["A", "B", ""]), DAY, DAY, DAY), max_size=6),
    data=st.data(),
)
def test_order_of_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()

    def met(rows: list[str]) -> tuple[dict[str, Outcome], list[tuple[str, str]]] | str:
        try:
            outcomes, findings = read(folder, HEADER, *GOOD, *rows)
        except Refusal as refusal:
            return refusal.code
        return outcomes, sorted(findings)

    assert met(rows) == met(data.draw(st.permutations(rows)))
