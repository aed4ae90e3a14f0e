"""Dependencies of the routes: the clinic, its store, and a caller with a sufficient role."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPBearer

from models.refusal import Refusal
from pipeline.clinic.reasons import NOT_A_PERSON, ROLE
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.clinic.web.auth import Access, Caller
from pipeline.clinic.web.view_audit import ViewAudit

_bearer = HTTPBearer(auto_error=False, description="A token of `fedthorax clinic token`.")
_cookie = APIKeyCookie(
    name="fedthorax", auto_error=False, description="The session of a signed-in browser; __Host-fedthorax over TLS."
)


class Role:
    """A dependency that returns the caller. Raises Refusal E_ROLE if their role is not sufficient."""

    def __init__(self, needed: Access) -> None:
        self._needed = needed

    def __call__(
        self,
        request: Request,
        _token: Annotated[object, Security(_bearer)],  # both for the OpenAPI document; the middleware has checked them
        _session: Annotated[object, Security(_cookie)],
    ) -> Caller:
        caller: Caller = request.state.caller
        if not caller.may(self._needed):
            raise Refusal(ROLE, role=self._needed)
        return caller


def _person(caller: Annotated[Caller, Depends(Role("score"))]) -> Caller:
    """Return the caller. Raises Refusal E_NOT_A_PERSON if their token names no person."""
    if not caller.person:
        raise Refusal(NOT_A_PERSON)
    return caller


def _clinic(request: Request) -> Clinic:
    clinic: Clinic = request.app.state.clinic
    return clinic


def _view_audit(request: Request) -> ViewAudit:
    view_audit: ViewAudit = request.app.state.view_audit
    return view_audit


def _store(request: Request) -> Iterator[Store]:
    with _clinic(request).store() as store:
        yield store


TheClinic = Annotated[Clinic, Depends(_clinic)]
TheStore = Annotated[Store, Depends(_store)]
TheViewAudit = Annotated[ViewAudit, Depends(_view_audit)]
Reader = Annotated[Caller, Depends(Role("read"))]
Scorer = Annotated[Caller, Depends(Role("score"))]
Person = Annotated[Caller, Depends(_person)]  # who may decide about results
Admin = Annotated[Caller, Depends(Role("admin"))]
