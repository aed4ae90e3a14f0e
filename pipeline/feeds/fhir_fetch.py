"""Fetches the records of a site from its FHIR server ([fhir] of site.toml) into SITE/fhir/resources.sqlite.

Only resources that the records need are stored, and of them only the needed elements. A fetch that fails or is killed
loses nothing: the next one continues. Later fetches ask only for changes; after a change of the settings that decide
what is fetched, everything is fetched again.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.feeds.fhir_client import FhirClient
from pipeline.feeds.fhir_export import export
from pipeline.feeds.fhir_search import COURSES, RESULTS, Query, fetch_missing, name_in, referenced, search
from pipeline.feeds.unnamed_resources import settled
from pipeline.feeds.withdrawn_resources import WithdrawnResources
from pipeline.records.fhir_store import ResourceStore, is_unnamed, name_of
from pipeline.records.laboratory.codes import GENES, OVERALL, Code, kind_of
from pipeline.records.laboratory.settings import FhirLaboratory, canonical
from pipeline.records.outcomes import FhirOutcomes
from pipeline.site.fhir_settings import FhirTable
from pipeline.site.folder import Site
from pipeline.system.locks import alone

LOINC = "http://loinc.org"
_OVERLAP_SECONDS = 600.0  # a server may make a change visible some time after the time that it states for it
_PATIENTS = 40  # in one search
_LABORATORY = ("Patient", "Specimen", "Observation", "DiagnosticReport")


@dataclass(frozen=True)
class FetchReport:
    """What one fetch did."""

    resources: int
    megabytes: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fetch(site: Site, *, sleep: Callable[[float], None] = time.sleep) -> FetchReport:
    """Fetch what is new or changed.

    Raises Refusal: E_NO_FHIR_SERVER, E_FETCH_RUNNING, E_FETCH_DISK, E_PACS_FILE, E_FHIR_SILENT, E_FHIR_AUTH,
    E_FHIR_UNTRUSTED, E_FHIR_PROXY, E_FHIR_ANSWER, E_FHIR_ORIGIN, E_FHIR_SIZE, E_FHIR_ENDLESS, E_FHIR_EXPORT_WAIT.
    """
    table = site.settings.fhir
    if table is None:
        raise Refusal(reasons.NO_FHIR_SERVER)
    queries, wants, courses = _queries(site), _Wanted(site), _fetches_courses(site)
    try:
        with (
            alone(site.logs / "fetch.lock", reasons.FETCH_RUNNING),
            ResourceStore(site.fhir_store) as store,
            FhirClient(table, site.folder, sleep) as client,
        ):
            _begin(site, store, table, queries)
            withdrawn = WithdrawnResources(site, store)
            if table.method == "export":
                kinds = [*(_LABORATORY if _fetches_results(site) else ("Patient",)), *(COURSES if courses else ())]
                count = export(client, store, table, kinds, wants, withdrawn, sleep)
            else:
                count = _search(client, store, table, queries, wants, withdrawn)
                if courses:
                    count += search(client, store, table, _course_queries(site, client, store), wants, withdrawn)
            count += _end(site, store, client, withdrawn)
            return FetchReport(count, round(client.received / 1e6, 1))
    except (sqlite3.Error, OSError) as error:
        raise Refusal(reasons.FETCH_DISK, private=str(error)) from error


def erase(site: Site) -> int:
    """Delete the fetched resources of withdrawn patients; return their number. Repeat it after a kill.

    Raises Refusal: E_FETCH_RUNNING, E_FETCH_DISK.
    """
    if not site.fhir_store.is_file():
        return 0
    try:
        site.logs.mkdir(exist_ok=True)
        with alone(site.logs / "fetch.lock", reasons.FETCH_RUNNING), ResourceStore(site.fhir_store) as store:
            withdrawn = WithdrawnResources(site, store)
            gone = withdrawn.stored()
            # The link to the next page of an interrupted search may name patients: its query begins again.
            store.write(gone=gone, withdrawn=withdrawn.state)
            if store.state().get("next"):
                store.write(next="")
            store.compact()
    except (sqlite3.Error, OSError) as error:
        raise Refusal(reasons.FETCH_DISK, private=str(error)) from error
    return len(gone)


def last_fetch(site: Site) -> datetime | None:
    """Return when the last fetch was complete, None if none was. Raises Refusal E_FETCH_DISK."""
    if not site.fhir_store.is_file():
        return None
    try:
        with ResourceStore(site.fhir_store) as store:
            at = store.state().get("fetched")
    except sqlite3.Error as error:
        raise Refusal(reasons.FETCH_DISK, private=str(error)) from error
    return datetime.fromisoformat(at) if at else None


def _begin(site: Site, store: ResourceStore, table: FhirTable, queries: Sequence[Query]) -> None:
    """Begin a fetch, or continue the one that was interrupted. Empty the store if it answers other questions.

    From time to time everything is fetched again: a server does not tell which resources it has deleted, or which no
    longer match a search.
    """
    fixed = (table.url, table.method, str(table.from_date), table.group, _fetches_results(site), _fetches_courses(site))
    asked = [*fixed, [asdict(query) for query in queries]]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if store.state().get("asked") != digest:
        store.clear()
        store.write(asked=digest)
    state = store.state()
    if state.get("is_open"):
        return
    is_full = not state.get("since") or time.time() - state.get("full_at", 0) > table.refresh_days * 86400
    if table.method == "export" and _fetches_courses(site):
        is_full = True  # the course of a patient whose first result is new may be older than the last export
    store.write(is_open=True, is_full=is_full, round=state.get("round", 0) + 1)
    if is_full:
        store.write(since=None, full_at=time.time())


def _search(
    client: FhirClient,
    store: ResourceStore,
    table: FhirTable,
    queries: Sequence[Query],
    wants: "_Wanted",
    withdrawn: WithdrawnResources,
) -> int:
    """Search for results, unless this fetch has already done so before it was interrupted."""
    if store.state().get("has_results"):
        return 0
    count = search(client, store, table, queries, wants, withdrawn)
    began = store.state().get("began")
    store.write(has_results=True, began=None, since=began - _OVERLAP_SECONDS if began else None)
    return count


def _end(site: Site, store: ResourceStore, client: FhirClient, withdrawn: WithdrawnResources) -> int:
    """Delete what is no longer needed, fetch what is missing, and return the number of these resources."""
    if store.state().get("is_full"):
        store.delete_older()
    needed = referenced(client, store, RESULTS if _fetches_results(site) else COURSES)
    names = store.names()
    others = {name for name in names - needed if name.startswith(("Patient/", "Specimen/"))}
    gone = [name for name in others if not is_unnamed(name)]  # one without an id may be a needed one
    if _fetches_results(site):
        for kind in COURSES:
            for each in store.resources(kind):
                if name_in(client.base, each.get("subject")) not in needed:
                    gone.append(name_of(each))
    store.write(gone=gone)
    count = fetch_missing(client, store, needed, withdrawn)
    store.write(gone=settled(store, client.base, needed))
    fetched = datetime.now().astimezone().isoformat(timespec="seconds")
    store.write(is_open=None, has_results=None, fetched=fetched)
    return count


def _queries(site: Site) -> list[Query]:
    """Return the searches: results of PCR tests with their patients and specimens."""
    laboratory = site.settings.laboratory
    if not isinstance(laboratory, FhirLaboratory) or not _fetches_results(site):
        return []
    tokens = [f"{LOINC}|{code}" for code in sorted(OVERALL | GENES)]
    tokens += [_escaped(test) for test in laboratory.tests if not any(each.isspace() for each in test)]
    included = [("_include", f"Observation:{name}") for name in ("subject", "specimen")]
    return [Query("Observation", (("code", ",".join(tokens)), *included), dated="date", changes_only=True)]


def _course_queries(site: Site, client: FhirClient, store: ResourceStore) -> list[Query]:
    """Return the searches for the course of each patient with a result: deaths, encounters, procedures, conditions.

    They ask for everything each time, because a patient whose first result is new may have an old course.
    """
    outcomes = site.settings.outcomes
    assert isinstance(outcomes, FhirOutcomes)
    since = ("date", f"ge{outcomes.from_date.isoformat()}")
    patients = sorted(name for name in referenced(client, store, RESULTS) if name.startswith("Patient/"))
    queries = []
    for first in range(0, len(patients), _PATIENTS):
        some = patients[first : first + _PATIENTS]
        # With the type: R4 allows ids alone too (3.1.1.4.12), but some servers then find nothing, without an error.
        of_patients = ("patient", ",".join(some))
        queries += [
            Query("Patient", (("_id", ",".join(name.partition("/")[2] for name in some)),)),
            Query("Encounter", (of_patients, since)),
            Query("Procedure", (of_patients, since)),
            Query("Condition", (of_patients,)),
        ]
    return queries


def _fetches_results(site: Site) -> bool:
    laboratory = site.settings.laboratory
    return isinstance(laboratory, FhirLaboratory) and laboratory.file == site.fhir_store


def _fetches_courses(site: Site) -> bool:
    outcomes = site.settings.outcomes
    return isinstance(outcomes, FhirOutcomes) and outcomes.file == site.fhir_store


def _escaped(token: str) -> str:
    """Escape the characters that have a meaning in a search parameter (FHIR R4, 3.1.1.4.0.1)."""
    return "".join(f"\\{each}" if each in "\\$,|" else each for each in token)


class _Wanted:
    """Whether a resource is needed: of Observations and reports only those of the PCR tests, and panels."""

    def __init__(self, site: Site) -> None:
        laboratory = site.settings.laboratory
        self._declared = {canonical(test) for test in laboratory.tests} if laboratory else set[str]()

    def __call__(self, resource: dict[str, Any]) -> bool:
        if resource["resourceType"] not in ("Observation", "DiagnosticReport"):
            return True
        if resource.get("hasMember") or resource.get("result"):
            return True
        parts = resource.get("component")
        concepts = [resource, *(parts if isinstance(parts, list) else [])]
        return any(kind_of(_names(each), self._declared) in ("overall", "gene") for each in concepts)


def _names(element: Any) -> Iterator[Code]:
    concept = element.get("code") if isinstance(element, dict) else None
    if isinstance(concept, dict):
        codings = concept.get("coding")
        for each in codings if isinstance(codings, list) else []:
            if isinstance(each, dict):
                yield Code(*(str(each.get(key) or "") for key in ("system", "code", "display")))
        yield Code("", "", str(concept.get("text") or ""))
