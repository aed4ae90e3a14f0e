"""Tests of the view audit: each access to patient data is recorded, on every route."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from models.refusal import Refusal
from pipeline.clinic.audit import Audit
from pipeline.clinic.pictures import write_scan
from pipeline.clinic.reasons import CLINIC_FILE
from pipeline.clinic.records import Answer, AuditRecord, Job, Patient
from pipeline.clinic.results.write import write_results
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import new_id
from pipeline.clinic.web.auth import Tokens
from pipeline.clinic.web.view_audit import SITTING_SECONDS, ViewAudit
from pipeline.imaging.discovery import Series
from pipeline.preprocessing.reasons import NO_LUNGS
from pipeline.scoring.score import Score
from pipeline.site.pacs_settings import PacsTable
from tests.pipeline.clinic.web.conftest import ADDRESS, PATIENT, refused
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE, FakePacs, dataset

Clients = Callable[..., TestClient]
Put = Callable[..., Answer]
API = "/api/v1"
IN_PACS = {"PatientID": "SYNTHETIC-PACS-7", "IssuerOfPatientID": "ward", "PatientName": "Canary^One"}
PICTURES = ("image/png", "application/gzip", "application/dicom")
# Every route with the arguments of its call; ids are filled in. A new route must be added here.
CALLS: dict[tuple[str, str], dict[str, Any]] = {
    ("GET", "/"): {},
    ("GET", "/health/live"): {},
    ("GET", "/health/ready"): {},
    ("GET", "/metrics"): {},
    ("GET", f"{API}/session"): {},
    ("POST", f"{API}/session"): {"json": {"token": "none"}},
    ("DELETE", f"{API}/session"): {},
    ("GET", f"{API}/sign-in"): {},
    ("POST", f"{API}/sign-in"): {"json": {}},
    ("POST", f"{API}/sign-in/finish"): {"json": {"state": "none"}},
    ("POST", f"{API}/scans"): {"content": b"PK\5\6" + bytes(18), "headers": {"Content-Type": "application/zip"}},
    ("GET", f"{API}/jobs"): {},
    ("GET", f"{API}/jobs/{{job_id}}"): {},
    ("GET", f"{API}/jobs/{{job_id}}/lungs"): {},
    ("GET", f"{API}/jobs/{{job_id}}/slices"): {},
    ("GET", f"{API}/jobs/{{job_id}}/slices/{{plane}}/{{index}}.png"): {},
    ("GET", f"{API}/answers"): {},
    ("GET", f"{API}/answers/{{answer_id}}"): {},
    ("GET", f"{API}/answers/{{answer_id}}/files/{{name}}"): {},
    ("GET", f"{API}/answers/{{answer_id}}/slices"): {},
    ("GET", f"{API}/answers/{{answer_id}}/slices/{{plane}}/{{index}}.png"): {},
    ("GET", f"{API}/answers/{{answer_id}}/mask/{{index}}.png"): {},
    ("PUT", f"{API}/jobs/{{job_id}}/reader"): {},
    ("DELETE", f"{API}/jobs/{{job_id}}/reader"): {},
    ("GET", f"{API}/answers/{{answer_id}}/risk-assessment"): {},
    ("PUT", f"{API}/answers/{{answer_id}}/pcr"): {"json": {"result": "negative"}},
    ("POST", f"{API}/answers/{{answer_id}}/send"): {},
    ("GET", f"{API}/deliveries"): {},
    ("POST", f"{API}/answers/{{answer_id}}/decisions"): {"json": {"verdict": "accepted"}},
    ("GET", f"{API}/answers/{{answer_id}}/decisions"): {},
    ("GET", f"{API}/answers/{{answer_id}}/decisions/{{decision_id}}/files/{{name}}"): {},
    ("GET", f"{API}/patients/{{key}}/answers"): {},
    ("GET", f"{API}/pacs/series"): {"params": {"patient_id": IN_PACS["PatientID"], "accession": "ACC-1"}},
    ("POST", f"{API}/pacs/scans"): {"json": {"study_uid": "1.2", "series_uid": "1.3"}},
    ("GET", f"{API}/models"): {},
    ("POST", f"{API}/models/{{sha256}}/shadow"): {},
    ("DELETE", f"{API}/models/{{sha256}}/shadow"): {},
    ("POST", f"{API}/models/{{sha256}}/promote"): {},
    ("GET", f"{API}/local-audit"): {},
    ("GET", f"{API}/audit"): {},
    ("GET", f"{API}/audit/search"): {},
    ("GET", f"{API}/retention"): {},
    ("GET", f"{API}/models/{{sha256}}/disagreements"): {},
    ("GET", f"{API}/accounts"): {},
    ("POST", f"{API}/accounts"): {"json": {"name": "new", "role": "read"}},
    ("POST", f"{API}/accounts/role"): {"json": {"name": "new", "role": "score"}},
    ("POST", f"{API}/accounts/reset"): {"json": {"name": "new"}},
    ("POST", f"{API}/accounts/disable"): {"json": {"name": "new"}},
    ("POST", f"{API}/accounts/enable"): {"json": {"name": "new"}},
    ("GET", f"{API}/connections"): {},
    ("POST", f"{API}/connections/{{name}}/test"): {},
    ("GET", "/admin"): {},
}
VERBS = {
    ("GET", f"{API}/jobs"): "worklist",
    ("GET", f"{API}/jobs/{{job_id}}"): "job",
    ("GET", f"{API}/jobs/{{job_id}}/lungs"): "look",
    ("GET", f"{API}/jobs/{{job_id}}/slices"): "look",
    ("GET", f"{API}/jobs/{{job_id}}/slices/{{plane}}/{{index}}.png"): "look",
    ("GET", f"{API}/answers"): "list",
    ("GET", f"{API}/answers/{{answer_id}}"): "look",
    ("GET", f"{API}/answers/{{answer_id}}/files/{{name}}"): "look",
    ("GET", f"{API}/answers/{{answer_id}}/slices"): "look",
    ("GET", f"{API}/answers/{{answer_id}}/slices/{{plane}}/{{index}}.png"): "look",
    ("GET", f"{API}/answers/{{answer_id}}/mask/{{index}}.png"): "look",
    ("GET", f"{API}/answers/{{answer_id}}/risk-assessment"): "look",
    ("PUT", f"{API}/answers/{{answer_id}}/pcr"): "pcr",
    ("POST", f"{API}/answers/{{answer_id}}/send"): "send",
    ("POST", f"{API}/answers/{{answer_id}}/decisions"): "decide",
    ("GET", f"{API}/answers/{{answer_id}}/decisions"): "look",
    ("GET", f"{API}/answers/{{answer_id}}/decisions/{{decision_id}}/files/{{name}}"): "look",
    ("GET", f"{API}/patients/{{key}}/answers"): "history",
    ("GET", f"{API}/pacs/series"): "search",
}
# These responses contain only numbers or decisions, of one patient's scan.
FIGURES = {pair for pair in VERBS if pair[1].endswith(("/slices", "/lungs", "/decisions"))}


@pytest.fixture
def pacs(clinic: Clinic) -> Iterator[FakePacs]:
    series = dataset(SeriesInstanceUID="1.2.1", Modality="CT", NumberOfSeriesRelatedInstances="6")
    study = dataset(
        StudyInstanceUID="1.2", StudyDate="20210304", AccessionNumber="ACC-1", ModalitiesInStudy="CT", **IN_PACS
    )
    with FakePacs(studies=[(study, [series])]).running() as running:
        dimse = {"host": "127.0.0.1", "port": running.port, "called_aet": PACS_TITLE, "calling_aet": OUR_TITLE}
        clinic.settings.pacs = PacsTable.model_validate({"protocol": "dimse", "dimse": dimse})
        yield running


@pytest.fixture
def refused_job(clinic: Clinic, scored: tuple[Score, Series]) -> Job:
    """A job of the patient that ended without a score, with its pictures."""
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="test", patient=PATIENT)
        job = store.jobs.take()
        assert job
        job.pictures.mkdir()
        write_scan(scored[0].volume, job.pictures)
        store.jobs.refuse(job, Refusal(NO_LUNGS), patient=PATIENT)
        return job


def records(clinic: Clinic, who: str) -> list[AuditRecord]:
    with clinic.store() as store:
        return [record for record in store.audit.records(limit=10_000) if record.who == who]


def routes(router: Any) -> Iterator[APIRoute]:
    """Yield all routes, including those of included routers."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield route
        elif hasattr(route, "original_router"):
            yield from routes(route.original_router)


