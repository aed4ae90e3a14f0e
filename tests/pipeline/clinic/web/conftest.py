"""Fixtures: a clinic with an answer to a synthetic scan, and clients of each role. No process is started."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.records import Answer, Patient
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import new_id, now
from pipeline.clinic.web.app import make_app
from pipeline.clinic.web.auth import ACCESSES, Tokens
from pipeline.imaging.discovery import Series
from pipeline.scoring.score import Score
from tests.helpers import scored_answers as answers

ADDRESS = "http://localhost:8765"
NAME = "Doe^Jane\u202e\x07<script>alert(1)</script>"
PATIENT = Patient("SYNTHETIC-1", "\u2066ward\n7", NAME, "F", 63.0)


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Score, Series]:
    """A score of a synthetic scan with given values, and its series."""
    scan = tmp_path_factory.mktemp("scan")
    answers.write_scan(scan)
    return answers.score_of(scan), answers.series_of(scan)


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    (tmp_path / "clinic").mkdir()
    return Clinic.open(tmp_path / "clinic")


@pytest.fixture
def secrets_by_role(clinic: Clinic) -> dict[str, str]:
    """One token for each role."""
    return {role: Tokens(clinic.folder).make(f"a {role}", role, by="test") for role in ACCESSES}


@pytest.fixture
def answer_to(clinic: Clinic, scored: tuple[Score, Series]) -> Callable[..., Answer]:
    """Store an answer to the synthetic scan in the clinic, as the worker would."""

    def put(patient: Patient | None = PATIENT, **changes: Any) -> Answer:
        with clinic.store() as store:
            if "job_id" not in changes:
                store.jobs.add(new_id(), source="upload", asked_by="a score", patient=patient)
            job = store.jobs.take() if "job_id" not in changes else store.jobs.get(changes["job_id"])
            assert job is not None
            made = answers.answer_to(*scored, clinic.answers / new_id(), job_id=job.id, patient=patient)
            made = replace(made, created_at=now(), **changes)
            store.answers.add(job, made)
            return store.answers.get(made.id)

    return put


@pytest.fixture
def client(clinic: Clinic, secrets_by_role: dict[str, str]) -> Iterator[Callable[..., TestClient]]:
    """Make clients: `client("score")` sends a token, `client()` none. The first call fixes the settings."""
    apps = []

    def make(role: str | None = None) -> TestClient:
        if not apps:
            apps.append(make_app(clinic))
        headers = {"Authorization": f"Bearer {secrets_by_role[role]}"} if role else {}
        return TestClient(apps[0], base_url=ADDRESS, headers=headers, follow_redirects=False)

    yield make


def refused(response: Any) -> str:
    """The code with which a request was refused. Every refusal has the same three keys."""
    assert response.status_code >= 400, response.text
    content = response.json()
    assert set(content) == {"code", "says", "remedy"}
    assert all(content.values())
    return str(content["code"])
