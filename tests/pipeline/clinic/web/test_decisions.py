"""Tests of decisions: only a named person decides, about what they saw, and every decision is kept."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.records import Answer, Patient
from pipeline.clinic.settings import Clinic
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Tokens
from tests.pipeline.clinic.web.conftest import ADDRESS, refused

Put = Callable[..., Answer]
Decide = Callable[..., Any]
READER = "Leser^Anna"


@pytest.fixture
def reader(clinic: Clinic) -> TestClient:
    """A client with the token of a named person."""
    token = Tokens(clinic.folder).make("reader", "score", by="test", person=READER)
    return TestClient(make_app(clinic), base_url=ADDRESS, headers={"Authorization": f"Bearer {token}"})


def entry(answer: Answer, verdict: str = "accepted", **more: Any) -> dict[str, Any]:
    return {"verdict": verdict, "revision": answer.revision, **more}


def post(client: TestClient, answer: Answer, verdict: str = "accepted", **more: Any) -> Any:
    return client.post(f"/api/v1/answers/{answer.id}/decisions", json=entry(answer, verdict, **more))


def kept(clinic: Clinic, answer: Answer) -> list[str]:
    with clinic.store() as store:
        return [decision.verdict for decision in store.decisions.of(answer.id)]


def test_decision_is_returned_with_its_person_and_kept_in_the_record(
    reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    response = post(reader, answer)
    assert response.status_code == 201, response.text
    content = response.json()
    assert (content["decision"]["by"], content["decision"]["person"]) == ("reader", READER)
    assert content["decision"]["before"]["level"] == answer.score["level"]
    assert content["reviewed"]["lungs"] == answer.score["lungs"]
    assert content["revision"] != answer.revision
    with clinic.store() as store:
        record = store.audit.records()[-1]
    assert (record.who, record.action, record.answer_id) == ("reader", "decide", answer.id)
    assert record.output is not None and record.output["verdict"] == "accepted"


def test_worklist_tells_each_decision_about_an_answer(reader: TestClient, answer_to: Put) -> None:
    answer = answer_to()

    def revision() -> str:
        (job,) = reader.get("/api/v1/jobs").json()["jobs"]
        return str(job["answer_revision"])

    seen = [revision()]
    for reason in ("lungs", "wrong_scan"):
        assert post(reader, _again(reader, answer), "rejected", reason=reason).status_code == 201
        assert revision() not in seen
        seen.append(revision())


def test_corrections_replace_levels_and_shares_and_the_model_is_kept(reader: TestClient, answer_to: Put) -> None:
    answer = answer_to()
    shares = {"right": {"lower": {"ground_glass": 0.5, "consolidation": 0.25}}}
    correction = {"levels": {"severe": "high"}, "shares": shares}
    content = post(reader, answer, "corrected", reason="missed", comment=" base ", correction=correction).json()
    assert content["score"]["level"]["severe"] == "intermediate"  # what the model said
    assert content["reviewed"]["level"]["severe"] == "high"
    regions, before = content["reviewed"]["lungs"]["regions"], answer.score["lungs"]["regions"]
    assert answer.score["lungs"]["ranges"] and not content["reviewed"]["lungs"]["ranges"], "of the model's shares"
    assert regions["left"] == before["left"]
    assert regions["right"]["lower"]["ground_glass"] == 0.5
    thirds = [regions["right"][part] for part in ("upper", "middle", "lower")]
    mean = sum(each["ml"] * each["ground_glass"] for each in thirds) / sum(each["ml"] for each in thirds)
    assert regions["right"]["whole"]["ground_glass"] == pytest.approx(mean, abs=1e-4)
    assert regions["both"]["lower"]["ground_glass"] is None  # the thirds of both have other limits
    assert content["decision"]["comment"] == "base"
    content = post(reader, _again(reader, answer), "corrected", reason="lungs", correction={"lungs_usable": False})
    assert content.json()["reviewed"]["lungs"] is None
    decisions = reader.get(f"/api/v1/answers/{answer.id}/decisions").json()["decisions"]
    assert [each["reason"] for each in decisions] == ["missed", "lungs"]
    assert decisions[1]["before"]["decision"] == decisions[0]["id"]
    assert decisions[1]["before"]["level"]["severe"] == "high"


def _again(client: TestClient, answer: Answer) -> Any:
    """The answer with the revision that it has now."""
    revision = client.get(f"/api/v1/answers/{answer.id}").json()["revision"]
    return type("Seen", (), {"id": answer.id, "revision": revision})()


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdict": "rejected"},
        {"verdict": "accepted", "reason": "other"},
        {"verdict": "accepted", "correction": {"lungs_usable": False}},
        {"verdict": "corrected", "reason": "level"},
        {"verdict": "rejected", "reason": "level", "correction": {"levels": {"severe": "low"}}},
        {
            "verdict": "corrected",
            "reason": "missed",
            "correction": {"shares": {"left": {"upper": {"ground_glass": 0.7, "consolidation": 0.4}}}},
        },
        {
            "verdict": "corrected",
            "reason": "missed",
            "correction": {
                "lungs_usable": False,
                "shares": {"left": {"upper": {"ground_glass": 0.1, "consolidation": 0.1}}},
            },
        },
    ],
    ids=str,
)
def test_incomplete_or_contradictory_decision_is_refused(
    wrong: dict[str, Any], reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    response = reader.post(f"/api/v1/answers/{answer.id}/decisions", json={"revision": answer.revision, **wrong})
    assert (response.status_code, refused(response)) == (422, "E_DECISION")
    assert kept(clinic, answer) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"correction": {"levels": {"severe": "certain"}}},
        {"correction": {"levels": {"death": "low"}}},
        {"correction": {"shares": {"both": {"upper": {"ground_glass": 0.1, "consolidation": 0.1}}}}},
        {"correction": {"shares": {"left": {"upper": {"ground_glass": -0.1, "consolidation": 0.1}}}}},
        {"reason": "because"},
        {"person": "Someone^Else"},
        {"by": "another"},
        {"comment": "x" * 1001},
    ],
    ids=str,
)
def test_request_cannot_name_another_person_or_unknown_values(
    wrong: dict[str, Any], reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    response = reader.post(f"/api/v1/answers/{answer.id}/decisions", json=entry(answer, "corrected", **wrong))
    assert refused(response) == "E_REQUEST"
    assert kept(clinic, answer) == []


# --- attacks and accidents ---


@pytest.mark.parametrize(
    ("role", "person", "code"),
    [("read", READER, "E_ROLE"), ("score", "", "E_NOT_A_PERSON"), ("admin", "", "E_NOT_A_PERSON")],
)
def test_user_without_the_right_cannot_decide(
    role: Any, person: str, code: str, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    token = Tokens(clinic.folder).make("somebody", role, by="test", person=person)
    client = TestClient(make_app(clinic), base_url=ADDRESS, headers={"Authorization": f"Bearer {token}"})
    response = post(client, answer)
    assert (response.status_code, refused(response)) == (403, code)
    assert kept(clinic, answer) == []


def test_page_of_another_site_cannot_decide_with_a_session(answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    token = Tokens(clinic.folder).make("reader", "score", by="test", person=READER)
    browser = TestClient(make_app(clinic), base_url=ADDRESS)
    assert browser.post("/api/v1/session", json={"token": token}).json()["person"] == READER
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}, {}):
        response = browser.post(f"/api/v1/answers/{answer.id}/decisions", json=entry(answer), headers=headers)
        assert refused(response) == "E_OTHER_SITE"
    assert kept(clinic, answer) == []
    own = browser.post(f"/api/v1/answers/{answer.id}/decisions", json=entry(answer), headers={"Origin": ADDRESS})
    assert own.status_code == 201


def test_ended_session_of_a_revoked_person_cannot_decide(answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    token = Tokens(clinic.folder).make("reader", "score", by="test", person=READER)
    browser = TestClient(make_app(clinic), base_url=ADDRESS, headers={"Origin": ADDRESS})
    browser.post("/api/v1/session", json={"token": token})
    Tokens(clinic.folder).revoke("reader", by="test")
    assert refused(browser.post(f"/api/v1/answers/{answer.id}/decisions", json=entry(answer))) == "E_TOKEN"
    assert kept(clinic, answer) == []


def test_answer_that_changed_meanwhile_is_not_accepted(reader: TestClient, answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    other = TestClient(
        make_app(clinic),
        base_url=ADDRESS,
        headers={"Authorization": f"Bearer {Tokens(clinic.folder).make('two', 'score', by='test', person='B^C')}"},
    )
    assert post(other, answer, "rejected", reason="image_quality").status_code == 201
    assert refused(post(reader, answer)) == "E_ANSWER_CHANGED"
    seen = _again(reader, answer)
    reader.put(f"/api/v1/answers/{answer.id}/pcr", json={"result": "negative"})
    assert refused(post(reader, seen)) == "E_ANSWER_CHANGED"
    assert post(reader, _again(reader, answer)).status_code == 201
    assert kept(clinic, answer) == ["rejected", "accepted"]


def test_double_click_stores_one_decision(reader: TestClient, answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    # Each of these requests has an event loop of its own; a server has one, which finds its routes once.
    assert reader.get(f"/api/v1/answers/{answer.id}/decisions").status_code == 200
    with ThreadPoolExecutor(4) as clicks:
        responses = list(clicks.map(lambda _: post(reader, answer), range(4)))
    assert [response.status_code for response in responses] == [201] * 4
    assert len({response.json()["decision"]["id"] for response in responses}) == 1
    assert kept(clinic, answer) == ["accepted"]


def test_two_persons_at_once_store_one_decision(answer_to: Put, clinic: Clinic) -> None:
    answer = answer_to()
    app = make_app(clinic)
    clients = []
    for name in ("one", "two", "three"):
        token = Tokens(clinic.folder).make(name, "score", by="test", person=f"{name}^x")
        clients.append(TestClient(app, base_url=ADDRESS, headers={"Authorization": f"Bearer {token}"}))
    for client in clients:  # each client has an event loop of its own; a server has one, which finds its routes once
        assert client.get(f"/api/v1/answers/{answer.id}/decisions").status_code == 200
    with ThreadPoolExecutor(3) as persons:
        statuses = sorted(each.status_code for each in persons.map(lambda client: post(client, answer), clients))
    assert statuses == [201, 409, 409]
    assert kept(clinic, answer) == ["accepted"]


def test_result_of_a_model_of_phantoms_is_not_accepted_for_a_patient(
    reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to(patient=Patient("SYNTHETIC-1"))
    synthetic = {**answer.score, "withheld": "synthetic", "input": {**answer.score["input"], "is_phantom": False}}
    patients = answer_to(score=synthetic)
    assert refused(post(reader, patients)) == "E_NOT_FOR_PATIENTS"
    assert kept(clinic, patients) == []


def test_shadow_answer_and_unknown_answer_cannot_be_decided(reader: TestClient, answer_to: Put) -> None:
    live = answer_to()
    shadow = answer_to(role="shadow", job_id=live.job_id)
    assert refused(post(reader, shadow)) == "E_NO_SUCH_ANSWER"
    unknown = reader.post(f"/api/v1/answers/{'0' * 32}/decisions", json=entry(live))
    assert refused(unknown) == "E_NO_SUCH_ANSWER"


def test_verified_report_of_a_decision_can_be_downloaded_and_nothing_else(
    reader: TestClient, answer_to: Put, clinic: Clinic
) -> None:
    answer = answer_to()
    decision = post(reader, answer).json()["decision"]["id"]
    base = f"/api/v1/answers/{answer.id}/decisions/{decision}/files"
    report = reader.get(f"{base}/sr.dcm")
    assert report.status_code == 200, report.text
    assert b"VERIFIED" in report.content and READER.encode() in report.content
    assert reader.get(f"{base}/sr.dcm").content == report.content
    for wrong in (f"{base}/source.dcm", f"{base}/score.json", base.replace(decision, "0" * 32) + "/sr.dcm"):
        assert refused(reader.get(wrong)) == "E_NO_SUCH_FILE"
    assert post(reader, _again(reader, answer), "rejected", reason="lungs").status_code == 201
    assert refused(reader.get(f"{base}/sr.dcm")) == "E_NO_SUCH_FILE"  # no longer what holds
