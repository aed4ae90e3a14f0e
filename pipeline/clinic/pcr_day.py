"""Whether a PCR result is of this scan: the day of its specimen against the day of the CT.

A result within the windows of [join] belongs to the scan, as for the node's labels. A result of another day is kept and
shown, but says nothing about the scan. A day on which no specimen can have been taken is refused.
"""

from dataclasses import dataclass
from datetime import date
from typing import Any

from models.refusal import Refusal
from pipeline.clinic.reasons import PCR_DAY
from pipeline.clinic.records import Patient, Pcr
from pipeline.records.join import JoinRules

FIRST_DAY = date(2019, 12, 1)  # onset of the first known case (Huang et al., Lancet 2020, PMID 31986264)
_LONGEST_YEAR = 366


@dataclass(frozen=True)
class Timing:
    """The specimen's day in days from the CT, None if one of both is unknown; `first` to `last`: the window."""

    days_from_ct: int | None
    first: int
    last: int

    @property
    def is_outside(self) -> bool:
        """Whether the specimen is known to be outside of the window."""
        return self.days_from_ct is not None and not self.first <= self.days_from_ct <= self.last

    def to_json(self) -> dict[str, Any]:
        window = {"from_days": self.first, "to_days": self.last}
        return {"days_from_ct": self.days_from_ct, "window": window, "is_outside": self.is_outside}


def timing(pcr: Pcr, scan: date | None, rules: JoinRules) -> Timing:
    """Compare a result with the scan's day. The window is the one of the result, of an indeterminate one both."""
    windows = {"positive": [rules.positive_window], "negative": [rules.negative_window]}
    days = sorted(
        day for window in windows.get(pcr.result, [rules.positive_window, rules.negative_window]) for day in window
    )
    known = (pcr.collected_on - scan).days if pcr.collected_on and scan else None
    return Timing(known, days[0], days[-1])


def check_possible(day: date, scan: date | None, patient: Patient | None) -> None:
    """Raise Refusal E_PCR_DAY for a day before the virus was known, or before the patient's birth.

    The first does not hold for a scan that is itself dated before: research data have shifted dates.
    """
    if day < FIRST_DAY and (scan is None or scan >= FIRST_DAY):
        raise Refusal(PCR_DAY, why="it is before December 2019, when the virus was not known")
    age = patient.age_years if patient else None
    if scan and age is not None and (scan - day).days > (age + 1) * _LONGEST_YEAR:
        raise Refusal(PCR_DAY, why="it is before the patient's birth")
