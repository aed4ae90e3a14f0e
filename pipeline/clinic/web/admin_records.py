"""Routes for administrators: search of the audit records, what is deleted when, and where two models differ."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from pipeline.clinic import model_registry
from pipeline.clinic.retention_plan import retention_plan
from pipeline.clinic.web import admin_schemas as schemas
from pipeline.clinic.web.dependencies import Admin, TheClinic, TheStore
from pipeline.clinic.web.error_responses import documented
from pipeline.clinic.web.schemas import Sha256
from pipeline.system.days import Moment

_EARLIEST, _LATEST = datetime(2020, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)  # every record lies between
_LARGEST = 2**53  # that every client of JSON can write

routes = APIRouter(tags=["administration"])


@routes.get(
    "/audit/search", response_model=schemas.AuditPage, responses=documented(), summary="Search the audit records"
)
def get_audit_search(
    store: TheStore,
    _: Admin,
    who: Annotated[str, Query(max_length=120, description="Part of a name, in any case.")] = "",
    action: Annotated[str, Query(max_length=40, description="One of `actions`.")] = "",
    about: Annotated[str, Query(max_length=64, description="Beginning of an id, a hash or a code.")] = "",
    since: Annotated[Moment | None, Query(description="From this time on.")] = None,
    until: Annotated[Moment | None, Query(description="Before this time.")] = None,
    before: Annotated[int | None, Query(ge=1, le=_LARGEST, description="`next` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Any:
    """List the newest records that match all criteria, newest first, one page at a time."""
    times = {name: at and min(max(at, _EARLIEST), _LATEST) for name, at in (("since", since), ("until", until))}
    found = store.audit.search(who=who, action=action, about=about, before=before, limit=limit + 1, **times)
    more = found[limit - 1].number if len(found) > limit else None
    actions = [] if before else store.audit.actions()
    return {"records": [each.to_json() for each in found[:limit]], "next": more, "actions": actions}


@routes.get(
    "/retention", response_model=schemas.RetentionPlan, responses=documented(), summary="What is deleted, and when"
)
def get_retention(clinic: TheClinic, store: TheStore, _: Admin) -> Any:
    """Return how long answers and records are kept, and how many are deleted on which day."""
    return retention_plan(clinic, store)


@routes.get(
    "/models/{sha256}/disagreements",
    response_model=schemas.Disagreements,
    responses=documented(404),
    summary="Where a shadow model differs",
)
def get_disagreements(store: TheStore, _: Admin, sha256: Sha256) -> Any:
    """List the newest scans for which this model, in shadow, gave another level than the live model."""
    return {"disagreements": model_registry.disagreements(store, model_registry.named(store, sha256).sha256)}
