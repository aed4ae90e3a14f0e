"""Tests of a synthetic hospital's laboratory data in three formats: each format gives the same results."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from pipeline.phantom.feeds import TIME_ZONE, LaboratoryFormat, laboratory_table, write_feed
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.patients import draw_patient
from pipeline.phantom.records import PcrRow, pcr_rows
from pipeline.records.laboratory import Laboratory, PcrResult, read_pcr

FORMATS: tuple[LaboratoryFormat, ...] = ("csv", "hl7", "fhir")


def drawn(at: Hospital, patients: int) -> list[PcrRow]:
    """Rows of valid patients, and extra rows: an unknown result, two contradicting results, a date in the future."""
    rows: list[PcrRow] = []
    for number in range(patients):
        rng = np.random.default_rng(number)
        rows += pcr_rows(draw_patient(f"{at.name}-{number:06}", "SYNTHETIC", at.mix, rng), at.laboratory, rng)
    first = rows[0]
    words = at.laboratory
    return [
        *rows,
        PcrRow("unmapped", first.collected, "see comment"),
        PcrRow("both", first.collected, words.positive[0]),
        PcrRow("both", first.collected, words.negative[0]),
        PcrRow("future", first.collected.replace(year=2099), words.positive[0]),
    ]


def read(folder: Path, at: Hospital, form: LaboratoryFormat) -> tuple[list[PcrResult], list[tuple[str, str]]]:
    given = tomllib.loads(laboratory_table(at.laboratory, form))["laboratory"]
    table = TypeAdapter(Laboratory).validate_python(given | {"file": folder / given["file"]})
    results, findings = read_pcr(table, time_zone=TIME_ZONE if form == "fhir" else "")
    return results, sorted((finding.reason.code, finding.patient_id) for finding in findings)


@pytest.mark.parametrize("at", HOSPITALS, ids=lambda at: at.name)
def test_all_formats_give_the_same_results(tmp_path: Path, at: Hospital) -> None:
    """Compared by day: a time skipped by daylight saving (here a typing error) does not exist in another time zone."""
    rows = drawn(at, 60)
    told = {}
    for form in FORMATS:
        write_feed(tmp_path, rows, at.laboratory, form)
        results, findings = read(tmp_path, at, form)
        assert findings == [("E_PCR_DATE", "future"), ("W_PCR_UNMAPPED", "unmapped")]
        told[form] = {(each.patient_id, each.collected.date(), each.positive) for each in results}
    assert told["csv"] == told["hl7"] == told["fhir"]
    assert len(told["csv"]) >= len(rows) - 4


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    at = HOSPITALS[1]
    for form in FORMATS:
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            write_feed(tmp_path / name, drawn(at, 5), at.laboratory, form)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_earlier_result_versions_would_change_the_truth(tmp_path: Path) -> None:
    """This proves that the test above can fail."""
    at = HOSPITALS[0]
    rows = drawn(at, 60)
    write_feed(tmp_path, rows, at.laboratory, "hl7")
    truth = {(each.patient_id, each.positive) for each in read(tmp_path, at, "hl7")[0]}
    path = tmp_path / "laboratory.hl7"
    only_first = path.read_bytes().replace(b"-1|P|2.5.1", b"-1|T|2.5.1").replace(b"|P\r", b"|F\r")
    path.write_bytes(only_first)
    assert {(each.patient_id, each.positive) for each in read(tmp_path, at, "hl7")[0]} != truth
