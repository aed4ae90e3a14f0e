"""Routes for administrators: models and audit records."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from models.reasons import NO_MODEL
from models.refusal import Refusal
from pipeline.clinic import model_registry
from pipeline.clinic.later_outcomes import later_outcomes
from pipeline.clinic.local_audit import local_audit
from pipeline.clinic.web import schemas
from pipeline.clinic.web.dependencies import Admin, Reader, TheClinic, TheStore
from pipeline.clinic.web.error_responses import documented
from pipeline.clinic.web.schemas import Sha256
from pipeline.system.days import Moment

_EARLIEST, _LATEST = datetime(2020, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)  # every record lies between
_LARGEST = 2**53  # that every client of JSON can write

routes = APIRouter(tags=["administration"])


@routes.get("/models", response_model=schemas.KeptModels, responses=documented(409), summary="The models")
def get_models(clinic: TheClinic, store: TheStore, _: Reader) -> Any:
    """List the models: which one is live, which one runs in shadow, and how well the two agree."""
    return {"models": model_registry.overview(clinic, store)}


@routes.post(
    "/models/{sha256}/shadow",
    response_model=schemas.KeptModels,
    responses=documented(404, 409),
    summary="Run a model in shadow",
)
def post_shadow(clinic: TheClinic, store: TheStore, caller: Admin, sha256: Sha256) -> Any:
    """Run this model beside the live one from the next scan on, invisible to clinicians."""
    model_registry.set_shadow(store, sha256, by=caller.name)
    return {"models": model_registry.overview(clinic, store)}


@routes.delete(
    "/models/{sha256}/shadow",
    response_model=schemas.KeptModels,
    responses=documented(404, 409),
    summary="End a model's run in shadow",
)
def delete_shadow(clinic: TheClinic, store: TheStore, caller: Admin, sha256: Sha256) -> Any:
    """Stop the shadow run. The model and its answers are kept."""
    if model_registry.named(store, sha256).role == "shadow":
        store.models.set_shadow(None, by=caller.name)
    return {"models": model_registry.overview(clinic, store)}


@routes.post(
    "/models/{sha256}/promote",
    response_model=schemas.KeptModels,
    responses=documented(404, 409),
    summary="Make a model the live one",
)
def post_promote(clinic: TheClinic, store: TheStore, caller: Admin, sha256: Sha256) -> Any:
    """Make this model, which ran in shadow, the live one from the next scan on.

    Earlier answers keep the name of their model. Only `fedthorax clinic promote --force`, on the machine, makes a model
    live that never ran in shadow.
    """
    model_registry.promote(store, sha256, by=caller.name)
    return {"models": model_registry.overview(clinic, store)}


@routes.get(
    "/local-audit",
    response_model=schemas.LocalAudit,
    responses=documented(409),
    summary="How readers agree with the model",
)
def get_local_audit(clinic: TheClinic, store: TheStore, _: Reader) -> Any:
    """Return counts and comparisons of the live model, of no single patient. E_NO_MODEL if no model is live."""
    found = local_audit(store, later_outcomes(clinic))
    if found is None:
        raise Refusal(NO_MODEL)
    return found.to_json()


@routes.get("/audit", response_model=schemas.AuditRecords, responses=documented(), summary="Who did what, and when")
def get_audit(
    store: TheStore,
    _: Admin,
    since: Moment | None = None,
    after: Annotated[
        int | None, Query(ge=0, le=_LARGEST, description="`number` of the last record of the page before; 0: all.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Any:
    """List audit records, oldest first: the first ones since a time or after a number, else the newest ones.

    There may be more than `limit`: ask again with `after` until `records` is empty.
    """
    some = min(max(since, _EARLIEST), _LATEST) if since else None
    return {"records": [record.to_json() for record in store.audit.records(some, limit, after)]}
