"""Tests of the middleware: host names, authentication, request sizes, rate limits, headers and error responses."""

import asyncio
import logging
from collections.abc import Callable, Iterator

import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.settings import Clinic
from pipeline.clinic.web import middleware, scans
from tests.pipeline.clinic.web.conftest import ADDRESS, refused

Clients = Callable[..., TestClient]
UNKNOWN = "0" * 32


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nowhere",
        "/static/nowhere.js",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/api/v1/openapi.json",
        "/api/v1/jobs",
        "/api/v1/jobs/x",
        f"/api/v1/jobs/{UNKNOWN}",
    ],
)
def test_every_response_has_strict_security_headers(path: str, client: Clients) -> None:
    for asking in (client(), client("admin")):
        headers = asking.get(path, headers={"Origin": "http://elsewhere.example"}).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "http" not in policy
        assert "frame-ancestors 'none'; base-uri 'none'; form-action 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")
        assert not any(name.startswith("access-control-") for name in headers)
        assert "strict-transport-security" not in headers


def test_every_refusal_has_code_says_and_remedy(client: Clients) -> None:
    admin = client("admin")
    assert refused(client().get("/api/v1/jobs")) == "E_NO_TOKEN"
    # Without a token, existing and unknown addresses look the same.
    assert refused(client().get("/api/v1/nowhere")) == "E_NO_TOKEN"
    assert refused(admin.get("/api/v1/nowhere")) == "E_NO_SUCH_ADDRESS"
    assert refused(admin.get("/api/v1/jobs/")) == "E_NO_SUCH_ADDRESS"
    assert refused(client().get("/static/../../app.py")) == "E_NO_SUCH_ADDRESS"
    assert refused(admin.put("/api/v1/jobs")) == "E_METHOD"
    assert admin.put("/api/v1/jobs").headers["allow"] == "GET"
    assert refused(client().post("/health/live")) == "E_METHOD"
    assert refused(admin.get("/api/v1/jobs", params={"limit": 0})) == "E_REQUEST"
    assert refused(admin.put(f"/api/v1/answers/{UNKNOWN}/pcr", content=b"{")) == "E_REQUEST"
    assert refused(admin.put(f"/api/v1/answers/{UNKNOWN}/pcr", content=b'{"result": "\xff"}')) == "E_REQUEST"
    assert refused(admin.get("/api/v1/jobs", headers={"Content-Length": "-1"})) == "E_REQUEST"


