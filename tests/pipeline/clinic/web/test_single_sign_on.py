"""Tests of sign-in with the hospital's accounts, with a real provider over HTTP and TLS, and attacks that must fail."""

import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fastapi.testclient import TestClient

from models.refusal import Refusal
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web import single_sign_on
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Tokens
from pipeline.identity.oidc_provider import KEYS_AGAIN_SECONDS, Provider
from pipeline.identity.oidc_settings import OidcTable
from tests.pipeline.clinic.web.conftest import ADDRESS, refused
from tests.pipeline.clinic.web.identity_provider import (
    CLIENT_ID,
    KEYS,
    RSA_KEY,
    SECRET,
    IdentityProvider,
    public_jwk,
    serving,
)
from tests.pipeline.pacs.authority import Authority

PAGE = f"{ADDRESS}/"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def provider(authority: Authority) -> Iterator[IdentityProvider]:
    with serving(IdentityProvider(PAGE), authority.sign("provider")) as served:
        yield served


def table_for(provider: IdentityProvider, authority: Authority, **changes: Any) -> OidcTable:
    found = {
        "issuer": provider.issuer,
        "client_id": CLIENT_ID,
        "client_secret_file": "oidc-secret",
        "page_url": PAGE,
        "ca_certificate": authority.path,
        "roles": {"read": ["staff"], "score": ["radiology"], "admin": ["thorax-admins"]},
        "timeout_seconds": 5,
    }
    return OidcTable.model_validate({**found, **changes})


def put_secret(folder: Path) -> None:
    (folder / "oidc-secret").touch(mode=0o600)
    (folder / "oidc-secret").write_text(SECRET)


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.path))


class Browsers:
    """Browsers of one clinic, each with its own cookies."""

    def __init__(self, clinic: Clinic, authority: Authority) -> None:
        self.clinic, self.authority = clinic, authority
        self.app = make_app(clinic)

    def new(self) -> TestClient:
        headers = {"Sec-Fetch-Site": "same-origin"}
        return TestClient(self.app, base_url=ADDRESS, headers=headers, follow_redirects=False)

    def go(self, browser: TestClient, to: str = "") -> Json:
        """Start a sign-in, visit the provider, and return what it adds to the page's address."""
        begun = browser.post("/api/v1/sign-in", json={"to": to})
        assert begun.status_code == 200, begun.text
        granted = httpx.get(begun.json()["url"], verify=trusting(self.authority), timeout=60)
        assert granted.status_code == 302
        query = parse_qs(urlsplit(granted.headers["location"]).query)
        return {name: query[name][0] for name in ("code", "state", "iss")}

    def sign_in(self, browser: TestClient, to: str = "") -> Any:
        return browser.post("/api/v1/sign-in/finish", json=self.go(browser, to))


@pytest.fixture
def browsers(clinic: Clinic, provider: IdentityProvider, authority: Authority) -> Browsers:
    put_secret(clinic.folder)
    clinic.settings.oidc = table_for(provider, authority)
    return Browsers(clinic, authority)


@pytest.mark.parametrize("algorithm", KEYS)
def test_hospital_account_signs_in_with_each_kind_of_key(
    algorithm: str, browsers: Browsers, provider: IdentityProvider
) -> None:
    provider.algorithm = algorithm
    browser = browsers.new()
    place = f"#/scans/{'a' * 32}"
    session = browsers.sign_in(browser, place)
    assert session.status_code == 200, session.text
    told = session.json()
    assert (told["name"], told["role"], told["person"], told["to"]) == ("sso:anna", "score", "", place)
    assert browser.get("/api/v1/session").json()["name"] == "sso:anna"
    assert browser.get("/api/v1/jobs").status_code == 200


