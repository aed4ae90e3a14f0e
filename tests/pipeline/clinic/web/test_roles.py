"""Tests of the role that each route needs. Every route of the API is listed here once."""

from collections.abc import Callable

from fastapi.testclient import TestClient

from tests.pipeline.clinic.web.conftest import refused

ID, SHA256 = "0" * 32, "0" * 64
NEEDED = {
    ("GET", "/api/v1/session"): "read",
    ("DELETE", "/api/v1/session"): "read",
    ("POST", "/api/v1/scans"): "score",
    ("GET", "/api/v1/jobs"): "read",
    ("GET", "/api/v1/jobs/{job_id}"): "read",
    ("GET", "/api/v1/jobs/{job_id}/lungs"): "read",
    ("GET", "/api/v1/jobs/{job_id}/slices"): "read",
    ("PUT", "/api/v1/jobs/{job_id}/reader"): "score",
    ("DELETE", "/api/v1/jobs/{job_id}/reader"): "score",
    ("GET", "/api/v1/jobs/{job_id}/slices/{plane}/{index}.png"): "read",
    ("GET", "/api/v1/answers"): "read",
    ("GET", "/api/v1/answers/{answer_id}"): "read",
    ("GET", "/api/v1/answers/{answer_id}/files/{name}"): "read",
    ("GET", "/api/v1/answers/{answer_id}/slices"): "read",
    ("GET", "/api/v1/answers/{answer_id}/slices/{plane}/{index}.png"): "read",
    ("GET", "/api/v1/answers/{answer_id}/mask/{index}.png"): "read",
    ("GET", "/api/v1/answers/{answer_id}/risk-assessment"): "read",
    ("PUT", "/api/v1/answers/{answer_id}/pcr"): "score",
    ("POST", "/api/v1/answers/{answer_id}/send"): "score",
    ("GET", "/api/v1/deliveries"): "read",
    ("POST", "/api/v1/answers/{answer_id}/decisions"): "score",
    ("GET", "/api/v1/answers/{answer_id}/decisions"): "read",
    ("GET", "/api/v1/answers/{answer_id}/decisions/{decision_id}/files/{name}"): "read",
    ("GET", "/api/v1/patients/{key}/answers"): "read",
    ("GET", "/api/v1/pacs/series"): "score",
    ("POST", "/api/v1/pacs/scans"): "score",
    ("GET", "/api/v1/models"): "read",
    ("POST", "/api/v1/models/{sha256}/shadow"): "admin",
    ("DELETE", "/api/v1/models/{sha256}/shadow"): "admin",
    ("POST", "/api/v1/models/{sha256}/promote"): "admin",
    ("GET", "/api/v1/local-audit"): "read",
    ("GET", "/api/v1/audit"): "admin",
    ("GET", "/api/v1/audit/search"): "admin",
    ("GET", "/api/v1/retention"): "admin",
    ("GET", "/api/v1/models/{sha256}/disagreements"): "admin",
    ("GET", "/api/v1/accounts"): "admin",
    ("POST", "/api/v1/accounts"): "admin",
    ("POST", "/api/v1/accounts/role"): "admin",
    ("POST", "/api/v1/accounts/disable"): "admin",
    ("POST", "/api/v1/accounts/enable"): "admin",
    ("POST", "/api/v1/accounts/reset"): "admin",
    ("GET", "/api/v1/connections"): "admin",
    ("POST", "/api/v1/connections/{name}/test"): "admin",
    ("GET", "/metrics"): "read",
}
OPEN = {
    ("POST", "/api/v1/session"),
    ("GET", "/api/v1/sign-in"),
    ("POST", "/api/v1/sign-in"),
    ("POST", "/api/v1/sign-in/finish"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
}
VALUES = {
    **dict.fromkeys(("job_id", "answer_id", "decision_id", "key"), ID),
    **{"sha256": SHA256, "number": 1, "name": "score.json", "plane": "axial", "index": "0"},
}
BODIES = {
    "/api/v1/answers/{answer_id}/pcr": {"result": "negative"},
    "/api/v1/answers/{answer_id}/decisions": {"verdict": "accepted", "revision": ID},
    "/api/v1/accounts": {"name": "new", "role": "read"},
    "/api/v1/accounts/role": {"name": "new", "role": "score"},
    **{f"/api/v1/accounts/{does}": {"name": "new"} for does in ("disable", "enable", "reset")},
    "/api/v1/pacs/scans": {"study_uid": "1.2", "series_uid": "1.3"},
}


def test_every_route_is_listed_here(client: Callable[..., TestClient]) -> None:
    document = client().get("/api/v1/openapi.json").json()
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert routes == NEEDED.keys() | OPEN


def test_each_route_requires_its_role(client: Callable[..., TestClient]) -> None:
    roles = ("read", "score", "admin")
    for (method, path), needed in NEEDED.items():
        address = path.format(**VALUES)

        def code(role: str | None, method: str = method, path: str = path, address: str = address) -> str | None:
            answer = client(role).request(method, address, json=BODIES.get(path))
            return refused(answer) if answer.status_code >= 400 else None

        assert code(None) == "E_NO_TOKEN", (method, path)
        for role in roles:
            may = roles.index(role) >= roles.index(needed)
            assert (code(role) == "E_ROLE") is not may, (method, path, role)
