"""How a browser signs in with a token, and out again."""

from typing import Any

from fastapi import APIRouter, Request, Response

from pipeline.clinic.records import moment
from pipeline.clinic.web import schemas
from pipeline.clinic.web.auth import Caller
from pipeline.clinic.web.authentication import Callers
from pipeline.clinic.web.dependencies import Reader
from pipeline.clinic.web.error_responses import documented

routes = APIRouter(tags=["session"])


@routes.get("/session", response_model=schemas.Session, responses=documented(), summary="Who asks")
def get_session(caller: Reader) -> Any:
    """Name and role of the token that was shown, or with which the browser signed in."""
    return _json(caller)


@routes.post("/session", response_model=schemas.Session, responses=documented(), summary="Sign in")
async def post_session(request: Request, response: Response, sign_in: schemas.SignIn) -> Any:
    """Sets the cookie of a session, which no script can read and no other site makes a browser send."""
    callers: Callers = request.app.state.callers
    secret, caller = await callers.sign_in(request, sign_in.token)
    response.set_cookie(
        callers.cookie, secret, max_age=int(callers.hours * 3600), httponly=True, samesite="strict", secure=callers.tls
    )
    return _json(caller)


@routes.delete("/session", status_code=204, responses=documented(), summary="Sign out")
def delete_session(request: Request, response: Response, _: Reader) -> None:
    """Ends the browser's session; a token that was shown in a header stays."""
    callers: Callers = request.app.state.callers
    callers.tokens.sign_out(callers.session_secret(request.headers))
    response.delete_cookie(callers.cookie, httponly=True, samesite="strict", secure=callers.tls)


def _json(caller: Caller) -> dict[str, Any]:
    return {"name": caller.name, "role": caller.role, "ends_at": moment(caller.ends_at)}
