"""Routes for scans: upload, and the queue."""

import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as PathParameter
from starlette.concurrency import run_in_threadpool

from models.refusal import Refusal
from pipeline.clinic import pictures
from pipeline.clinic.reasons import DISK_FULL, NO_SUCH_PICTURE
from pipeline.clinic.records import Job, JobState
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store, new_id
from pipeline.clinic.unscored import lungs_of
from pipeline.clinic.web import schemas
from pipeline.clinic.web.auth import Caller
from pipeline.clinic.web.dependencies import Person, Reader, Scorer, TheClinic, TheStore, TheViewAudit
from pipeline.clinic.web.error_responses import PNG, documented
from pipeline.clinic.web.inert_text import inert
from pipeline.clinic.web.limits import Room
from pipeline.clinic.web.middleware import API, MB
from pipeline.clinic.web.schemas import Id, Uid
from pipeline.clinic.web.uploads import INCOMING, receive
from pipeline.clinic.web.view_audit import View, ViewAudit
from pipeline.system.atomic_files import move_durably

KEEP_FREE_MB = 500  # disk space reserved for the store and the answers
_BODY = {
    "requestBody": {
        "required": True,
        "description": "The files of one chest CT series (DICOM, NIfTI or MetaImage), or one zip of them.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
                    },
                    "required": ["files"],
                }
            },
            "application/zip": {"schema": {"type": "string", "format": "binary", "minLength": 1}},
        },
    }
}

routes = APIRouter(tags=["scans"])


@routes.post(
    "/scans",
    status_code=202,
    response_model=schemas.Job,
    responses=documented(413, 415),
    openapi_extra=_BODY,
    summary="Score a scan",
)
async def post_scan(
    request: Request,
    response: Response,
    clinic: TheClinic,
    caller: Scorer,
    view_audit: TheViewAudit,
    series_uid: Annotated[Uid | None, Query(description="Which series to score, if there are several.")] = None,
) -> Any:
    """Queue one chest CT. Then request the job until its state is `answered` or `no_score`.

    File names are not stored. Whether the files are a valid scan is checked when it is scored.
    """
    room: Room = request.app.state.room
    async with room.place():
        job_id = new_id()
        incoming = clinic.scans / f"{INCOMING}{job_id}"
        await run_in_threadpool(_has_space, clinic, request.headers.get("content-length"))
        await receive(request, incoming)
        await run_in_threadpool(_queue, clinic, incoming, job_id, by=caller.name, series_uid=series_uid)
    response.headers["Location"] = f"{API}/jobs/{job_id}"
    return await run_in_threadpool(_show_new_job, clinic, caller, view_audit, job_id)


@routes.get("/jobs", response_model=schemas.Jobs, responses=documented(), summary="The worklist")
def get_jobs(
    store: TheStore,
    caller: Reader,
    view_audit: TheViewAudit,
    state: JobState | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[Id | None, Query(description="The id of a job: return only older ones.")] = None,
    reader: Annotated[
        Literal["me", "nobody"] | None, Query(description="Only scans that the caller has, or that nobody has.")
    ] = None,
) -> Any:
    """List jobs, newest first."""
    whose = {"me": caller.name, "nobody": ""}.get(reader) if reader else None
    found = store.jobs.newest(state, limit, before, whose)
    view_audit.note(store, caller, View("worklist", shown=tuple(job.id for job in found if job.patient)))
    return {"jobs": [job_json(store, job) for job in found]}


@routes.get("/jobs/{job_id}", response_model=schemas.Job, responses=documented(404), summary="One scan of the worklist")
def get_job(store: TheStore, caller: Reader, view_audit: TheViewAudit, job_id: Id) -> Any:
    """Return the state of a job, and at its end the answer's id, or why there is no score."""
    return show_job(store, caller, view_audit, store.jobs.get(job_id))


@routes.put(
    "/jobs/{job_id}/reader", response_model=schemas.Assignment, responses=documented(404, 409), summary="Take a scan"
)
def put_reader(store: TheStore, caller: Person, job_id: Id) -> Any:
    """Take a scan as the caller, whom others then see as its reader. E_SCAN_TAKEN if another reader has it."""
    store.assignments.take(job_id, by=caller.name, person=caller.person)
    return _assignment(store, job_id)


