"""Reads each patient's outcome from the hospital's outcome file: intensive care, intubation, death, follow-up.

This file is the only source of severity: PCR results and scans do not contain it.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date

from models.refusal import Reason
from pipeline.records import reasons
from pipeline.records.csv_tables import TableFile, note, read_moment, read_rows, refuse_when_many
from pipeline.system.findings import Finding


class OutcomeFile(TableFile):
    """The table [outcomes] of site.toml: one row for each patient; a cell is empty if there is no such day.

    `intubated`: first day of invasive ventilation in this illness. `died`: day of death. `followed_until`: last day on
    which the hospital knows the patient's condition; without it, the outcome of a patient without event is unknown.
    `icu`: first day in intensive care; "" if the file has no such column.
    """

    intubated: str = "intubated"
    died: str = "died"
    followed_until: str = "followed_until"
    icu: str = ""
    date_format: str = "%Y-%m-%d"


@dataclass(frozen=True)
class Outcome:
    """One patient's outcome; None where nothing was recorded."""

    patient_id: str
    intubated: date | None
    died: date | None
    followed_until: date | None
    icu: date | None = None

    @property
    def known_until(self) -> date | None:
        """The last day in the record; an event counts too, because it shows that the patient was observed."""
        days = (self.intubated, self.died, self.followed_until, self.icu)
        return max((day for day in days if day), default=None)


def read_outcomes(table: OutcomeFile, *, today: date | None = None) -> tuple[dict[str, Outcome], list[Finding]]:
    """Read the outcome file: outcomes by patient identifier, and findings for skipped rows.

    A patient with any finding has no outcome, even if another row is valid: otherwise a patient whose date of death
    cannot be read could count as a survivor. Equal rows count once.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_SCHEMA, and, above MAX_FAULTY_PERCENT of the rows, E_ROWS,
    E_IDENTIFIERS or E_DATES.
    """
    today = today or date.today()
    columns = [table.patient_id, table.intubated, table.died, table.followed_until, *filter(None, [table.icu])]
    rows, findings = read_rows(table, "outcome", columns)
    row_count = len(rows) + len(findings)
    outcomes: dict[str, set[Outcome]] = defaultdict(set)
    for patient_id, *texts in rows:
        moments = [read_moment(text, table.date_format) for text in texts]
        unread = [text for text, moment in zip(texts, moments, strict=True) if text and moment is None]
        if unread:
            findings.append(note(reasons.DATE, patient_id, unread[0]))
            continue
        outcome = Outcome(patient_id, *(moment and moment.date() for moment in moments))
        if reason := fault(outcome, today):
            findings.append(note(reason, patient_id, ", ".join(texts)))
        outcomes[patient_id].add(outcome)
    refuse_when_many(findings, row_count, "outcome")
    conflicts = [patient_id for patient_id, values in outcomes.items() if len(values) > 1]
    findings += [Finding(reasons.OUTCOME_CONFLICT, patient_id) for patient_id in conflicts]
    faulty = {finding.patient_id for finding in findings}
    return {key: values.pop() for key, values in outcomes.items() if key not in faulty}, findings


def fault(outcome: Outcome, today: date) -> Reason | None:
    """Return why an outcome is impossible, or None. Follow-up that ends before an event or after death is tolerated."""
    if outcome.known_until and outcome.known_until > today:
        return reasons.OUTCOME_DATE
    if outcome.died and any(day and day > outcome.died for day in (outcome.intubated, outcome.icu)):
        return reasons.OUTCOME_ORDER
    return None
