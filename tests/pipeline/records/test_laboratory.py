"""The laboratory's CSV file: formats of three hospitals, each kind of invalid row, and files that are not tables."""

import os
import unicodedata
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from models.refusal import Refusal
from pipeline.records.join import JoinRules, label_pcr
from pipeline.records.laboratory import CsvLaboratory, FhirLaboratory, Hl7Laboratory, Laboratory, PcrResult, read_pcr

TODAY = date(2020, 5, 1)
HEADER = "patient_id,collected,result"
GOOD = [f"P{number},2020-04-01T08:30,NEGATIVE" for number in range(10)]
ENGLISH: dict[str, Any] = {"encoding": "utf-8"}
FRENCH: dict[str, Any] = {
    "encoding": "latin-1",
    "separator": ";",
    "date_format": "%d/%m/%Y %H:%M",
    "positive": ["Positif"],
    "negative": ["Négatif"],
    "indeterminate": ["Indéterminé"],
}
GERMAN: dict[str, Any] = {
    "separator": "\t",
    "date_format": "%d.%m.%Y %H:%M",
    "positive": ["positiv", "nachgewiesen"],
    "negative": ["negativ", "nicht nachgewiesen"],
    "indeterminate": ["grenzwertig"],
}


def written(folder: Path, content: str | bytes, **declared: Any) -> CsvLaboratory:
    table = CsvLaboratory(file=folder / "synthetic-pcr.csv", **declared)
    table.file.write_bytes(content if isinstance(content, bytes) else content.encode(table.encoding))
    return table


def read(folder: Path, *rows: str, **declared: Any) -> tuple[list[PcrResult], list[tuple[str, str, str]]]:
    """Results, and findings as (code, patient, detail)."""
    results, findings = read_pcr(written(folder, "".join(f"{row}\n" for row in rows), **declared), today=TODAY)
    return results, [(finding.reason.code, finding.patient_id, finding.detail) for finding in findings]