def test_every_route_that_shows_patient_data_is_audited(
    clinic: Clinic, client: Clients, pacs: FakePacs, refused_job: Job, answer_to: Put
) -> None:
    answer = answer_to()
    assert answer.patient
    assert write_results(answer, answer.folder, picture=False) is None
    clinic.settings.results.send, clinic.settings.results.url = "always", "http://127.0.0.1:1/dicom-web"
    app: Any = client().app
    documented = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert documented | {("GET", "/"), ("GET", "/admin")} == CALLS.keys()
    assert [route.path for route in routes(app) if not route.include_in_schema] == ["/", "/admin"]
    with clinic.store() as store:
        in_pacs = store.keys.patient_key(IN_PACS["PatientID"], IN_PACS["IssuerOfPatientID"])
    marks = (PATIENT.id, "Doe^Jane", IN_PACS["PatientID"], IN_PACS["PatientName"])
    ids = {answer.id, answer.job_id, refused_job.id, answer.patient.key, in_pacs}
    for number, ((method, path), call) in enumerate(CALLS.items()):
        who = f"caller {number}"  # a new caller, so that no earlier view counts
        token = Tokens(clinic.folder).make(who, "admin", by="test", person="Leser^Anna")
        with clinic.store() as store:
            now = store.answers.get(answer.id)
        if "verdict" in call.get("json", {}):
            call["json"]["revision"] = now.revision
        headers = {**call.get("headers", {}), "Authorization": f"Bearer {token}"}
        job_id = refused_job.id if "/slices" in path or "/lungs" in path else answer.job_id
        address = path.format(
            job_id=job_id,
            answer_id=answer.id,
            key=answer.patient.key,
            **{"plane": "axial", "index": 1, "sha256": "0" * 64},
            name="sr.dcm" if "decision_id" in path else "hl7" if "connections" in path else "image.nii.gz",
            number=1,
            decision_id=now.decision.id if now.decision else "",
        )
        response = TestClient(app, base_url=ADDRESS).request(method, address, **{**call, "headers": headers})
        kind = response.headers.get("content-type", "").partition(";")[0]
        shows = kind in PICTURES or any(mark in response.text for mark in marks) or (method, path) in FIGURES
        assert shows is ((method, path) in VERBS), (method, path, response.text[:200])
        if not shows:
            continue
        assert response.status_code < 400, (method, path, response.text)
        (record,) = records(clinic, who)
        told = json.dumps(record.to_json())
        assert record.action == VERBS[method, path]
        assert any(each in told for each in ids), (method, path, told)
        assert not any(name in told for name in (PATIENT.id, "Doe", IN_PACS["PatientID"], "Canary", "ACC-1"))


