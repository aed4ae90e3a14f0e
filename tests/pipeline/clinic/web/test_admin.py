"""Tests of the API for administrators: models and the audit log."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import save_release
from pipeline.clinic import model_registry
from pipeline.clinic.records import Answer
from pipeline.clinic.settings import Clinic
from tests.helpers.descriptions import description
from tests.pipeline.clinic.web.conftest import refused

SMALL = NetworkSettings(architecture="resnet10", widen_factor=0.0625)
Clients = Callable[..., TestClient]


def test_model_role_changes_from_none_to_shadow_to_live(
    clinic: Clinic, answer_to: Callable[..., Answer], client: Clients, tmp_path: Path
) -> None:
    first, second = (
        save_release(tmp_path / name, build_network(SMALL, seed=1), description(study=name, network=SMALL)).sha256
        for name in ("first", "second")
    )
    for name in ("first", "second"):
        model_registry.add(clinic, tmp_path / name, by="test")
    with clinic.store() as store:
        store.models.set_live(first, by="test")
    admin = client("admin")

    def roles(answer: object = None) -> dict[str, str | None]:
        content = (answer or client("read").get("/api/v1/models")).json()  # type: ignore[attr-defined]
        return {model["study"]: model["role"] for model in content["models"]}

    assert roles() == {"first": "live", "second": None}
    assert roles(admin.post(f"/api/v1/models/{second}/shadow")) == {"first": "live", "second": "shadow"}
    assert refused(admin.post(f"/api/v1/models/{second}/promote")) == "E_NOT_SHADOWED"
    assert refused(admin.post(f"/api/v1/models/{first}/shadow")) == "E_IS_LIVE"
    assert refused(admin.post(f"/api/v1/models/{'0' * 64}/promote")) == "E_NO_SUCH_MODEL"
    assert roles(admin.delete(f"/api/v1/models/{second}/shadow")) == {"first": "live", "second": None}
    answer_to(model_sha256=second)
    promoted = admin.post(f"/api/v1/models/{second}/promote")
    assert roles(promoted) == {"first": None, "second": "live"}
    with clinic.store() as store:
        assert (store.audit.records()[-1].who, store.audit.records()[-1].action) == ("a admin", "promote")


def test_model_that_never_ran_in_shadow_is_not_made_live_over_the_network(
    clinic: Clinic, client: Clients, tmp_path: Path
) -> None:
    """A browser that is taken over can create a token for itself, so the API has no such power for anybody."""
    added = []
    for name in ("first", "second"):
        save_release(tmp_path / name, build_network(SMALL, seed=1), description(study=name, network=SMALL))
        added.append(model_registry.add(clinic, tmp_path / name, by="test").sha256)
    with clinic.store() as store:
        store.models.set_live(added[0], by="test")
    admin, promote = client("admin"), f"/api/v1/models/{added[1]}/promote"
    forms: list[dict[str, Any]] = [{"params": {"force": word}} for word in ("true", "1", "on", "yes")]
    for sent in [*forms, {"json": {"force": True}}, {"data": {"force": "true"}}]:
        assert refused(admin.post(promote, **sent)) == "E_NOT_SHADOWED"
    with clinic.store() as store:
        assert {model.sha256: model.role for model in store.models.all()} == {added[0]: "live", added[1]: None}


def test_audit_log_contains_answers_and_models_but_no_patient(
    answer_to: Callable[..., Answer], client: Clients
) -> None:
    answer = answer_to()
    given = client("admin").get("/api/v1/audit")
    (record,) = [each for each in given.json()["records"] if each["action"] == "answer"]
    assert (record["who"], record["answer_id"]) == ("a score", answer.id)
    assert (record["input_sha256"], record["model_sha256"]) == ("f" * 64, answer.model_sha256)
    assert record["output"]["probability"] == answer.score["probability"]
    assert not any(word in given.text for word in ("SYNTHETIC", "Doe", answer.study_uid, answer.series_uid))


def test_audit_log_is_read_to_its_end_page_by_page(clinic: Clinic, client: Clients) -> None:
    with clinic.store() as store:
        for number in range(7):
            store.audit.add("test", "look", output={"number": number})
        kept = [record.number for record in store.audit.records()]
    admin = client("admin")

    def page(**asked: Any) -> list[int]:
        records = admin.get("/api/v1/audit", params={"limit": 3, **asked}).json()["records"]
        return [record["number"] for record in records]

    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    for since in ({}, {"since": yesterday}):
        found, after = [], 0
        while some := page(after=after, **since):
            found += some
            after = some[-1]
        assert found == kept
    assert page() == kept[-3:] and page(since=yesterday) == kept[:3]
    assert page(after=0, since=tomorrow) == page(after=2**53) == []
    for odd in (-1, "x", 2**53 + 1):
        assert refused(admin.get("/api/v1/audit", params={"after": odd})) == "E_REQUEST"


def test_audit_log_can_be_filtered_by_time(answer_to: Callable[..., Answer], client: Clients) -> None:
    answer_to()
    admin = client("admin")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert admin.get("/api/v1/audit", params={"since": tomorrow}).json() == {"records": []}
    yesterday = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    records = admin.get("/api/v1/audit", params={"since": yesterday, "limit": 2}).json()["records"]
    assert [record["number"] for record in records] == [1, 2]
    early, late = "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"
    assert admin.get("/api/v1/audit", params={"since": early, "limit": 2}).json()["records"] == records
    assert admin.get("/api/v1/audit", params={"since": late}).json() == {"records": []}
    for odd in ("yesterday", "2026-01-01T00:00:00", "1700000000", "1700000000.5"):
        assert refused(admin.get("/api/v1/audit", params={"since": odd})) == "E_REQUEST"
