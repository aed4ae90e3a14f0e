"""Defines a patient's outcome."""

from dataclasses import dataclass
from datetime import date

from models.refusal import Reason
from pipeline.records import outcome_reasons


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


def fault(outcome: Outcome, today: date) -> Reason | None:
    """Return why an outcome is impossible, or None. Follow-up that ends before an event or after death is tolerated."""
    if outcome.known_until and outcome.known_until > today:
        return outcome_reasons.OUTCOME_DATE
    if outcome.died and any(day and day > outcome.died for day in (outcome.intubated, outcome.icu)):
        return outcome_reasons.OUTCOME_ORDER
    return None
