"""Reads each patient's outcome: intensive care, intubation, death, follow-up. Begin with `read_outcomes`.

The sources are a CSV file (`outcome_file`), FHIR R4 resources (`fhir_histories`) and an OMOP database
(`omop_histories`). For the last two, `event_codes` is the site's table of codes, and `histories` makes outcomes. These
are the only sources of severity: PCR results and scans do not contain it.
"""

from collections.abc import Collection
from datetime import date

from pipeline.records.laboratory.times import Clock
from pipeline.records.outcomes.coded_sources import FhirOutcomes, OmopOutcomes, Outcomes
from pipeline.records.outcomes.outcome import Outcome, fault
from pipeline.records.outcomes.outcome_file import OutcomeFile, read_file
from pipeline.system.findings import Finding

__all__ = ["FhirOutcomes", "OmopOutcomes", "Outcome", "OutcomeFile", "Outcomes", "fault", "read_outcomes"]


def read_outcomes(
    table: Outcomes,
    *,
    time_zone: str = "",
    issuer: str = "",
    patients: Collection[str] | None = None,
    needed: Collection[str] = (),
    today: date | None = None,
) -> tuple[dict[str, Outcome], list[Finding]]:
    """Read the outcomes: outcomes by patient identifier, and findings. A patient with any finding has no outcome.

    For FHIR and OMOP: `patients` are those of interest (None: all), and each event in `needed` must occur once or more.
    `time_zone`: IANA name of the site's time zone. `issuer`: authority of its identifiers, "" if only one is used.

    Raises Refusal: E_TABLE_FILE, E_ENCODING, E_FILE_CUT, E_SCHEMA, E_TIME_ZONE, E_OUTCOME_NO_EVENT, and, above
    MAX_FAULTY_PERCENT, E_ROWS, E_FHIR_FILES, E_IDENTIFIERS, E_DATES or E_OUTCOME_CODES.
    """
    from pipeline.records.outcomes import fhir_histories, omop_histories
    from pipeline.records.outcomes.histories import outcomes_of

    today = today or date.today()
    if isinstance(table, OutcomeFile):
        return read_file(table, today)
    if isinstance(table, FhirOutcomes):
        histories = fhir_histories.read(table, Clock.of(time_zone), table.issuer or issuer)
    else:
        histories = omop_histories.read(table)
    return outcomes_of(histories, table, needed, patients, today)