def test_account_with_both_names_is_a_named_person_and_the_audit_names_it(
    browsers: Browsers, provider: IdentityProvider, clinic: Clinic
) -> None:
    provider.user |= {"family_name": "Leser", "given_name": "Anna"}
    assert browsers.sign_in(browsers.new()).json()["person"] == "Leser^Anna"
    provider.user |= {"family_name": "Le^ser\\"}
    assert browsers.sign_in(browsers.new()).json()["person"] == ""
    with clinic.store() as store:
        records = [(each.who, each.action) for each in store.audit.records()]
    assert records == [("sso:anna", "account"), ("sso:anna", "sign_in"), ("sso:anna", "sign_in")]


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"groups": ["staff", "thorax-admins"]}, "admin"),
        ({"groups": "staff"}, "read"),
        ({"groups": ["Radiology", "radiology "]}, None),
        ({"groups": None}, None),
        ({"groups": {"radiology": True}}, None),
        ({"groups": [["radiology"]]}, None),
    ],
)
def test_role_follows_the_claim_and_without_a_mapped_role_nobody_enters(
    claims: Json, role: str | None, browsers: Browsers, provider: IdentityProvider
) -> None:
    provider.user |= claims
    answer = browsers.sign_in(browsers.new())
    if role is None:
        assert (answer.status_code, refused(answer)) == (403, "E_SIGN_IN_ROLE")
        assert "__Host" not in answer.headers.get("set-cookie", "")
    else:
        assert answer.json()["role"] == role


def test_roles_in_nested_claims_are_found(browsers: Browsers, provider: IdentityProvider) -> None:
    assert browsers.app.state.callers.sso
    table = browsers.app.state.callers.sso.table.model_copy(update={"role_claim": ["realm_access", "roles"]})
    assert single_sign_on.role_of({"realm_access": {"roles": ["staff"]}}, table) == "read"
    assert single_sign_on.role_of({"realm_access": ["staff"]}, table) is None


def test_account_that_lost_its_role_loses_its_sessions(browsers: Browsers, provider: IdentityProvider) -> None:
    browser = browsers.new()
    assert browsers.sign_in(browser).status_code == 200
    provider.user["groups"] = []
    assert refused(browsers.sign_in(browsers.new())) == "E_SIGN_IN_ROLE"
    assert refused(browser.get("/api/v1/session")) == "E_TOKEN"


def test_disabled_account_is_refused_at_once_and_later(browsers: Browsers, clinic: Clinic) -> None:
    browser = browsers.new()
    browsers.sign_in(browser)
    Tokens(clinic.folder).revoke("sso:anna", by="test")
    assert refused(browser.get("/api/v1/session")) == "E_TOKEN"
    assert refused(browsers.sign_in(browser)) == "E_SIGN_IN_DISABLED"


def test_signing_out_ends_the_session_and_names_the_provider(browsers: Browsers, provider: IdentityProvider) -> None:
    browser = browsers.new()
    address = browsers.sign_in(browser).json()["sign_out_url"]
    assert browser.get("/api/v1/session").json()["sign_out_url"] == address
    assert browser.delete("/api/v1/session").status_code == 204
    assert refused(browser.get("/api/v1/session")) == "E_NO_TOKEN"
    assert address.startswith(f"{provider.issuer}/sign-out?client_id={CLIENT_ID}&")
    gone = httpx.get(address, verify=trusting(browsers.authority), timeout=60)
    assert gone.headers["location"] == PAGE


# --- the token of the provider ---