def refused(folder: Path, content: str | bytes, **declared: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_pcr(written(folder, content, **declared), today=TODAY)
    return caught.value


@pytest.mark.parametrize(
    ("declared", "separator", "collected", "words"),
    [
        (ENGLISH, ",", "2020-03-09T07:05", ("POSITIVE", "NEGATIVE", "INDETERMINATE")),
        (ENGLISH, ",", "2020-03-09T07:05", ("260373001", "260415000", "419984006")),
        (FRENCH, ";", "09/03/2020 07:05", ("Positif", "Négatif", "Indéterminé")),
        (GERMAN, "\t", "09.03.2020 07:05", ("positiv", "negativ", "grenzwertig")),
        (GERMAN, "\t", "09.03.2020 07:05", ("nachgewiesen", "nicht nachgewiesen", "grenzwertig")),
    ],
)
def test_same_results_are_read_from_the_files_of_three_hospitals(
    tmp_path: Path, declared: dict[str, Any], separator: str, collected: str, words: tuple[str, str, str]
) -> None:
    rows = [HEADER, *(f"007,{collected},{word}" for word in words)]
    results, findings = read(tmp_path, *(row.replace(",", separator) for row in rows), **declared)
    assert results == [PcrResult("007", datetime(2020, 3, 9, 7, 5), meaning) for meaning in (True, False, None)]
    assert findings == []


def test_declared_columns_are_found_in_any_order_among_other_columns(tmp_path: Path) -> None:
    results, findings = read(
        tmp_path,
        "Ergebnis,Bemerkung, Entnahme ,PID",
        ' positive ,"found, at last",2020-04-01T08:30, 0042 ',
        collected="Entnahme",
        result="Ergebnis",
        patient_id="PID",
    )
    assert results == [PcrResult("0042", datetime(2020, 4, 1, 8, 30), True)]
    assert findings == []


@pytest.mark.parametrize("word", ["RNA non presente", "not positive", "positive?", "post", "not  detected", ""])
def test_result_text_outside_the_word_lists_is_reported_and_not_guessed(tmp_path: Path, word: str) -> None:
    results, findings = read(tmp_path, HEADER, *GOOD, f"P99,2020-04-01T08:30,{word}")
    assert len(results) == len(GOOD)
    assert findings == [("W_PCR_UNMAPPED", "P99", word)]


def test_case_and_unicode_form_of_accents_do_not_matter(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "Négatif")
    results, findings = read(
        tmp_path, HEADER, "P1,2020-04-01T08:30,NÉGATIF", negative=[decomposed], positive=["Positif"]
    )
    assert [result.positive for result in results] == [False]
    assert findings == []


def test_file_with_more_than_a_fifth_of_unmapped_rows_is_refused(tmp_path: Path) -> None:
    odd = ["P99,2020-04-01T08:30,presumptive", "P99,2020-04-01T08:31,presumptive"]
    results, findings = read(tmp_path, HEADER, *GOOD[:8], *odd)  # exactly a fifth
    assert (len(results), len(findings)) == (8, 2)
    refusal = refused(tmp_path, "\n".join([HEADER, *GOOD[:7], *odd]))
    assert refusal.code == "E_PCR_UNMAPPED"
    assert "22 %" in refusal.says
    assert "presumptive" in refusal.private
    assert "presumptive" not in str(refusal)


def test_file_in_the_wrong_encoding_is_refused(tmp_path: Path) -> None:
    content = "patient_id;collected;result\nP1;01/04/2020 08:30;Négatif"
    assert refused(tmp_path, content.encode("utf-8"), **FRENCH).code == "E_PCR_UNMAPPED"
    assert refused(tmp_path, content.encode("latin-1"), **(FRENCH | {"encoding": "utf-8"})).code == "E_ENCODING"


@pytest.mark.parametrize("text", ["01.04.2020 08:30", "2020-04-31T08:30", "2020-04-01", "soon", ""])
def test_row_with_an_unreadable_time_is_skipped(tmp_path: Path, text: str) -> None:
    results, findings = read(tmp_path, HEADER, *GOOD, f"P99,{text},POSITIVE")
    assert len(results) == len(GOOD)
    assert findings == [("E_DATE", "P99", text)]


def test_file_with_swapped_day_and_month_is_refused(tmp_path: Path) -> None:
    rows = [f"P{day},{day:02}/04/2020 08:30,POSITIVE" for day in range(1, 31)]  # 18 of 30 days exceed 12
    refusal = refused(tmp_path, "\n".join([HEADER, *rows]), date_format="%m/%d/%Y %H:%M")
    assert refusal.code == "E_DATES"
    assert "60 %" in refusal.says
    assert "/04/2020" not in str(refusal)


def test_dates_that_could_be_swapped_are_refused_unless_confirmed(tmp_path: Path) -> None:
    rows = [f"P{day},{day:02}/04/2020 08:30,POSITIVE" for day in range(1, 12)]
    refusal = refused(tmp_path, "\n".join([HEADER, *rows]), date_format="%d/%m/%Y %H:%M")
    assert (refusal.code, refusal.numbers["days"]) == ("E_EARLY_DAYS", 11)
    results, findings = read(tmp_path, HEADER, *rows, date_format="%d/%m/%Y %H:%M", may_lack_late_days=True)
    assert (len(results), findings) == (11, [])


def test_specimen_with_a_future_date_is_skipped(tmp_path: Path) -> None:
    rows = ["P1,2020-05-01T23:59,POSITIVE", "P2,2020-05-02T00:00,POSITIVE"]
    results, findings = read(tmp_path, HEADER, *rows)
    assert [result.patient_id for result in results] == ["P1"]
    assert findings == [("E_PCR_DATE", "P2", "2020-05-02T00:00")]


def test_row_without_patient_is_skipped(tmp_path: Path) -> None:
    results, findings = read(tmp_path, HEADER, *GOOD, " ,2020-04-01T08:30,POSITIVE")
    assert len(results) == len(GOOD)
    assert findings == [("E_NO_IDENTIFIER", "", "line 12")]
    assert refused(tmp_path, "\n".join([HEADER, GOOD[0], " ,2020-04-01T08:30,POSITIVE"])).code == "E_IDENTIFIERS"


def test_patient_identifiers_are_not_normalised(tmp_path: Path) -> None:
    patients = ["7", "07", "007", "A7", "a7"]
    results, _ = read(tmp_path, HEADER, *(f"{patient},2020-04-01T08:30,POSITIVE" for patient in patients))
    assert [result.patient_id for result in results] == patients


def test_equal_rows_are_one_result_and_blank_rows_are_ignored(tmp_path: Path) -> None:
    results, findings = read(tmp_path, HEADER, GOOD[0], "", ",,", " , , ", GOOD[0], GOOD[1], "")
    assert [result.patient_id for result in results] == ["P0", "P1"]
    assert findings == []


def test_file_with_a_header_only_has_no_results(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER) == ([], [])


def test_row_of_wrong_length_is_skipped_and_many_such_rows_refuse_the_file(tmp_path: Path) -> None:
    shifted = "P99,2020-04-01T08:30,see note, POSITIVE"
    results, findings = read(tmp_path, HEADER, *GOOD, shifted, "P98,2020-04-01T08:30")
    assert len(results) == len(GOOD)
    assert findings == [("E_ROW", "P99", "line 12"), ("E_ROW", "P98", "line 13")]
    assert refused(tmp_path, "\n".join([HEADER, *GOOD[:3], shifted])).code == "E_ROWS"


@pytest.mark.parametrize(
    ("header", "row", "owners"),
    [
        ("patient_id,collected,result,note", "P1,2020-04-02T08:30,POSITIVE,repeat, confirmed", "P1"),
        ("patient_id,collected,result,note", "P1,2020-04-02T08:30,POSITIVE", "P1"),
        ("patient_id,collected,result,note", "P1,P2,2020-04-02T08:30,POSITIVE,", "P1"),
        ("patient_id,collected,result,note", ",P1,2020-04-02T08:30,POSITIVE,", "P1"),  # one cell too many before it
        ("patient_id,collected,result,note", "2020-04-02T08:30,POSITIVE,", "2020-04-02T08:30"),  # nobody's
        ("patient_id,collected,result,note", ",,2020-04-02T08:30,POSITIVE,", ""),
        ("collected,result,note,patient_id", "2020-04-02T08:30,POSITIVE,repeat, confirmed,P1", "P1"),
        ("collected,result,note,patient_id", "2020-04-02T08:30,POSITIVE,P1", "P1"),
        ("collected,patient_id,result,note", "2020-04-02T08:30,P1,POSITIVE,repeat, confirmed, again", "P1"),
        ("note,patient_id,collected,result", "repeat, confirmed, again,P1,2020-04-02T08:30,POSITIVE", "P1"),
        ("note,patient_id,collected,result", "P1,2020-04-02T08:30,POSITIVE", "P1"),
        ("note,patient_id,collected,result", "see ,P2,P1,2020-04-02T08:30,POSITIVE", "P1 P2"),
        ("note,patient_id,collected,result", "P2,P1,2020-04-02T08:30", "P1 P2"),
        ("note,patient_id,collected,result", "a,b,2020-04-02T08:30,POSITIVE,P1", ""),  # cannot be the identifier's cell
        ("note,patient_id,collected,result", "repeat, confirmed,P99,2020-04-02T08:30,POSITIVE", ""),  # has no other row
    ],
)
def test_row_of_wrong_length_names_its_patient(tmp_path: Path, header: str, row: str, owners: str) -> None:
    """Only the cells in which the identifier can be are looked at; several of them may be patients."""
    cells = {"collected": "2020-04-01T08:30", "result": "NEGATIVE", "note": ""}
    good = [",".join((cells | {"patient_id": f"P{n}"})[column] for column in header.split(",")) for n in range(10)]
    results, findings = read(tmp_path, header, *good, row)
    assert len(results) == len(good)
    found = owners.split()
    several = [("W_UNREAD_RECORD", each, "line 12") for each in found]
    assert findings == ([("E_ROW", owners, "line 12")] if len(found) == 1 else [("E_ROW", "", "line 12"), *several])


def test_row_that_may_be_of_several_patients_counts_once(tmp_path: Path) -> None:
    header, good = "note,patient_id,collected,result", [f",P{n},2020-04-01T08:30,NEGATIVE" for n in range(8)]
    torn = "see ,P2,P1,2020-04-02T08:30,POSITIVE"
    assert len(read(tmp_path, header, *good, torn, torn)[0]) == len(good)  # 2 of 10 are 20 %
    refusal = refused(tmp_path, "\n".join([header, *good, torn, torn, torn]))
    assert (refusal.code, refusal.numbers["percent"]) == ("E_ROWS", 27)
    assert "P1" not in str(refusal)


@pytest.mark.parametrize(
    ("content", "column"),
    [
        ("", "patient_id"),
        ("\n\n", "patient_id"),
        ("P1,2020-04-01T08:30,POSITIVE", "patient_id"),
        ("patient_id,collected", "result"),
        ("patient_id,collected,result,result", "result"),
        ("patient_id;collected;result", "patient_id"),
        ("Patient_ID,collected,result", "patient_id"),
    ],
)
def test_file_with_a_missing_or_repeated_column_is_refused(tmp_path: Path, content: str, column: str) -> None:
    refusal = refused(tmp_path, content)
    assert refusal.code == "E_SCHEMA"
    assert repr(column) in refusal.says
    assert "P1" not in str(refusal)


@pytest.mark.parametrize(
    "row",
    [
        'P1,2020-04-01T08:30,"POSITIVE',
        'P1,2020-04-01T08:30,"POSITIVE"!',
        f"P1,2020-04-01T08:30,{'x' * 200_000}",
    ],
    ids=["open quote", "text after quote", "huge cell"],
)
def test_broken_csv_is_refused(tmp_path: Path, row: str) -> None:
    assert refused(tmp_path, f"{HEADER}\n{row}\n{GOOD[0]}").code == "E_SCHEMA"


def test_missing_file_is_refused_without_its_path(tmp_path: Path) -> None:
    table = CsvLaboratory(file=tmp_path / "nobody-knows.csv")
    with pytest.raises(Refusal) as caught:
        read_pcr(table)
    assert caught.value.code == "E_TABLE_FILE"
    assert "nobody-knows" not in str(caught.value)
    assert "nobody-knows" in caught.value.private


@pytest.mark.parametrize(
    "declared",
    [
        {"encoding": "utf-9"},
        {"encoding": "rot13"},
        {"separator": ""},
        {"separator": ";;"},
        {"separator": '"'},
        {"date_format": "%d/%m"},
        {"date_format": "%d/%m/%Y %d"},
        {"date_format": "%Y-%m-%dT%H:%M%z"},
        {"positive": ["detected"], "negative": ["DETECTED "]},
        {"indeterminate": [" "]},
        {"colected": "collected"},
    ],
)
def test_invalid_csv_declaration_is_refused_before_any_file_is_read(
    declared: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError):
        CsvLaboratory(file=Path("synthetic-pcr.csv"), **declared)


def test_finding_detail_is_truncated(tmp_path: Path) -> None:
    _, findings = read(tmp_path, HEADER, *GOOD, f"P99,2020-04-01T08:30,{'x' * 5000}")
    assert len(findings[0][2]) <= 100


LIS = "patient_id,collected,test,result,state"
LIS_COLUMNS: dict[str, Any] = {"test": "test", "status": "state", "tests": ["COVPCR"]}


def test_export_with_several_rows_per_specimen_is_read_by_test_and_status(tmp_path: Path) -> None:
    """Single genes are not used, other tests are counted, and preliminary results are not used."""
    when = "2020-04-01T08:30"
    results, findings = read(
        tmp_path,
        LIS,
        f"P1,{when},COVPCR,POSITIVE,F",
        f"P1,{when},94533-7,NEGATIVE,F",
        f"P1,{when},INFA,NEGATIVE,F",
        f"P2,{when},94500-6,NEGATIVE,final",
        f"P2,{when},INFA,POSITIVE,F",
        f"P3,{when},covpcr,POSITIVE,P",
        f"P4,{when},94534-5,POSITIVE,F",
        f"P5,{when},94745-7,31.5,F",
        **LIS_COLUMNS,
    )
    assert [(result.patient_id, result.positive) for result in results] == [("P1", True), ("P2", False)]
    assert findings == [
        ("W_PCR_PRELIMINARY", "P3", ""),
        ("W_PCR_GENES_ONLY", "P4", "2020-04-01 08:30:00"),
        ("W_OTHER_TEST", "", "INFA: 2"),
    ]


@pytest.mark.parametrize("status", ["cancelled", "Entered in error", "withdrawn", "W", "X"])
@pytest.mark.parametrize("result", ["POSITIVE", "NEGATIVE", ""])
def test_withdrawn_row_withdraws_the_results_of_its_specimen(tmp_path: Path, status: str, result: str) -> None:
    """The file does not tell whether it is a later version of the final row, or another test of the specimen."""
    when = "2020-04-01T08:30"
    rows = [f"P1,{when},COVPCR,POSITIVE,F", f"P1,{when},COVPCR,{result},{status}"]
    for ordered in (rows, rows[::-1]):
        results, findings = read(tmp_path, LIS, *ordered, f"P2,{when},COVPCR,POSITIVE,F", **LIS_COLUMNS)
        assert [(each.patient_id, each.positive) for each in results] == [("P2", True)]
        assert sorted(findings) == [("W_PCR_PRELIMINARY", "P1", ""), ("W_PCR_WITHDRAWN", "P1", "")]


@pytest.mark.parametrize(
    "other",
    [
        "P1,2020-04-01T08:30,COVPCR,POSITIVE,pending",
        "P1,2020-04-01T08:30,COVPCR,POSITIVE,preliminary",
        "P1,2020-04-01T08:31,COVPCR,POSITIVE,cancelled",  # another specimen
        "P1,,COVPCR,,cancelled",  # nothing was taken
        "P1,2020-04-01T08:30,94533-7,POSITIVE,cancelled",  # a single gene
        "P1,2020-04-01T08:30,INFA,POSITIVE,cancelled",
        "P9,2020-04-01T08:30,COVPCR,POSITIVE,cancelled",
    ],
)
def test_other_row_that_is_not_final_leaves_a_positive_result(tmp_path: Path, other: str) -> None:
    results, _ = read(tmp_path, LIS, "P1,2020-04-01T08:30,COVPCR,POSITIVE,F", other, **LIS_COLUMNS)
    assert [(each.patient_id, each.positive) for each in results] == [("P1", True)]


def test_words_for_withdrawn_results_are_configurable(tmp_path: Path) -> None:
    rows = [f"P1,2020-04-01T08:30,COVPCR,POSITIVE,{status}" for status in ("F", "storniert", "X")]
    assert read(tmp_path, LIS, *rows[:2], **LIS_COLUMNS)[0]
    assert not read(tmp_path, LIS, *rows[:2], withdrawn=["Storniert"], **LIS_COLUMNS)[0]
    assert len(read(tmp_path, LIS, *rows[::2], final=["F", "X"], **LIS_COLUMNS)[0]) == 1  # `final` has priority


def test_export_without_a_pcr_row_is_refused_with_its_test_codes(tmp_path: Path) -> None:
    refusal = refused(tmp_path, f"{LIS}\nP1,2020-04-01T08:30,SARS2,POSITIVE,F", **LIS_COLUMNS)
    assert refusal.code == "E_NO_PCR_TEST"
    assert refusal.private == "SARS2: 1"
    assert "SARS2" not in str(refusal)


def test_maximum_share_of_unmapped_results_is_configurable(tmp_path: Path) -> None:
    rows = [*GOOD, "P99,2020-04-01T08:30,see comment"]
    assert len(read(tmp_path, HEADER, *rows, max_unmapped_percent=10)[0]) == 10  # 1 of 11 is 9 %
    assert refused(tmp_path, "\n".join([HEADER, *rows]), max_unmapped_percent=9).code == "E_PCR_UNMAPPED"
    assert refused(tmp_path, "\n".join([HEADER, *rows]), max_unmapped_percent=0).code == "E_PCR_UNMAPPED"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "latin-1", "cp1252"])
