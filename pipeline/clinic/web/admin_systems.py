"""Routes for administrators: the systems that the clinic exchanges data with, and deliveries that did not arrive."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from models.refusal import Refusal
from pipeline.clinic import connections
from pipeline.clinic.reasons import NO_SUCH_CONNECTION
from pipeline.clinic.records import moment
from pipeline.clinic.store import Store
from pipeline.clinic.web import admin_schemas as schemas
from pipeline.clinic.web.dependencies import Admin, TheClinic, TheStore
from pipeline.clinic.web.error_responses import documented

_MOST = 200  # deliveries that are listed
_LARGEST = 2**53

routes = APIRouter(tags=["administration"])


@routes.get(
    "/connections", response_model=schemas.Connections, responses=documented(), summary="The hospital's systems"
)
def get_connections(clinic: TheClinic, store: TheStore, _: Admin) -> Any:
    """List what clinic.toml sets up, with the number of deliveries by state. It contacts no system."""
    return {"connections": connections.connections(clinic, store)}


@routes.post(
    "/connections/{name}/test", response_model=schemas.Tried, responses=documented(404), summary="Test a connection"
)
def post_test(clinic: TheClinic, store: TheStore, caller: Admin, name: connections.Name) -> Any:
    """Ask a system whether it responds, without anything of a patient. E_NO_SUCH_CONNECTION if it is not set up."""
    told: dict[str, str | None] = dict.fromkeys(("code", "says", "remedy"))
    try:
        connections.check(clinic, name)
    except Refusal as refusal:
        if refusal.reason is NO_SUCH_CONNECTION:
            raise
        told = {"code": refusal.code, "says": refusal.says, "remedy": refusal.remedy}
    store.audit.add(caller.name, "test_connection", output={"name": name}, code=told["code"])
    return {"responds": told["code"] is None, **told}


@routes.get("/deliveries", response_model=schemas.OpenDeliveries, responses=documented(), summary="Open deliveries")
def get_deliveries(store: TheStore, _: Admin) -> Any:
    """List the deliveries that failed for good or wait for their next attempt. They name no patient."""
    return {"deliveries": _open(store)}


@routes.post(
    "/deliveries/{number}/send",
    response_model=schemas.OpenDeliveries,
    responses=documented(404),
    summary="Send a delivery again",
)
def post_send_again(store: TheStore, caller: Admin, number: Annotated[int, Path(ge=1, le=_LARGEST)]) -> Any:
    """Queue a delivery again, due at once. What a newer decision replaced, or may not be sent, is still not sent."""
    delivery = store.deliveries.again(number)
    answer = store.answers.get(delivery.answer_id)
    store.audit.add(
        caller.name,
        "send",
        job_id=answer.job_id,
        answer_id=answer.id,
        output={"target": delivery.target, "again": True},
    )
    return {"deliveries": _open(store)}


def _open(store: Store) -> list[dict[str, Any]]:
    return [
        {
            **each.to_json(),
            "target": each.target,
            "number": each.number,
            "answer_id": each.answer_id,
            "job_id": job_id,
            "due_at": moment(each.due_at),
        }
        for each, job_id in store.deliveries.unsent(_MOST)
    ]
