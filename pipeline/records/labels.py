"""Reads labels that a data set publishes in one CSV file, instead of laboratory and outcome records.

Public data sets rarely contain dates, so there is no join: the publisher has decided the labels of each scan.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Self

from pydantic import model_validator

from pipeline.records import reasons
from pipeline.records.csv_tables import (
    CsvTable,
    count_rows,
    note,
    read_rows,
    refuse_when_many,
    require_columns_apart,
)
from pipeline.system.findings import Finding

OLDEST_YEARS = 120
_BITS = {"0": False, "1": True, "": None}


class LabelsFile(CsvTable):
    """The table [labels] of site.toml: one row for each patient, 1 for yes, 0 for no, empty for unknown.

    `age_years`, `sex`: columns with age in years and M or F; empty if the file has no such column.
    `severe_means`: meaning of the column `severe` in this data set, in words, for reports.
    """

    pcr_positive: str = "pcr_positive"
    severe: str = "severe"
    age_years: str = ""
    sex: str = ""
    severe_means: str = "intubated or dead within 30 days of the CT"

    @model_validator(mode="after")
    def columns_differ(self) -> Self:
        require_columns_apart(self, "patient_id", "pcr_positive", "severe")
        return self


@dataclass(frozen=True)
class Label:
    """The labels of one patient in the data set; None where a label is not known."""

    pcr_positive: bool | None
    severe: bool | None
    age_years: float | None = None
    sex: str | None = None


def read_labels(table: LabelsFile) -> tuple[dict[str, Label], list[Finding]]:
    """Read the labels file: labels by patient, and findings for skipped rows; patients without labels are omitted.

    A patient has no labels if the rows disagree, cannot be read, or contain anything other than 0, 1 or nothing. Equal
    rows count once.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_FILE_CUT, E_SCHEMA, and, above MAX_FAULTY_PERCENT of the rows, E_ROWS,
    E_IDENTIFIERS or E_LABELS.
    """
    optional = [column for column in (table.age_years, table.sex) if column]
    rows, findings = read_rows(table, "labels", (table.patient_id, table.pcr_positive, table.severe, *optional))
    row_count = count_rows(rows, findings)
    by_patient: dict[str, set[Label]] = defaultdict(set)
    faulty = {finding.patient_id for finding in findings}
    for patient_id, pcr, severe, *cells in rows:
        if pcr not in _BITS or severe not in _BITS:
            findings.append(note(reasons.LABEL, patient_id, f"{pcr}, {severe}"))
            faulty.add(patient_id)
            continue
        known = dict(zip(optional, cells, strict=True))
        age, sex = known.get(table.age_years, ""), known.get(table.sex, "")
        by_patient[patient_id].add(Label(_BITS[pcr], _BITS[severe], _age(age), sex if sex in {"M", "F"} else None))
    refuse_when_many(findings, row_count, "labels")
    for patient_id in [patient_id for patient_id, labels in by_patient.items() if len(labels) > 1]:
        findings.append(Finding(reasons.LABEL_CONFLICT, patient_id))
        faulty.add(patient_id)
    found = {patient_id: labels.pop() for patient_id, labels in by_patient.items() if patient_id not in faulty}
    return {p: label for p, label in found.items() if (label.pcr_positive, label.severe) != (None, None)}, findings


def _age(text: str) -> float | None:
    try:
        years = float(text)
    except ValueError:
        return None
    return years if 0 < years <= OLDEST_YEARS else None