def test_declared_encoding_is_decoded_and_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    content = f"{HEADER}\nP1,2020-04-01T08:30,Négatif".encode(encoding)
    declared: dict[str, Any] = {"negative": ["Négatif"], "positive": ["Positif"]}
    results, findings = read_pcr(written(tmp_path, content, encoding=encoding, **declared), today=TODAY)
    assert [result.positive for result in results] == [False]
    assert findings == []
    others = {"utf-16", "utf-8-sig", "latin-1"} - {encoding, "latin-1" if encoding == "cp1252" else ""}
    for other in others:
        assert refused(tmp_path, content, encoding=other, **declared).code in {
            "E_ENCODING", "E_SCHEMA", "E_PCR_UNMAPPED"
        }  # fmt: skip


def test_nul_byte_in_a_result_is_unmapped(tmp_path: Path) -> None:
    results, findings = read(tmp_path, HEADER, *GOOD, "P99,2020-04-01T08:30,POS\0ITIVE")
    assert len(results) == len(GOOD)
    assert findings == [("W_PCR_UNMAPPED", "P99", "POS\N{REPLACEMENT CHARACTER}ITIVE")]


def test_file_with_a_cell_of_ten_megabytes_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, f"{HEADER}\nP1,2020-04-01T08:30,{'x' * 10_000_000}").code == "E_SCHEMA"


