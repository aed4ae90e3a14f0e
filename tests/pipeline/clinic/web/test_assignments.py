"""Tests of assigned readers: a person takes a scan for themselves, others see it, and one scan has one reader."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.records import Answer
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import new_id
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Access, Tokens
from tests.pipeline.clinic.web.conftest import ADDRESS, PATIENT, refused

Put = Callable[..., Answer]
Sign = Callable[..., TestClient]


@pytest.fixture
def sign_in(clinic: Clinic) -> Sign:
    """Make a client with a token of its own; a name with a given name is a person's."""
    app = make_app(clinic)

    def make(name: str, role: Access = "score", person: str = "") -> TestClient:
        token = Tokens(clinic.folder).make(name, role, by="test", person=person)
        return TestClient(app, base_url=ADDRESS, headers={"Authorization": f"Bearer {token}"})

    return make


def path_of(job_id: str) -> str:
    return f"/api/v1/jobs/{job_id}/reader"


def reader_of(client: TestClient, job_id: str) -> Any:
    reader = client.get(f"/api/v1/jobs/{job_id}").json()["reader"]
    return reader and (reader["by"], reader["person"])


def listed(client: TestClient, reader: str) -> list[str]:
    return [job["id"] for job in client.get(f"/api/v1/jobs?reader={reader}").json()["jobs"]]


def actions(clinic: Clinic) -> list[tuple[str, str, Any]]:
    with clinic.store() as store:
        records = [each for each in store.audit.records() if each.action in ("take", "release")]
    return [(each.who, each.action, (each.output or {}).get("reader")) for each in records]


def test_scan_that_a_reader_took_is_shown_to_others_until_it_is_released(
    sign_in: Sign, answer_to: Put, clinic: Clinic
) -> None:
    mine, other = answer_to().job_id, answer_to().job_id
    anna, ward = sign_in("anna", person="Leser^Anna"), sign_in("ward", "read")
    taken = anna.put(path_of(mine)).json()["reader"]
    assert (taken["by"], taken["person"], bool(taken["at"])) == ("anna", "Leser^Anna", True)
    assert reader_of(ward, mine) == ("anna", "Leser^Anna")
    assert (listed(anna, "me"), listed(anna, "nobody"), listed(ward, "me")) == ([mine], [other], [])
    assert anna.put(path_of(mine)).json()["reader"]["at"] == taken["at"]  # twice changes nothing
    assert anna.delete(path_of(mine)).json()["reader"] is None
    assert anna.delete(path_of(mine)).status_code == 200
    assert listed(anna, "me") == []
    assert actions(clinic) == [("anna", "take", None), ("anna", "release", "anna")]
    with clinic.store() as store:
        assert {each.job_id for each in store.audit.records() if each.action == "take"} == {mine}


def test_scan_that_waits_can_be_taken_and_keeps_its_reader_when_it_is_answered(
    sign_in: Sign, answer_to: Put, clinic: Clinic
) -> None:
    with clinic.store() as store:
        waiting = store.jobs.add(new_id(), source="upload", asked_by="test", patient=PATIENT)
        anna = sign_in("anna", person="Leser^Anna")
        assert anna.put(path_of(waiting.id)).status_code == 200
        assert store.jobs.take() is not None
    answered = answer_to(job_id=waiting.id)
    assert anna.get(f"/api/v1/jobs/{waiting.id}").json()["answer_id"] == answered.id
    assert reader_of(anna, waiting.id) == ("anna", "Leser^Anna")


