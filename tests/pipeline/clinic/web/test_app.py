"""Tests of the whole application: its OpenAPI description, and generated valid and invalid requests."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pipeline.clinic.records import Patient
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import new_id
from pipeline.clinic.web import authentication
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import Tokens
from pipeline.imaging.discovery import Series
from pipeline.scoring.score import Score
from tests.helpers import scored_answers as answers
from tests.pipeline.clinic.web.conftest import NAME

Clients = Callable[..., TestClient]
# Operations with checks that a schema cannot express: files must look like a scan, dates must be in the past.
MAY_REFUSE = ("POST /api/v1/scans", "PUT /api/v1/answers/{answer_id}/pcr")
EXAMPLES = 6  # per operation and mode (valid and invalid requests)


def test_every_operation_is_described_and_has_the_same_error_schema(client: Clients) -> None:
    document = client().get("/api/v1/openapi.json").json()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"]
            assert operation["description"]
            if path.startswith("/api/v1/"):
                for status, answer in operation["responses"].items():
                    if int(status) >= 400:
                        assert answer["content"]["application/json"]["schema"] == {
                            "$ref": "#/components/schemas/Problem"
                        }
            if not path.startswith(("/api/v1/session", "/api/v1/sign-in", "/health/")):
                assert operation["security"]
    assert not re.search(r"https?://", str(document))


def test_page_is_served_and_loads_no_external_resources(client: Clients) -> None:
    page = client().get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "Not a medical device" in page.text
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert named
    for address in named:
        assert client().get(f"/{address}").status_code == 200, address


@dataclass(frozen=True)
class Served:
    """A clinic with one answer, and the ids and the token to access it."""

    app: FastAPI
    answer_id: str
    job_id: str
    key: str
    token: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, scored: tuple[Score, Series]) -> Served:
    clinic = Clinic.open(tmp_path_factory.mktemp("clinic"))
    clinic.settings.limits.requests_per_minute = 10**6
    clinic.settings.limits.waiting_scans = 10
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="test")
        job = store.jobs.take()
        assert job
        patient = store.keys.keyed(Patient("SYNTHETIC-1", name=NAME))
        made = answers.answer_to(*scored, clinic.answers / new_id(), job_id=job.id, patient=patient)
        store.answers.add(job, made)
        store.worker.set("ready")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authentication, "WRONG_TOKENS", 10**6)  # schemathesis tries wrong tokens
        app = make_app(clinic)
    return Served(app, made.id, job.id, patient.key, Tokens(clinic.folder).make("t", "admin", by="test"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_server_conforms_to_its_openapi_description_for_any_request(mode: GenerationMode, served: Served) -> None:
    """Valid and invalid requests get no status of 500 or more, and every response matches the description."""
    api = schemathesis.openapi.from_asgi("/api/v1/openapi.json", served.app, headers={"Host": "localhost"})
    headers = {"Host": "localhost", "Authorization": f"Bearer {served.token}"}
    known = {"answer_id": served.answer_id, "job_id": served.job_id, "key": served.key}
    tried = 0
    for operation in api.get_all_operations():

        @given(case=operation.ok().as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        def answers_as_described(case: schemathesis.Case) -> None:
            nonlocal tried
            for name in case.path_parameters.keys() & known.keys():
                if re.fullmatch("[0-9a-f]{32}", str(case.path_parameters[name])):
                    case.path_parameters[name] = known[name]  # a random id would never exist
            demanding = [positive_data_acceptance] if case.operation.label in MAY_REFUSE else []
            case.call_and_validate(headers=headers, excluded_checks=demanding)
            tried += 1

        with suppress(Unsatisfiable):  # an operation for which no invalid request exists
            answers_as_described()
    assert tried > 100
