"""Routes for decisions: a named person accepts, corrects or rejects an answer."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from models.refusal import Refusal
from pipeline.clinic import pictures, review
from pipeline.clinic.corrected_mask import folder_of_mask, read_corrected
from pipeline.clinic.reasons import NO_SUCH_FILE
from pipeline.clinic.records import Answer, Correction
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.results.verified import FILES, verified_files
from pipeline.clinic.store import Store
from pipeline.clinic.web import schemas
from pipeline.clinic.web.answers import Opened, WholeFile, answer_json, shown
from pipeline.clinic.web.dependencies import Person, TheClinic, TheStore
from pipeline.clinic.web.error_responses import BINARY, documented
from pipeline.clinic.web.inert_text import inert
from pipeline.clinic.web.schemas import Id

_MASKS = (pictures.LABELS, pictures.LUNGS, pictures.OPACITIES)

routes = APIRouter(tags=["decisions"])


@routes.post(
    "/answers/{answer_id}/decisions",
    status_code=201,
    response_model=schemas.Answer,
    responses=documented(404, 409),
    summary="Accept, correct or reject an answer",
)
def post_decision(
    clinic: TheClinic, store: TheStore, caller: Person, answer_id: Id, entry: schemas.DecisionEntry
) -> Any:
    """Store a person's decision. It replaces none: the newest one holds, and all are kept.

    E_ANSWER_CHANGED if the answer is no longer the one that `revision` names. The same request again changes nothing.
    E_NOT_FOR_PATIENTS if the score is withheld. E_CORRECTED_MASK if a corrected mask is malformed or does not fit,
    E_MASK_NOT_KEPT if an earlier version wrote the answer.
    """
    answer = shown(store, answer_id)
    drawn, given = None, entry.correction
    if given.mask:
        drawn = read_corrected(answer, given.mask.shape, given.mask.changes)
    proposal = review.Proposal(
        verdict=entry.verdict,
        revision=entry.revision,
        reason=entry.reason,
        comment=str(inert(entry.comment)).strip(),
        correction=Correction(**given.model_dump(exclude={"mask"}), mask=drawn.summary() if drawn else None),
    )
    targets = Outbox(clinic).targets(answer, entry.verdict)
    decided = review.decide(
        store, answer_id, proposal, by=caller.name, person=caller.person, targets=targets, mask=drawn
    )
    return answer_json(clinic, decided)


@routes.get(
    "/answers/{answer_id}/decisions",
    response_model=schemas.Decisions,
    responses=documented(404),
    summary="All decisions about an answer",
)
def get_decisions(store: TheStore, answer: Opened) -> Any:
    """List who decided what and when, and what was delivered to which system, oldest first."""
    deliveries = [each.to_json() for each in store.deliveries.of(answer.id)]
    return inert({"decisions": [each.to_json() for each in store.decisions.of(answer.id)], "deliveries": deliveries})


@routes.get(
    "/answers/{answer_id}/decisions/{decision_id}/files/{name}",
    response_class=Response,
    responses={
        **documented(404, 409),
        200: {"description": "The file.", "content": {"application/dicom": BINARY, "application/gzip": BINARY}},
    },
    summary="A file of a decision",
)
def get_decision_file(
    clinic: TheClinic,
    store: TheStore,
    answer: Opened,
    decision_id: Id,
    name: Annotated[str, Path(pattern=r"^[a-z.]{1,40}$")],
) -> Response:
    """Return what is sent to the PACS for an accepted or corrected answer. Only the newest decision has such files.

    A decision that corrected the mask by hand keeps it as volumes, also when a newer decision holds.
    """
    if name in _MASKS:
        return _volume(store, answer, decision_id, name)
    if (
        answer.decision is None
        or answer.decision.id != decision_id
        or not answer.decision.is_valid
        or name not in FILES
    ):
        raise Refusal(NO_SUCH_FILE)
    found = {path.name: path for path in verified_files(clinic, answer, store.decisions.of(answer.id))}
    if name not in found:
        raise Refusal(NO_SUCH_FILE)
    return WholeFile(found[name], media_type="application/dicom", filename=name)


def _volume(store: Store, answer: Answer, decision_id: str, name: str) -> Response:
    """Return a volume of the mask of one of the answer's decisions. Raises Refusal E_NO_SUCH_FILE."""
    has_mask = any(each.id == decision_id and each.correction.mask for each in store.decisions.of(answer.id))
    path = folder_of_mask(answer, decision_id) / name
    if not has_mask or not path.is_file():
        raise Refusal(NO_SUCH_FILE)
    return WholeFile(path, media_type="application/gzip", filename=name)
