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
def get_session(request: Request, clinic: TheClinic, caller: Reader) -> Any:
    """Return name and role of the caller's token or account, or of those of their session."""
    return session_json(caller, clinic, request.app.state.callers)


@routes.post("/session", response_model=schemas.Session, responses=documented(), summary="Sign in")
async def post_session(request: Request, response: Response, clinic: TheClinic, sign_in: schemas.SignIn) -> Any:
    """Start a session. No script can read its cookie, and browsers do not send it for other sites."""
    callers: Callers = request.app.state.callers
    secret, caller = await callers.sign_in(request, sign_in.token)
    set_session_cookie(response, callers, secret)
    return await run_in_threadpool(session_json, caller, clinic, callers)


@routes.delete("/session", status_code=204, responses=documented(), summary="Sign out")
def delete_session(request: Request, response: Response, _: Reader) -> None:
    """End the browser's session; a token sent in a header remains valid."""
    callers: Callers = request.app.state.callers
    callers.tokens.sign_out(callers.session_secret(request.headers))
    response.delete_cookie(callers.cookie, httponly=True, samesite="strict", secure=callers.tls)


def set_session_cookie(response: Response, callers: Callers, secret: str) -> None:
    response.set_cookie(
        callers.cookie, secret, max_age=int(callers.hours * 3600), httponly=True, samesite="strict", secure=callers.tls
    )


def session_json(caller: Caller, clinic: Clinic, callers: Callers) -> dict[str, Any]:
    return {
        "name": caller.name,
        "role": caller.role,
        "person": caller.person,
        "ends_at": moment(caller.ends_at),
        "searches_pacs": _searches_pacs(clinic),
        "sends_to_pacs": clinic.settings.results.send != "off",
        "viewer_url": clinic.settings.server.viewer_url,
        "sends": clinic.settings.results.send,
        "sign_out_url": callers.sso.sign_out_url() if callers.sso and caller.account else "",
    }


def _searches_pacs(clinic: Clinic) -> bool:
    try:
        return clinic.pacs is not None
    except Refusal:  # the node's folder cannot be opened; a search says why
        return True
