"""Routes for answers: scores, pictures, files, PCR results, and sending to the PACS."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from models.refusal import Refusal
from pipeline.clinic import pictures
from pipeline.clinic.corrected_mask import reader_masks
from pipeline.clinic.later_outcomes import join_rules
from pipeline.clinic.pcr_day import check_possible
from pipeline.clinic.reasons import NO_SUCH_ANSWER, NO_SUCH_FILE, NO_SUCH_PICTURE, NOT_FOR_PATIENTS
from pipeline.clinic.records import Answer, Target, moment
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.results.write import PICTURE, REPORT, RESULTS, SEGMENTATION, why_no_results
from pipeline.clinic.review import reviewed_levels, reviewed_lungs
from pipeline.clinic.settings import Clinic
from pipeline.clinic.store import Store
from pipeline.clinic.web import schemas
from pipeline.clinic.web.dependencies import Reader, Scorer, TheClinic, TheStore, TheViewAudit
from pipeline.clinic.web.error_responses import BINARY, PNG, documented
from pipeline.clinic.web.fhir import MEDIA_TYPE, risk_assessment
from pipeline.clinic.web.inert_text import inert
from pipeline.clinic.web.schemas import Id
from pipeline.clinic.web.view_audit import View
from pipeline.scoring.verdict import withheld

# The files of an answer's folder that may be downloaded; all others are internal.
SCORE = "score.json"
_FILES = {
    SCORE: "application/json",
    pictures.IMAGE: "application/gzip",
    pictures.LUNGS: "application/gzip",
    pictures.SALIENCY: "application/gzip",
    pictures.OPACITIES: "application/gzip",
    pictures.LABELS: "application/gzip",
    REPORT: "application/dicom",
    PICTURE: "application/dicom",
    SEGMENTATION: "application/dicom",
}

routes = APIRouter(tags=["answers"])


class WholeFile(FileResponse):
    """A complete file. Range requests are ignored: Starlette's errors for them have another format than ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def shown(store: Store, answer_id: str) -> Answer:
    """Return an answer of a live model. Raises Refusal E_NO_SUCH_ANSWER, also for answers of a shadow model."""
    answer = store.answers.get(answer_id)
    if answer.role != "live":
        raise Refusal(NO_SUCH_ANSWER)
    return answer


def _opened(store: TheStore, caller: Reader, view_audit: TheViewAudit, answer_id: Id) -> Answer:
    """Return the answer, and record that the caller viewed it. Raises Refusal E_NO_SUCH_ANSWER."""
    answer = shown(store, answer_id)
    view_audit.note(store, caller, View("look", job_id=answer.job_id, answer_id=answer.id))
    return answer


Opened = Annotated[Answer, Depends(_opened)]


@routes.get("/answers", response_model=schemas.Answers, responses=documented(), summary="All answers")
def get_answers(
    clinic: TheClinic,
    store: TheStore,
    caller: Reader,
    view_audit: TheViewAudit,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[Id | None, Query(description="The id of an answer: return only older ones.")] = None,
    ids: Annotated[
        list[Id] | None, Query(alias="id", max_length=100, description="Return only these; may be given many times.")
    ] = None,
) -> Any:
    """List answers, newest first."""
    found = store.answers.newest(limit, before, ids=ids)
    view_audit.note(store, caller, View("list", shown=tuple(answer.id for answer in found)))
    return {"answers": [answer_json(clinic, answer) for answer in found]}


@routes.get(
    "/patients/{key}/answers",
    response_model=schemas.Answers,
    responses=documented(),
    summary="All answers for one patient",
)
def get_history(clinic: TheClinic, store: TheStore, caller: Reader, view_audit: TheViewAudit, key: Id) -> Any:
    """List the answers for one patient, newest first; an unknown key gives an empty list."""
    found = store.answers.history(key)
    view_audit.note(store, caller, View("history", patient=key, shown=tuple(answer.id for answer in found)))
    return {"answers": [answer_json(clinic, answer) for answer in found]}


@routes.get("/answers/{answer_id}", response_model=schemas.Answer, responses=documented(404), summary="One answer")
def get_answer(clinic: TheClinic, answer: Opened) -> Any:
    """Return probabilities, quality checks and all else of the score, the patient, the PCR result, the files."""
    return answer_json(clinic, answer)


@routes.get(
    "/answers/{answer_id}/files/{name}",
    response_class=Response,
    responses={
        **documented(404, 409),
        200: {"description": "The file.", "content": {kind: BINARY for kind in sorted(set(_FILES.values()))}},
    },
    summary="A file of an answer",
)
def get_file(answer: Opened, name: Annotated[str, Path(pattern=r"^[a-z.]{1,40}$")]) -> Response:
    """Return a volume for a viewer (NIfTI), a result for the PACS (DICOM), or the score (JSON).

    E_NOT_FOR_PATIENTS: report and picture of a score that is withheld.
    """
    path = answer.folder / name
    if name not in _FILES or not path.is_file():
        raise Refusal(NO_SUCH_FILE)
    if name in RESULTS and withheld(answer.score):  # an earlier version wrote them
        raise Refusal(NOT_FOR_PATIENTS)
    if name == SCORE:  # from the store, which decides anew what an earlier version wrote
        return JSONResponse(answer.score, headers={"Content-Disposition": f'attachment; filename="{SCORE}"'})
    return WholeFile(path, media_type=_FILES[name], filename=name)


@routes.get(
    "/answers/{answer_id}/slices",
    response_model=schemas.Slices,
    responses=documented(404),
    summary="An answer's slices",
)
def get_slices(answer: Opened) -> Any:
    """Return the number of slices of each plane, their spacing and size, and the first slice to show."""
    return pictures.planes(answer.folder)


