"""What holds of an answer as FHIR R4: a DiagnosticReport with its Observations, in one transaction.

All resources have ids and identifiers of the answer and are written with PUT, by their id or by their identifier: sent
again, or after a decision, they replace what was there. The status says what they are: preliminary (nobody decided),
final (a person accepted or corrected it), corrected (a later decision), entered-in-error (rejected). An observation
that was sent before and no longer holds is withdrawn: without it in the transaction, the server would keep it as final.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote
from uuid import UUID

from models.refusal import Refusal
from pipeline.clinic.reasons import NOT_FOR_PATIENTS
from pipeline.clinic.records import Answer
from pipeline.clinic.results.identity import uid
from pipeline.clinic.review import decision_text, plain_name, reviewed_levels, reviewed_lungs
from pipeline.clinic.settings import ResourceIds
from pipeline.clinic.web.fhir import OUTCOMES, notes_of, subject_of, uid_identifier
from pipeline.clinic.web.inert_text import inert
from pipeline.scoring.verdict import limit, withheld

UNVERIFIED = "Created by software; not verified by a person."
WITHDRAWN = "Withdrawn: it was sent before, and does not hold by a later decision."
CORRECTED_MASK = "Computed from a mask of the lungs that the reader corrected by hand."
_UCUM = "http://unitsofmeasure.org"
_CT_CHEST = {"system": "http://loinc.org", "code": "24627-2", "display": "CT Chest"}
_RADIOLOGY = {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}
_DEVICE = {"type": "Device", "display": "fedthorax"}
_DENSITIES = {
    "ground_glass": "Share of the volume with density of ground glass",
    "consolidation": "Share of the volume with density of consolidation",
}


def status_of(answer: Answer, *, is_later: bool = False) -> str:
    """Return the FHIR status. `is_later`: another system has an earlier decision about this answer."""
    if answer.decision is None:
        return "preliminary"
    if not answer.decision.is_valid:
        return "entered-in-error"
    return "corrected" if is_later else "final"


def diagnostic_report(answer: Answer, *, earlier: Sequence[Answer] = (), ids: ResourceIds = "client") -> dict[str, Any]:
    """Create the transaction. Raises Refusal E_NOT_FOR_PATIENTS.

    `earlier`: this answer as it was sent before, with the decision of that time. `ids`: who gives the resources their
    ids.
    """
    if withheld(answer.score):
        raise Refusal(NOT_FOR_PATIENTS)
    status = status_of(answer, is_later=any(each.decision for each in earlier))
    observations = _observations(answer, status)
    report = {
        "resourceType": "DiagnosticReport",
        "id": answer.id,
        **_common(answer, status),
        "category": [{"coding": [_RADIOLOGY]}],
        "code": {"coding": [_CT_CHEST], "text": "Probabilities and dense lung from a chest CT, by fedthorax"},
        "issued": _issued(answer),
        "performer": [_DEVICE],
        "resultsInterpreter": _interpreter(answer),
        "result": [{"reference": _place(each, ids)} for each in observations],
        "imagingStudy": _study(answer),
        "conclusion": " ".join([decision_text(answer) or UNVERIFIED, *notes_of(answer.score)]),
    }
    resources = [*observations, *_withdrawn(answer, observations, earlier), report]
    entries = [_entry(_without_empty(each), ids) for each in resources]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def _entry(resource: dict[str, Any], ids: ResourceIds) -> dict[str, Any]:
    """Return the PUT of a resource; if the server gives it its id, by its identifier (R4, 3.1.0.4.3)."""
    kind, identifier = resource["resourceType"], _identifier(resource["id"])
    named = {**resource, "identifier": [identifier]}
    if ids == "client":
        return {"resource": inert(named), "request": {"method": "PUT", "url": _place(resource, ids)}}
    del named["id"]
    search = quote(f"{identifier['system']}|{identifier['value']}", safe=":")
    request = {"method": "PUT", "url": f"{kind}?identifier={search}"}
    return {"fullUrl": _place(resource, ids), "resource": inert(named), "request": request}


def _place(resource: dict[str, Any], ids: ResourceIds) -> str:
    """Return how other resources of the transaction refer to this one.

    Without an id, by a UUID: R4 allows OIDs too (2.36.4.1), but some servers replace only UUIDs by the new ids, and the
    report would then refer to nothing.
    """
    if ids == "client":
        return f"{resource['resourceType']}/{resource['id']}"
    return UUID(int=int(uid("fhir", resource["id"]).rpartition(".")[2])).urn


def _identifier(resource_id: str) -> dict[str, str]:
    return {"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{uid('fhir', resource_id)}"}


def _common(answer: Answer, status: str) -> dict[str, Any]:
    """Return what report and observations have in common. Of a time without zone only the day is sent."""
    at = answer.acquired_at
    said = answer.acquired if at and at.tzinfo else at and at.date().isoformat()
    return {"status": status, "subject": subject_of(answer), "effectiveDateTime": said}


def _observations(answer: Answer, status: str) -> list[dict[str, Any]]:
    return [*_probabilities(answer, status), *_lungs(answer, status)]


def _withdrawn(
    answer: Answer, observations: Sequence[dict[str, Any]], earlier: Sequence[Answer]
) -> list[dict[str, Any]]:
    """Return in error, without their values, the observations that were sent earlier and are not sent any more.

    The report does not refer to them. R4 requires no value, and a reader who overlooks the status must
    not find the old one.
    """
    codes = {each["id"]: each["code"] for before in earlier for each in _observations(before, "final")}
    for each in observations:
        codes.pop(each["id"], None)
    return [
        _observation(
            answer,
            "entered-in-error",
            resource_id.removeprefix(f"{answer.id}-"),
            {"code": code, "note": [{"text": WITHDRAWN}]},
        )
        for resource_id, code in codes.items()
    ]


def _observation(answer: Answer, status: str, name: str, content: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": f"{answer.id}-{name}",
        **_common(answer, status),
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "imaging"}]}
        ],
        "issued": _issued(answer),
        "performer": [_DEVICE, *_interpreter(answer)],
        "derivedFrom": _study(answer),
        **content,
    }


def _probabilities(answer: Answer, status: str) -> list[dict[str, Any]]:
    score = answer.score
    corrected = answer.decision.correction.levels if answer.decision else {}
    made = []
    for label, probability in score["probability"].items():
        level = reviewed_levels(answer).get(label)
        said = f"{level}, set by the reader" if label in corrected else f"{level}, by the release's operating points"
        band = (score.get("interval") or {}).get(label) or ()
        ends = zip(("Lower", "Upper"), band, strict=bool(band))
        content = {
            "code": {"text": f"Probability of: {OUTCOMES.get(label, label)}"},
            "valueQuantity": _quantity(probability),
            "interpretation": [{"text": said}] if level else [],
            "method": {"text": f"{answer.model_name}, SHA-256 {answer.model_sha256}"},
            "component": [
                {
                    "code": {"text": f"{end} end of the 95 % band of the calibration"},
                    "valueQuantity": _quantity(value),
                }
                for end, value in ends
            ],
        }
        made.append(_observation(answer, status, label.replace("_", "-"), content))
    return made


def _lungs(answer: Answer, status: str) -> list[dict[str, Any]]:
    """Create an observation for each lung and for both; none if they are not usable."""
    regions = (reviewed_lungs(answer) or {}).get("regions", {})
    return [
        _observation(
            answer,
            status,
            f"lungs-{side}",
            {
                "code": {"text": f"Volume of the lungs, {side}"},
                "note": [{"text": CORRECTED_MASK}] if answer.decision and answer.decision.correction.mask else [],
                "valueQuantity": {"value": parts["whole"]["ml"], "unit": "mL", "system": _UCUM, "code": "mL"},
                "component": [
                    {"code": {"text": text}, "valueQuantity": _percent(parts["whole"][density])}
                    for density, text in _DENSITIES.items()
                    if parts["whole"][density] is not None
                ],
            },
        )
        for side, parts in regions.items()
    ]


def _quantity(probability: float) -> dict[str, Any]:
    """Return a probability in percent; next to 0 or 100 as less or more than a limit, because no model is certain."""
    if beyond := limit(probability):
        comparator, value = beyond
        return {**_percent(probability), "value": value, "comparator": comparator}
    return _percent(probability)


def _percent(share: float) -> dict[str, Any]:
    return {"value": round(100 * share, 2), "unit": "%", "system": _UCUM, "code": "%"}


def _issued(answer: Answer) -> str:
    return (answer.decision.at if answer.decision else answer.created_at).isoformat(timespec="seconds")


def _interpreter(answer: Answer) -> list[dict[str, str]]:
    return [{"type": "Practitioner", "display": plain_name(answer.decision.person)}] if answer.decision else []


def _study(answer: Answer) -> list[dict[str, Any]]:
    return [{"type": "ImagingStudy", "identifier": uid_identifier(answer.study_uid)}] if answer.study_uid else []


def _without_empty(resource: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in resource.items() if value not in ([], None)}
