"""Tests of the administrator's API: search of the records, what is deleted when, and where two models differ."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.database import now
from pipeline.clinic.records import Answer
from pipeline.clinic.settings import Clinic
from tests.pipeline.clinic.web.conftest import refused

Clients = Callable[..., TestClient]
Put = Callable[..., Answer]
SEARCH = "/api/v1/audit/search"


@pytest.fixture
def admin(client: Clients, clinic: Clinic) -> TestClient:
    with clinic.store() as store:
        for number in range(25):
            store.audit.add(f"Reader {number % 2}", "look", job_id=f"{number:032x}")
        store.audit.add("nightly", "outbox", answer_id="a" * 32, code="E_PACS_SILENT")
    return client("admin")


def test_records_are_listed_newest_first_page_by_page(admin: TestClient) -> None:
    numbers, before, pages = [], None, 0
    while pages == 0 or before:
        page = admin.get(SEARCH, params={"limit": 10} | ({"before": before} if before else {})).json()
        numbers += [each["number"] for each in page["records"]]
        assert bool(page["actions"]) is (pages == 0)
        before, pages = page["next"], pages + 1
    assert numbers == sorted(set(numbers), reverse=True)
    assert (len(numbers), pages) == (29, 3)  # three tokens of the fixture


def test_records_are_found_by_who_what_and_about(admin: TestClient) -> None:
    def found(**asked: str) -> int:
        return len(admin.get(SEARCH, params=asked).json()["records"])

    assert found(who="reader 1") == 12
    assert found(who="READER", action="look") == 25
    assert found(who="r%") == found(who="reader_1") == found(who="x' OR 1=1 --") == 0
    assert found(about=f"{7:032x}"[:31]) == 16  # those whose last digit alone differs
    assert found(about="E_PACS") == found(about="aaaa", action="outbox") == 1
    assert found(action="loo") == 0
    assert {"look", "outbox", "token"} <= set(admin.get(SEARCH).json()["actions"])
    tomorrow = (now() + timedelta(days=1)).isoformat()
    assert found(since=tomorrow) == 0
    assert found(until=tomorrow) == 29
    assert found(since="0001-01-01T00:00:00Z", until=tomorrow) == 29
    for odd in ({"before": "0"}, {"limit": "501"}, {"since": "today"}, {"before": str(2**70)}):
        assert refused(admin.get(SEARCH, params=odd)) == "E_REQUEST"


def test_retention_says_what_is_deleted_on_which_day(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    first, second = answer_to(), answer_to()
    with clinic.store() as store, store.database.transaction() as db:
        db.execute("UPDATE answers SET created_at = '2026-01-01T10:00:00+00:00' WHERE id = ?", (first.id,))
    with clinic.store() as store:
        store.deliveries.queue(second.id, "pacs")
    plan = client("admin").get("/api/v1/retention").json()
    assert (plan["answers_days"], plan["answers"]["due"], plan["held"]) == (0, [], 1)
    assert plan["answers"]["kept"] == 2
    assert plan["answers"]["oldest"] == "2026-01-01T10:00:00+00:00"
    (due,) = plan["records"]["due"]
    assert due == {"on": (now() + timedelta(days=183)).date().isoformat(), "count": plan["records"]["kept"]}
    clinic.settings.keep.answers_days = 30
    on = (now() + timedelta(days=30)).date().isoformat()
    due = client("admin").get("/api/v1/retention").json()["answers"]["due"]
    assert due == [{"on": "2026-01-31", "count": 1}, {"on": on, "count": 1}]


def test_scans_with_another_level_of_the_shadow_model_are_listed(
    answer_to: Put, client: Clients, clinic: Clinic
) -> None:
    live = answer_to()
    other = {**live.score, "probability": {"severe": 0.99, "pcr_positive": 0.0}, "level": {"severe": "high"}}
    answer_to(job_id=live.job_id, role="shadow", score=other, model_sha256="b" * 64)
    with clinic.store() as store:
        store.models.add("b" * 64, "second", signed_by=None, by="test")
    found = client("admin").get(f"/api/v1/models/{'b' * 64}/disagreements")
    assert found.status_code == 200, found.text
    listed = {each["label"]: each for each in found.json()["disagreements"]}
    assert listed["severe"]["job_id"] == live.job_id
    assert listed["severe"]["shadow"] == {"probability": 0.99, "level": "high"}
    assert listed["severe"]["live"]["probability"] == live.score["probability"]["severe"]
    assert not any(word in found.text for word in ("SYNTHETIC", "Doe", live.study_uid))
    assert refused(client("admin").get(f"/api/v1/models/{'c' * 64}/disagreements")) == "E_NO_SUCH_MODEL"
