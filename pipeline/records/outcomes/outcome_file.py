"""Reads each patient's outcome from the hospital's CSV file: intensive care, intubation, death, follow-up."""

from collections import defaultdict
from datetime import date
from typing import Literal, Self

from pydantic import model_validator

from pipeline.records import outcome_reasons, reasons
from pipeline.records.csv_tables import (
    TableFile,
    count_rows,
    note,
    read_moment,
    read_rows,
    refuse_early_days,
    refuse_when_many,
    require_columns_apart,
)
from pipeline.records.outcomes.outcome import Outcome, fault
from pipeline.system.findings import Finding


class OutcomeFile(TableFile):
    """format = "csv": one row for each patient; a cell is empty if there is no such day.

    `intubated`: first day of invasive ventilation in this illness. `died`: day of death. `followed_until`: last day on
    which the hospital knows the patient's condition; without it, the outcome of a patient without event is unknown.
    `icu`: first day in intensive care; "" if the file has no such column.
    """

    format: Literal["csv"] = "csv"
    intubated: str = "intubated"
    died: str = "died"
    followed_until: str = "followed_until"
    icu: str = ""
    date_format: str = "%Y-%m-%d"

    @model_validator(mode="after")
    def columns_differ(self) -> Self:
        """Several events may share a column; the end of the follow-up is no event."""
        for event in ("intubated", "died", "icu"):
            require_columns_apart(self, "patient_id", "followed_until", event)
        return self

    @property
    def names_icu(self) -> bool:
        """Whether the source tells when a patient was in intensive care."""
        return bool(self.icu)


def read_file(table: OutcomeFile, today: date) -> tuple[dict[str, Outcome], list[Finding]]:
    """Read the outcome file: outcomes by patient identifier, and findings for skipped rows.

    A patient with any finding has no outcome, even if another row is valid: otherwise a patient whose date of death
    cannot be read could count as a survivor. Equal rows count once.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_FILE_CUT, E_SCHEMA, E_EARLY_DAYS, and, above MAX_FAULTY_PERCENT of the
    rows, E_ROWS, E_IDENTIFIERS or E_DATES.
    """
    columns = [table.patient_id, table.intubated, table.died, table.followed_until, *filter(None, [table.icu])]
    rows, findings = read_rows(table, "outcome", columns)
    row_count = count_rows(rows, findings)
    outcomes: dict[str, set[Outcome]] = defaultdict(set)
    read = []
    for patient_id, *texts in rows:
        moments = [read_moment(text, table.date_format) for text in texts]
        unread = [text for text, moment in zip(texts, moments, strict=True) if text and moment is None]
        if unread:
            findings.append(note(reasons.DATE, patient_id, unread[0]))
            continue
        read += [moment for moment in moments if moment]
        outcome = Outcome(patient_id, *(moment and moment.date() for moment in moments))
        if reason := fault(outcome, today):
            findings.append(note(reason, patient_id, ", ".join(texts)))
        outcomes[patient_id].add(outcome)
    refuse_when_many(findings, row_count, "outcome")
    refuse_early_days(read, table, "outcome")
    conflicts = [patient_id for patient_id, values in outcomes.items() if len(values) > 1]
    findings += [Finding(outcome_reasons.OUTCOME_CONFLICT, patient_id) for patient_id in conflicts]
    faulty = {finding.patient_id for finding in findings}
    return {key: values.pop() for key, values in outcomes.items() if key not in faulty}, findings
