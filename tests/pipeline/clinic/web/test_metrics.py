"""Tests of the Prometheus metrics, which contain no patient data, and of the readiness check."""

from collections.abc import Callable
from dataclasses import replace

from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from models.refusal import Refusal
from pipeline.clinic.records import Answer
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import new_id
from pipeline.preprocessing.reasons import NO_LUNGS
from tests.pipeline.clinic.web.conftest import refused

Clients = Callable[..., TestClient]


def figures(client: Clients) -> tuple[str, dict[tuple[str, ...], float]]:
    """The text, and each sample by its name and its label values, sorted by label name."""
    text = client("read").get("/metrics").text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return text, {(each.name, *(value for _, value in sorted(each.labels.items()))): each.value for each in samples}


def test_metrics_match_the_store_content(answer_to: Callable[..., Answer], client: Clients, clinic: Clinic) -> None:
    answer = answer_to()
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="test")
        job = store.jobs.take()
        assert job
        store.jobs.refuse(job, Refusal(NO_LUNGS))
        store.jobs.add(new_id(), source="upload", asked_by="test")
        store.models.add("a" * 64, "study", signed_by=None, by="test")
        store.models.set_live("a" * 64, by="test")
    text, told = figures(client)
    assert told["fedthorax_jobs", "answered"] == told["fedthorax_jobs", "no_score"] == 1
    assert told["fedthorax_jobs", "waiting"] == told["fedthorax_queue_length",] == 1
    assert told["fedthorax_no_score", "E_NO_LUNGS"] == 1
    assert told["fedthorax_scoring_seconds_count", "total"] == 1
    assert told["fedthorax_scoring_seconds_sum", "total"] == answer.score["timing_seconds"]["total"]
    assert told["fedthorax_model_info", "study", "live", "a" * 64] == 1
    assert (
        told["fedthorax_outbox", "waiting", "pacs"]
        == told["fedthorax_sessions",]
        == told["fedthorax_worker_ready",]
        == 0
    )
    assert told["fedthorax_decisions", "accepted"] == told["fedthorax_drift_alert", "pcr"] == 0
    assert not any(word in text for word in ("SYNTHETIC", "Doe", answer.study_uid, answer.id))


def test_failed_and_retried_deliveries_are_counted_by_code(
    answer_to: Callable[..., Answer], client: Clients, clinic: Clinic
) -> None:
    answer = answer_to()
    with clinic.store() as store:
        for target, state, code in (("hl7", "failed", "E_HL7_REFUSED"), ("fhir", "waiting", "E_FHIR_SILENT")):
            store.deliveries.queue(answer.id, target)  # type: ignore[arg-type]
            queued = store.deliveries.of(answer.id)[-1]
            store.deliveries.set(replace(queued, state=state, attempts=1, code=code))  # type: ignore[arg-type]
    _, told = figures(client)
    assert told["fedthorax_outbox", "failed", "hl7"] == told["fedthorax_outbox", "waiting", "fhir"] == 1
    assert told["fedthorax_outbox_problems", "E_HL7_REFUSED", "failed", "hl7"] == 1
    assert told["fedthorax_outbox_problems", "E_FHIR_SILENT", "waiting", "fhir"] == 1


def test_metrics_need_a_token_even_from_localhost(client: Clients) -> None:
    local = TestClient(client().app, base_url="http://localhost", client=("127.0.0.1", 1))
    assert refused(local.get("/metrics")) == "E_NO_TOKEN"


def test_signed_in_browsers_are_counted(client: Clients, secrets_by_role: dict[str, str]) -> None:
    client().post("/api/v1/session", json={"token": secrets_by_role["read"]})
    assert figures(client)[1]["fedthorax_sessions",] == 1


def test_ready_when_worker_has_its_model_and_disk_has_space(client: Clients, clinic: Clinic, monkeypatch) -> None:
    def ready() -> tuple[int, dict[str, bool]]:
        answer = client().get("/health/ready")
        return answer.status_code, answer.json()

    assert ready() == (503, {"ready": False, "worker": False, "model": False, "disk": True})
    with clinic.store() as store:
        store.worker.set("no_model", "E_NO_MODEL")
        assert ready() == (503, {"ready": False, "worker": True, "model": False, "disk": True})
        store.worker.set("ready")
    assert ready() == (200, {"ready": True, "worker": True, "model": True, "disk": True})
    monkeypatch.setattr("pipeline.clinic.web.metrics.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1})())
    assert ready() == (503, {"ready": False, "worker": True, "model": True, "disk": False})
    assert client().get("/health/live").json() == {"live": True}
