"""Tests of the PACS routes of the API: no PACS, an unreachable PACS, searches and series requests."""

from collections.abc import Callable

import pytest
from fastapi.testclient import TestClient

from pipeline.clinic.settings import Clinic
from pipeline.site.pacs_settings import DicomWebTable, PacsTable
from tests.pipeline.clinic.web.conftest import refused

Clients = Callable[..., TestClient]
CHOICE = {"study_uid": "1.2", "series_uid": "1.3"}


@pytest.fixture
def silent(clinic: Clinic) -> None:
    """A PACS at an address where nothing listens."""
    clinic.settings.pacs = PacsTable(protocol="dicomweb", dicomweb=DicomWebTable(url="http://127.0.0.1:1/dicom-web"))


def test_clinic_without_a_pacs_refuses_with_a_code(client: Clients) -> None:
    listing = client("score").get("/api/v1/pacs/series", params={"patient_id": "SYNTHETIC-1"})
    assert (listing.status_code, refused(listing)) == (409, "E_CLINIC_NO_PACS")
    assert refused(client("score").post("/api/v1/pacs/scans", json=CHOICE)) == "E_CLINIC_NO_PACS"


def test_unreachable_pacs_gives_bad_gateway(silent: None, client: Clients) -> None:
    listing = client("score").get("/api/v1/pacs/series", params={"patient_id": "SYNTHETIC-1"})
    assert (listing.status_code, refused(listing)) == (502, "E_PACS_REFUSED")
    assert "SYNTHETIC-1" not in listing.text


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({}, "E_PACS_CRITERIA"),
        ({"patient_id": "*"}, "E_PACS_CRITERIA"),
        ({"from": "2026-01-01", "to": "2026-12-31"}, "E_PACS_CRITERIA"),
        ({"patient_id": "1" * 65}, "E_REQUEST"),
        ({"from": "yesterday"}, "E_REQUEST"),
        ({"patient_id": "SYNTHETIC-1", "from": "0"}, "E_REQUEST"),  # a number is not a date
        ({"patient_id": "SYNTHETIC-1", "to": "86400"}, "E_REQUEST"),
    ],
)
def test_broad_or_invalid_search_is_refused(asked: dict[str, str], code: str, silent: None, client: Clients) -> None:
    listing = client("score").get("/api/v1/pacs/series", params=asked)
    assert (listing.status_code, refused(listing)) == (422, code)


def test_series_is_queued_under_the_name_of_the_caller(silent: None, client: Clients, clinic: Clinic) -> None:
    clinic.settings.limits.waiting_scans = 1
    chosen = client("score").post("/api/v1/pacs/scans", json=CHOICE)
    assert chosen.status_code == 202
    job = chosen.json()
    assert (job["state"], job["source"], job["asked_by"]) == ("waiting", "pacs", "a score")
    assert chosen.headers["location"] == f"/api/v1/jobs/{job['id']}"
    full = client("score").post("/api/v1/pacs/scans", json=CHOICE)
    assert (full.status_code, refused(full)) == (429, "E_QUEUE_FULL")
    for wrong in ({"study_uid": "1.2"}, {**CHOICE, "series_uid": "1..3"}, {**CHOICE, "patient": "x"}):
        assert refused(client("score").post("/api/v1/pacs/scans", json=wrong)) == "E_REQUEST"
    zero_first = client("score").post("/api/v1/pacs/scans", json={**CHOICE, "series_uid": "1.02"})
    assert (zero_first.status_code, refused(zero_first)) == (422, "E_PACS_UID")
