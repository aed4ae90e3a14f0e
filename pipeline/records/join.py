"""Joins one CT to its PCR results and its outcome, which gives its two labels.

Days are calendar days at the site: a specimen taken at 23:50 is one day before a CT at 00:10. Both ends of a window
belong to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from models.refusal import Reason
from pipeline.records import reasons
from pipeline.records.labels import Label
from pipeline.records.laboratory import PcrResult
from pipeline.records.outcomes import Outcome

Event = Literal["intubated", "icu", "died"]


class JoinRules(BaseModel, extra="forbid"):
    """The table [join] of site.toml: windows in days from the CT (negative before it).

    A positive result may be up to a week before the CT, and a negative one up to a week after it: repeated swabs
    changed from negative to positive after 5.1 days on average, and from positive to negative after 6.9 (Ai et al.,
    Radiology 2020, PMID 32101510). So a patient who is positive within `guard_days` is never labelled negative.

    Severe means one of `severe_events` within `horizon_days`. STOIC2021 uses intubation and death within a month
    (Revel et al., Radiology 2021, doi 10.1148/radiol.2021210384).
    """

    positive_from_days: int = -7
    positive_to_days: int = 2
    negative_from_days: int = -2
    negative_to_days: int = 7
    guard_days: int = 14
    horizon_days: int = Field(default=30, ge=1)
    severe_events: list[Event] = Field(default=["intubated", "died"], min_length=1)

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
class Records:
    """The records of all patients, by pseudonym.

    `results`, `outcomes`: from the laboratory and the outcome file. `spoilt`: patients with a skipped laboratory row.
    `labels`: the labels that a data set publishes instead of both; then the other three are empty.
    """

    results: dict[str, list[PcrResult]]
    outcomes: dict[str, Outcome]
    spoilt: set[str]
    labels: dict[str, Label] | None = None


# The records of a site with chest CT only: no patient has a label, and nothing depends on the day of a CT.
NO_RECORDS = Records({}, {}, set(), labels={})


@dataclass(frozen=True)
class Labels:
    """The labels of one CT for training; a CT with a `reason` is not used.

    `severe_reason` says why `severe` is None. Age and sex are set only if a labels file states them.
    """

    pcr_positive: bool | None
    severe: bool | None
    reason: Reason | None = None
    severe_reason: Reason | None = None
    age_years: float | None = None
    sex: str | None = None


@dataclass(frozen=True)
class PcrLabel:
    """The PCR label. `positive` is None if the results do not decide; only then `reason` is set and says why."""

    positive: bool | None
    reason: Reason | None = None


@dataclass(frozen=True)
class SevereLabel:
    """The severity label. `severe` is None if the outcome does not decide; only then `reason` is set and says why."""

    severe: bool | None
    reason: Reason | None = None


def label(pseudonym: str, ct: datetime | None, records: Records, rules: JoinRules) -> Labels:
    """Return the labels of a patient's CT at time `ct`, which may be None only if `records.labels` is set.

    Reasons: the reasons of `label_pcr`, E_PCR_INCOMPLETE, E_NO_LABEL.
    """
    if records.labels is not None:
        known = records.labels.get(pseudonym)
        if known is None:
            return Labels(None, None, reasons.NO_LABEL)
        unknown = reasons.NO_OUTCOME if known.severe is None else None
        return Labels(known.pcr_positive, known.severe, None, unknown, known.age_years, known.sex)
    assert ct is not None
    pcr = label_pcr(records.results.get(pseudonym, []), ct, rules)
    if pcr.positive is False and pseudonym in records.spoilt:
        return Labels(None, None, reasons.PCR_INCOMPLETE)
    if pcr.positive is None:
        return Labels(None, None, pcr.reason)
    course = label_severe(records.outcomes.get(pseudonym), ct, rules)
    return Labels(pcr.positive, course.severe, severe_reason=course.reason)


def label_pcr(results: Sequence[PcrResult], ct: datetime, rules: JoinRules) -> PcrLabel:
    """Decide whether the patient has Covid-19 at the time `ct` of the CT, from all results of this patient.

    A contradictory specimen in either window gives no label. Otherwise a positive result in its window gives a positive
    label. Otherwise a negative result in its window gives a negative label, unless a positive is within `guard_days`.
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
    """Whether one specimen, identified by its collection time, is both positive and negative."""
    positive = {result.collected for result in results if result.positive is True}
    return any(result.positive is False and result.collected in positive for result in results)


def label_severe(outcome: Outcome | None, ct: datetime, rules: JoinRules) -> SevereLabel:
    """Decide whether a severe event is between the day of the CT and `horizon_days` later, inclusive.

    The label is False only if the patient was followed for the whole horizon; with a shorter follow-up it is unknown.
    With an event before the day of the CT it is unknown too, whatever follows: STOIC2021 scanned patients on arrival
    at the emergency department, and a scan that shows the tube predicts nothing. A death before the CT is an error in
    the record. Reasons: W_NO_OUTCOME, W_EVENT_BEFORE_CT, W_FOLLOWED_TOO_SHORT.
    """
    if outcome is None or outcome.known_until is None:
        return SevereLabel(None, reasons.NO_OUTCOME)
    dates = {event: getattr(outcome, event) for event in {*rules.severe_events, "died"}}
    days = {event: (date - ct.date()).days for event, date in dates.items() if date}
    if any(day < 0 for day in days.values()):
        return SevereLabel(None, reasons.EVENT_BEFORE_CT)
    if any(days.get(event, rules.horizon_days + 1) <= rules.horizon_days for event in rules.severe_events):
        return SevereLabel(True)
    if (outcome.known_until - ct.date()).days < rules.horizon_days:
        return SevereLabel(None, reasons.FOLLOWED_TOO_SHORT)
    return SevereLabel(False)
