"""Tests of browser sessions: signing in with a token, and protection against requests from other sites (CSRF)."""

from collections.abc import Callable
from typing import Literal

import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.settings import Clinic
from pipeline.site.pacs_settings import PacsTable
from tests.pipeline.clinic.web.conftest import ADDRESS, refused

Clients = Callable[..., TestClient]
PCR = f"/api/v1/answers/{'0' * 32}/pcr"
ENTRY = {"result": "positive", "collected_on": None}


@pytest.fixture
def browser(client: Clients, secrets_by_role: dict[str, str]) -> TestClient:
    """A browser that is signed in with the role `score`."""
    signed_in = client()
    answer = signed_in.post("/api/v1/session", json={"token": secrets_by_role["score"]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["name"] == "a score"
    return signed_in


def test_cookie_is_same_site_and_http_only(client: Clients, secrets_by_role: dict[str, str]) -> None:
    answer = client().post("/api/v1/session", json={"token": secrets_by_role["read"]})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("fedthorax=")
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= attributes
    assert "secure" not in attributes
    assert secrets_by_role["read"] not in cookie + answer.text


PACS = {"protocol": "dicomweb", "dicomweb": {"url": "http://127.0.0.1:1/dicom-web"}}


@pytest.mark.parametrize(("searches", "send"), [(False, "off"), (True, "off"), (False, "on_request"), (True, "always")])
def test_session_states_whether_a_pacs_is_configured(
    searches: bool, send: Literal["off", "on_request", "always"], browser: TestClient, clinic: Clinic
) -> None:
    clinic.settings.pacs = PacsTable.model_validate(PACS) if searches else None
    clinic.settings.results.send = send
    told = browser.get("/api/v1/session").json()
    assert (told["searches_pacs"], told["sends_to_pacs"]) == (searches, send != "off")


def test_cookie_is_secure_over_tls(client: Clients, clinic: Clinic, secrets_by_role: dict[str, str]) -> None:
    clinic.settings.server.without_tls = True
    secure = TestClient(client().app, base_url="https://localhost", follow_redirects=False)
    cookie = secure.post("/api/v1/session", json={"token": secrets_by_role["read"]}).headers["set-cookie"]
    assert cookie.startswith("__Host-fedthorax=")
    assert "secure" in cookie.lower()
    assert secure.get("/api/v1/session").json()["role"] == "read"


def test_browser_is_authenticated_by_its_session(browser: TestClient) -> None:
    told = browser.get("/api/v1/session").json()
    assert (told["name"], told["role"]) == ("a score", "score")
    assert told["ends_at"]
    assert browser.get("/api/v1/jobs").json() == {"jobs": []}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none", "Origin": ADDRESS},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost:8765.evil.example"},
    ],
)
def test_another_site_cannot_change_anything(headers: dict[str, str], browser: TestClient) -> None:
    for ask in (
        lambda: browser.put(PCR, json=ENTRY, headers=headers),
        lambda: browser.post("/api/v1/scans", files={"files": ("a", b"b")}, headers=headers),
        lambda: browser.delete("/api/v1/session", headers=headers),
    ):
        answer = ask()
        assert (answer.status_code, refused(answer)) == (403, "E_OTHER_SITE")
    assert browser.get("/api/v1/session").status_code == 200


@pytest.mark.parametrize("headers", [{"Sec-Fetch-Site": "same-origin"}, {"Origin": ADDRESS}])
def test_our_own_page_can_change_data(headers: dict[str, str], browser: TestClient) -> None:
    assert refused(browser.put(PCR, json=ENTRY, headers=headers)) == "E_NO_SUCH_ANSWER"


def test_another_site_cannot_sign_a_browser_in(client: Clients, secrets_by_role: dict[str, str]) -> None:
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "http://evil.example"}):
        answer = client().post("/api/v1/session", json={"token": secrets_by_role["read"]}, headers=headers)
        assert refused(answer) == "E_OTHER_SITE"


def test_token_in_a_header_works_from_any_origin(client: Clients) -> None:
    headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert refused(client("score").put(PCR, json=ENTRY, headers=headers)) == "E_NO_SUCH_ANSWER"


def test_signing_out_ends_the_session(browser: TestClient) -> None:
    kept = browser.cookies["fedthorax"]
    answer = browser.delete("/api/v1/session", headers={"Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 204
    assert refused(browser.get("/api/v1/session")) == "E_NO_TOKEN"
    again = browser.get("/api/v1/session", headers={"Cookie": f"fedthorax={kept}"})
    assert (again.status_code, refused(again)) == (401, "E_TOKEN")


@pytest.mark.parametrize("cookie", ["fedthorax=", "fedthorax", ";;==", "fedthorax=\x7f", 'fedthorax="a'])
def test_malformed_cookies_are_refused(cookie: str, client: Clients) -> None:
    assert refused(client().get("/api/v1/jobs", headers={"Cookie": cookie})) in ("E_NO_TOKEN", "E_TOKEN")


def test_malformed_token_is_refused_at_sign_in(client: Clients) -> None:
    for token in ("", "x" * 257, 7, None):
        assert refused(client().post("/api/v1/session", json={"token": token})) == "E_REQUEST"
    headers = {"Content-Type": "application/json"}
    odd = client().post("/api/v1/session", content=b'{"token": "\\ud800"}', headers=headers)
    assert refused(odd) in ("E_TOKEN", "E_REQUEST")
