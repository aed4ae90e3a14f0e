"""Tests of the administrator's API for connected systems and deliveries, with real servers on this machine."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient

from federation.system.process import free_port
from pipeline.clinic.records import Answer
from pipeline.clinic.settings import Clinic, FhirResultsTable, Hl7ResultsTable
from tests.pipeline.clinic.web.conftest import refused
from tests.pipeline.feeds.fhir_server import FhirServer, serving

Clients = Callable[..., TestClient]
Put = Callable[..., Answer]
API = "/api/v1"


@pytest.fixture
def listening() -> Iterator[int]:
    """The port of a program that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def silent() -> int:
    return free_port()


def tried(admin: TestClient, name: str) -> str | None:
    """Return the code of a test; None if the system responded."""
    answer = admin.post(f"{API}/connections/{name}/test")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["responds"] is (told["code"] is None)
    return str(told["code"]) if told["code"] else None


def test_clinic_without_other_systems_says_so(client: Clients) -> None:
    admin = client("admin")
    systems = admin.get(f"{API}/connections").json()["connections"]
    assert {each["name"] for each in systems} == {"search", "receiver", "pacs", "fhir", "hl7"}
    assert {each["kind"] for each in systems} == {""}
    for each in systems:
        assert refused(admin.post(f"{API}/connections/{each['name']}/test")) == "E_NO_SUCH_CONNECTION"
    assert refused(admin.post(f"{API}/connections/other/test")) == "E_REQUEST"


def test_each_system_is_tested_and_the_test_is_recorded(
    client: Clients, clinic: Clinic, listening: int, silent: int
) -> None:
    results, receiver = clinic.settings.results, clinic.settings.receiver
    results.hl7 = Hl7ResultsTable(host="127.0.0.1", port=listening)
    results.send, results.by, results.host, results.port = "accepted", "c-store", "127.0.0.1", silent
    receiver.enabled, receiver.port = True, silent
    admin = client("admin")
    assert tried(admin, "hl7") is None
    results.hl7 = Hl7ResultsTable(host="127.0.0.1", port=silent, timeout_seconds=60)
    assert tried(admin, "hl7") == "E_HL7_SILENT"
    assert (tried(admin, "pacs") or "").startswith("E_PACS_")
    assert tried(admin, "receiver") == "E_RECEIVER_CLOSED"
    receiver.port = listening
    assert tried(admin, "receiver") is None
    with serving(FhirServer()) as server:
        results.fhir = FhirResultsTable(url=server.url)
        assert tried(admin, "fhir") is None
        assert server.asked == ["/r4/metadata"]
    assert tried(admin, "fhir") == "E_FHIR_SILENT"
    with clinic.store() as store:
        noted = [(each.who, each.output, each.code) for each in store.audit.records() if each.action != "token"]
    assert noted[:2] == [("a admin", {"name": "hl7"}, None), ("a admin", {"name": "hl7"}, "E_HL7_SILENT")]
    assert len(noted) == 7
    systems = {each["name"]: each for each in admin.get(f"{API}/connections").json()["connections"]}
    assert (systems["pacs"]["kind"], systems["pacs"]["address"]) == ("dimse", f"PACS@127.0.0.1:{silent}")
    assert not systems["pacs"]["encrypted"]


def test_deliveries_are_counted_by_state(answer_to: Put, client: Clients, clinic: Clinic) -> None:
    answer = answer_to()
    with clinic.store() as store:
        store.deliveries.queue(answer.id, "pacs")
        (delivery,) = store.deliveries.of(answer.id)
        store.deliveries.set(replace(delivery, state="failed", attempts=3, code="E_PACS_STORE", due_at=None))
    given = client("admin").get(f"{API}/connections")
    counted = {each["name"]: each["deliveries"] for each in given.json()["connections"]}
    assert counted["pacs"] == {"failed": 1}
