"""Fetches resources by search: pages of results, then what they refer to. Each page is stored with the next link.

A later fetch asks only for what has changed at the server since the last one (`_lastUpdated`).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.feeds.fhir_client import FhirClient, GoneError, absolute
from pipeline.feeds.withdrawn_resources import WithdrawnResources
from pipeline.records.fhir_store import ResourceStore, kept, name_of, without_id
from pipeline.site.fhir_settings import FhirTable

_WAIT = {reasons.FHIR_SILENT, reasons.FHIR_AUTH}  # the same page can still come
_MAX_ID = 200  # characters; R4 allows 64, some servers use more

RESULTS, COURSES = ("Observation", "DiagnosticReport"), ("Encounter", "Procedure", "Condition")
REFERENCES = ("subject", "specimen")
Wants = Callable[[dict[str, Any]], bool]  # whether a resource is needed


@dataclass(frozen=True)
class Query:
    """One search: type and parameters. `dated`: the name of its date parameter, "" if `from_date` does not apply."""

    kind: str
    parameters: tuple[tuple[str, str], ...]
    dated: str = ""
    changes_only: bool = False  # since the last fetch


def search(
    client: FhirClient,
    store: ResourceStore,
    table: FhirTable,
    queries: Sequence[Query],
    wants: Wants,
    withdrawn: WithdrawnResources,
) -> int:
    """Fetch all queries; return the number of resources.

    A fetch that was interrupted continues at its last page, unless the queries have changed since: they name patients,
    and one of them may have withdrawn. Raises Refusal as `FhirClient.get_json`, E_FHIR_ENDLESS.
    """
    state = store.state()
    digest = hashlib.sha256(json.dumps([asdict(query) for query in queries]).encode()).hexdigest()
    if "number" not in state or state.get("queries") != digest:
        store.write(number=0, next="", queries=digest)
    count = 0
    for number in range(store.state()["number"], len(queries)):
        try:
            count += _pages(client, store, table, queries[number], wants, withdrawn)
        except Refusal as refusal:
            if refusal.reason not in _WAIT:
                store.write(next="")  # the page may never come: the next fetch begins the query again
            raise
        store.write(number=number + 1, next="")
    store.write(number=None, next=None, queries=None)
    return count


def _pages(
    client: FhirClient,
    store: ResourceStore,
    table: FhirTable,
    query: Query,
    wants: Wants,
    withdrawn: WithdrawnResources,
) -> int:
    """Fetch all pages of a query, from the stored link if there is one."""
    state, count, seen = store.state(), 0, set[str]()
    url, params, began_again = str(state.get("next") or ""), None, False
    for _ in range(table.max_pages):
        if not url:
            url, params = f"{client.base}/{query.kind}", _parameters(query, table, state.get("since"))
        try:
            bundle, time = client.get_json(url, params)
        except GoneError:
            if params is not None or began_again:
                raise Refusal(reasons.FHIR_ANSWER, private=f"{query.kind}: not found") from None
            url, began_again = "", True  # the server no longer has the stored page
            continue
        if bundle.get("resourceType") != "Bundle":
            raise Refusal(reasons.FHIR_ANSWER, private=f"{query.kind}: not a Bundle")
        began = store.state().get("began") or (time if query.changes_only else None)
        url, params = _next(client, bundle), None
        count += keep_bundle(client, store, bundle, wants, withdrawn, next=url, began=began)
        if not url:
            return count
        if url in seen:
            break
        seen.add(url)
    raise Refusal(reasons.FHIR_ENDLESS, pages=len(seen))


def _parameters(query: Query, table: FhirTable, since: float | None) -> list[tuple[str, str]]:
    parameters = [*query.parameters, ("_count", str(table.page_size))]
    if table.from_date and query.dated:
        parameters.append((query.dated, f"ge{table.from_date.isoformat()}"))
    if since and query.changes_only:
        at = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        parameters.append(("_lastUpdated", f"ge{at}"))
    return parameters


def _next(client: FhirClient, bundle: dict[str, Any]) -> str:
    """Return the link to the next page, "" if there is none. Raises Refusal E_FHIR_ORIGIN."""
    links = bundle.get("link")
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict) and link.get("relation") == "next" and isinstance(link.get("url"), str):
            url = absolute(client.base, link["url"])
            if not client.is_own(url):
                raise Refusal(reasons.FHIR_ORIGIN, private="the link to the next page")
            return url
    return ""


def keep_bundle(
    client: FhirClient,
    store: ResourceStore,
    bundle: dict[str, Any],
    wants: Wants,
    withdrawn: WithdrawnResources,
    **state: Any,
) -> int:
    """Store the wanted resources of a Bundle, delete the others if they were stored before; return the number.

    Resources of withdrawn patients are not wanted. If the Bundle tells which these are, those stored before are
    deleted.
    """
    found = list(_resources(client.base, bundle))
    others, gone, knows_more = withdrawn.split(each for _, each in found)
    kept = {id(each) for each in others if wants(each)}
    gone |= {name_of(each) for each in others if not wants(each)}
    if knows_more:
        state["withdrawn"] = withdrawn.state
    count = store.write(((url, each) for url, each in found if id(each) in kept), gone=gone, **state)
    if knows_more:
        store.write(gone=withdrawn.stored(), withdrawn=withdrawn.state)
    return count


def _resources(base: str, bundle: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the resources of a Bundle with their URLs, without other types.

    A resource without a valid id cannot be told from a later version of itself, but it may be the only positive result
    of its patient. It is kept as one that cannot be read.
    """
    found = bundle.get("entry")
    for entry in found if isinstance(found, list) else []:
        resource = entry.get("resource") if isinstance(entry, dict) else None
        if isinstance(resource, dict) and (mine := kept(resource)):
            mine = mine if is_id(mine.get("id")) else without_id(mine)
            own, url = name_of(mine), entry.get("fullUrl")
            yield url if isinstance(url, str) and url.endswith(f"/{own}") else f"{base}/{own}", mine


def is_id(text: object) -> bool:
    return isinstance(text, str) and 0 < len(text) <= _MAX_ID and text.isascii() and not set(text) & set("/ ?#%")


def referenced(client: FhirClient, store: ResourceStore, kinds: Sequence[str]) -> set[str]:
    """Return the Patients and Specimens (type/id) that stored resources of these types refer to."""
    names = set[str]()
    for kind in kinds:
        for event in store.resources(kind):
            for reference in (event.get(key) for key in REFERENCES):
                for one in reference if isinstance(reference, list) else [reference]:
                    name = name_in(client.base, one)
                    if name.startswith(("Patient/", "Specimen/")) and is_id(name.partition("/")[2]):
                        names.add(name)
    return names


def name_in(base: str, reference: Any) -> str:
    """Return type/id of the resource that a reference names, as far as it is on this server."""
    text = reference.get("reference") if isinstance(reference, dict) else None
    return str(text or "").removeprefix(f"{base}/").split("/_history/")[0]


def fetch_missing(client: FhirClient, store: ResourceStore, needed: set[str], withdrawn: WithdrawnResources) -> int:
    """Fetch the needed Patients and Specimens (type/id) that the server has not sent."""
    count = 0
    for name in sorted(needed - store.names()):
        kind, _, identifier = name.partition("/")
        try:
            resource, _time = client.get_json(f"{client.base}/{kind}/{quote(identifier)}")
        except GoneError:
            continue
        count += keep_bundle(client, store, {"entry": [{"resource": resource}]}, lambda _: True, withdrawn)
    return count
