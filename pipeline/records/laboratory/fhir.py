"""Reads raw results from FHIR R4: Observations, their components, and DiagnosticReports without Observations.

References to Patients and Specimens are resolved across all files. If two different resources have the same name, the
reference is ambiguous and neither is used.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import datetime

from models.refusal import Reason
from pipeline.records import reasons
from pipeline.records.csv_tables import unreadable
from pipeline.records.laboratory.codes import Code, names_of
from pipeline.records.laboratory.fhir_files import Name, Placed, read_resources, scoped
from pipeline.records.laboratory.fhir_models import (
    Concept,
    DiagnosticReport,
    Event,
    FhirIdentifier,
    Observation,
    Patient,
    Specimen,
    Unreadable,
)
from pipeline.records.laboratory.results import RANK, Identifier, RawResult, Reading, Status, candidates, choose
from pipeline.records.laboratory.settings import FhirLaboratory
from pipeline.records.laboratory.times import LONG_AGO, Clock, fhir_time
from pipeline.system.findings import Finding

# Of Observation and DiagnosticReport. Other statuses (registered, preliminary, partial, unknown) are not final.
STATUSES: dict[str, Status] = {
    "final": "final", "amended": "corrected", "corrected": "corrected", "appended": "corrected",
    "cancelled": "withdrawn", "entered-in-error": "withdrawn",
}  # fmt: skip


def read(table: FhirLaboratory, clock: Clock, issuer: str) -> Reading:
    """Read the raw results of all files; each unreadable resource is a finding of its patient.

    Raises Refusal: E_TABLE_FILE, E_FILE_CUT, E_TIME_ZONE.
    """
    reading = Reading(table)
    files = _Files(clock, issuer)
    assert table.file is not None  # SiteSettings ensures it
    for placed in read_resources(table.file, reading):
        files.add(placed, reading)
    reading.results += files.results(reading)
    with_results = {each.patient.value for each in reading.results if isinstance(each.patient, Identifier)}
    for placed in files.unreadable:
        reading.findings += fault_of(placed, files.owners(placed, with_results))
    return reading


class _Files:
    """The contents of all files: identifiers of patients, times of specimens, and events with results."""

    def __init__(self, clock: Clock, issuer: str) -> None:
        self.clock, self.issuer = clock, issuer
        self.patients: dict[Name, set[Identifier | Reason]] = defaultdict(set)
        self.specimens: dict[Name, set[str]] = defaultdict(set)
        self.events: list[Placed] = []
        self.unreadable: list[Placed] = []
        self.parents: dict[Name, list[Placed]] = defaultdict(list)  # panels and reports of an Observation

    def add(self, placed: Placed, reading: Reading) -> None:
        resource = placed.resource
        for name in scoped(placed, placed.names()):
            if isinstance(resource, Patient):
                self.patients[name].add(self._choose(resource.identifier))
            elif isinstance(resource, Specimen):
                self.specimens[name].add(resource.collected)
        if isinstance(resource, Unreadable):
            self.unreadable.append(placed)
        if isinstance(resource, Event):
            # A list, not a generator: `wants` must count the results of all other tests.
            wanted = [reading.wants(_test(code)) for code, _ in _tests(resource)]
            if any(wanted) or resource.children:
                self.events.append(placed)

    def results(self, reading: Reading) -> Iterator[RawResult]:
        """Yield the results; call this after all files are read."""
        newest = self._newest()
        for placed in newest:
            for child in _event(placed).children:
                for name in scoped(placed, placed.called(child.reference)):
                    self.parents[name].append(placed)
        for placed in newest:
            yield from self._results_of(placed, reading)

    def owners(self, placed: Placed, known: Set[str]) -> set[str]:
        """Return the patients whose unreadable resource it may be; call this after `results`."""
        owners = owners_of(placed, self.patients, known, self.issuer)
        reported = self._patient(self._parents(placed))
        return {reported.value} if not owners and isinstance(reported, Identifier) else owners

    def _results_of(self, placed: Placed, reading: Reading) -> Iterator[RawResult]:
        event = _event(placed)
        chain = [placed, *self._parents(placed)]
        patient = self._patient(chain)
        collected_text = self._collected(chain)
        collected = fhir_time(collected_text)
        for code, words in _tests(event):
            test = _test(code)
            if reading.kind(test) in ("overall", "gene"):
                yield RawResult(
                    patient=patient,
                    key=(*_number(placed, patient), *names_of(test)),
                    version=self._version(event),
                    test=test,
                    value=words,
                    status=_status(chain),
                    collected=collected and self.clock.local(collected),
                    collected_text=collected_text,
                    where=placed.where,
                )

    def _newest(self) -> list[Placed]:
        """Return the newest version of each event in order; at equal times, the one with the higher RANK."""

        def age(placed: Placed) -> tuple[tuple[datetime, datetime, int], int]:
            event = _event(placed)
            return self._version(event), RANK[STATUSES.get(event.status, "pending")]

        best: dict[str, tuple[tuple[datetime, datetime, int], int]] = {}
        for placed in self.events:
            best[_name(placed)] = max(best.get(_name(placed), age(placed)), age(placed))
        return [placed for placed in self.events if best[_name(placed)] == age(placed)]

    def _version(self, event: Event) -> tuple[datetime, datetime, int]:
        version = event.meta.version_id
        number = int(version) if version.isascii() and version.isdecimal() and len(version) < 18 else 0
        return self.clock.instant(fhir_time(event.meta.last_updated or event.issued)), LONG_AGO, number

    def _parents(self, placed: Placed) -> list[Placed]:
        return next((self.parents[name] for name in scoped(placed, placed.names()) if name in self.parents), [])

    def _patient(self, chain: Sequence[Placed]) -> Identifier | Reason:
        """Return the patient of the first event that names one; an Observation may rely on its report for it."""
        for placed in chain:
            subject = _event(placed).subject
            names = scoped(placed, placed.called(subject.reference))
            known = next((self.patients[name] for name in names if name in self.patients), set())
            if known:
                return next(iter(known)) if len(known) == 1 else reasons.IDENTIFIER_AMBIGUOUS
            if subject.identifier is not None:
                return self._choose([subject.identifier])
            if subject.reference:
                return reasons.NO_IDENTIFIER
        return reasons.NO_IDENTIFIER

    def _choose(self, identifiers: Sequence[FhirIdentifier]) -> Identifier | Reason:
        return choose((identifier_of(each) for each in identifiers if each.use != "old"), self.issuer)

    def _collected(self, chain: Sequence[Placed]) -> str:
        """Return the collection time: Specimen.collection, else effective[x], never issued; "" if ambiguous."""
        for placed in chain:
            texts: set[str] = set()
            for specimen in _event(placed).specimens:
                names = scoped(placed, placed.called(specimen.reference))
                texts |= next((self.specimens[name] for name in names if name in self.specimens), set())
            if texts - {""}:
                return texts.pop() if len(texts) == 1 else ""
        return next((event.effective for event in map(_event, chain) if event.effective), "")


def _event(placed: Placed) -> Event:
    assert isinstance(placed.resource, Event)
    return placed.resource


def _name(placed: Placed) -> str:
    return next(iter(placed.names()), str(placed.number))


def _number(placed: Placed, patient: Identifier | Reason) -> tuple[str, str]:
    """Return the key of all versions of a result: the laboratory's identifier and the patient, else the resource."""
    given = next((each for each in _event(placed).identifier if each.value), None)
    if given is None or not isinstance(patient, Identifier):
        return _name(placed), ""
    return f"{given.system}|{given.value}", patient.value


