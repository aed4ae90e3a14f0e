"""Tests of the administrator's API for tokens and accounts."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from models.refusal import Refusal
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web.accounts import Accounts
from pipeline.clinic.web.auth import Tokens
from pipeline.identity.oidc_settings import OidcTable
from tests.pipeline.clinic.web.conftest import refused

Clients = Callable[..., TestClient]
API = "/api/v1/accounts"
ISSUER = "https://login.example"


@pytest.fixture
def admin(client: Clients) -> TestClient:
    return client("admin")


@pytest.fixture
def tokens(clinic: Clinic) -> Tokens:
    return Tokens(clinic.folder)


def listed(admin: TestClient, name: str) -> dict[str, Any]:
    (found,) = [each for each in admin.get(API).json()["accounts"] if each["name"] == name]
    return dict(found)


def records(clinic: Clinic, *actions: str) -> list[tuple[str, dict[str, Any] | None]]:
    with clinic.store() as store:
        return [
            (each.who, each.output) for each in store.audit.records() if each.action in actions and each.who != "test"
        ]


def test_new_token_is_shown_once_and_works(admin: TestClient, tokens: Tokens, clinic: Clinic) -> None:
    new = {"name": "night desk", "role": "score", "person": "Leser^Anna", "days": 30}
    answer = admin.post(API, json=new)
    assert answer.status_code == 201
    caller = tokens.caller(answer.json()["token"])
    assert (caller.name, caller.role, caller.person) == ("night desk", "score", "Leser^Anna")
    shown = listed(admin, "night desk")
    assert (shown["kind"], shown["role"], shown["open_sessions"], shown["used_at"]) == ("token", "score", 0, None)
    assert shown["ends_at"]
    assert answer.json()["token"] not in admin.get(API).text
    expected = {"name": "night desk", "role": "score", "person": "Leser^Anna"}
    assert records(clinic, "token") == [("a admin", expected)]
    assert refused(admin.post(API, json=new)) == "E_TOKEN_NAME"
    assert refused(admin.post(API, json={**new, "name": "sso:anna"})) == "E_TOKEN_NAME"
    assert refused(admin.post(API, json={**new, "name": "other", "person": "Anna"})) == "E_PERSON_NAME"


def test_new_role_holds_at_once_in_open_sessions(admin: TestClient, tokens: Tokens, clinic: Clinic) -> None:
    session, _ = tokens.sign_in(tokens.make("desk", "admin", by="test"), hours=1)
    answer = admin.post(f"{API}/role", json={"name": "desk", "role": "read"})
    assert answer.status_code == 200
    assert listed(admin, "desk")["open_sessions"] == 1
    assert tokens.session(session).role == "read"
    assert records(clinic, "role") == [("a admin", {"name": "desk", "role": "read", "before": "admin"})]


def test_revoked_token_never_becomes_valid_again(admin: TestClient, tokens: Tokens, clinic: Clinic) -> None:
    secret = tokens.make("desk", "score", by="test")
    session, _ = tokens.sign_in(secret, hours=1)
    assert admin.post(f"{API}/disable", json={"name": "desk"}).status_code == 200
    assert listed(admin, "desk")["revoked_at"]
    for use in (lambda: tokens.session(session), lambda: tokens.caller(secret)):
        with pytest.raises(Refusal, match="E_TOKEN"):
            use()
    assert refused(admin.post(f"{API}/enable", json={"name": "desk"})) == "E_TOKEN_ENDED"
    assert refused(admin.post(f"{API}/reset", json={"name": "desk"})) == "E_TOKEN_ENDED"
    assert refused(admin.post(f"{API}/role", json={"name": "desk", "role": "admin"})) == "E_TOKEN_ENDED"
    assert records(clinic, "revoke", "enable", "reset", "role") == [("a admin", {"name": "desk"})]


def test_reset_ends_the_old_secret_and_its_sessions(admin: TestClient, tokens: Tokens, clinic: Clinic) -> None:
    old = tokens.make("desk", "score", by="test", person="Leser^Anna")
    session, _ = tokens.sign_in(old, hours=1)
    new = admin.post(f"{API}/reset", json={"name": "desk"}).json()["token"]
    for use in (lambda: tokens.session(session), lambda: tokens.caller(old)):
        with pytest.raises(Refusal, match="E_TOKEN"):
            use()
    assert tokens.caller(new).person == "Leser^Anna"
    assert records(clinic, "reset") == [("a admin", {"name": "desk"})]
    tokens.make("first", "admin", by="test", once=True)
    assert refused(admin.post(f"{API}/reset", json={"name": "first"})) == "E_TOKEN_ENDED"


def test_administrators_cannot_change_themselves(admin: TestClient, tokens: Tokens) -> None:
    for does, more in (("disable", {}), ("reset", {}), ("role", {"role": "read"})):
        assert refused(admin.post(f"{API}/{does}", json={"name": "a admin", **more})) == "E_OWN_ACCOUNT"
        assert refused(admin.post(f"{API}/{does}", json={"name": "nobody", **more})) == "E_NO_SUCH_TOKEN"
    assert listed(admin, "a admin")["is_own"]


def test_account_of_the_provider_is_disabled_and_enabled_but_not_changed(
    admin: TestClient, tokens: Tokens, clinic: Clinic
) -> None:
    accounts = Accounts(tokens, ISSUER)
    session, _ = accounts.sign_in("0815", "anna", "score", person="Leser^Anna", hours=1)
    shown = listed(admin, "sso:anna")
    assert (shown["kind"], shown["role"], shown["person"]) == ("account", "score", "Leser^Anna")
    entry = {"name": "sso:anna"}
    assert refused(admin.post(f"{API}/role", json={**entry, "role": "admin"})) == "E_PROVIDER_ACCOUNT"
    assert refused(admin.post(f"{API}/reset", json=entry)) == "E_PROVIDER_ACCOUNT"
    admin.post(f"{API}/disable", json=entry)
    with pytest.raises(Refusal, match="E_TOKEN"):
        tokens.session(session)
    with pytest.raises(Refusal, match="E_SIGN_IN_DISABLED"):
        accounts.sign_in("0815", "anna", "score", person="", hours=1)
    admin.post(f"{API}/enable", json=entry)
    assert accounts.sign_in("0815", "anna", "admin", person="", hours=1)[1].role == "admin"
    assert [output for _, output in records(clinic, "revoke", "enable")] == [entry, entry]


def test_emergency_administrator_is_protected(client: Clients, tokens: Tokens, clinic: Clinic) -> None:
    clinic.settings.oidc = OidcTable.model_validate(
        {
            "issuer": ISSUER,
            "client_id": "fedthorax",
            "page_url": "https://thorax.example/",
            "roles": {"admin": ["admins"]},
            "sign_in_with_tokens": False,
            "emergency_admin": "emergency",
        }
    )
    tokens.make("emergency", "admin", by="test")
    admin = client("admin")
    for does, more in (("disable", {}), ("role", {"role": "read"})):
        assert refused(admin.post(f"{API}/{does}", json={"name": "emergency", **more})) == "E_EMERGENCY_ADMIN"
    assert listed(admin, "emergency")["is_emergency"]
    assert admin.post(f"{API}/reset", json={"name": "emergency"}).status_code == 200


def test_other_sites_cannot_change_accounts(client: Clients, secrets_by_role: dict[str, str], tokens: Tokens) -> None:
    browser = client()
    assert browser.post("/api/v1/session", json={"token": secrets_by_role["admin"]}).status_code == 200
    for headers in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        new = {"name": "intruder", "role": "admin"}
        assert refused(browser.post(API, json=new, headers=headers)) == "E_OTHER_SITE"
        entry = {"name": "a score"}
        assert refused(browser.post(f"{API}/disable", json=entry, headers=headers)) == "E_OTHER_SITE"
    assert "intruder" not in [each.name for each in tokens.all()]
