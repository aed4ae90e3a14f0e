"""The laboratory and outcome files of a synthetic hospital, in its own dialect, with realistic irregularities."""

import csv
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from numpy.random import Generator

from pipeline.phantom.hospitals import LaboratoryDialect
from pipeline.phantom.patients import Patient

OUTCOME_COLUMNS = ("patient_id", "intubated", "died", "followed_until")
LOST_TO_FOLLOW_UP = 0.04
HORIZON_DAYS = 30


@dataclass
class PcrRow:
    """One row of the laboratory file; `result` is the text as exported."""

    patient_id: str
    collected: datetime
    result: str


@dataclass
class OutcomeRow:
    """One row of the outcome file; None is an empty cell."""

    patient_id: str
    intubated: datetime | None
    died: datetime | None
    followed_until: datetime | None


def _untidy(word: str, rng: Generator) -> str:
    """Return the word with random case and surrounding spaces, as in real exports."""
    return [word, word, word, word.upper(), word.lower(), f" {word}", f"{word}  "][int(rng.integers(7))]


def pcr_rows(patient: Patient, dialect: LaboratoryDialect, rng: Generator) -> list[PcrRow]:
    """Return one to three tests around the scan; at least one of them is decisive."""

    def row(words: tuple[str, ...], first_day: float, last_day: float) -> PcrRow:
        when = patient.scanned + timedelta(days=float(rng.uniform(first_day, last_day)))
        word = _untidy(words[int(rng.integers(len(words)))], rng)
        return PcrRow(patient.patient_id, when.replace(second=0), word)

    if patient.pcr_positive:
        rows = [row(dialect.positive, -3, 1)]
        if rng.random() < 0.25:  # an earlier false-negative swab
            rows.append(row(dialect.negative, -9, -4))
    else:
        rows = [row(dialect.negative, -1, 3)]
        if rng.random() < 0.4:
            rows.append(row(dialect.negative, 1, 6))
    if rng.random() < 0.12:
        rows.append(row(dialect.indeterminate, -3, 3))
    return rows


def outcome_row(patient: Patient, severe: bool, rng: Generator) -> OutcomeRow:
    """Return intubation or death within 30 days if severe, else a longer follow-up; a few are lost to follow-up."""

    def day(first: int, last: int) -> datetime:
        return patient.scanned + timedelta(days=int(rng.integers(first, last + 1)))

    if severe:
        intubated = day(0, 12) if rng.random() < 0.7 else None
        died = day(13, HORIZON_DAYS) if intubated is None or rng.random() < 0.4 else None
        return OutcomeRow(patient.patient_id, intubated, died, died or day(HORIZON_DAYS, 90))
    lost = rng.random() < LOST_TO_FOLLOW_UP
    return OutcomeRow(patient.patient_id, None, None, day(3, 20) if lost else day(HORIZON_DAYS + 1, 90))


def write_laboratory(path: Path, rows: list[PcrRow], dialect: LaboratoryDialect) -> None:
    """Write the laboratory's export in the hospital's dialect, with one additional column."""
    with path.open("w", encoding=dialect.encoding, newline="") as file:
        writer = csv.writer(file, delimiter=dialect.separator)
        writer.writerow(["no", *dialect.columns])
        for number, row in enumerate(rows, start=1):
            writer.writerow([number, row.patient_id, row.collected.strftime(dialect.date_format), row.result])


def write_outcomes(path: Path, rows: list[OutcomeRow]) -> None:
    """Write the outcome file, ISO days."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(OUTCOME_COLUMNS)
        for row in rows:
            days = [d.strftime("%Y-%m-%d") if d else "" for d in (row.intubated, row.died, row.followed_until)]
            writer.writerow([row.patient_id, *days])