def test_forged_or_foreign_tokens_are_refused(browsers: Browsers, provider: IdentityProvider) -> None:
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = RSA_KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    def coded(part: Json | bytes) -> str:
        content = part if isinstance(part, bytes) else json.dumps(part).encode()
        return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

    def with_secret_of_public_key(claims: Json) -> str:
        signed = f"{coded({'alg': 'HS256', 'kid': 'first'})}.{coded(claims)}"
        return f"{signed}.{coded(hmac.digest(public, signed.encode(), hashlib.sha256))}"

    def with_own_key_in_header(claims: Json) -> str:
        jwk = public_jwk("RS256", stranger, "first")
        return jwt.encode(claims, stranger, "RS256", headers={"kid": "first", "jwk": jwk})

    forged: list[Callable[[Json], str]] = [
        lambda claims: f"{coded({'alg': 'none', 'kid': 'first'})}.{coded(claims)}.",
        lambda claims: f"{coded({'alg': 'RS256', 'kid': 'first'})}.{coded(claims)}.",
        lambda claims: jwt.encode(claims, "a secret of thirty-two characters", "HS256", headers={"kid": "first"}),
        with_secret_of_public_key,
        with_own_key_in_header,
        lambda claims: provider.signed(claims, key=stranger),
        lambda claims: provider.signed(claims)[:-4] + "AAAA",
        lambda claims: jwt.encode(claims, KEYS["ES256"], "ES256", headers={"kid": "first"}),
        lambda claims: jwt.encode(claims, RSA_KEY, "PS256", headers={"kid": "first"}),
        lambda claims: "no token",
        lambda claims: "a.b.c" * 50_000,
    ]
    for forge in forged:
        provider.forge = forge
        browser = browsers.new()
        answer = browsers.sign_in(browser)
        assert refused(answer) in ("E_SIGN_IN_TOKEN", "E_SIGN_IN_KEY", "E_SIGN_IN_TRIES"), forge
        assert refused(browser.get("/api/v1/session")) == "E_NO_TOKEN"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another client"},
        {"aud": []},
        {"aud": ["another client", CLIENT_ID]},
        {"aud": [CLIENT_ID, "another client"], "azp": "another client"},
        {"azp": "another client"},
        {"iss": "https://another.example/realm"},
        {"iss": None},
        {"nonce": "another"},
        {"nonce": None},
        {"nonce": 7},
        {"exp": 1_600_000_000},
        {"exp": None},
        {"iat": 1_600_000_000},
        {"iat": 4_000_000_000},
        {"iat": "soon"},
        {"iat": None},
        {"nbf": 4_000_000_000},
        {"sub": None},
        {"sub": ""},
        {"sub": 815},
    ],
    ids=str,
)
def test_token_with_a_wrong_claim_is_refused(changes: Json, browsers: Browsers, provider: IdentityProvider) -> None:
    provider.changes = changes
    answer = browsers.sign_in(browsers.new())
    assert (answer.status_code, refused(answer)) == (403, "E_SIGN_IN_TOKEN")


def test_token_for_several_clients_names_this_one_as_its_user(browsers: Browsers, provider: IdentityProvider) -> None:
    provider.changes = {"aud": [CLIENT_ID, "another client"], "azp": CLIENT_ID}
    assert browsers.sign_in(browsers.new()).status_code == 200


def test_short_rsa_key_is_refused(browsers: Browsers, provider: IdentityProvider) -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    provider.keys = [public_jwk("RS256", short, "first")]
    provider.forge = lambda claims: provider.signed(claims, key=short)
    assert refused(browsers.sign_in(browsers.new())) == "E_SIGN_IN_TOKEN"


def test_new_key_is_fetched_once_but_a_flood_of_unknown_keys_is_not(
    provider: IdentityProvider, authority: Authority, tmp_path: Path
) -> None:
    put_secret(tmp_path)
    clock = 1000.0
    asked = Provider(table_for(provider, authority), tmp_path, lambda: clock)
    assert asked.key("RS256", "first")
    provider.key_id = "second"
    clock += KEYS_AGAIN_SECONDS
    assert asked.key("RS256", "second")
    before = provider.asked["/realm/keys"]
    for number in range(50):
        with pytest.raises(Refusal, match="E_SIGN_IN_KEY"):
            asked.key("RS256", f"unknown {number}")
    assert provider.asked["/realm/keys"] == before == 2
    clock += KEYS_AGAIN_SECONDS
    for number in range(50):
        with pytest.raises(Refusal, match="E_SIGN_IN_KEY"):
            asked.key("RS256", f"unknown {number}")
    assert provider.asked["/realm/keys"] == 3
    with pytest.raises(Refusal, match="E_SIGN_IN_KEY"):
        asked.key("RS256", "first")  # the provider removed it
    assert provider.asked["/realm/.well-known/openid-configuration"] == 1


def test_keys_for_encryption_and_symmetric_keys_are_never_used(browsers: Browsers, provider: IdentityProvider) -> None:
    for odd in ({"use": "enc"}, {"alg": "RS512"}, {"kty": "oct", "k": "c2VjcmV0"}):
        provider.keys = [{**public_jwk("RS256", RSA_KEY, "first"), **odd}, "no key"]  # type: ignore[list-item]
        browsers.app.state.callers.sso.provider = Provider(browsers.app.state.callers.sso.table, browsers.clinic.folder)
        assert refused(browsers.sign_in(browsers.new())) == "E_SIGN_IN_KEY"


# --- the way there and back ---


def test_state_and_code_work_once(browsers: Browsers) -> None:
    browser = browsers.new()
    end = browsers.go(browser)
    sealed = browser.cookies["fedthorax-sign-in"]
    assert browser.post("/api/v1/sign-in/finish", json=end).status_code == 200
    again = browsers.new()
    again.cookies.set("fedthorax-sign-in", sealed)
    answer = again.post("/api/v1/sign-in/finish", json=end)
    assert (answer.status_code, refused(answer)) == (403, "E_SIGN_IN_STATE")


