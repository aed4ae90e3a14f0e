"""Routes for the hospital's PACS: search for scans, and fetch one of them for scoring."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from models.refusal import Refusal
from pipeline.clinic.pacs_source import Listing, PacsSource
from pipeline.clinic.reasons import CLINIC_NO_PACS
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.clinic.web import schemas
from pipeline.clinic.web.dependencies import Scorer, TheClinic, TheStore, TheViewAudit
from pipeline.clinic.web.error_responses import documented
from pipeline.clinic.web.inert_text import inert
from pipeline.clinic.web.middleware import API
from pipeline.clinic.web.scans import show_job
from pipeline.system.days import Day

routes = APIRouter(tags=["PACS"])
_Identifier = Annotated[str, Query(max_length=64)]


@routes.get(
    "/pacs/series",
    response_model=schemas.PacsListing,
    responses=documented(409, 502),
    summary="CT series in the PACS",
)
def get_series(
    clinic: TheClinic,
    store: TheStore,
    caller: Scorer,
    patient_id: _Identifier = "",
    accession: _Identifier = "",
    from_date: Annotated[Day | None, Query(alias="from", description="First day of the study.")] = None,
    to_date: Annotated[Day | None, Query(alias="to", description="Last day of the study.")] = None,
) -> Any:
    """Find series that match all criteria: at least an identifier, or days at most a month apart."""
    found = _source(clinic).list_series(
        patient_id=patient_id, accession=accession, from_date=from_date, to_date=to_date
    )
    asked = {
        "patient": store.keys.patient_key(patient_id.strip()),
        "accession": store.keys.hidden("accession", accession.strip()),
        "from": from_date.isoformat() if from_date else "",
        "to": to_date.isoformat() if to_date else "",
    }
    store.audit.add(caller.name, "search", output=_on_record(store, asked, found))
    return inert(found.to_json())


@routes.post(
    "/pacs/scans",
    status_code=202,
    response_model=schemas.Job,
    responses=documented(409, 502),
    summary="Score a scan from the PACS",
)
def post_scan(
    response: Response,
    clinic: TheClinic,
    store: TheStore,
    caller: Scorer,
    view_audit: TheViewAudit,
    choice: schemas.PacsChoice,
) -> Any:
    """Queue a series of the PACS; it is fetched before it is scored."""
    at_most = clinic.settings.limits.waiting_scans
    job = _source(clinic).ask(store, choice.study_uid, choice.series_uid, by=caller.name, at_most=at_most)
    response.headers["Location"] = f"{API}/jobs/{job.id}"
    return show_job(store, caller, view_audit, job)


def _on_record(store: Store, asked: dict[str, str], found: Listing) -> dict[str, Any]:
    """Describe search and result without names or identifiers. `unnamed`: number of series without a patient ID."""
    patients = [store.keys.patient_key(series.patient_id, series.issuer) for series in found.series]
    return {
        "asked": {key: value for key, value in asked.items() if value},
        "series": len(patients),
        "patients": sorted(set(patients) - {""}),
        "unnamed": patients.count(""),
    }


def _source(clinic: Clinic) -> PacsSource:
    """Return the clinic's PACS. Raises Refusal E_CLINIC_NO_PACS, and what opening the node's folder raises."""
    if clinic.pacs is None:
        raise Refusal(CLINIC_NO_PACS)
    table, folder = clinic.pacs
    return PacsSource(clinic.folder, table, folder)
