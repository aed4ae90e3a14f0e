"""Reasons why outcomes are refused or flagged; those of their files and of the join are in `reasons`."""

from models.refusal import Reason

OUTCOME_DATE = Reason(
    "E_OUTCOME_DATE",
    "an outcome or the end of follow-up is in the future",
    "Export only observed days and no placeholder dates. The patient has no outcome.",
)
OUTCOME_ORDER = Reason(
    "E_OUTCOME_ORDER",
    "the date of death is before intubation or intensive care",
    "Correct the dates at their source. The patient has no outcome.",
)
OUTCOME_CONFLICT = Reason(
    "E_OUTCOME_CONFLICT",
    "different outcomes are stated for one patient: two rows of a file, or two days of death",
    "In a CSV file, export one row for each patient. In FHIR or OMOP, correct the days of death at their source; a "
    "stay that is closed as dead states a day, too. The patient has no outcome.",
)
OUTCOME_CODE = Reason(
    "W_OUTCOME_CODE",
    "an event has a code of a watched range that is in none of the lists of codes",
    "Ask clinical coding what it means, and add it to a list in [outcomes.codes]. The patient has no outcome.",
)
OUTCOME_CODES = Reason(
    "E_OUTCOME_CODES",
    "{percent} % of the events with a code of a watched range are in none of the lists of codes",
    "Complete [outcomes.codes] of site.toml with clinical coding. The site's screen shows the codes.",
)
OUTCOME_NO_EVENT = Reason(
    "E_OUTCOME_NO_EVENT",
    "not a single event in the records has a code of the list {event}",
    "Check that [outcomes.codes] has the codes and code systems of these records. If there was no such event, set "
    "`may_lack_events = true` in [outcomes].",
)
OUTCOME_UNCERTAIN = Reason(
    "W_OUTCOME_UNCERTAIN",
    "it is uncertain whether a recorded event happened: its status is unknown, the diagnosis is not confirmed, or its "
    "value is neither yes nor no",
    "Correct its status or value at the source. The patient has no outcome.",
)
