"""Reads raw results from the laboratory's CSV file."""

from pipeline.records.csv_tables import read_moment, read_rows
from pipeline.records.laboratory.codes import Code
from pipeline.records.laboratory.results import Identifier, RawResult, Reading, Status
from pipeline.records.laboratory.settings import CsvLaboratory, canonical
from pipeline.records.laboratory.times import LONG_AGO

LOINC = "LN"  # the file does not name the code system of a test; the form of LOINC codes is unique


def read(table: CsvLaboratory) -> Reading:
    """Read one raw result from each row; no row replaces another.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_SCHEMA.
    """
    columns = [table.patient_id, table.collected, table.result, *filter(None, (table.test, table.status))]
    rows, findings = read_rows(table, "laboratory", columns)
    final = {canonical(word) for word in table.final}
    reading = Reading(table, findings=findings, units=len(rows) + len(findings))
    for number, (patient_id, collected, result, *more) in enumerate(rows):
        test = (Code(LOINC, more.pop(0)),) if table.test else (Code(LOINC, "94309-2"),)
        status: Status = "final" if not table.status or canonical(more.pop()) in final else "pending"
        if not reading.wants(test):
            continue
        reading.results.append(
            RawResult(
                patient=Identifier(patient_id),
                key=(str(number),),
                version=(LONG_AGO, LONG_AGO, 0),
                test=test,
                value=(result,),
                status=status,
                collected=read_moment(collected, table.date_format),
                collected_text=collected,
            )
        )
    return reading