def _status(chain: Sequence[Placed]) -> Status:
    """The event's own status, unless every report of it was withdrawn."""
    own, *parents = ((placed.resource, STATUSES.get(_event(placed).status, "pending")) for placed in chain)
    reports = [status for resource, status in parents if isinstance(resource, DiagnosticReport)]
    return "withdrawn" if reports and all(status == "withdrawn" for status in reports) else own[1]


def _tests(event: Event) -> Iterator[tuple[Concept, tuple[str, ...]]]:
    """Yield each test of an event with its value; the heading of components or members has no value."""
    if isinstance(event, Observation):
        if event.words() or not (event.component or event.children):
            yield event.code, event.words() or tuple(_absence(event))
        for component in event.component:
            yield component.code, component.words()
    elif isinstance(event, DiagnosticReport) and not event.children:
        concluded = [tuple(concept.words()) for concept in event.conclusion_code]
        for words in concluded or [(event.conclusion,)]:
            yield event.code, words


def _absence(event: Observation) -> Iterator[str]:
    """Yield the reason why there is no value; it counts as an unmapped result unless a word list contains it."""
    if event.data_absent_reason is not None:
        yield from event.data_absent_reason.words()


def _test(code: Concept) -> tuple[Code, ...]:
    names = [Code(each.system, each.code, each.display) for each in code.coding]
    return (*names, Code("", "", code.text)) if code.text else tuple(names)


def identifier_of(given: FhirIdentifier) -> Identifier:
    """Convert an identifier; HL7 v2 and DICOM write a system that is an object identifier without `urn:oid:`."""
    names = dict.fromkeys(filter(None, (given.system, given.system.removeprefix("urn:oid:"))))
    kinds = {coding.code for coding in given.type.coding}
    return Identifier(given.value.strip(), tuple(names), "MR" if "MR" in kinds else "")


def owners_of(
    placed: Placed, patients: Mapping[Name, Set[Identifier | Reason]], known: Set[str], issuer: str
) -> set[str]:
    """Return the patients whose unreadable resource it may be, several if that is uncertain.

    `patients`: the Patients of all files, by their names. `known`: the identifiers of all patients with readable
    events; a text in a document that is not JSON counts only if it is one of these.
    """
    resource = placed.resource
    assert isinstance(resource, Unreadable)
    named = [placed.names(), *(placed.called(reference) for reference in resource.references)]  # it may be a Patient
    found = {each for names in named for name in scoped(placed, names) for each in patients.get(name, ())}
    owners = {each.value for each in found if isinstance(each, Identifier)}
    owners |= candidates((identifier_of(each) for each in resource.identifiers if each.use != "old"), issuer)
    return owners | (resource.texts & known)


def fault_of(placed: Placed, owners: Set[str]) -> list[Finding]:
    """Make the findings of an unreadable resource and its owners."""
    assert isinstance(placed.resource, Unreadable)
    return unreadable(reasons.FHIR, owners, f"{placed.where}: {placed.resource.fault}")
