"""Reads histories from FHIR R4: Encounters, Procedures, Conditions, and the deaths of Patients.

A day is the site's calendar day. An event counts from its beginning; a discharge from the end of its Encounter.
"""

from collections import defaultdict
from collections.abc import Iterator, Set
from datetime import date, datetime
from typing import cast

from pydantic import Field

from models.refusal import Reason
from pipeline.records import reasons
from pipeline.records.csv_tables import note
from pipeline.records.laboratory.fhir import fault_of, identifier_of, owners_of
from pipeline.records.laboratory.fhir_files import Name, Placed, read_resources, scoped
from pipeline.records.laboratory.fhir_models import Concept, Element, Patient, Period, Reference, Resource, Unreadable
from pipeline.records.laboratory.results import Identifier, choose
from pipeline.records.laboratory.times import Clock, fhir_time
from pipeline.records.outcomes.coded_sources import FhirOutcomes
from pipeline.records.outcomes.event_codes import Coded
from pipeline.records.outcomes.histories import CodedEvent, Histories

_TOOK_PLACE = {"arrived", "triaged", "in-progress", "onleave", "finished"}  # of Encounters
_HAPPENED, _DID_NOT = (
    {"completed", "in-progress", "stopped", "on-hold"},
    {"not-done", "preparation", "entered-in-error"},
)
_REFUTED, _CONFIRMED = {"refuted", "entered-in-error"}, {"confirmed"}  # of Conditions


class HistoryPatient(Patient):
    """A Patient with what is known about death."""

    deceased_boolean: bool = False
    deceased_date_time: str = ""


class Event(Resource):
    """The common elements of what happened to a patient."""

    status: str = ""
    subject: Reference = Reference()


class Procedure(Event):
    code: Concept = Concept()
    performed_date_time: str = ""
    performed_period: Period = Period()


class Condition(Event):
    code: Concept = Concept()
    onset_date_time: str = ""
    onset_period: Period = Period()
    recorded_date: str = ""
    verification_status: Concept = Concept()


class Hospitalization(Element):
    discharge_disposition: Concept = Concept()


class Encounter(Event):
    type: list[Concept] = Field(default=[])
    service_type: Concept = Concept()
    period: Period = Period()
    hospitalization: Hospitalization = Hospitalization()


MODELS: dict[str, type[Resource]] = {
    "Patient": HistoryPatient, "Procedure": Procedure, "Condition": Condition, "Encounter": Encounter,
}  # fmt: skip


def read(table: FhirOutcomes, clock: Clock, issuer: str) -> Histories:
    """Read all files; each unreadable resource is a finding of its patient.

    Raises Refusal: E_TABLE_FILE, E_FILE_CUT, E_TIME_ZONE.
    """
    assert table.file is not None  # SiteSettings ensures it
    histories = Histories()
    reader = _Reader(histories, clock, issuer)
    newest = _newest(read_resources(table.file, histories, MODELS, "outcome"), clock)
    for placed in newest:
        if isinstance(placed.resource, HistoryPatient):
            reader.add_patient(placed)
    for placed in newest:
        if isinstance(placed.resource, Event):
            reader.add_event(placed)
    known = {*histories.seen, *histories.deaths, *(each.patient_id for each in histories.events)}
    for placed in newest:
        if isinstance(placed.resource, Unreadable):
            reader.add_unreadable(placed, known)
    return histories


def _newest(found: Iterator[Placed], clock: Clock) -> list[Placed]:
    """Return the newest version of each resource; of two with the same time, the last. All unreadable ones count."""
    best: dict[str, tuple[tuple[datetime, int], Placed]] = {}
    for placed in found:
        meta = placed.resource.meta
        is_number = meta.version_id.isascii() and meta.version_id.isdecimal() and len(meta.version_id) < 18
        version = clock.instant(fhir_time(meta.last_updated)), int(meta.version_id) if is_number else 0
        names = [] if isinstance(placed.resource, Unreadable) else placed.names()
        name = next(iter(names), str(placed.number))
        if name not in best or version >= best[name][0]:
            best[name] = version, placed
    return [placed for _, placed in best.values()]


