"""Reads raw results from the laboratory's CSV file."""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime

from pipeline.records.csv_tables import count_rows, read_moment, read_rows
from pipeline.records.laboratory.codes import Code
from pipeline.records.laboratory.results import Identifier, RawResult, Reading, Status
from pipeline.records.laboratory.settings import CsvLaboratory, canonical
from pipeline.records.laboratory.times import LONG_AGO

Specimen = tuple[str, datetime]  # the patient and the time of collection; the file has no order numbers
LOINC = "LN"  # the file does not name the code system of a test; the form of LOINC codes is unique


def read(table: CsvLaboratory) -> Reading:
    """Read one raw result from each row; a withdrawn one also withdraws the final overall results of its specimen.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_FILE_CUT, E_SCHEMA.
    """
    columns = [table.patient_id, table.collected, table.result, *filter(None, (table.test, table.status))]
    rows, findings = read_rows(table, "laboratory", columns)
    final, withdrawn = ({canonical(word) for word in words} for words in (table.final, table.withdrawn))
    reading = Reading(table, findings=findings, units=count_rows(rows, findings))
    withdrawn_of: set[Specimen] = set()
    for number, (patient_id, collected, result, *more) in enumerate(rows):
        test = (Code(LOINC, more.pop(0)),) if table.test else (Code(LOINC, "94309-2"),)
        word = canonical(more.pop()) if table.status else ""
        status: Status = "final" if not table.status or word in final else "pending"
        if not reading.wants(test):
            continue
        moment = read_moment(collected, table.date_format)
        if status == "pending" and word in withdrawn and moment and reading.kind(test) == "overall":
            withdrawn_of.add((patient_id, moment))
        reading.results.append(
            RawResult(
                patient=Identifier(patient_id),
                key=(str(number),),
                version=(LONG_AGO, LONG_AGO, 0),
                test=test,
                value=(result,),
                status=status,
                collected=moment,
                collected_text=collected,
            )
        )
    _withdraw(reading, withdrawn_of)
    return reading


def _withdraw(reading: Reading, specimens: Collection[Specimen]) -> None:
    """Withdraw the final overall results of specimens of which a result was withdrawn.

    The file does not tell whether the withdrawn row is a later version of the final one, or another test. The withdrawn
    row itself stays pending, so that no other specimen makes the patient negative: the final result may be right.
    """
    for index, each in enumerate(reading.results):
        is_final = each.status == "final" and reading.kind(each.test) == "overall"
        if is_final and isinstance(each.patient, Identifier) and (each.patient.value, each.collected) in specimens:
            reading.results[index] = replace(each, status="withdrawn")