def test_code_of_another_sign_in_is_refused(browsers: Browsers) -> None:
    """The code of an attacker's own account, or one that leaked, is bound to its sign-in by PKCE and the nonce."""
    victim, attacker = browsers.new(), browsers.new()
    mine, stolen = browsers.go(victim), browsers.go(attacker)
    answer = victim.post("/api/v1/sign-in/finish", json={**mine, "code": stolen["code"]})
    assert refused(answer) == "E_SIGN_IN_REFUSED"


def test_sign_in_of_another_browser_is_refused(browsers: Browsers) -> None:
    victim, attacker = browsers.new(), browsers.new()
    browsers.go(victim)
    stolen = browsers.go(attacker)
    for browser in (victim, browsers.new()):
        assert refused(browser.post("/api/v1/sign-in/finish", json=stolen)) == "E_SIGN_IN_STATE"


def test_state_expires_and_cannot_be_forged(browsers: Browsers, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = browsers.new()
    end = browsers.go(browser)
    sealed = browser.cookies["fedthorax-sign-in"]
    for odd in ("", "x", sealed[:-2], "\u00e9", base64.urlsafe_b64encode(b'{"state": "x"}').decode()):
        other = browsers.new()
        answer = other.post("/api/v1/sign-in/finish", json=end, headers={"Cookie": f"fedthorax-sign-in={odd}".encode()})
        assert refused(answer) == "E_SIGN_IN_STATE"
    monkeypatch.setattr(single_sign_on, "SIGN_IN_SECONDS", -1)
    assert refused(browser.post("/api/v1/sign-in/finish", json=end)) == "E_SIGN_IN_STATE"


def test_response_of_another_issuer_is_refused(browsers: Browsers) -> None:
    """A mix-up of two providers (RFC 9207)."""
    for issuer in ("https://another.example/realm", ""):
        browser = browsers.new()
        end = browsers.go(browser)
        assert refused(browser.post("/api/v1/sign-in/finish", json={**end, "iss": issuer})) == "E_SIGN_IN_STATE"


def test_refusal_of_the_provider_is_told_with_a_code(browsers: Browsers, provider: IdentityProvider) -> None:
    browser = browsers.new()
    end = browsers.go(browser)
    denied = {"state": end["state"], "iss": provider.issuer, "error": "access_denied"}
    assert refused(browser.post("/api/v1/sign-in/finish", json=denied)) == "E_SIGN_IN_REFUSED"
    provider.secret = "another"  # the client's secret was changed at the provider
    assert refused(browsers.sign_in(browser)) == "E_SIGN_IN_REFUSED"


@pytest.mark.parametrize(
    "to",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "#/scans/../../",
        "javascript:alert(1)",
        f"#/scans/{'a' * 32}\n//evil",
        "?x",
    ],
)
def test_sign_in_leads_only_to_a_place_of_the_page(to: str, browsers: Browsers) -> None:
    assert refused(browsers.new().post("/api/v1/sign-in", json={"to": to})) == "E_REQUEST"


def test_provider_cannot_choose_the_page_that_gets_the_code(browsers: Browsers, provider: IdentityProvider) -> None:
    answer = browsers.new().post("/api/v1/sign-in", json={}, headers={"Host": "localhost:9999"})
    asked = parse_qs(urlsplit(answer.json()["url"]).query)
    assert asked["redirect_uri"] == [PAGE]  # of clinic.toml, whatever the request says


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}])
def test_another_site_can_neither_start_nor_end_a_sign_in(headers: dict[str, str], browsers: Browsers) -> None:
    browser = browsers.new()
    end = browsers.go(browser)
    del browser.headers["Sec-Fetch-Site"]
    assert refused(browser.post("/api/v1/sign-in", json={}, headers=headers)) == "E_OTHER_SITE"
    assert refused(browser.post("/api/v1/sign-in/finish", json=end, headers=headers)) == "E_OTHER_SITE"