@routes.delete(
    "/jobs/{job_id}/reader", response_model=schemas.Assignment, responses=documented(404, 409), summary="Release a scan"
)
def delete_reader(store: TheStore, caller: Scorer, job_id: Id) -> Any:
    """Release a scan that the caller has. Only an administrator releases one of another reader (else E_SCAN_TAKEN)."""
    store.assignments.release(job_id, by=caller.name, is_admin=caller.may("admin"))
    return _assignment(store, job_id)


def _assignment(store: Store, job_id: str) -> Any:
    reader = store.jobs.get(job_id).reader
    return inert({"reader": reader and reader.to_json()})


def _seen(store: TheStore, caller: Reader, view_audit: TheViewAudit, job_id: Id) -> Path:
    """Return the pictures' folder of a scan without a score, and record that the caller viewed it.

    Raises Refusal E_NO_SUCH_JOB, E_NO_SUCH_PICTURE.
    """
    job = store.jobs.get(job_id)
    if not job.has_pictures:
        raise Refusal(NO_SUCH_PICTURE)
    view_audit.note(store, caller, View("look", job_id=job.id))
    return job.pictures


Seen = Annotated[Path, Depends(_seen)]


@routes.get(
    "/jobs/{job_id}/slices", response_model=schemas.Slices, responses=documented(404), summary="Slices without a score"
)
def get_slices(folder: Seen) -> Any:
    """Return the slices of a scan without a score, as for an answer; only if it could be read."""
    return pictures.planes(folder)


@routes.get(
    "/jobs/{job_id}/slices/{plane}/{index}.png",
    response_class=Response,
    responses={**documented(404), **PNG},
    summary="One slice of a scan without a score",
)
def get_slice(
    folder: Seen,
    plane: pictures.Plane,
    index: Annotated[int, PathParameter(ge=0, le=9999)],
    overlay: Literal["none", "lungs", "opacities", "opacity_outlines"] = "none",
    window: pictures.Window = "lung",
) -> Response:
    """Draw a slice, the patient's right on the left. Not for diagnosis: reduced resolution."""
    return Response(pictures.slice_png(folder, plane, index, overlay, window), media_type="image/png")


@routes.get(
    "/jobs/{job_id}/lungs",
    response_model=schemas.LungsAlone,
    responses=documented(404),
    summary="The lungs of a scan without a score",
)
def get_lungs(folder: Seen) -> Any:
    """Return the measures and checks of the lungs, which need no model; null if there is no whole chest in the scan."""
    lungs = lungs_of(folder)
    quality = None if lungs is None else lungs.pop("quality", None)
    return {"lungs": lungs, "quality": quality}


def show_job(store: Store, caller: Caller, view_audit: ViewAudit, job: Job) -> Any:
    """Return the job as JSON; record the view if it names a patient. Raises Refusal E_CLINIC_FILE."""
    if job.patient:
        view_audit.note(store, caller, View("job", job_id=job.id, answer_id=job.answer_id))
    return job_json(store, job)


def job_json(store: Store, job: Job) -> Any:
    return inert(job.to_json(store.jobs.position(job)))


def _has_space(clinic: Clinic, announced: str | None) -> None:
    """Check the disk space for an upload of the announced size. Raises Refusal E_DISK_FULL."""
    coming = int(announced) if announced else clinic.settings.limits.upload_mb * MB
    if shutil.disk_usage(clinic.scans).free < KEEP_FREE_MB * MB + coming:
        raise Refusal(DISK_FULL)


def _queue(clinic: Clinic, incoming: Path, job_id: str, *, by: str, series_uid: str | None) -> None:
    """Queue an uploaded scan. Raises Refusal E_QUEUE_FULL, E_CLINIC_FILE, and removes the upload then."""
    folder = clinic.scans / job_id
    try:
        move_durably(incoming, folder)
        with clinic.store() as store:
            at_most = clinic.settings.limits.waiting_scans
            store.jobs.add(job_id, source="upload", asked_by=by, series_uid=series_uid, at_most=at_most)
    except BaseException:
        for left in (incoming, folder):
            shutil.rmtree(left, ignore_errors=True)
        raise


def _show_new_job(clinic: Clinic, caller: Caller, view_audit: ViewAudit, job_id: str) -> Any:
    with clinic.store() as store:
        return show_job(store, caller, view_audit, store.jobs.get(job_id))
