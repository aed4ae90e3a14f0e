"""Routes for signing in with the hospital's account, which the page calls before and after the provider."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from pipeline.clinic.web import schemas
from pipeline.clinic.web.authentication import Callers, check_same_site
from pipeline.clinic.web.dependencies import TheClinic
from pipeline.clinic.web.error_responses import documented
from pipeline.clinic.web.sessions import session_json, set_session_cookie
from pipeline.clinic.web.single_sign_on import SIGN_IN_SECONDS, ProviderAnswer

routes = APIRouter(tags=["session"])


@routes.get("/sign-in", response_model=schemas.SignInWays, responses=documented(), summary="How browsers may sign in")
def get_sign_in(request: Request) -> Any:
    """Return whether the hospital's accounts and tokens can be used. It needs no token."""
    sso = request.app.state.callers.sso
    return {"provider": sso is not None, "tokens": sso is None or sso.table.sign_in_with_tokens}


@routes.post(
    "/sign-in",
    response_model=schemas.SignInAddress,
    responses=documented(404, 502),
    summary="Start a sign-in with the hospital's account",
)
def post_sign_in(request: Request, response: Response, start: schemas.SignInStart) -> Any:
    """Return the provider's address. The browser's cookie is needed again at the end. E_SIGN_IN_OFF without [oidc]."""
    check_same_site(request)
    callers: Callers = request.app.state.callers
    url, sealed = callers.single_sign_on().begin(start.to)
    response.set_cookie(
        _cookie(callers), sealed, max_age=SIGN_IN_SECONDS, httponly=True, samesite="strict", secure=callers.tls
    )
    return {"url": url}


@routes.post(
    "/sign-in/finish",
    response_model=schemas.SignedIn,
    responses=documented(404, 409, 502),
    summary="End a sign-in with the hospital's account",
)
async def post_finish(request: Request, response: Response, clinic: TheClinic, end: schemas.SignInEnd) -> Any:
    """Start a session with what the provider added to the page's address. It works once, and in the same browser."""
    callers: Callers = request.app.state.callers
    sealed = request.cookies.get(_cookie(callers), "")
    given = ProviderAnswer(state=end.state, code=end.code, issuer=end.iss, error=end.error)
    secret, caller, to = await callers.finish_sign_in(request, sealed, given)
    response.delete_cookie(_cookie(callers), httponly=True, samesite="strict", secure=callers.tls)
    set_session_cookie(response, callers, secret)
    session = await run_in_threadpool(session_json, caller, clinic, callers)
    return {**session, "to": to}


def _cookie(callers: Callers) -> str:
    return f"{callers.cookie}-sign-in"
