"""Error responses: always JSON with code, says and remedy, and a matching HTTP status."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.types import Scope

from models.refusal import Refusal
from pipeline.clinic import reasons
from pipeline.identity import reasons as identity
from pipeline.pacs import reasons as pacs

_STATUS = {
    reasons.UPLOAD_BROKEN: 400,
    reasons.UPLOAD_EMPTY: 400,
    reasons.UPLOAD_NO_SCAN: 400,
    reasons.HOST: 400,
    reasons.NO_TOKEN: 401,
    reasons.TOKEN: 401,
    identity.SIGN_IN_TOKENS_OFF: 401,
    reasons.ROLE: 403,
    reasons.OTHER_SITE: 403,
    reasons.NOT_A_PERSON: 403,
    identity.SIGN_IN_STATE: 403,
    identity.SIGN_IN_REFUSED: 403,
    identity.SIGN_IN_TOKEN: 403,
    identity.SIGN_IN_KEY: 403,
    identity.SIGN_IN_ROLE: 403,
    identity.SIGN_IN_DISABLED: 403,
    identity.SIGN_IN_OFF: 404,
    reasons.NO_SUCH_ADDRESS: 404,
    reasons.NO_SUCH_JOB: 404,
    reasons.NO_SUCH_ANSWER: 404,
    reasons.NO_SUCH_FILE: 404,
    reasons.NO_SUCH_PICTURE: 404,
    reasons.NO_SUCH_MODEL: 404,
    reasons.NO_SUCH_TOKEN: 404,
    reasons.NO_SUCH_CONNECTION: 404,
    reasons.METHOD: 405,
    reasons.REQUEST_SIZE: 413,
    reasons.UPLOAD_FILES: 413,
    reasons.REQUEST_TYPE: 415,
    reasons.REQUEST: 422,
    reasons.DECISION: 422,
    reasons.PCR_DAY: 422,
    reasons.CORRECTED_MASK: 422,
    pacs.PACS_CRITERIA: 422,
    pacs.PACS_UID: 422,
    reasons.QUEUE_FULL: 429,
    reasons.RATE: 429,
    reasons.SIGN_IN_TRIES: 429,
    reasons.INTERNAL: 500,
    reasons.PICTURE_DAMAGED: 500,
    identity.SIGN_IN_PROVIDER: 502,
    reasons.CLINIC_FILE: 503,
    reasons.DISK_FULL: 503,
    reasons.REQUEST_TIME: 503,
}
_PACS_STATUS = 502
_OTHER_STATUS = 409  # the request conflicts with the current state
_QUEUE_RETRY_SECONDS = 30
_MOST_PROBLEMS = 5  # of a request that are listed

log = logging.getLogger("fedthorax.clinic")


class Problem(BaseModel):
    """Why a request was refused."""

    code: str = Field(
        description="A stable code that begins with E_; docs/refusals.md lists all codes.", examples=["E_NO_TOKEN"]
    )
    says: str = Field(description="What is wrong. The text names no patient.")
    remedy: str = Field(description="What to do next.")


DESCRIPTIONS = {
    400: "The request cannot be understood.",
    401: "The token or session is missing or invalid.",
    403: "The role is not sufficient, the sign-in is refused, or the request comes from another site.",
    404: "The requested object does not exist.",
    405: "The address does not support this method.",
    409: "The request conflicts with the current state.",
    413: "The body is too large.",
    415: "The body has a type that is not accepted here.",
    422: "The request does not match this description.",
    429: "Too many requests or waiting scans; Retry-After gives the seconds to wait.",
    500: "The server failed.",
    502: "The PACS or the provider of identities gave no valid response.",
    503: "The server cannot process the request now.",
}


BINARY = {"schema": {"type": "string", "format": "binary"}}
PNG: dict[int | str, dict[str, Any]] = {200: {"description": "The picture.", "content": {"image/png": BINARY}}}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses for the OpenAPI document: the common ones and `statuses`."""
    everywhere = (400, 401, 403, 422, 429, 500, 503)
    return {
        status: {"model": Problem, "description": DESCRIPTIONS[status]} for status in sorted({*everywhere, *statuses})
    }


def address(scope: Scope) -> str:
    """Return the sender's address; behind a proxy, the proxy's address."""
    client = scope.get("client")
    return str(client[0]) if client else "local"


def status_of(refusal: Refusal) -> int:
    if refusal.reason in _STATUS:
        return _STATUS[refusal.reason]
    return _PACS_STATUS if refusal.code.startswith("E_PACS_") else _OTHER_STATUS


def answer(refusal: Refusal, scope: Scope, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Create the error response; log its code and the client's address."""
    log.info("%s: %s from %s", refusal.code, scope["method"], address(scope))
    status, headers = status_of(refusal), dict(headers or {})
    if status == 429:
        headers["Retry-After"] = str(refusal.numbers.get("seconds", _QUEUE_RETRY_SECONDS))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(refusal.to_json(), status, headers)


async def of_refusal(request: Request, refusal: Exception) -> JSONResponse:
    assert isinstance(refusal, Refusal)
    return answer(refusal, request.scope)


async def of_validation(request: Request, error: Exception) -> JSONResponse:
    """Respond to an invalid request: say where and how it is invalid, never what was sent."""
    assert isinstance(error, RequestValidationError)
    return answer(Refusal(reasons.REQUEST, problems=_problems(error.errors())), request.scope)


async def of_http(request: Request, error: Exception) -> JSONResponse:
    """Respond to an error that the framework raised."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, Refusal):  # FastAPI wraps all errors that occur while it reads a body
        return answer(error.__cause__, request.scope)
    reason = {404: reasons.NO_SUCH_ADDRESS, 405: reasons.METHOD, 415: reasons.REQUEST_TYPE}.get(error.status_code)
    if reason:
        return answer(Refusal(reason), request.scope, error.headers)
    return answer(Refusal(reasons.REQUEST, problems="it cannot be read"), request.scope)


def _problems(errors: Sequence[Any]) -> str:
    named = [f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in errors[:_MOST_PROBLEMS]]
    return "; ".join(named)
