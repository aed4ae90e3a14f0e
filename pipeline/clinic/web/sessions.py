"""Routes for signing in with a token, and signing out."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from models.refusal import Refusal
from pipeline.clinic.records import moment
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web import schemas
from pipeline.clinic.web.auth import Caller
from pipeline.clinic.web.authentication import Callers
from pipeline.clinic.web.dependencies import Reader, TheClinic
from pipeline.clinic.web.error_responses import documented

routes = APIRouter(tags=["session"])


@routes.get("/session", response_model=schemas.Session, responses=documented(), summary="The caller")
def get_session(clinic: TheClinic, caller: Reader) -> Any:
    """Return name and role of the caller's token, or of the token of their session."""
    return _json(caller, clinic)


@routes.post("/session", response_model=schemas.Session, responses=documented(), summary="Sign in")
async def post_session(request: Request, response: Response, clinic: TheClinic, sign_in: schemas.SignIn) -> Any:
    """Start a session. No script can read its cookie, and browsers do not send it for other sites."""
    callers: Callers = request.app.state.callers
    secret, caller = await callers.sign_in(request, sign_in.token)
    response.set_cookie(
        callers.cookie, secret, max_age=int(callers.hours * 3600), httponly=True, samesite="strict", secure=callers.tls
    )
    return await run_in_threadpool(_json, caller, clinic)


@routes.delete("/session", status_code=204, responses=documented(), summary="Sign out")
def delete_session(request: Request, response: Response, _: Reader) -> None:
    """End the browser's session; a token sent in a header remains valid."""
    callers: Callers = request.app.state.callers
    callers.tokens.sign_out(callers.session_secret(request.headers))
    response.delete_cookie(callers.cookie, httponly=True, samesite="strict", secure=callers.tls)


def _json(caller: Caller, clinic: Clinic) -> dict[str, Any]:
    return {
        "name": caller.name,
        "role": caller.role,
        "person": caller.person,
        "ends_at": moment(caller.ends_at),
        "searches_pacs": _searches_pacs(clinic),
        "sends_to_pacs": clinic.settings.results.send != "off",
        "viewer_url": clinic.settings.server.viewer_url,
        "sends": clinic.settings.results.send,
    }


def _searches_pacs(clinic: Clinic) -> bool:
    try:
        return clinic.pacs is not None
    except Refusal:  # the node's folder cannot be opened; a search says why
        return True
