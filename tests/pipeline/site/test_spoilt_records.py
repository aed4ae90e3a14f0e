"""Records that cannot be read: their patients are not negative, and have no outcome. All data are synthetic."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.records.join import Labels, label
from pipeline.site.folder import Site, init_site
from pipeline.site.site_data import read_records
from tests.pipeline.records.laboratory import test_fhir as fhir
from tests.pipeline.records.laboratory import test_hl7 as hl7

CT = datetime(2020, 4, 1, 10)
LABORATORY = ["patient_id,collected,result,note", *(f"G{n},2020-04-01T08:30,negative," for n in range(10))]
OUTCOMES = ["patient_id,intubated,died,followed_until,note", *(f"G{n},,,2020-05-20," for n in range(10))]
SETTINGS = """
[site]
name = "ward"
time_zone = "Europe/Paris"
[laboratory]
format = "{form}"
file = "{folder}/laboratory"
[outcomes]
file = "{folder}/outcomes.csv"
"""


def site_with(folder: Path, laboratory: str, outcomes: list[str], form: str = "csv", settings: str = SETTINGS) -> Site:
    (folder / "laboratory").write_text(laboratory, newline="")
    (folder / "outcomes.csv").write_text("\n".join(outcomes))
    return init_site(folder / "site", settings.format(folder=folder, form=form))


def labels_of(site: Site, patient: str = "X") -> tuple[Labels, list[tuple[str, bool]]]:
    """The labels of a patient, and all findings: their code and whether they name this patient."""
    records, findings = read_records(site)
    pseudonym = site.pseudonym(patient)
    assert label(site.pseudonym("G0"), CT, records, site.settings.join) == Labels(False, False), "spoils nobody else"
    found = [(each.reason.code, each.patient_id == pseudonym) for each in findings]
    return label(pseudonym, CT, records, site.settings.join), found


NEGATIVE = "X,2020-04-01T08:00,negative,"


def csv_laboratory(*rows: str) -> str:
    return "".join(f"{row}\n" for row in (*LABORATORY, *rows))


def as_json(*resources: dict[str, Any]) -> str:
    return json.dumps(fhir.bundle(*fhir.GOOD, fhir.patient("X"), fhir.observation("X", fhir.NOT_DETECTED), *resources))


HL7_NEGATIVE = hl7.GOOD + hl7.usual("X", hl7.NOT_DETECTED, order="1")
FHIR_POSITIVE = fhir.observation("X", id="later", effectiveDateTime="2020-04-02T08:00:00+02:00")
POSITIVES: dict[str, tuple[str, Callable[[], str], str]] = {
    "csv, a comma too many": ("csv", lambda: csv_laboratory(NEGATIVE, "X,2020-04-02T08:00,positive,b, c"), "E_ROW"),
    "csv, a cell too few": ("csv", lambda: csv_laboratory(NEGATIVE, "X,2020-04-02T08:00,positive"), "E_ROW"),
    "hl7": ("hl7", lambda: HL7_NEGATIVE + hl7.usual("X", hl7.DETECTED, order="2") + hl7.TORN, "E_HL7"),
    "fhir": ("fhir", lambda: as_json(FHIR_POSITIVE | {"component": {}}), "E_FHIR"),
}


@pytest.mark.parametrize("case", POSITIVES)
def test_patient_with_a_result_that_cannot_be_read_is_not_negative(tmp_path: Path, case: str) -> None:
    form, laboratory, code = POSITIVES[case]
    found, findings = labels_of(site_with(tmp_path, laboratory(), [*OUTCOMES, "X,,,2020-05-20,"], form))
    assert (found.pcr_positive, found.reason and found.reason.code) == (None, "E_PCR_INCOMPLETE")
    assert findings == [(code, True)]


def test_positive_patient_stays_positive(tmp_path: Path) -> None:
    laboratory = csv_laboratory("X,2020-04-01T08:00,positive,", "X,2020-04-02T08:00,negative,b, c")
    found, _ = labels_of(site_with(tmp_path, laboratory, [*OUTCOMES, "X,,,2020-05-20,"]))
    assert found == Labels(True, False)


def test_patient_with_an_outcome_that_cannot_be_read_has_none(tmp_path: Path) -> None:
    outcomes = [*OUTCOMES, "X,,,2020-05-20,", "X,2020-04-05,2020-04-09,2020-04-09,died in ICU, palliative"]
    found, findings = labels_of(site_with(tmp_path, csv_laboratory(NEGATIVE), outcomes))
    assert (found.pcr_positive, found.severe) == (False, None)
    assert found.severe_reason is not None and found.severe_reason.code == "W_NO_OUTCOME"
    assert findings == [("E_ROW", True)]


def test_each_patient_of_an_ambiguous_row_is_spoilt(tmp_path: Path) -> None:
    header = "note,patient_id,collected,result"
    good = [f",{patient},2020-04-01T08:30,negative" for patient in ("X", "Y", *(f"G{n}" for n in range(10)))]
    laboratory = "\n".join([header, *good, "as for ,Y,X,2020-04-02T08:30,positive"])
    site = site_with(tmp_path, laboratory, [*OUTCOMES, "X,,,2020-05-20,", "Y,,,2020-05-20,"])
    for patient in ("X", "Y"):
        found, findings = labels_of(site, patient)
        assert (found.pcr_positive, found.reason and found.reason.code) == (None, "E_PCR_INCOMPLETE")
        assert sorted(findings) == [("E_ROW", False), ("W_UNREAD_RECORD", False), ("W_UNREAD_RECORD", True)]


JOINED = {
    "the next row": ['V,2020-04-01T08:00,negative,"swab 5', 'X,2020-04-02T08:00,positive,rapid"'],
    "rows between": ['V,2020-04-01T08:00,negative,"', "X,2020-04-02T08:00,positive,", 'W,2020-04-01T08:00,negative,"'],
    "fewer cells": ['V,2020-04-01T08:00,"negative,', 'X,2020-04-02T08:00,positive,rapid"'],
    "the identifier": ['"V,2020-04-01T08:00,negative,', 'X",2020-04-02T08:00,positive,'],
    "a blank line": ['V,2020-04-01T08:00,negative,"', "", 'X,2020-04-02T08:00,positive,"'],
}


@pytest.mark.parametrize("case", JOINED)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_row_that_quotation_marks_join_with_others_is_not_lost(tmp_path: Path, case: str, end: str) -> None:
    laboratory = csv_laboratory(NEGATIVE, *JOINED[case], "Z,2020-04-01T08:00,negative,").replace("\n", end)
    site = site_with(tmp_path, laboratory, [*OUTCOMES, *(f"{patient},,,2020-05-20," for patient in "XVZ")])
    found, findings = labels_of(site)
    assert (found.pcr_positive, found.reason and found.reason.code) == (None, "E_PCR_INCOMPLETE")
    joined = len([row for row in JOINED[case] if row])
    assert sorted(findings) == [("E_ROW", False)] * (joined - 1) + [("E_ROW", True)]
    assert labels_of(site, "V")[0].pcr_positive is None
    assert labels_of(site, "Z")[0] == Labels(False, False)


def test_outcome_that_quotation_marks_join_with_others_is_not_lost(tmp_path: Path) -> None:
    outcomes = [*OUTCOMES, "X,,,2020-05-20,", 'V,,,2020-05-20,"home', 'X,,2020-04-09,2020-04-09,ward"']
    found, findings = labels_of(site_with(tmp_path, csv_laboratory(NEGATIVE), outcomes))
    assert (found.pcr_positive, found.severe) == (False, None)
    assert sorted(findings) == [("E_ROW", False), ("E_ROW", True)]


def test_note_of_several_lines_is_read(tmp_path: Path) -> None:
    laboratory = csv_laboratory('X,2020-04-01T08:00,negative,"fever, cough\nsince 28 March,\n\nrepeated"')
    assert labels_of(site_with(tmp_path, laboratory, [*OUTCOMES, "X,,,2020-05-20,"])) == (Labels(False, False), [])


def test_row_of_nobody_spoils_nobody(tmp_path: Path) -> None:
    laboratory = csv_laboratory(NEGATIVE, ",,2020-04-02T08:00,positive,b")
    found, findings = labels_of(site_with(tmp_path, laboratory, [*OUTCOMES, "X,,,2020-05-20,"]))
    assert found == Labels(False, False)
    assert findings == [("E_ROW", False)]


@pytest.mark.parametrize("more", [[], ["X,2020-04-03T08:00,negative,final"]])
def test_withdrawn_row_leaves_neither_a_positive_nor_a_negative_label(tmp_path: Path, more: list[str]) -> None:
    """The withdrawn row may be another test than the positive one, so a later negative one does not decide either."""
    header, *good = LABORATORY
    rows = [f"X,2020-04-01T08:00,positive,{status}" for status in ("final", "cancelled")]
    laboratory = "\n".join([header, *(f"{row}final" for row in good), *rows, *more])
    settings = SETTINGS.replace("[outcomes]", 'status = "note"\n[outcomes]')
    site = site_with(tmp_path, laboratory, [*OUTCOMES, "X,,,2020-05-20,"], settings=settings)
    found, findings = labels_of(site)
    assert (found.pcr_positive, found.reason and found.reason.code) == (
        None,
        "E_PCR_INCOMPLETE" if more else "E_NO_PCR",
    )
    assert sorted(findings) == [("W_PCR_PRELIMINARY", True), ("W_PCR_WITHDRAWN", True)]
