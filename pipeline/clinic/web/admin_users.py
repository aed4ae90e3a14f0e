"""Routes for administrators: tokens and accounts. Names are in bodies, because they may contain any sign of a URL."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from pipeline.clinic.web import admin_schemas as schemas
from pipeline.clinic.web.account_changes import AccountChanges
from pipeline.clinic.web.authentication import Callers
from pipeline.clinic.web.dependencies import Admin
from pipeline.clinic.web.error_responses import documented

routes = APIRouter(tags=["administration"])


def _changes(request: Request, caller: Admin) -> AccountChanges:
    callers: Callers = request.app.state.callers
    return AccountChanges(callers.tokens, caller, callers.sso.table.emergency_admin if callers.sso else "")


Changes = Annotated[AccountChanges, Depends(_changes)]


@routes.get("/accounts", response_model=schemas.Accounts, responses=documented(), summary="Tokens and accounts")
def get_accounts(changes: Changes) -> Any:
    """List all tokens ever created and all accounts of the hospital's provider that signed in, without secrets."""
    return {"accounts": changes.all()}


@routes.post(
    "/accounts", status_code=201, response_model=schemas.Secret, responses=documented(409), summary="Create a token"
)
def post_account(request: Request, caller: Admin, new: schemas.NewToken) -> Any:
    """Create a token and return it, this once. Names are never used again (E_TOKEN_NAME)."""
    callers: Callers = request.app.state.callers
    secret = callers.tokens.make(new.name, new.role, by=caller.name, days=new.days, person=new.person)
    return {"name": new.name, "token": secret}


@routes.post("/accounts/role", response_model=schemas.Accounts, responses=documented(404, 409), summary="Change a role")
def post_role(changes: Changes, entry: schemas.AccountRole) -> Any:
    """Change a token's role, also in its open sessions. The role of a provider's account comes from the provider."""
    changes.set_role(entry.name, entry.role)
    return {"accounts": changes.all()}


@routes.post(
    "/accounts/disable", response_model=schemas.Accounts, responses=documented(404, 409), summary="Disable a user"
)
def post_disable(changes: Changes, entry: schemas.AccountName) -> Any:
    """Revoke a token for good, or disable an account of the provider until it is enabled. All sessions end at once."""
    changes.disable(entry.name)
    return {"accounts": changes.all()}


@routes.post(
    "/accounts/enable", response_model=schemas.Accounts, responses=documented(404, 409), summary="Enable an account"
)
def post_enable(changes: Changes, entry: schemas.AccountName) -> Any:
    """Enable a disabled account of the provider. A revoked token is never valid again (E_TOKEN_ENDED)."""
    changes.enable(entry.name)
    return {"accounts": changes.all()}


@routes.post("/accounts/reset", response_model=schemas.Secret, responses=documented(404, 409), summary="Reset a token")
def post_reset(changes: Changes, entry: schemas.AccountName) -> Any:
    """Give a token a new secret and return it, this once. The old secret and all its sessions end at once."""
    return {"name": entry.name, "token": changes.reset(entry.name)}
