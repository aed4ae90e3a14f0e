"""The join: which PCR result and which outcome belong to one CT, and so its two labels.

Days are calendar days at the site: a specimen taken at 23:50 lies one day before a CT at 00:10. Both ends of
a window belong to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field, model_validator

from models.refusal import Reason
from pipeline import reasons
from pipeline.laboratory import PcrResult
from pipeline.outcomes import Outcome


class JoinRules(BaseModel, extra="forbid"):
    """The table [join] of site.toml: days from the CT (negative before it) within which something counts.

    A positive may precede the CT by a week, a negative may follow it by one: repeated swabs turned from
    negative to positive after 5.1 days on average, and from positive to negative after 6.9 (Ai et al.,
    Radiology 2020, PMID 32101510). So nobody who is positive within `guard_days` is called negative.
    `horizon_days`: severe means intubation or death within this many days; STOIC2021 takes a month (Revel et
    al., Radiology 2021, doi 10.1148/radiol.2021210384).
    """

    positive_from_days: int = -7
    positive_to_days: int = 2
    negative_from_days: int = -2
    negative_to_days: int = 7
    guard_days: int = 14
    horizon_days: int = Field(default=30, ge=1)

    @model_validator(mode="after")
    def windows_make_sense(self) -> Self:
        if not self.positive_window or not self.negative_window:
            raise ValueError("a window ends before it starts")
        edges = [*self.positive_window, *self.negative_window]
        if self.guard_days < max(map(abs, edges)):
            raise ValueError("guard_days must reach at least as far as both windows")
        return self

    @property
    def positive_window(self) -> range:
        return range(self.positive_from_days, self.positive_to_days + 1)

    @property
    def negative_window(self) -> range:
        return range(self.negative_from_days, self.negative_to_days + 1)


@dataclass(frozen=True)
class PcrLabel:
    """`positive` is None when the results do not decide; `reason` then says why, and is None otherwise."""

    positive: bool | None
    reason: Reason | None = None


def label_pcr(results: Sequence[PcrResult], ct: datetime, rules: JoinRules) -> PcrLabel:
    """Whether the CT at time `ct` shows a patient with Covid-19, from all results of this one patient.

    A contradictory specimen in either window spoils the label. Else any positive in its window makes it
    positive. Else any negative in its window makes it negative, unless a positive lies within `guard_days`.
    Reasons: E_NO_PCR, E_PCR_CONFLICT, E_PCR_WINDOW, E_PCR_INDETERMINATE.
    """
    if not results:
        return PcrLabel(None, reasons.NO_PCR)
    dated = [((result.collected.date() - ct.date()).days, result) for result in results]
    nearby = [result for day, result in dated if day in rules.positive_window or day in rules.negative_window]
    if has_contradiction(nearby):
        return PcrLabel(None, reasons.PCR_CONFLICT)
    positive_days = [day for day, result in dated if result.positive is True]
    negative_days = [day for day, result in dated if result.positive is False]
    if any(day in rules.positive_window for day in positive_days):
        return PcrLabel(True)
    if any(abs(day) <= rules.guard_days for day in positive_days):
        return PcrLabel(None, reasons.PCR_WINDOW)
    if any(day in rules.negative_window for day in negative_days):
        return PcrLabel(False)
    undecided = any(result.positive is None for result in nearby)
    return PcrLabel(None, reasons.PCR_INDETERMINATE if undecided else reasons.PCR_WINDOW)


def has_contradiction(results: Sequence[PcrResult]) -> bool:
    """Whether one specimen, known by its collection time, is both positive and negative."""
    positive = {result.collected for result in results if result.positive is True}
    return any(result.positive is False and result.collected in positive for result in results)


def label_severe(outcome: Outcome | None, ct: datetime, rules: JoinRules) -> bool | None:
    """Whether the patient is intubated or dies between the day of the CT and `horizon_days` later, inclusive.

    None where that is unknown or cannot be asked. Without event, only a patient known for the whole horizon
    is False; one lost before it is None, never False. One intubated before the day of the CT is None,
    whatever follows: STOIC2021 scanned patients as they came to the emergency department, and a scan that
    shows the tube foretells nothing. A death before the CT is an error of the record, so None too.
    """
    if outcome is None or outcome.known_until is None:
        return None
    events = [(event - ct.date()).days for event in (outcome.intubated, outcome.died) if event]
    if any(day < 0 for day in events):
        return None
    if any(day <= rules.horizon_days for day in events):
        return True
    return False if (outcome.known_until - ct.date()).days >= rules.horizon_days else None
