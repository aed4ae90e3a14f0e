"""Labels for the site's own next study: what the clinic learned about its scans, as the CSV file that the node reads.

The file is for `[labels]` of the node's site.toml, on the same machine; nothing is sent. It holds patient identifiers,
because the node replaces them with its own pseudonyms. A label is a PCR result or an outcome, never a level: a reader
has seen the model's level. The last three columns are for the study's own questions; the node does not read them.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.refusal import Refusal
from pipeline.clinic.later_outcomes import LaterOutcomes, later_outcomes
from pipeline.clinic.reasons import LABELS_FILE, LABELS_NO_NODE, LABELS_OFF
from pipeline.clinic.records import Answer
from pipeline.clinic.review import is_not_their_scan, reviewed_levels
from pipeline.clinic.settings import Clinic
from pipeline.system.atomic_files import write_durably

COLUMNS = ("patient_id", "pcr_positive", "severe", "decision", "reason", "reader_level")
_BITS = {True: "1", False: "0", None: ""}
_ALL = 1_000_000


@dataclass(frozen=True)
class ExportedLabels:
    """What was exported. `left_out`: number of scans or patients by reason."""

    patients: int
    severe_known: int
    left_out: dict[str, int]
    sha256: str


@dataclass(frozen=True)
class _Row:
    patient_id: str
    pcr_positive: bool
    severe: bool | None
    decision: str
    reason: str
    reader_level: str

    @property
    def label(self) -> tuple[bool, bool | None]:
        return self.pcr_positive, self.severe

    def cells(self) -> tuple[str, ...]:
        bits = _BITS[self.pcr_positive], _BITS[self.severe]
        return (self.patient_id, *bits, self.decision, self.reason, self.reader_level)


def export_labels(clinic: Clinic, file: Path, *, by: str) -> ExportedLabels:
    """Write the labels of all scored patients to a new file that only its owner may read, and an audit record.

    Raises Refusal E_LABELS_OFF, E_LABELS_NO_NODE, E_LABELS_FILE, E_CLINIC_FILE; the code of the node's outcomes if they
    cannot be read, so that no patient counts as one without an outcome by mistake.
    """
    if not clinic.settings.labels.export:
        raise Refusal(LABELS_OFF)
    later = later_outcomes(clinic)
    if later.refusal:
        raise later.refusal
    if later.site is None:
        raise Refusal(LABELS_NO_NODE)
    if os.path.lexists(file) or not file.parent.is_dir():
        raise Refusal(LABELS_FILE, private=str(file))
    with clinic.store() as store:
        rows, left_out = _rows(store.answers.newest(_ALL)[::-1], later)
        content = _csv(rows)
        severe_known = sum(row.severe is not None for row in rows)
        exported = ExportedLabels(len(rows), severe_known, left_out, hashlib.sha256(content).hexdigest())
        told = {"patients": exported.patients, "left_out": left_out, "sha256": exported.sha256}
        store.audit.add(by, "export_labels", output=told)  # before the file: what cannot be recorded is not written
    try:
        write_durably(file, content)
    except OSError as error:
        raise Refusal(LABELS_FILE, private=str(error)) from error
    return exported


def _rows(answers: Iterable[Answer], later: LaterOutcomes) -> tuple[list[_Row], dict[str, int]]:
    """Return one row for each patient, sorted, and what was left out by reason."""
    found: dict[str, list[_Row]] = {}
    left_out: Counter[str] = Counter()
    for answer in answers:
        patient, pcr = answer.patient, _pcr(answer, later)
        if patient is None or not later.is_ours(patient) or not patient.id.isprintable():
            left_out["no identifier of this hospital, or withdrawn"] += 1
        elif is_not_their_scan(answer):
            left_out["rejected: wrong scan or image quality"] += 1
        elif pcr is None:
            left_out["no decisive PCR result"] += 1
        else:
            found.setdefault(patient.id, []).append(_row(patient.id, pcr, answer, later))
    several = {patient for patient, rows in found.items() if len({row.label for row in rows}) > 1}
    if several:
        left_out["patients whose scans have different labels"] = len(several)
    return [found[patient][-1] for patient in sorted(found) if patient not in several], dict(left_out)


def _row(patient_id: str, pcr: bool, answer: Answer, later: LaterOutcomes) -> _Row:
    decision = answer.decision
    level = reviewed_levels(answer).get("severe") if decision and decision.is_valid else None
    verdict, reason = (decision.verdict, decision.reason) if decision else ("", None)
    return _Row(patient_id, pcr, later.severe(answer), verdict, reason or "", level or "")


def _pcr(answer: Answer, later: LaterOutcomes) -> bool | None:
    """Return the PCR label; a scan whose day is unknown has none."""
    return later.pcr_positive(answer) if later.acquired(answer) else None


def _csv(rows: Iterable[_Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue().encode()