def test_every_search_is_audited_with_its_query_and_result(clinic: Clinic, client: Clients, pacs: FakePacs) -> None:
    asked = {"patient_id": f" {IN_PACS['PatientID']} ", "from": "2021-03-01", "to": "2021-03-31"}
    for _ in range(2):
        assert len(client("score").get(f"{API}/pacs/series", params=asked).json()["series"]) == 1
    nobody = client("score").get(f"{API}/pacs/series", params={"patient_id": "SYNTHETIC-8"})
    assert nobody.json()["series"] == []
    pacs.studies[0][0].PatientID = ""
    client("score").get(f"{API}/pacs/series", params={"accession": "ACC-1"})
    first, second, third, fourth = (record.output for record in records(clinic, "a score"))
    with clinic.store() as store:
        key = store.keys.patient_key
        assert first == {
            "asked": {"patient": key(IN_PACS["PatientID"]), "from": "2021-03-01", "to": "2021-03-31"},
            "series": 1,
            "patients": [key(IN_PACS["PatientID"], "ward")],
            "unnamed": 0,
        }
        assert second == first
        assert third == {"asked": {"patient": key("SYNTHETIC-8")}, "series": 0, "patients": [], "unnamed": 0}
        assert fourth is not None and fourth["asked"].keys() == {"accession"}
        assert (fourth["series"], fourth["patients"], fourth["unnamed"]) == (1, [], 1)
        assert fourth["asked"]["accession"] not in (key("ACC-1"), "ACC-1")


