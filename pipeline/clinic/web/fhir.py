"""An answer as a FHIR R4 RiskAssessment (https://hl7.org/fhir/R4/riskassessment.html), for systems that read FHIR.

FHIR expresses probabilities as percentages (prediction.probability[x]: "Decimal values are expressed as percentages as
well", and invariant ras-2 allows up to 100). The status is preliminary until a person decides, then final or
entered-in-error.
"""

from typing import Any

from models.refusal import Refusal
from pipeline.clinic.reasons import NOT_FOR_PATIENTS
from pipeline.clinic.records import Answer
from pipeline.clinic.review import decision_text, reviewed_levels
from pipeline.clinic.web.inert_text import inert
from pipeline.scoring.verdict import SYNTHETIC, evidence_texts, limit, percent, withheld

MEDIA_TYPE = "application/fhir+json"
OUTCOMES = {
    "severe": "Severe COVID-19: intubation or death within 30 days of the CT",
    "pcr_positive": "SARS-CoV-2 detected by PCR",
}
_RISKS = {"low": ("low", "Low likelihood"), "intermediate": ("moderate", "Moderate likelihood")}
_RISKS["high"] = ("high", "High likelihood")
_UNCERTAIN = "the 95 % band of the calibration crosses one of the release's operating points"
_RISK_SYSTEM = "http://terminology.hl7.org/CodeSystem/risk-probability"


def risk_assessment(answer: Answer) -> dict[str, Any]:
    """Create the resource. Unknown values are left out; texts from the scan's headers are made inert.

    Raises Refusal E_NOT_FOR_PATIENTS.
    """
    score = answer.score
    if withheld(score):
        raise Refusal(NOT_FOR_PATIENTS)
    decided = [decision_text(answer)] if answer.decision else []
    resource = {
        "resourceType": "RiskAssessment",
        "id": answer.id,
        "status": _status(answer),
        "method": {"text": f"{answer.model_name}, SHA-256 {answer.model_sha256}"},
        "code": {"text": "Likelihood of severe COVID-19 and of a positive PCR, from a chest CT"},
        "subject": subject_of(answer),
        "occurrenceDateTime": answer.created_at.isoformat(timespec="seconds"),
        "performer": {"type": "Device", "display": "fedthorax"},
        "basis": [{"type": "ImagingStudy", "identifier": uid_identifier(answer.study_uid)}] if answer.study_uid else [],
        "prediction": [_prediction(answer, label) for label in score["probability"]],
        "note": [{"text": text} for text in (*decided, *notes_of(score))],
    }
    return {key: value for key, value in inert(resource).items() if value not in ([], None)}


def subject_of(answer: Answer) -> dict[str, Any]:
    """Return the patient by the hospital's own identifier. R4 requires a subject, even an unknown one."""
    patient = answer.patient
    subject: dict[str, Any] = {"type": "Patient"}
    if patient and inert(patient.id).strip():
        subject["identifier"] = {"value": patient.id}
        if inert(patient.issuer).strip():
            subject["identifier"]["assigner"] = {"display": patient.issuer}
    name = inert(patient.name).strip() if patient else ""
    return {**subject, "display": name or "unknown"}


def uid_identifier(uid: str) -> dict[str, str]:
    """Return a DICOM UID as a FHIR identifier (https://hl7.org/fhir/R4/imagingstudy.html, 11.11.6.3)."""
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}


def _status(answer: Answer) -> str:
    if answer.decision is None:
        return "preliminary"
    return "final" if answer.decision.is_valid else "entered-in-error"


def _prediction(answer: Answer, label: str) -> dict[str, Any]:
    score = answer.score
    prediction: dict[str, Any] = {
        "outcome": {"text": OUTCOMES.get(label, label)},
        **_probability(score["probability"][label]),
    }
    level = reviewed_levels(answer).get(label)
    is_readers = answer.decision is not None and label in answer.decision.correction.levels
    source = "set by the reader" if is_readers else "by the release's operating points"
    if level in _RISKS:
        code, display = _RISKS[level]
        coding = {"system": _RISK_SYSTEM, "code": code, "display": display}
        prediction["qualitativeRisk"] = {"coding": [coding], "text": f"{level}, {source}"}
    elif level:  # the code system has no such code
        prediction["qualitativeRisk"] = {"text": f"{level}: {source if is_readers else _UNCERTAIN}"}
    interval = (score.get("interval") or {}).get(label)
    rationale = evidence_texts(score, label)
    if interval:
        low, high = interval
        rationale = [f"95 % band of the calibration: {percent(low)} to {percent(high)}", *rationale]
    if rationale:
        prediction["rationale"] = ". ".join(text.removesuffix(".") for text in rationale)
    return prediction


def _probability(probability: float) -> dict[str, Any]:
    """Return the element of a probability; next to 0 or 100 a range with one end, because no model is certain."""
    beyond = limit(probability)
    if beyond is None:
        return {"probabilityDecimal": round(100 * probability, 2)}
    comparator, value = beyond
    end = {"value": value, "unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
    return {"probabilityRange": {"high" if comparator == "<" else "low": end}}


def notes_of(score: dict[str, Any]) -> list[str]:
    notes = [score["notice"]]
    if score.get("trained_on_synthetic_data"):
        notes.append(SYNTHETIC)
    notes += [f"{OUTCOMES.get(label, label)}. {why}" for label, why in (score.get("no_number") or {}).items()]
    flagged = [check for check in score.get("quality", []) if check["verdict"] == "flag"]
    return notes + [f"{check['code']}: {check['says']}" for check in flagged]