def test_session_before_the_sign_in_ends(browsers: Browsers, clinic: Clinic) -> None:
    """Fixation: a session that somebody put into the browser is not the one that it has afterwards."""
    secret = Tokens(clinic.folder).make("attacker", "read", by="test")
    planted, _ = Tokens(clinic.folder).sign_in(secret, hours=1)
    browser = browsers.new()
    end = browsers.go(browser)
    sealed = browser.cookies["fedthorax-sign-in"]
    cookies = f"fedthorax-sign-in={sealed}; fedthorax={planted}"
    answer = browsers.new().post("/api/v1/sign-in/finish", json=end, headers={"Cookie": cookies})
    assert answer.cookies["fedthorax"] != planted
    with pytest.raises(Refusal, match="E_TOKEN"):
        Tokens(clinic.folder).session(planted)


def test_cookies_cannot_be_read_by_scripts_or_sent_by_other_sites(browsers: Browsers) -> None:
    browser = browsers.new()
    begun = browser.post("/api/v1/sign-in", json={}).headers["set-cookie"].lower()
    ended = browsers.sign_in(browser).headers["set-cookie"].lower()
    for cookie in (begun, ended):
        assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie


# --- accounts ---


def test_account_with_the_name_of_a_token_is_another_user(
    browsers: Browsers, provider: IdentityProvider, clinic: Clinic
) -> None:
    tokens = Tokens(clinic.folder)
    secret = tokens.make("anna", "admin", by="test", person="Leser^Anna")
    session = browsers.sign_in(browsers.new()).json()
    assert (session["name"], session["role"], session["person"]) == ("sso:anna", "score", "")
    tokens.revoke("sso:anna", by="test")
    assert tokens.caller(secret).role == "admin"
    with pytest.raises(Refusal, match="E_TOKEN_NAME"):
        tokens.make("sso:anna", "admin", by="test")


def test_name_is_never_given_to_a_second_account(browsers: Browsers, provider: IdentityProvider) -> None:
    assert browsers.sign_in(browsers.new()).status_code == 200
    provider.user |= {"preferred_username": "anna.married"}  # the same subject keeps its name in the records
    assert browsers.sign_in(browsers.new()).json()["name"] == "sso:anna"
    provider.user |= {"sub": "0816", "preferred_username": "ANNA"}
    assert refused(browsers.sign_in(browsers.new())) == "E_SIGN_IN_NAME"
    for odd in (None, "", 7, "a\u202eb", "x" * 101, "<b>"):
        provider.user |= {"sub": f"odd {odd}", "preferred_username": odd}
        assert refused(browsers.sign_in(browsers.new())) == "E_SIGN_IN_NAME"


def test_accounts_end_with_the_settings_that_allowed_them(
    browsers: Browsers, clinic: Clinic, provider: IdentityProvider, authority: Authority
) -> None:
    browser = browsers.new()
    browsers.sign_in(browser)
    cookie = {"Cookie": f"fedthorax={browser.cookies['fedthorax']}"}
    for table in (None, table_for(provider, authority, issuer="https://another.example")):
        clinic.settings.oidc = table
        assert refused(Browsers(clinic, authority).new().get("/api/v1/session", headers=cookie)) == "E_TOKEN"


# --- tokens, the emergency administrator, and a provider that is down ---


@pytest.fixture
def strict(browsers: Browsers, clinic: Clinic, provider: IdentityProvider, authority: Authority) -> Browsers:
    """A clinic in which persons must use the hospital's accounts."""
    clinic.settings.oidc = table_for(provider, authority, sign_in_with_tokens=False, emergency_admin="emergency")
    return Browsers(clinic, authority)


def test_tokens_of_persons_can_be_switched_off_but_not_the_emergency_one(
    browsers: Browsers, strict: Browsers, clinic: Clinic
) -> None:
    tokens = Tokens(clinic.folder)
    person = tokens.make("reader", "score", by="test", person="Leser^Anna")
    program = tokens.make("prometheus", "read", by="test")
    emergency = tokens.make("emergency", "admin", by="test")
    before = browsers.new()
    assert before.post("/api/v1/session", json={"token": person}).status_code == 200  # before the switch
    cookie = {"Cookie": f"fedthorax={before.cookies['fedthorax']}"}
    asked = strict.new()
    assert asked.get("/api/v1/sign-in").json() == {"provider": True, "tokens": False}
    for secret in (person, program):
        answer = asked.post("/api/v1/session", json={"token": secret})
        assert (answer.status_code, refused(answer)) == (401, "E_SIGN_IN_TOKENS_OFF")
    assert refused(asked.get("/api/v1/session", headers=cookie)) == "E_SIGN_IN_TOKENS_OFF"
    assert refused(asked.get("/api/v1/jobs", headers={"Authorization": f"Bearer {person}"})) == "E_SIGN_IN_TOKENS_OFF"
    assert asked.get("/api/v1/jobs", headers={"Authorization": f"Bearer {program}"}).status_code == 200
    assert asked.post("/api/v1/session", json={"token": emergency}).json()["role"] == "admin"
    assert asked.get("/api/v1/audit").status_code == 200
    with clinic.store() as store:
        assert [each.who for each in store.audit.records() if each.action == "sign_in"] == ["reader", "emergency"]