def test_worklist_is_audited_once_and_again_for_each_new_patient(
    clinic: Clinic, client: Clients, answer_to: Put
) -> None:
    now = [1000.0]
    client().app.state.view_audit = ViewAudit(lambda: now[0])  # type: ignore[attr-defined]
    first = answer_to()

    def look() -> list[Any]:
        for _ in range(3):
            assert client("read").get(f"{API}/jobs").status_code == 200
        return [record.output and record.output["shown"] for record in records(clinic, "a read")]

    assert look() == [[first.job_id]]
    with clinic.store() as store:  # the patient of this job is not known yet
        unread = store.jobs.add(new_id(), source="upload", asked_by="test")
    assert look() == [[first.job_id]]
    with clinic.store() as store:
        taken = store.jobs.take()
        assert taken and taken.id == unread.id
        store.jobs.refuse(taken, Refusal(NO_LUNGS), patient=Patient("SYNTHETIC-2"))
    assert look() == [[first.job_id], [unread.id]]
    now[0] += SITTING_SECONDS
    assert look() == [[first.job_id], [unread.id], [unread.id, first.job_id]]


def test_histories_of_two_patients_give_two_audit_records(clinic: Clinic, client: Clients, answer_to: Put) -> None:
    answers = [answer_to(), answer_to(Patient("SYNTHETIC-2"))]
    keys = [answer.patient.key for answer in answers if answer.patient]
    for key in (*keys, keys[0]):
        client("read").get(f"{API}/patients/{key}/answers")
    told = [(record.action, record.output) for record in records(clinic, "a read")]
    assert told == [
        ("history", {"patient": key, "shown": [answer.id]}) for key, answer in zip(keys, answers, strict=True)
    ]


@pytest.mark.parametrize("path", ["jobs", "jobs/{job}", "answers", "patients/{key}/answers", "pacs/series?accession=1"])
def test_list_is_not_shown_if_the_access_cannot_be_audited(
    path: str, client: Clients, pacs: FakePacs, answer_to: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = answer_to()
    assert answer.patient
    address = f"{API}/{path.format(job=answer.job_id, key=answer.patient.key)}"

    def fail(*_: object, **__: object) -> None:
        raise Refusal(CLINIC_FILE)

    with monkeypatch.context() as patch:
        patch.setattr(Audit, "add", fail)
        for _ in range(2):
            assert refused(client("score").get(address)) == "E_CLINIC_FILE"
    assert client("score").get(address).status_code == 200


def test_concurrent_identical_requests_are_audited_once(clinic: Clinic, client: Clients, answer_to: Put) -> None:
    answer = answer_to()
    reader = client("read")
    threads = [threading.Thread(target=reader.get, args=(f"{API}/answers/{answer.id}",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.action for record in records(clinic, "a read")] == ["look"]
