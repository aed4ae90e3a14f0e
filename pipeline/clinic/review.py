"""What a person decides about an answer: accepted, corrected, or rejected with a reason.

A decision is about what the person saw: `Answer.revision` identifies it. If the answer changed meanwhile (another
decision, a PCR result), the decision is refused, and the person looks again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from models.refusal import Refusal
from pipeline.clinic.corrected_mask import CorrectedMask, folder_of_mask
from pipeline.clinic.database import now
from pipeline.clinic.decisions import add_decision
from pipeline.clinic.queue import new_id
from pipeline.clinic.reasons import ANSWER_CHANGED, DECISION, NO_SUCH_ANSWER, NOT_FOR_PATIENTS
from pipeline.clinic.records import Answer, Correction, Decision, Target, Verdict, WhyNot
from pipeline.clinic.store import Store
from pipeline.scoring.verdict import Level, withheld

REASONS: dict[WhyNot, str] = {
    "level": "the level does not fit the images",
    "clinical": "the level does not fit the clinical picture",
    "lungs": "the outline of the lungs is wrong",
    "missed": "opacities were missed",
    "overcalled": "something that is no opacity was counted",
    "other_disease": "another disease explains the opacities",
    "image_quality": "the image quality is not sufficient",
    "wrong_scan": "this is the wrong scan or patient",
    "other": "another reason",
}
LEVELS: tuple[Level, ...] = get_args(Level)
BY_HAND = "The mask of the lungs was corrected by hand, and the table follows from it."
FROM_READER = "mask corrected by the reader"
NOT_THEIR_SCAN: tuple[WhyNot, ...] = ("wrong_scan", "image_quality")  # a scan whose outcome says nothing of the model
THIRDS = ("upper", "middle", "lower")
DENSITIES = ("ground_glass", "consolidation")
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Proposal:
    """A decision that a person asks for. `revision`: of the answer that they saw."""

    verdict: Verdict
    revision: str
    reason: WhyNot | None = None
    comment: str = ""
    correction: Correction = field(default_factory=Correction)


def decide(
    store: Store,
    answer_id: str,
    proposal: Proposal,
    *,
    by: str,
    person: str,
    targets: Sequence[Target] = (),
    mask: CorrectedMask | None = None,
) -> Answer:
    """Store a decision, and queue it for `targets`, in one transaction; return the answer with it.

    `mask`: of the proposal's correction; it is on the disk before the decision that refers to it. The same request
    again, after a double click or a lost response, changes nothing. Raises Refusal E_NO_SUCH_ANSWER, also for an answer
    of a shadow model, E_NOT_FOR_PATIENTS, E_ANSWER_CHANGED, E_DECISION, E_CLINIC_FILE.
    """
    with store.database.transaction() as db:
        answer = store.answers.get(answer_id)
        if answer.role != "live":
            raise Refusal(NO_SUCH_ANSWER)
        if withheld(answer.score):
            raise Refusal(NOT_FOR_PATIENTS)
        if _is_stored(proposal, answer.decision, by):
            return answer
        if answer.revision != proposal.revision:
            raise Refusal(ANSWER_CHANGED)
        if problems := _problems(answer, proposal):
            raise Refusal(DECISION, problems=problems)
        decision = Decision(
            id=new_id(),
            answer_id=answer.id,
            at=now(),
            by=by,
            person=person,
            verdict=proposal.verdict,
            reason=proposal.reason,
            comment=proposal.comment,
            correction=proposal.correction,
            revision=proposal.revision,
            before=said(answer),
        )
        if mask:
            mask.keep(folder_of_mask(answer, decision.id))
        add_decision(db, decision, answer, targets)
    return store.answers.get(answer_id)


def said(answer: Answer) -> dict[str, Any]:
    """Return what holds for an answer now: the newest decision's id, the levels, and the measures of the lungs."""
    lungs = reviewed_lungs(answer)
    return {
        "decision": answer.decision and answer.decision.id,
        "verdict": answer.decision and answer.decision.verdict,
        "level": reviewed_levels(answer),
        "regions": lungs and lungs["regions"],
    }


def decision_text(answer: Answer, *, with_comment: bool = True) -> str:
    """Say who decided what, in one sentence for reports; '' without a decision."""
    decision = answer.decision
    if decision is None:
        return ""
    day = decision.at.astimezone().date().isoformat()
    why = f", because {REASONS[decision.reason]}" if decision.reason else ""
    remark = f" Remark: {decision.comment}" if decision.comment and with_comment else ""
    unusable = "" if decision.correction.lungs_usable else " The outline of the lungs is not usable."
    drawn = f" {BY_HAND}" if decision.correction.mask else ""
    return f"{decision.verdict.capitalize()} by {plain_name(decision.person)} on {day}{why}.{unusable}{drawn}{remark}"


def plain_name(person: str) -> str:
    """Write a DICOM name, FAMILY^GIVEN^MIDDLE^PREFIX^SUFFIX, as 'FAMILY, GIVEN MIDDLE PREFIX SUFFIX'."""
    family, *others = person.split("^")
    return ", ".join([family, *([" ".join(filter(None, others))] if any(others) else [])])