@routes.get(
    "/answers/{answer_id}/slices/{plane}/{index}.png",
    response_class=Response,
    responses={**documented(404), **PNG},
    summary="One slice as a picture",
)
def get_slice(
    answer: Opened,
    plane: pictures.Plane,
    index: Annotated[int, Path(ge=0, le=9999)],
    overlay: pictures.Overlay = "none",
    window: pictures.Window = "lung",
    mask: Literal["model", "reader"] = "model",
) -> Response:
    """Draw a slice, the patient's right on the left. Not for diagnosis: reduced resolution.

    `mask`: whose lungs and dense voxels; E_NO_SUCH_PICTURE if the newest decision did not correct the mask by hand.
    """
    masks = reader_masks(answer) if mask == "reader" else None
    if mask == "reader" and masks is None:
        raise Refusal(NO_SUCH_PICTURE)
    return Response(pictures.slice_png(answer.folder, plane, index, overlay, window, masks), media_type="image/png")


@routes.get(
    "/answers/{answer_id}/mask/{index}.png",
    response_class=Response,
    responses={**documented(404), **PNG},
    summary="The scan under one axial slice of the mask",
)
def get_mask_slice(
    answer: Opened, index: Annotated[int, Path(ge=0, le=9999)], window: pictures.Window = "lung"
) -> Response:
    """Draw the scan on the grid of `labels.nii.gz`, which a reader corrects; the first slice is at the feet."""
    return Response(pictures.grid_slice_png(answer.folder, index, window), media_type="image/png")


@routes.put(
    "/answers/{answer_id}/pcr", response_model=schemas.Answer, responses=documented(404), summary="Enter a PCR result"
)
def put_pcr(clinic: TheClinic, store: TheStore, caller: Scorer, answer_id: Id, entry: schemas.PcrEntry) -> Any:
    """Set or replace the PCR result. The probabilities do not change: the model does not use PCR results.

    A result whose specimen is outside of its window around the CT is stored, but does not count for this scan:
    `pcr.timing`. E_PCR_DAY if no specimen of the patient can be of that day.
    """
    answer = shown(store, answer_id)
    if entry.collected_on:
        at = join_rules(clinic).acquired(answer)
        check_possible(entry.collected_on, at.date() if at else None, answer.patient)
    return answer_json(
        clinic, store.answers.set_pcr(answer_id, entry.result, entry.collected_on, "entered", caller.name)
    )


@routes.post(
    "/answers/{answer_id}/send",
    status_code=202,
    response_model=schemas.Answer,
    responses=documented(404, 409),
    summary="Send the results to the PACS, or to another system",
)
def post_send(clinic: TheClinic, store: TheStore, caller: Scorer, answer_id: Id, target: Target = "pacs") -> Any:
    """Queue what a person accepted for sending, also if it was sent or failed before; and a rejection that failed.

    E_NOT_ACCEPTED if nobody accepted it, unless clinic.toml sends all results. E_NOT_FOR_PATIENTS if the score is
    withheld. E_NO_RESULTS if clinic.toml does not name this system, or if there is nothing for it.
    """
    answer = shown(store, answer_id)
    Outbox(clinic).put(answer, target)
    store.audit.add(caller.name, "send", job_id=answer.job_id, answer_id=answer.id, output={"target": target})
    return answer_json(clinic, store.answers.get(answer_id))


@routes.get(
    "/deliveries", response_model=schemas.OpenDeliveries, responses=documented(), summary="What could not be delivered"
)
def get_deliveries(store: TheStore, _: Reader) -> Any:
    """List deliveries that failed, or that are being tried again, without patients' names."""
    found = [(each, store.answers.get(each.answer_id).job_id) for each in store.deliveries.problems()]
    return {
        "deliveries": [
            {**each.to_json(), "answer_id": each.answer_id, "job_id": job_id, "due_at": moment(each.due_at)}
            for each, job_id in found
        ]
    }


@routes.get(
    "/answers/{answer_id}/risk-assessment",
    response_class=Response,
    responses={
        **documented(404, 409),
        200: {"description": "FHIR R4 RiskAssessment.", "content": {MEDIA_TYPE: {"schema": {"type": "object"}}}},
    },
    summary="The answer as FHIR",
)
def get_risk_assessment(answer: Opened) -> Response:
    """Return a preliminary RiskAssessment (R4), with probabilities in percent, as FHIR requires.

    E_NOT_FOR_PATIENTS if the score is withheld: the model was trained on synthetic data, and the scan is no phantom.
    """
    return JSONResponse(risk_assessment(answer), media_type=MEDIA_TYPE)


def answer_json(clinic: Clinic, answer: Answer) -> Any:
    """Return the answer as JSON of the API."""
    content = answer.to_json()
    when = join_rules(clinic).pcr_timing(answer)
    hidden = RESULTS if withheld(answer.score) else ()
    why_not = NOT_FOR_PATIENTS if hidden else why_no_results(answer.folder)
    return inert(
        {
            **content,
            "pcr": when and {**content["pcr"], "timing": when.to_json()},
            "files": [name for name in content["files"] if name in _FILES and name not in hidden],
            "reviewed": _reviewed(answer),
            "no_results": why_not and {"code": why_not.code, "says": why_not.says, "remedy": why_not.remedy},
        }
    )


def _reviewed(answer: Answer) -> dict[str, Any] | None:
    if answer.decision is None or not answer.decision.is_valid:
        return None
    return {"level": reviewed_levels(answer), "lungs": reviewed_lungs(answer)}
