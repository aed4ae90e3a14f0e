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
from pipeline.feeds.fhir_search import Query, fetch_missing, referenced, search
from pipeline.records.fhir_store import ResourceStore
from pipeline.records.laboratory.codes import GENES, OVERALL, Code, kind_of
from pipeline.records.laboratory.settings import FhirLaboratory, canonical
from pipeline.site.fhir_settings import FhirTable
from pipeline.site.folder import Site
from pipeline.system.locks import alone

LOINC = "http://loinc.org"
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
    queries, wants = _queries(site), _Wanted(site)
    try:
        with (
            alone(site.logs / "fetch.lock", reasons.FETCH_RUNNING),
            ResourceStore(site.fhir_store) as store,
            FhirClient(table, site.folder, sleep) as client,
        ):
            _begin(store, table, queries)
            if table.method == "export":
                count = export(client, store, table, _LABORATORY, wants, sleep)
            else:
                count = search(client, store, table, queries, wants)
            count += _end(store, client)
            return FetchReport(count, round(client.received / 1e6, 1))
    except (sqlite3.Error, OSError) as error:
        raise Refusal(reasons.FETCH_DISK, private=str(error)) from error


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


def _begin(store: ResourceStore, table: FhirTable, queries: Sequence[Query]) -> None:
    """Begin a fetch, or continue the one that was interrupted. Empty the store if it answers other questions.

    From time to time everything is fetched again: a server does not tell which resources it has deleted, or which no
    longer match a search.
    """
    asked = [table.url, table.method, str(table.from_date), table.group, [asdict(query) for query in queries]]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if store.state().get("asked") != digest:
        store.clear()
        store.write(asked=digest)
    state = store.state()
    if state.get("is_open"):
        return
    is_full = not state.get("since") or time.time() - state.get("full_at", 0) > table.refresh_days * 86400
    store.write(is_open=True, is_full=is_full, round=state.get("round", 0) + 1)
    if is_full:
        store.write(since=None, full_at=time.time())


def _end(store: ResourceStore, client: FhirClient) -> int:
    """Delete what is no longer needed, fetch what is missing, and return the number of these resources."""
    if store.state().get("is_full"):
        store.delete_older()
    needed = referenced(client, store)
    others = [name for name in store.names() - needed if name.startswith(("Patient/", "Specimen/"))]
    store.write(gone=others)
    count = fetch_missing(client, store)
    store.write(is_open=None, fetched=datetime.now().astimezone().isoformat(timespec="seconds"))
    return count


def _queries(site: Site) -> list[Query]:
    """Return the searches: results of PCR tests with their patients and specimens."""
    laboratory = site.settings.laboratory
    if not isinstance(laboratory, FhirLaboratory):
        return []
    tokens = [f"{LOINC}|{code}" for code in sorted(OVERALL | GENES)]
    tokens += [_escaped(test) for test in laboratory.tests if not any(each.isspace() for each in test)]
    included = [("_include", f"Observation:{name}") for name in ("subject", "specimen")]
    return [Query("Observation", (("code", ",".join(tokens)), *included), dated="date")]


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