def reviewed_levels(answer: Answer) -> dict[str, str | None]:
    """Return the level of each label, with the reader's corrections."""
    corrected = answer.decision.correction.levels if answer.decision else {}
    return {**(answer.score.get("level") or {}), **corrected}


def is_not_their_scan(answer: Answer) -> bool:
    """Whether a reader rejected the scan itself: PCR result and outcome then neither judge a model nor teach one."""
    decision = answer.decision
    return decision is not None and not decision.is_valid and decision.reason in NOT_THEIR_SCAN


def are_lungs_usable(answer: Answer) -> bool:
    """Whether no reader found the outline of the lungs unusable."""
    return answer.decision is None or answer.decision.correction.lungs_usable


def reviewed_lungs(answer: Answer) -> dict[str, Any] | None:
    """Return the measures of the lungs with the reader's corrections; None if not measured, or not usable."""
    lungs: dict[str, Any] | None = answer.score.get("lungs")
    if lungs is None or answer.decision is None:
        return lungs
    correction = answer.decision.correction
    if not correction.lungs_usable:
        return None
    if correction.mask:
        return {**lungs, "regions": correction.mask["regions"], "ranges": {}, "lungs_from": FROM_READER}
    if not correction.shares:
        return lungs
    return {**lungs, "regions": corrected_regions(lungs["regions"], correction.shares), "ranges": {}}


def corrected_regions(regions: dict[str, Any], shares: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return the regions of a score with corrected thirds.

    A lung is the mean of its thirds, and both lungs the mean of the two, by volume. The thirds of both lungs together
    have other limits than those of each lung, so that their shares are then unknown.
    """
    if not shares:
        return regions
    sides = {
        side: _corrected_side(parts, shares.get(side, {}))
        for side, parts in regions.items()
        if side in ("right", "left")
    }
    wholes = [parts["whole"] for parts in sides.values()]
    both = {part: {**region, **dict.fromkeys(DENSITIES)} for part, region in regions["both"].items()}
    both["whole"] |= {density: _mean(wholes, density) for density in DENSITIES}
    return {**regions, **sides, "both": both}


def _corrected_side(parts: dict[str, Any], corrected: dict[str, dict[str, float]]) -> dict[str, Any]:
    if not corrected:
        return parts
    thirds = {part: {**parts[part], **corrected.get(part, {})} for part in THIRDS}
    means = {density: _mean(list(thirds.values()), density) for density in DENSITIES}
    return {**parts, **thirds, "whole": {**parts["whole"], **means}}


def _mean(regions: list[dict[str, Any]], density: str) -> float | None:
    known = [(region["ml"], region[density]) for region in regions if region[density] is not None]
    total = sum(ml for ml, _ in known)
    return round(sum(ml * share for ml, share in known) / total, 4) if total else None


def _is_stored(proposal: Proposal, decision: Decision | None, by: str) -> bool:
    """Whether the newest decision is this very request."""
    if decision is None:
        return False
    stored = Proposal(decision.verdict, decision.revision, decision.reason, decision.comment, decision.correction)
    return (stored, decision.by) == (proposal, by)


def _problems(answer: Answer, proposal: Proposal) -> str:
    """Say why a decision cannot be stored; '' if it can."""
    correction = proposal.correction
    if problem := _verdict_problem(proposal):
        return problem
    if unknown := set(correction.levels) - set(answer.score["probability"]):
        return f"there is no probability of {', '.join(sorted(unknown))}"
    if (correction.shares or correction.mask) and not correction.lungs_usable:
        return "measures and mask of lungs that are not usable cannot be corrected"
    if correction.shares and correction.mask:
        return "the shares follow from the corrected mask, and cannot be corrected besides"
    if correction.mask and not correction.mask["changed"]:
        return "the mask is the model's own"
    return _share_problems(answer.score.get("lungs"), correction)


def _verdict_problem(proposal: Proposal) -> str:
    """Say why verdict, reason and correction do not fit together; '' if they do."""
    is_accepted, is_corrected = proposal.verdict == "accepted", proposal.verdict == "corrected"
    has_correction = not proposal.correction.is_empty
    if is_accepted == bool(proposal.reason):
        return "an accepted result has no reason, and every other decision has one"
    if is_corrected != has_correction:
        return "a corrected result has a correction, and no other decision has one"
    return ""


def _share_problems(lungs: dict[str, Any] | None, correction: Correction) -> str:
    if lungs is None:
        is_of_lungs = correction.shares or correction.mask or not correction.lungs_usable
        return "the lungs were not measured" if is_of_lungs else ""
    for side, parts in correction.shares.items():
        for part, shares in parts.items():
            region = {**lungs["regions"][side][part], **shares}
            known = [region[density] for density in DENSITIES]
            if None in known:
                return f"{side} {part}: the region is empty, or a share is missing"
            if sum(known) > 1 + _ROUNDING:
                return f"{side} {part}: the shares are more than the whole region"
    return ""