@pytest.mark.parametrize("cell", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "' OR 1=1", "{{7*7}}", "<img onerror>"])
def test_formulas_and_scripts_are_read_as_text(tmp_path: Path, cell: str) -> None:
    results, findings = read(
        tmp_path, HEADER, *GOOD, f'"{cell}",2020-04-01T08:30,POSITIVE', f'P,2020-04-01T08:30,"{cell}"'
    )
    assert results[-1].patient_id == cell
    assert findings == [("W_PCR_UNMAPPED", "P", cell)]


@pytest.mark.parametrize("steering", ["\x1b[2J", "\x1b]0;x\x07", "\u202e", "\x08", "\u2028"])
def test_finding_detail_contains_no_control_characters(tmp_path: Path, steering: str) -> None:
    _, findings = read(tmp_path, HEADER, *GOOD, f"P99,2020-04-01T08:30,{steering}POSITIVE?")
    ((code, patient, detail),) = findings
    assert (code, patient) == ("W_PCR_UNMAPPED", "P99")
    assert detail.isprintable()
    assert "POSITIVE?" in detail


@pytest.mark.parametrize(
    "text", ["01/04/20 08:30", "04/13/2020 08:30", "31/06/2020 08:30", "29/02/2021 08:30", "01/04/2020 08:30+02:00"]
)
def test_date_in_another_format_is_not_guessed(tmp_path: Path, text: str) -> None:
    """Two-digit years, month before day, non-existing days, times with a UTC offset."""
    good = [f"P{number};01/04/2020 08:30;Négatif" for number in range(10)]
    results, findings = read(tmp_path, HEADER.replace(",", ";"), *good, f"P99;{text};Positif", **FRENCH)
    assert len(results) == len(good)
    assert findings == [("E_DATE", "P99", text)]


