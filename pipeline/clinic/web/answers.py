"""Answers: what the models said, with pictures and files, the PCR result, and the way to the PACS."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Receive, Scope, Send

from models.refusal import Refusal
from pipeline.clinic import pictures
from pipeline.clinic.reasons import NO_SUCH_ANSWER, NO_SUCH_FILE
from pipeline.clinic.records import Answer
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.results.write import PICTURE, REPORT
from pipeline.clinic.store import Store
from pipeline.clinic.web import schemas
from pipeline.clinic.web.dependencies import Reader, Scorer, TheClinic, TheLooks, TheStore
from pipeline.clinic.web.error_responses import BINARY, PNG, documented
from pipeline.clinic.web.fhir import MEDIA_TYPE, risk_assessment
from pipeline.clinic.web.inert_text import inert
from pipeline.clinic.web.schemas import Id
from pipeline.clinic.web.view_audit import View

# What may be fetched of an answer's folder; the rest of it is for ourselves.
_FILES = {
    "score.json": "application/json",
    pictures.IMAGE: "application/gzip",
    pictures.LUNGS: "application/gzip",
    pictures.SALIENCY: "application/gzip",
    REPORT: "application/dicom",
    PICTURE: "application/dicom",
}

routes = APIRouter(tags=["answers"])


class WholeFile(FileResponse):
    """A file, always all of it: parts of files would be refused in words that are not ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__({**scope, "headers": headers}, receive, send)


def _shown(store: Store, answer_id: str) -> Answer:
    """An answer of a model that was live then. Raises Refusal E_NO_SUCH_ANSWER, for those of a shadow too."""
    answer = store.answer_by_id(answer_id)
    if answer.role != "live":
        raise Refusal(NO_SUCH_ANSWER)
    return answer


def _opened(store: TheStore, caller: Reader, looks: TheLooks, answer_id: Id) -> Answer:
    """The answer that somebody looks at, on record. Raises Refusal E_NO_SUCH_ANSWER."""
    answer = _shown(store, answer_id)
    looks.note(store, caller, View("look", job_id=answer.job_id, answer_id=answer.id))
    return answer


Opened = Annotated[Answer, Depends(_opened)]


@routes.get("/answers", response_model=schemas.Answers, responses=documented(), summary="All answers")
def get_answers(
    store: TheStore,
    caller: Reader,
    looks: TheLooks,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    before: Annotated[Id | None, Query(description="An answer's id: only those that came before it.")] = None,
) -> Any:
    """The newest first."""
    found = store.answers(limit, before)
    looks.note(store, caller, View("list", shown=tuple(answer.id for answer in found)))
    return {"answers": [answer_json(answer) for answer in found]}


@routes.get(
    "/patients/{key}/answers",
    response_model=schemas.Answers,
    responses=documented(),
    summary="All answers for one patient",
)
def get_history(store: TheStore, caller: Reader, looks: TheLooks, key: Id) -> Any:
    """The newest first; none where nobody has this key."""
    found = store.history(key)
    looks.note(store, caller, View("history", patient=key, shown=tuple(answer.id for answer in found)))
    return {"answers": [answer_json(answer) for answer in found]}


@routes.get("/answers/{answer_id}", response_model=schemas.Answer, responses=documented(404), summary="One answer")
def get_answer(answer: Opened) -> Any:
    """Probabilities, quality checks and what else the score holds, the patient, the PCR result, the files."""
    return answer_json(answer)


@routes.get(
    "/answers/{answer_id}/files/{name}",
    response_class=Response,
    responses={
        **documented(404),
        200: {"description": "The file.", "content": {kind: BINARY for kind in sorted(set(_FILES.values()))}},
    },
    summary="A file of an answer",
)
def get_file(answer: Opened, name: Annotated[str, Path(pattern=r"^[a-z.]{1,40}$")]) -> Response:
    """Volumes for a viewer (NIfTI), the structured report and the picture for the PACS (DICOM), the score (JSON)."""
    path = answer.folder / name
    if name not in _FILES or not path.is_file():
        raise Refusal(NO_SUCH_FILE)
    return WholeFile(path, media_type=_FILES[name], filename=name)


@routes.get(
    "/answers/{answer_id}/slices", response_model=schemas.Slices, responses=documented(404), summary="Which slices"
)
def get_slices(answer: Opened) -> Any:
    """Of each plane how many slices there are, their spacing and size, and with which to begin."""
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
) -> Response:
    """In the lung window, the patient's right on the left. Not for diagnosis: the scan is made coarser."""
    return Response(pictures.slice_png(answer.folder, plane, index, overlay), media_type="image/png")


@routes.put(
    "/answers/{answer_id}/pcr", response_model=schemas.Answer, responses=documented(404), summary="Enter a PCR result"
)
def put_pcr(store: TheStore, caller: Scorer, answer_id: Id, entry: schemas.PcrEntry) -> Any:
    """In place of the one that is there. The probabilities do not change: the model does not know PCR results."""
    _shown(store, answer_id)
    return answer_json(store.set_pcr(answer_id, entry.result, entry.collected_on, "entered", caller.name))


@routes.post(
    "/answers/{answer_id}/send",
    status_code=202,
    response_model=schemas.Answer,
    responses=documented(404, 409),
    summary="Send the results to the PACS",
)
def post_send(clinic: TheClinic, store: TheStore, caller: Scorer, answer_id: Id) -> Any:
    """Let the structured report and the picture be sent; once more, where they were sent or failed before."""
    answer = _shown(store, answer_id)
    Outbox(clinic).put(answer)
    store.audit_record(caller.name, "send", job_id=answer.job_id, answer_id=answer.id)
    return answer_json(store.answer_by_id(answer_id))


@routes.get(
    "/answers/{answer_id}/risk-assessment",
    response_class=Response,
    responses={
        **documented(404),
        200: {"description": "FHIR R4 RiskAssessment.", "content": {MEDIA_TYPE: {"schema": {"type": "object"}}}},
    },
    summary="The answer as FHIR",
)
def get_risk_assessment(answer: Opened) -> Response:
    """A RiskAssessment (R4), preliminary; probabilities in percent, as FHIR wants them."""
    return JSONResponse(risk_assessment(answer), media_type=MEDIA_TYPE)


def answer_json(answer: Answer) -> Any:
    """The answer as the API gives it."""
    content = answer.to_json()
    return inert({**content, "files": [name for name in content["files"] if name in _FILES]})
