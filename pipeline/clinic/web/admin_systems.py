"""Routes for administrators: the systems that the clinic exchanges data with."""

from typing import Any

from fastapi import APIRouter

from models.refusal import Refusal
from pipeline.clinic import connections
from pipeline.clinic.reasons import NO_SUCH_CONNECTION
from pipeline.clinic.web import admin_schemas as schemas
from pipeline.clinic.web.dependencies import Admin, TheClinic, TheStore
from pipeline.clinic.web.error_responses import documented

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
        told = {**refusal.to_json()}
    store.audit.add(caller.name, "test_connection", output={"name": name}, code=told["code"])
    return {"responds": told["code"] is None, **told}