def test_emergency_token_must_be_an_administrators(strict: Browsers, clinic: Clinic) -> None:
    secret = Tokens(clinic.folder).make("emergency", "score", by="test")
    assert refused(strict.new().post("/api/v1/session", json={"token": secret})) == "E_SIGN_IN_TOKENS_OFF"


def test_local_administrator_works_while_the_provider_is_down(
    clinic: Clinic, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    put_secret(clinic.folder)
    with serving(IdentityProvider(PAGE), authority.sign("provider")) as gone:
        clinic.settings.oidc = table_for(gone, authority, sign_in_with_tokens=False, emergency_admin="emergency")
    browser = Browsers(clinic, authority).new()
    answer = browser.post("/api/v1/sign-in", json={})
    assert (answer.status_code, refused(answer)) == (502, "E_SIGN_IN_PROVIDER")
    assert "ConnectionError" in caplog.text
    secret = Tokens(clinic.folder).make("emergency", "admin", by="test")
    assert browser.post("/api/v1/session", json={"token": secret}).status_code == 200


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://another.example/realm"},
        {"token_endpoint": "http://login.example/token"},
        {"jwks_uri": None},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
    ids=str,
)
def test_unsafe_discovery_is_refused(metadata: Json, browsers: Browsers, provider: IdentityProvider) -> None:
    provider.more_metadata = metadata
    assert refused(browsers.new().post("/api/v1/sign-in", json={})) == "E_SIGN_IN_PROVIDER"


def test_provider_with_a_certificate_of_another_authority_is_refused(
    clinic: Clinic, provider: IdentityProvider, tmp_path: Path
) -> None:
    put_secret(clinic.folder)
    other = Authority.make(tmp_path, "other")
    clinic.settings.oidc = table_for(provider, other)
    assert refused(Browsers(clinic, other).new().post("/api/v1/sign-in", json={})) == "E_SIGN_IN_PROVIDER"
    assert not provider.asked


def test_secret_can_be_sent_in_the_form_and_be_left_out(
    browsers: Browsers, clinic: Clinic, provider: IdentityProvider, authority: Authority
) -> None:
    provider.more_metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
    assert browsers.sign_in(browsers.new()).status_code == 200
    provider.secret = ""
    clinic.settings.oidc = table_for(provider, authority, client_secret_file=None)
    public = Browsers(clinic, authority)
    assert public.sign_in(public.new()).status_code == 200


def test_secret_that_others_can_read_is_refused(browsers: Browsers, clinic: Clinic) -> None:
    (clinic.folder / "oidc-secret").chmod(0o644)
    with pytest.raises(Refusal, match="E_SIGN_IN_SECRET"):
        make_app(clinic)


def test_nothing_secret_is_logged(
    browsers: Browsers, provider: IdentityProvider, caplog: pytest.LogCaptureFixture
) -> None:
    provider.changes = {"nonce": "another"}
    browser = browsers.new()
    end = browsers.go(browser)
    browser.post("/api/v1/sign-in/finish", json=end)
    assert "the nonce is another one" in caplog.text
    assert not any(each in caplog.text for each in (end["code"], end["state"], SECRET, "anna", "0815"))


def test_clinic_without_a_provider_says_so(clinic: Clinic, authority: Authority) -> None:
    browser = Browsers(clinic, authority).new()
    assert browser.get("/api/v1/sign-in").json() == {"provider": False, "tokens": True}
    assert refused(browser.post("/api/v1/sign-in", json={})) == "E_SIGN_IN_OFF"
    assert refused(browser.post("/api/v1/sign-in/finish", json={"state": "x"})) == "E_SIGN_IN_OFF"
