"""Reads the histories that were fetched from an OMOP database: one JSON object in each line.

{"patient": "0042", "day": "2020-04-02", "codes": [["OPS", "8-701"], ["source", "8-701"]]}   an event
{"patient": "0042", "seen": "2020-05-01"}      last day with any record
{"patient": "0042", "died": "2020-04-09"}      death
{"patient": "0042", "ambiguous": true}         two persons of the database have this identifier

An event also has "uncertain": true if its value does not tell whether it happened. The day of an event or a death
is null if the database does not tell it.
"""

import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

from models.refusal import Refusal
from pipeline.records import reasons
from pipeline.records.csv_tables import check_file
from pipeline.records.outcomes.coded_sources import OmopOutcomes
from pipeline.records.outcomes.histories import CodedEvent, Histories
from pipeline.system.findings import Finding


def write_lines(records: Iterable[dict[str, Any]]) -> bytes:
    """Return the content of a file that `read` reads."""
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def read(table: OmopOutcomes) -> Histories:
    """Read what was fetched. Raises Refusal E_TABLE_FILE."""
    assert table.file is not None  # Site.open sets it
    check_file(table.file, "outcome")
    histories = Histories()
    for record in read_lines(table.file):
        histories.units += 1
        patient = record["patient"]
        if "codes" in record:
            codes = tuple((system, code) for system, code in record["codes"])
            is_certain = not record.get("uncertain", False)
            histories.events.append(CodedEvent(patient, codes, _day(record["day"]), is_certain=is_certain))
        elif "died" in record:
            histories.deaths[patient].add(_day(record["died"]))
        elif "seen" in record:
            histories.see(patient, date.fromisoformat(record["seen"]))
        else:
            histories.findings.append(Finding(reasons.IDENTIFIER_AMBIGUOUS, patient))
    return histories


def _day(text: str | None) -> date | None:
    return date.fromisoformat(text) if text else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file. Raises Refusal E_TABLE_FILE."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise Refusal(reasons.TABLE_FILE, private=f"{path}: {type(error).__name__}", table="outcome") from error
