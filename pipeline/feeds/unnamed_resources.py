"""Tells which stored resources without a valid id need no report any more.

Such a resource cannot be replaced by name when the server corrects it. It is forgotten only if it is known to be
corrected or not needed; else it stays until everything is fetched again.
"""

import json
from datetime import datetime
from typing import Any

from pipeline.feeds.fhir_search import COURSES, REFERENCES, RESULTS, name_in
from pipeline.records.fhir_store import KEPT, ResourceStore, is_unnamed, name_of
from pipeline.records.laboratory.times import fhir_time

Json = dict[str, Any]


def settled(store: ResourceStore, base: str, needed: set[str]) -> set[str]:
    """Return the names of resources without a valid id that this fetch, at its end, need not report any more.

    These are: events of a course that it has not written, because every fetch asks for all of them; Specimens of
    patients that are not `needed`; and what a resource with an id repeats or, for results, replaces. A Patient or
    Specimen is not forgotten while an event refers to one that is not known.
    """
    unnamed = {name for name in store.names() if is_unnamed(name)}
    gone = {name for name in unnamed & store.older_names() if name.startswith(tuple(f"{kind}/" for kind in COURSES))}
    unknown = _references(store, base) - store.names() if unnamed else set()
    for kind in {name.partition("/")[0] for name in unnamed - gone} & KEPT.keys():
        is_sought = any(name.startswith(f"{kind}/") for name in unknown)
        every = list(store.resources(kind))
        contents = {_content(each) for each in every if not is_unnamed(name_of(each))}
        newest: dict[str, datetime] = {}
        for each in every:
            key, changed = _key(each, base), _changed(each)
            if key and changed and not is_unnamed(name_of(each)):
                newest[key] = max(changed, newest.get(key, changed))
        for each in (one for one in every if is_unnamed(name_of(one))):
            changed, later = _changed(each), newest.get(_key(each, base))
            is_replaced = changed is not None and later is not None and later > changed
            is_repeated = _content(each) in contents and not is_sought
            owner = name_in(base, each.get("subject")) if kind == "Specimen" else ""
            if is_replaced or is_repeated or (owner.startswith("Patient/") and owner not in needed):
                gone.add(name_of(each))
    return gone


def _references(store: ResourceStore, base: str) -> set[str]:
    """Return what events refer to as their Patients and Specimens, names that are no valid ones too."""
    found = set[str]()
    for each in (one for kind in (*RESULTS, *COURSES) for one in store.resources(kind)):
        for value in (each.get(key) for key in REFERENCES):
            found |= {name_in(base, one) for one in (value if isinstance(value, list) else [value])}
    return found


def _content(resource: Json) -> str:
    """Return all that a resource says, without its id and version."""
    return json.dumps({key: value for key, value in resource.items() if key not in ("id", "meta")}, sort_keys=True)


def _key(resource: Json, base: str) -> str:
    """Return what all versions of a result share: laboratory's identifiers, patient and test. "" if one is unknown.

    Other resources have no key: another one of the same patient need not say what this one said.
    """
    patient = name_in(base, resource.get("subject"))
    shared = [resource.get(each) for each in ("identifier", "code")]
    if resource.get("resourceType") not in RESULTS or not patient or not all(shared):
        return ""
    return json.dumps([*shared, patient], sort_keys=True)


def _changed(resource: Json) -> datetime | None:
    """Return the time of a version; None if it is unknown, or has no zone."""
    meta = resource.get("meta")
    text = meta.get("lastUpdated") if isinstance(meta, dict) else None
    changed = fhir_time(text) if isinstance(text, str) else None
    return changed if changed and changed.tzinfo else None
