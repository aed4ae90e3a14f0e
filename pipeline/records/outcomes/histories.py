"""Makes outcomes from what a source tells about patients: coded events, deaths, and days on which they were seen.

A patient about whom something is uncertain has no outcome: an event without a day, a code in a watched range that is in
no list, an event that may not have happened, a death without a day. Otherwise such a patient could count as one without
event.
"""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import date

from models.refusal import Reason, Refusal
from pipeline.records import outcome_reasons, reasons
from pipeline.records.csv_tables import note, refuse_when_many
from pipeline.records.outcomes.coded_sources import CodedOutcomes
from pipeline.records.outcomes.event_codes import Coded, Meaning
from pipeline.records.outcomes.outcome import Outcome, fault
from pipeline.system.findings import Finding

_EVENTS: tuple[Meaning, ...] = ("intubated", "icu", "died")


@dataclass(frozen=True)
class CodedEvent:
    """One event of a patient, with all of its codes. `day`: None if it cannot be read from `day_text`."""

    patient_id: str
    codes: tuple[Coded, ...]
    day: date | None
    day_text: str = ""
    is_certain: bool = True


@dataclass
class Histories:
    """What a source tells. `deaths`: days, None for an unknown day. `seen`: last day on which a patient was observed.

    `units`: number of resources or lines, valid or not.
    """

    events: list[CodedEvent] = field(default_factory=list)
    deaths: dict[str, set[date | None]] = field(default_factory=lambda: defaultdict(set))
    seen: dict[str, date] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    units: int = 0

    def see(self, patient_id: str, day: date | None) -> None:
        if day is not None:
            self.seen[patient_id] = max(day, self.seen.get(patient_id, day))


def outcomes_of(
    histories: Histories, table: CodedOutcomes, needed: Collection[str], patients: Collection[str] | None, today: date
) -> tuple[dict[str, Outcome], list[Finding]]:
    """Return outcomes by patient and findings, of `patients` only unless it is None.

    Raises Refusal: E_OUTCOME_CODES, E_OUTCOME_NO_EVENT, and those of `refuse_when_many`.
    """
    refuse_when_many(histories.findings, histories.units, "outcome")
    days: dict[str, dict[Meaning, set[date]]] = defaultdict(lambda: defaultdict(set))
    findings = list(histories.findings)
    counts: Counter[str] = Counter()
    for event in histories.events:
        meaning = table.codes.meaning(event.codes)
        if meaning is None:
            continue
        counts[meaning] += 1
        if reason := _doubt(event, meaning):
            detail = event.day_text if reason is reasons.DATE else "; ".join("|".join(code) for code in event.codes)
            findings.append(note(reason, event.patient_id, detail))
        elif meaning in _EVENTS and event.day and event.day >= table.from_date:
            days[event.patient_id][meaning].add(event.day)
    _check_codes(counts, findings, table, needed)
    outcomes = {}
    for patient_id in {*histories.seen, *days, *histories.deaths}:
        died, reason = _death(histories.deaths.get(patient_id, set()), days[patient_id]["died"])
        if reason:
            findings.append(note(reason, patient_id, "died"))
        first = {kind: min(days[patient_id][kind], default=None) for kind in ("intubated", "icu")}
        outcome = Outcome(patient_id, first["intubated"], died, histories.seen.get(patient_id), first["icu"])
        if reason := fault(outcome, today):
            findings.append(note(reason, patient_id, str(outcome.known_until)))
        outcomes[patient_id] = outcome
    if patients is not None:
        outcomes = {patient_id: outcomes[patient_id] for patient_id in outcomes.keys() & set(patients)}
        findings = [each for each in findings if not each.patient_id or each.patient_id in patients]
    faulty = {finding.patient_id for finding in findings}
    return {key: outcomes[key] for key in sorted(outcomes.keys() - faulty)}, findings


def _doubt(event: CodedEvent, meaning: Meaning) -> Reason | None:
    """Return why it is uncertain whether or when an event happened."""
    if meaning == "unknown":
        return outcome_reasons.OUTCOME_CODE
    if meaning == "neither":
        return None
    if not event.is_certain:
        return outcome_reasons.OUTCOME_UNCERTAIN
    return reasons.DATE if event.day is None else None


def _death(recorded: set[date | None], coded: set[date]) -> tuple[date | None, Reason | None]:
    """Return the day of death, and why it is uncertain. `recorded`: as the death itself; `coded`: by events.

    The recorded day counts if an event is on the day after it: the stay of a patient who died late in the evening is
    often closed after midnight.
    """
    days = {day for day in recorded if day}
    if len(days) == 1:
        days |= {day for day in coded if (day - min(days)).days not in (0, 1)}
    else:
        days |= coded
    if len(days) > 1:
        return None, outcome_reasons.OUTCOME_CONFLICT
    return min(days, default=None), reasons.DATE if recorded and not days else None


def _check_codes(
    counts: Counter[str], findings: Collection[Finding], table: CodedOutcomes, needed: Collection[str]
) -> None:
    """Refuse a table of codes that does not fit the source."""
    percent = 100 * counts["unknown"] / max(counts.total(), 1)
    if percent > table.max_unmapped_percent:
        unknown = Counter(each.detail for each in findings if each.reason is outcome_reasons.OUTCOME_CODE)
        private = "; ".join(f"{detail!r} {count} times" for detail, count in unknown.most_common(10))
        raise Refusal(outcome_reasons.OUTCOME_CODES, private=private, percent=round(percent))
    lists = {"intubated": table.codes.intubated, "icu": table.codes.icu}
    for event, codes in lists.items():
        if codes and event in needed and not counts[event] and not table.may_lack_events:
            raise Refusal(outcome_reasons.OUTCOME_NO_EVENT, event=event)
