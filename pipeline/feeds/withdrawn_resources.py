"""Recognises the FHIR resources of patients who withdrew, so that a fetch does not store them.

A resource belongs to a withdrawn patient if it names one of the patient's identifiers, or refers to a Patient that
does. The server's ids of such Patients are remembered as keyed hashes in the store's state, because a later page or
fetch may contain an Observation without its Patient. A part of a report or panel (`result`, `hasMember`) that names no
patient of its own belongs to the patient of the report.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import ValidationError

from pipeline.records.fhir_store import KEPT, ResourceStore, name_of
from pipeline.records.laboratory.fhir import identifier_of
from pipeline.records.laboratory.fhir_models import FhirIdentifier
from pipeline.records.laboratory.results import of_site
from pipeline.records.laboratory.settings import FhirLaboratory
from pipeline.records.outcomes import FhirOutcomes
from pipeline.site.folder import Site
from pipeline.site.withdrawn import Withdrawn

_PARTS = ("result", "hasMember")
_NEEDED = ("resourceType", "id", "identifier", "subject", "contained", "specimen", *_PARTS)
Json = dict[str, Any]


class WithdrawnResources:
    """What is known about the withdrawn patients of a site and their resources in its store."""

    def __init__(self, site: Site, store: ResourceStore) -> None:
        tables = (site.settings.laboratory, site.settings.outcomes)
        named = {each.issuer for each in tables if isinstance(each, FhirLaboratory | FhirOutcomes)} - {""}
        self._issuers = named | {site.settings.site.issuer}
        self._site, self._store, self._withdrawn = site, store, Withdrawn(site)
        self._marks: set[str] = set(store.state().get("withdrawn", ()))

    def split(self, resources: Iterable[Json]) -> tuple[list[Json], set[str], bool]:
        """Split fetched resources: return those to store, the names (type/id) to delete, and whether more is known now.

        If more is known, resources that were stored before may belong to a withdrawn patient: see `stored`.
        """
        new = list(resources)
        if not len(self._withdrawn):
            return new, set(), False
        before = set(self._marks)
        gone = self._gone(new)
        return [each for each in new if name_of(each) not in gone], gone, self._marks != before

    def stored(self) -> set[str]:
        """Return the names of all stored resources of withdrawn patients."""
        if not len(self._withdrawn):
            return set()
        every = [
            {key: each[key] for key in _NEEDED if key in each} for kind in KEPT for each in self._store.resources(kind)
        ]
        gone = self._gone(every)
        # Several patients may share a specimen, which then belongs to none of them.
        taken = {name for each in every if name_of(each) in gone for name in _targets(each, "specimen")}
        return gone | taken.difference(
            name for each in every if name_of(each) not in gone for name in _targets(each, "specimen")
        )

    @property
    def state(self) -> list[str]:
        """What to write to the store's state under `withdrawn`."""
        return sorted(self._marks)

    def _gone(self, resources: list[Json]) -> set[str]:
        """Return the names of those that belong to a withdrawn patient, and remember what refers to them."""
        for each in resources:
            if each.get("resourceType") == "Patient":
                self._note_patient(each)
        gone: set[str] = set()
        while more := {name for each in resources if (name := name_of(each)) not in gone and self._is_theirs(each)}:
            gone |= more
            parts = {name for each in resources if name_of(each) in more for name in _targets(each, *_PARTS)}
            self._marks |= {self._mark(name) for name in parts}
        return gone

    def _note_patient(self, patient: Json) -> None:
        """Remember a withdrawn Patient, and forget one whose identifiers the server has corrected."""
        mark = self._mark(name_of(patient))
        if self._is_withdrawn(patient.get("identifier")):
            self._marks.add(mark)
        else:
            self._marks.discard(mark)

    def _is_theirs(self, resource: Json) -> bool:
        """Whether a resource belongs to a withdrawn patient, as far as is known now."""
        if resource.get("resourceType") == "Patient":
            return self._mark(name_of(resource)) in self._marks
        subject = resource.get("subject")
        if isinstance(subject, dict) and subject:
            return self._is_of_withdrawn(subject, resource)
        return self._mark(name_of(resource)) in self._marks

    def _is_of_withdrawn(self, subject: Json, resource: Json) -> bool:
        if self._is_withdrawn([subject.get("identifier")]):
            return True
        reference = str(subject.get("reference") or "")
        if reference.startswith("#"):
            inside = [each for each in _dicts(resource.get("contained")) if f"#{each.get('id')}" == reference]
            return any(self._is_withdrawn(each.get("identifier")) for each in inside)
        return self._mark(_target(reference)) in self._marks

    def _is_withdrawn(self, identifiers: Any) -> bool:
        given = []
        for each in _dicts(identifiers):
            try:
                given.append(identifier_of(FhirIdentifier.model_validate(each)))
            except ValidationError:
                continue  # the reader cannot use it either
        ours = [one for issuer in self._issuers for one in of_site(given, issuer)]
        return any(self._withdrawn.names(identifier.value) for identifier in ours)

    def _mark(self, name: str) -> str:
        return self._site.keyed("withdrawn resource", name)


def _target(reference: str) -> str:
    """Return type/id, whatever server a reference names: the reader resolves references in the same way."""
    return "/".join(reference.partition("/_history/")[0].split("/")[-2:])


def _targets(resource: Json, *keys: str) -> Iterator[str]:
    """Yield type/id of each resource to which these elements refer."""
    for key in keys:
        value = resource.get(key)
        for each in _dicts(value if isinstance(value, list) else [value]):
            if target := _target(str(each.get("reference") or "")):
                yield target


def _dicts(value: Any) -> list[Json]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