def test_local_time_skipped_or_repeated_by_a_clock_change_is_kept(tmp_path: Path) -> None:
    """Central European clocks changed from 02:00 to 03:00 on 29 March 2020, and back on 27 October 2019."""
    rows = ["P1,2020-03-29T02:30,POSITIVE", "P2,2019-10-27T02:30,NEGATIVE"]
    table = written(tmp_path, "\n".join([HEADER, *rows]))
    results, findings = read_pcr(table, today=TODAY, time_zone="Europe/Paris")
    assert [result.collected for result in results] == [datetime(2020, 3, 29, 2, 30), datetime(2019, 10, 27, 2, 30)]
    assert findings == []


def test_named_pipe_is_refused(tmp_path: Path) -> None:
    """Reading from a pipe would block without end."""
    os.mkfifo(tmp_path / "pipe")
    for table in (CsvLaboratory(file=tmp_path / "pipe"), Hl7Laboratory(format="hl7", file=tmp_path / "pipe")):
        with pytest.raises(Refusal) as caught:
            read_pcr(table)
        assert caught.value.code == "E_TABLE_FILE"


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"file": "a.csv"}, CsvLaboratory),
        ({"file": "a.csv", "format": "csv"}, CsvLaboratory),
        ({"file": "messages", "format": "hl7"}, Hl7Laboratory),
        ({"file": "bundles", "format": "fhir"}, FhirLaboratory),
    ],
)
def test_format_selects_the_settings_class(given: dict[str, Any], kind: type) -> None:
    assert isinstance(TypeAdapter(Laboratory).validate_python(given), kind)