def test_request_content_is_not_repeated_in_the_refusal(client: Clients) -> None:
    answer = client("admin").put(f"/api/v1/answers/{UNKNOWN}/pcr", json={"result": "<b>CANARY", "collected_on": "x"})
    assert refused(answer) == "E_REQUEST"
    assert "CANARY" not in answer.text
    assert "body.result" in answer.json()["says"]


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[", "127.0.0.2:8765"])
def test_unknown_host_names_are_refused(host: str, client: Clients) -> None:
    assert refused(client("admin").get("/api/v1/jobs", headers={"Host": host})) == "E_HOST"
    assert refused(client().get("/", headers={"Host": host})) == "E_HOST"


def test_configured_host_names_are_accepted(client: Clients, clinic: Clinic) -> None:
    clinic.settings.server.names = ["Thorax.Hospital.example"]
    for host in ("thorax.hospital.example", "THORAX.hospital.example:443", "localhost:1", "[::1]:8765", "127.0.0.1"):
        assert client("read").get("/api/v1/jobs", headers={"Host": host}).status_code == 200


def test_large_requests_are_refused_with_or_without_content_length(client: Clients) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * 30_000

    session = f"{ADDRESS}/api/v1/session"
    assert refused(client().post(session, content=b" " * 90_000)) == "E_REQUEST_SIZE"
    streamed = client().post(session, content=pieces(), headers={"Content-Type": "application/json"})
    assert streamed.status_code == 413
    assert refused(streamed) == "E_REQUEST_SIZE"


def test_rate_limited_response_has_retry_after(client: Clients, clinic: Clinic) -> None:
    clinic.settings.limits.requests_per_minute = 5
    reader = client("read")
    assert [reader.get("/api/v1/jobs").status_code for _ in range(5)] == [200] * 5
    answer = reader.get("/api/v1/jobs")
    assert refused(answer) == "E_RATE"
    assert answer.status_code == 429
    assert 0 < int(answer.headers["retry-after"]) <= 12
    assert client().get("/health/live").status_code == 200


def test_rate_limit_of_one_token_holds_across_many_addresses(client: Clients, clinic: Clinic) -> None:
    clinic.settings.limits.requests_per_minute = 4
    app = client().app
    token = client("read").headers["authorization"]
    statuses = [
        TestClient(app, base_url=ADDRESS, headers={"Authorization": token}, client=(f"10.0.0.{number}", 1))
        .get("/api/v1/jobs")
        .status_code
        for number in range(6)
    ]
    assert statuses == [200] * 4 + [429] * 2


def test_rate_limits_behind_a_proxy_are_separate_per_clinician(client: Clients, clinic: Clinic) -> None:
    clinic.settings.limits.requests_per_minute = 2
    clinic.settings.server.without_tls = True
    statuses = [client(role).get("/api/v1/jobs").status_code for role in ("read", "score", "admin") for _ in range(3)]
    assert statuses == [200, 200, 429] * 3


def test_many_wrong_tokens_are_rate_limited_but_valid_tokens_are_not(client: Clients) -> None:
    wrong = TestClient(client().app, base_url=ADDRESS, headers={"Authorization": "Bearer fct_wrong"})
    codes = [refused(wrong.get("/api/v1/jobs")) for _ in range(6)]
    codes += [refused(wrong.post("/api/v1/session", json={"token": "fct_wrong"})) for _ in range(6)]
    assert codes == ["E_TOKEN"] * 10 + ["E_SIGN_IN_TRIES"] * 2
    assert int(wrong.get("/api/v1/jobs").headers["retry-after"]) > 0
    assert client("read").get("/api/v1/jobs").status_code == 200


def test_unexpected_error_text_is_neither_returned_nor_logged(
    client: Clients, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = "CANARY"

    def fail(*_: object) -> None:
        raise RuntimeError(words)

    monkeypatch.setattr(scans, "job_json", fail)
    asking = client("score")
    with caplog.at_level(logging.INFO):
        files = {"files": ("scan.dcm", b"no scan at all")}
        answer = asking.post("/api/v1/scans", files=files)
    assert refused(answer) == "E_INTERNAL"
    assert answer.status_code == 500
    assert words not in answer.text + caplog.text
    assert "RuntimeError" in caplog.text and "scans.py" in caplog.text


def test_slow_requests_are_terminated(client: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(middleware, "REQUEST_SECONDS", 0.05)
    asking = client("read")
    monkeypatch.setattr(asking.app.state.callers, "of", hang)
    answer = asking.get("/api/v1/jobs")
    assert (answer.status_code, refused(answer)) == (503, "E_REQUEST_TIME")


def test_tokens_are_never_logged(client: Clients, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        for role in ("read", "admin"):
            asking = client(role)
            secret = asking.headers["authorization"].removeprefix("Bearer ")
            asking.get("/api/v1/jobs")
            asking.get("/api/v1/nowhere")
            asking.post("/api/v1/session", json={"token": secret})
            client().post("/api/v1/session", json={"token": secret + "x"})
            assert secret not in caplog.text
    assert "E_TOKEN" in caplog.text


def test_hsts_header_is_sent_behind_a_tls_proxy(client: Clients, clinic: Clinic) -> None:
    clinic.settings.server.without_tls = True  # a proxy provides TLS
    assert client().get("/").headers["strict-transport-security"] == "max-age=31536000"