class _Reader:
    def __init__(self, histories: Histories, clock: Clock, issuer: str) -> None:
        self._histories, self._clock, self._issuer = histories, clock, issuer
        self._patients: dict[Name, set[Identifier | Reason]] = defaultdict(set)

    def add_patient(self, placed: Placed) -> None:
        """Remember who a Patient is, and the death."""
        patient = cast(HistoryPatient, placed.resource)
        chosen = choose((identifier_of(each) for each in patient.identifier if each.use != "old"), self._issuer)
        for name in scoped(placed, placed.names()):
            self._patients[name].add(chosen)
        if isinstance(chosen, Identifier) and (patient.deceased_boolean or patient.deceased_date_time):
            self._histories.deaths[chosen.value].add(self._day(patient.deceased_date_time))

    def add_event(self, placed: Placed) -> None:
        """Add an event to the history of its patient."""
        patient = self._patient(placed)
        if not isinstance(patient, Identifier):
            self._histories.findings.append(note(patient, "", placed.where))
            return
        resource = placed.resource
        if isinstance(resource, Encounter):
            self._encounter(patient.value, resource)
        elif isinstance(resource, Procedure):
            self._procedure(patient.value, resource)
        elif isinstance(resource, Condition):
            self._condition(patient.value, resource)

    def add_unreadable(self, placed: Placed, known: Set[str]) -> None:
        """Report a resource that cannot be read; it may be the event that makes its patient's outcome severe."""
        self._histories.findings += fault_of(placed, owners_of(placed, self._patients, known, self._issuer))

    def _encounter(self, patient: str, encounter: Encounter) -> None:
        if encounter.status not in _TOOK_PLACE:
            return
        period = encounter.period
        for text in (period.start, period.end):
            self._histories.see(patient, self._day(text))
        for concept in (*encounter.type, encounter.service_type):
            self._add(patient, concept, period.start, is_certain=True)
        self._add(patient, encounter.hospitalization.discharge_disposition, period.end, is_certain=True)

    def _procedure(self, patient: str, procedure: Procedure) -> None:
        if procedure.status in _DID_NOT:
            return
        text = procedure.performed_date_time or procedure.performed_period.start
        if procedure.status in _HAPPENED:
            self._histories.see(patient, self._day(text))
        self._add(patient, procedure.code, text, is_certain=procedure.status in _HAPPENED)

    def _condition(self, patient: str, condition: Condition) -> None:
        status = {coding.code for coding in condition.verification_status.coding}
        if status & _REFUTED:
            return
        text = condition.onset_date_time or condition.onset_period.start or condition.recorded_date
        self._histories.see(patient, self._day(condition.recorded_date))
        self._add(patient, condition.code, text, is_certain=not status or bool(status & _CONFIRMED))

    def _add(self, patient: str, concept: Concept, text: str, *, is_certain: bool) -> None:
        codes: tuple[Coded, ...] = tuple((coding.system, coding.code) for coding in concept.coding)
        if codes:
            self._histories.events.append(CodedEvent(patient, codes, self._day(text), text, is_certain))

    def _patient(self, placed: Placed) -> Identifier | Reason:
        subject = cast(Event, placed.resource).subject
        for name in scoped(placed, placed.called(subject.reference)):
            if known := self._patients.get(name):
                return next(iter(known)) if len(known) == 1 else reasons.IDENTIFIER_AMBIGUOUS
        if subject.identifier is not None:
            return choose([identifier_of(subject.identifier)], self._issuer)
        return reasons.NO_IDENTIFIER

    def _day(self, text: str) -> date | None:
        """Return the site's calendar day of a time; None without a whole day. Raises Refusal E_TIME_ZONE."""
        moment = fhir_time(text)
        there = moment and self._clock.local(moment)
        return there.date() if there else None