@pytest.mark.parametrize(
    "given",
    [
        {"file": "a.xml", "format": "xml"},
        {"file": "a", "format": ["csv"]},
        {"file": "a", "format": "hl7", "separator": ";"},
        {"file": "a", "format": "fhir", "encoding": "latin-1"},
        {"file": "a", "format": "hl7", "encoding": "utf-9"},
        {"file": "a", "format": "hl7", "positive": ["x"], "negative": ["X"]},
        {"file": "a", "max_unmapped_percent": 101},
        {"format": "hl7"},
        "laboratory.csv",
    ],
)
def test_invalid_laboratory_settings_are_refused(given: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Laboratory).validate_python(given)


def test_error_for_an_unknown_format_lists_the_known_formats() -> None:
    with pytest.raises(ValidationError, match='"csv", "hl7" or "fhir"'):
        TypeAdapter(Laboratory).validate_python({"file": "a.xml", "format": "xml"})


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        (["007,2020-04-01T08:30,POSITIVE"], "E_NO_PCR"),  # the scan's patient is 0007
        (["P0007,2020-04-01T08:30,POSITIVE"], "E_NO_PCR"),
        (["0007,2020-03-01T08:30,POSITIVE"], "E_PCR_WINDOW"),
        (["0007,2020-04-09T08:30,NEGATIVE"], "E_PCR_WINDOW"),
        (["0007,2099-04-01T08:30,POSITIVE"], "E_NO_PCR"),
        (["0007,,POSITIVE"], "E_NO_PCR"),
        (["0007,2020-04-01T08:30,POSITIVE", "0007,2020-04-01T08:30,NEGATIVE"], "E_PCR_CONFLICT"),
        (["0007,2020-04-01T08:30,indeterminate"], "E_PCR_INDETERMINATE"),
        (["0007,2020-04-01T08:30,4711"], "E_NO_PCR"),
    ],
)
def test_scan_with_undecided_results_gets_no_label(tmp_path: Path, rows: list[str], code: str) -> None:
    results, _ = read(tmp_path, HEADER, *GOOD, *rows)
    label = label_pcr([each for each in results if each.patient_id == "0007"], datetime(2020, 4, 1, 12), JoinRules())
    assert label.positive is None
    assert label.reason is not None
    assert label.reason.code == code


