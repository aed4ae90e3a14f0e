"""Reads PCR results from the laboratory's files (CSV, HL7 v2 or FHIR R4) into one table of results.

`settings` is [laboratory] of site.toml. `csv`, `hl7` and `fhir` read files into raw results; `codes` and `times`
interpret test codes and times. `results` turns raw results into PCR results, in the same way for all formats.
"""

from datetime import date

from models.refusal import Refusal
from pipeline.records import reasons
from pipeline.records.csv_tables import refuse_early_days, refuse_when_many
from pipeline.records.laboratory.results import PcrResult, Reading, counted, interpret
from pipeline.records.laboratory.settings import CsvLaboratory, FhirLaboratory, Hl7Laboratory, Laboratory
from pipeline.records.laboratory.times import Clock
from pipeline.system.findings import Finding

__all__ = ["CsvLaboratory", "FhirLaboratory", "Hl7Laboratory", "Laboratory", "PcrResult", "read_pcr"]


def read_pcr(
    table: Laboratory, *, time_zone: str = "", issuer: str = "", today: date | None = None
) -> tuple[list[PcrResult], list[Finding]]:
    """Read the laboratory's files: results in their order without duplicates, and findings for skipped results.

    `time_zone`: IANA name of the site's time zone. `issuer`: authority of its identifiers, "" if only one is used.
    Raises Refusal: E_TABLE_FILE, E_FILE_CUT, E_ENCODING, E_SCHEMA, E_TIME_ZONE, E_NO_PCR_TEST, E_LABORATORY_ISSUERS,
    E_EARLY_DAYS, and, above MAX_FAULTY_PERCENT, E_ROWS, E_HL7_FILES, E_FHIR_FILES, E_IDENTIFIERS, E_DATES or
    E_PCR_UNMAPPED.
    """
    reading = _read(table, Clock.of(time_zone), issuer)
    refuse_when_many(reading.findings, reading.units, "laboratory")
    if not reading.results and not reading.others and not isinstance(table, CsvLaboratory):
        raise Refusal(reasons.NO_PCR_TEST, results=0)  # a CSV table may be empty, an HL7 or FHIR export may not
    results, findings, judged = interpret(reading, today or date.today())
    refuse_when_many(findings, judged, "laboratory", max_unmapped_percent=table.max_unmapped_percent)
    if isinstance(table, CsvLaboratory):
        refuse_early_days((each.collected for each in reading.results if each.collected), table, "laboratory")
    return results, reading.findings + findings + counted(reasons.OTHER_TEST, reading.others)


def _read(table: Laboratory, clock: Clock, issuer: str) -> Reading:
    from pipeline.records.laboratory import csv, fhir, hl7

    if isinstance(table, CsvLaboratory):
        return csv.read(table)
    if isinstance(table, Hl7Laboratory):
        return hl7.read(table, clock, table.issuer or issuer)
    return fhir.read(table, clock, table.issuer or issuer)
