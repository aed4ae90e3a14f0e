"""The web application of one clinic: routes, middleware and page."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

import pipeline.clinic
from models.refusal import Refusal
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web import (
    admin,
    admin_records,
    admin_systems,
    admin_users,
    answers,
    decisions,
    error_responses,
    metrics,
    pacs,
    scans,
    sessions,
    sign_in,
)
from pipeline.clinic.web.auth import Tokens
from pipeline.clinic.web.authentication import Callers
from pipeline.clinic.web.limits import Room
from pipeline.clinic.web.middleware import API, OPENAPI, Guard
from pipeline.clinic.web.single_sign_on import single_sign_on
from pipeline.clinic.web.view_audit import ViewAudit

VERSION = "1.0"  # of the API; the first number changes when something is removed
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PAGE = Path(pipeline.clinic.__file__).with_name("page")
_ABOUT = """Scores chest CTs with a released model of a federated study. Research use only. Not a medical device.

Queue a scan with `POST /api/v1/scans`, and request its job until its state is `answered` or `no_score`. Requests need
a token of `fedthorax clinic token`; its role is read, score or admin, and each role includes the ones before it.
Errors are JSON with `code`, `says` and `remedy`. A browser's requests that use a session and change something must
come from the clinic's own page."""


def make_app(clinic: Clinic) -> FastAPI:
    """Create the API, the page, health and metrics of a clinic. Only one process at a time may serve a clinic.

    Raises Refusal E_SIGN_IN_SECRET.
    """
    settings = clinic.settings
    tokens = Tokens(clinic.folder)
    has_tls = settings.server.certificate is not None or settings.server.without_tls  # or a proxy does TLS
    app = FastAPI(
        title="fedthorax, the clinic's API",
        version=VERSION,
        description=_ABOUT,
        openapi_url=OPENAPI,
        docs_url=None,  # these pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.clinic = clinic
    sso = single_sign_on(settings.oidc, clinic.folder, tokens) if settings.oidc else None
    app.state.callers = Callers(tokens, hours=settings.server.session_hours, tls=has_tls, sso=sso)
    app.state.room = Room(settings.limits.waiting_scans, lambda: _waiting(clinic))
    app.state.view_audit = ViewAudit()
    app.state.registry = CollectorRegistry()
    app.state.registry.register(metrics.Figures(clinic, tokens))
    app.add_middleware(
        Guard,
        callers=app.state.callers,
        hosts=frozenset(name.lower() for name in (*LOOPBACK, settings.server.host, *settings.server.names)),
        requests_per_minute=settings.limits.requests_per_minute,
        upload_mb=settings.limits.upload_mb,
        behind_proxy=settings.server.without_tls,
    )
    app.add_exception_handler(Refusal, error_responses.of_refusal)
    app.add_exception_handler(RequestValidationError, error_responses.of_validation)
    app.add_exception_handler(HTTPException, error_responses.of_http)
    for each in (sessions, sign_in, scans, answers, decisions, pacs, admin, admin_users, admin_records, admin_systems):
        app.include_router(each.routes, prefix=API)
    app.include_router(metrics.health)
    app.add_api_route("/", _page, include_in_schema=False)
    app.add_api_route("/admin", _admin_page, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=_PAGE / "static", check_dir=False))
    return app


def _page() -> FileResponse:
    return FileResponse(_PAGE / "index.html", media_type="text/html")


def _admin_page() -> FileResponse:
    return FileResponse(_PAGE / "admin.html", media_type="text/html")


def _waiting(clinic: Clinic) -> int:
    with clinic.store() as store:
        return store.jobs.waiting()