def test_scan_that_is_sent_again_has_the_same_reader(sign_in: Sign, answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    anna = sign_in("anna", person="Leser^Anna")
    anna.put(path_of(answer.job_id))
    with clinic.store() as store:
        again = store.jobs.add(new_id(), source="upload", asked_by="test")
        job = store.jobs.take()
        assert job is not None
        store.answers.repeat(job, answer)
    assert reader_of(anna, again.id) == ("anna", "Leser^Anna")
    anna.delete(path_of(again.id))
    assert reader_of(anna, answer.job_id) is None


# --- attacks and accidents ---


def test_nobody_takes_or_releases_in_another_name(sign_in: Sign, answer_to: Put, clinic: Clinic) -> None:
    job = answer_to().job_id
    anna, two = sign_in("anna", person="Leser^Anna"), sign_in("two", person="Leser^Anna")  # a person of the same name
    anna.put(path_of(job))
    for attempt in (two.put(path_of(job)), two.delete(path_of(job))):
        assert (attempt.status_code, refused(attempt)) == (409, "E_SCAN_TAKEN")
    for sent in ({"by": "two"}, {"person": "Else^Some"}):  # what a body says is not read
        anna.put(path_of(job), json=sent, params=sent)
    assert reader_of(anna, job) == ("anna", "Leser^Anna")
    assert actions(clinic) == [("anna", "take", None)]


def test_administrator_releases_a_scan_under_their_own_name(sign_in: Sign, answer_to: Put, clinic: Clinic) -> None:
    job = answer_to().job_id
    sign_in("anna", person="Leser^Anna").put(path_of(job))
    admin = sign_in("it", "admin")
    assert refused(admin.put(path_of(job))) == "E_NOT_A_PERSON"
    assert admin.delete(path_of(job)).json()["reader"] is None
    assert actions(clinic)[-1] == ("it", "release", "anna")


@pytest.mark.parametrize(
    ("role", "person", "code"), [("read", "Leser^Anna", "E_ROLE"), ("score", "", "E_NOT_A_PERSON")]
)
def test_user_without_the_right_cannot_take_a_scan(
    role: Access, person: str, code: str, sign_in: Sign, answer_to: Put, clinic: Clinic
) -> None:
    job = answer_to().job_id
    assert refused(sign_in("somebody", role, person).put(path_of(job))) == code
    assert actions(clinic) == []


def test_page_of_another_site_cannot_take_a_scan_with_a_session(answer_to: Put, clinic: Clinic) -> None:
    job = answer_to().job_id
    token = Tokens(clinic.folder).make("reader", "score", by="test", person="Leser^Anna")
    browser = TestClient(make_app(clinic), base_url=ADDRESS)
    browser.post("/api/v1/session", json={"token": token})
    for method in ("PUT", "DELETE"):
        attempt = browser.request(method, path_of(job), headers={"Sec-Fetch-Site": "cross-site"})
        assert refused(attempt) == "E_OTHER_SITE"
    assert browser.put(path_of(job), headers={"Origin": ADDRESS}).status_code == 200


def test_of_two_readers_at_once_one_has_the_scan(sign_in: Sign, answer_to: Put, clinic: Clinic) -> None:
    job = answer_to().job_id
    clients = [sign_in(name, person=f"{name}^x") for name in ("one", "two", "three")]
    for client in clients:
        assert reader_of(client, job) is None  # the routes are known
    with ThreadPoolExecutor(3) as persons:
        made = list(persons.map(lambda client: client.put(path_of(job)).status_code, clients))
    assert sorted(made) == [200, 409, 409]
    assert len(actions(clinic)) == 1


def test_reader_does_not_change_what_a_decision_is_about(sign_in: Sign, answer_to: Put) -> None:
    answer = answer_to()
    anna, two = sign_in("anna", person="Leser^Anna"), sign_in("two", person="Second^Reader")
    anna.put(path_of(answer.job_id))
    entry = {"verdict": "accepted", "revision": replace(answer).revision}
    decided = two.post(f"/api/v1/answers/{answer.id}/decisions", json=entry)
    assert decided.status_code == 201
    assert decided.json()["decision"]["person"] == "Second^Reader"
    assert reader_of(two, answer.job_id) == ("anna", "Leser^Anna")


def test_unknown_scan_cannot_be_taken(sign_in: Sign) -> None:
    anna = sign_in("anna", person="Leser^Anna")
    assert refused(anna.put(path_of("0" * 32))) == refused(anna.delete(path_of("0" * 32))) == "E_NO_SUCH_JOB"