# Random bytes are rarely a table, so pieces of a valid table are mixed in.
PIECES = st.sampled_from(
    [
        HEADER.encode(),
        *(row.encode() for row in GOOD[:2]),
        b"\n",
        b"\r",
        b",",
        b'"',
        b"\0",
        b"\xff\xfe",
        b"P1",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    content=st.one_of(st.binary(), st.lists(PIECES | st.binary(max_size=4)).map(b"".join)),
    with_header=st.booleans(),
    encoding=st.sampled_from(["utf-8-sig", "utf-8", "latin-1", "cp1252", "utf-16"]),
)
def test_arbitrary_bytes_give_results_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, with_header: bool, encoding: str
) -> None:
    header = f"{HEADER}\n".encode(encoding) if with_header else b""
    table = written(tmp_path_factory.getbasetemp(), header + content, encoding=encoding)
    try:
        results, findings = read_pcr(table, today=TODAY)
    except Refusal as refusal:
        assert refusal.code in {
            "E_ENCODING", "E_FILE_CUT", "E_SCHEMA", "E_ROWS", "E_IDENTIFIERS", "E_DATES", "E_PCR_UNMAPPED"
        }  # fmt: skip
    else:
        assert all(result.patient_id and result.collected.date() <= TODAY for result in results)
        assert all(finding.reason.code[:2] in {"E_", "W_"} for finding in findings)


ROWS = st.lists(
    st.builds(
        "{},2020-04-{:02}T08:30,{}".format,
        st.sampled_from(["P1", "P2", ""]),
        st.integers(1, 40),
        st.sampled_from(["POSITIVE", "NEGATIVE", "INDETERMINATE", "maybe"]),
    ),
    max_size=8,
)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, data=st.data())
def test_order_of_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()

    def met(rows: list[str]) -> tuple[set[PcrResult], list[tuple[str, str]]] | str:
        try:
            results, findings = read(folder, HEADER, *GOOD, *rows)
        except Refusal as refusal:
            return refusal.code
        return set(results), sorted(finding[:2] for finding in findings)

    assert met(rows) == met(data.draw(st.permutations(rows)))
