"""What holds of an answer as HL7 v2.5.1 ORU^R01, for a reading list or an information system.

The result status (OBR-25, OBX-11; HL7 tables 0123 and 0085) says what it is: P preliminary, F final, C corrected after
an earlier decision; D deletes what was sent before, when a person rejected it, or when a single result no longer holds:
a receiver that updates its results one by one would keep it. Texts are Unicode; every separator in them is escaped, and
every control character removed.
"""

import unicodedata
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256

from models.refusal import Refusal
from pipeline.clinic.reasons import NOT_FOR_PATIENTS
from pipeline.clinic.records import Answer
from pipeline.clinic.results.sr_codes import LEVELS, SCHEME
from pipeline.clinic.review import decision_text, reviewed_levels, reviewed_lungs
from pipeline.clinic.web.fhir import OUTCOMES, notes_of
from pipeline.scoring.verdict import limit, withheld

UNVERIFIED = "Created by software; not verified by a person."
_ESCAPES = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\"}
_SEXES = {"F": "F", "M": "M", "O": "O"}
_LONGEST = 1000  # characters of a text


def control_id_of(answer: Answer) -> str:
    """Return the message's control id: 20 characters, the same when it is sent again."""
    what = f"{answer.id} {answer.decision.id if answer.decision else ''}"
    return sha256(what.encode()).hexdigest()[:20]


def oru_message(answer: Answer, *, earlier: Sequence[Answer] = ()) -> bytes:
    """Create the message. `earlier`: this answer as it was sent before, with the decision of that time.

    Raises Refusal E_NOT_FOR_PATIENTS.
    """
    if withheld(answer.score):
        raise Refusal(NOT_FOR_PATIENTS)
    status = _status(answer, is_later=any(each.decision for each in earlier))
    order_status = "C" if status == "D" else status
    made = answer.decision.at if answer.decision else answer.created_at
    at = answer.acquired_at.strftime("%Y%m%d%H%M%S%z" if answer.has_clock else "%Y%m%d") if answer.acquired_at else ""
    header = {9: "ORU^R01^ORU_R01", 10: control_id_of(answer), 11: "P", 12: "2.5.1", 18: "UNICODE UTF-8"}
    request = {1: "1", 3: answer.id, 4: "24627-2^CT Chest^LN", 7: at, 18: _text(answer.accession), 22: _zoned(made)}
    request |= {24: "RAD", 25: order_status, 32: _reader(answer)}
    held = _results(answer)
    results = [*({**each, 11: status} for each in held), *_withdrawn(held, earlier)]
    segments = [
        _segment("MSH", {2: "^~\\&", 3: "FEDTHORAX", 7: _zoned(made), **header}),
        _segment("PID", {1: "1", **_patient(answer)}),
        _segment("OBR", request),
        *(_segment("OBX", {1: str(number), **each, 14: at}) for number, each in enumerate(results, start=1)),
    ]
    return "".join(f"{segment}\r" for segment in segments).encode()


def _segment(name: str, fields: dict[int, str]) -> str:
    """Write a segment from its fields by number; MSH-1 is the separator itself."""
    first = 2 if name == "MSH" else 1
    return "|".join([name, *(fields.get(number, "") for number in range(first, max(fields) + 1))]).rstrip("|")


def _status(answer: Answer, *, is_later: bool) -> str:
    if answer.decision is None:
        return "P"
    if not answer.decision.is_valid:
        return "D"
    return "C" if is_later else "F"


def _patient(answer: Answer) -> dict[int, str]:
    patient = answer.patient
    if patient is None:
        return {}
    identity = f"{_text(patient.id)}^^^{_text(patient.issuer)}".rstrip("^")
    return {3: identity, 5: _name(patient.name), 8: _SEXES.get(patient.sex or "", "")}


def _reader(answer: Answer) -> str:
    """Return the person who decided, as the name of an NDL."""
    return "&".join(["", *_name(answer.decision.person).split("^")]) if answer.decision else ""


def _results(answer: Answer) -> list[dict[int, str]]:
    """Return type, code, value and unit of each result: probabilities, levels, dense lung, and remarks."""
    found = []
    for label, probability in answer.score["probability"].items():
        found.append(_probability(label, probability))
        if level := reviewed_levels(answer).get(label):
            code = LEVELS[level]
            value = f"{code.value}^{code.meaning}^SCT"
            found.append({2: "CWE", 3: f"{label}_level^Level of the probability^{SCHEME}", 5: value})
    both = (reviewed_lungs(answer) or {}).get("regions", {}).get("both", {}).get("whole", {})
    for density in ("ground_glass", "consolidation"):
        if both.get(density) is not None:
            meaning = f"Share of both lungs with density of {density.replace('_', ' ')}"
            found.append(_percent(density, meaning, both[density]))
    return [*found, *_remarks(answer)]


def _remarks(answer: Answer) -> list[dict[int, str]]:
    """Return the remarks, numbered in OBX-4: by OBX-3 alone a receiver could keep only the last."""
    remarks = [decision_text(answer) or UNVERIFIED, *notes_of(answer.score)]
    return [
        {2: "TX", 3: f"comment^Comment^{SCHEME}", 4: str(number), 5: _text(remark)}
        for number, remark in enumerate(remarks, start=1)
    ]


def _withdrawn(held: Sequence[dict[int, str]], earlier: Sequence[Answer]) -> list[dict[int, str]]:
    """Return, without values, the results that were sent earlier and are not among those that are `held` now."""
    names = {_identity(each): each for before in earlier for each in _results(before)}
    for each in held:
        names.pop(_identity(each), None)
    return [{number: each.get(number, "") for number in (2, 3, 4)} | {11: "D"} for each in names.values()]


def _identity(result: dict[int, str]) -> tuple[str, str]:
    """Return by what a receiver tells the results of a message apart: OBX-3 and OBX-4."""
    return result[3], result.get(4, "")


def _probability(label: str, probability: float) -> dict[int, str]:
    """Return a probability as a number (NM); next to 0 or 100 as a limit with a comparator (SN)."""
    found = _percent(label, f"Probability of: {OUTCOMES.get(label, label)}", probability)
    if beyond := limit(probability):
        comparator, value = beyond
        return {**found, 2: "SN", 5: f"{comparator}^{value}"}
    return found


def _percent(code: str, meaning: str, share: float) -> dict[int, str]:
    value = f"{100 * share:.2f}"
    return {2: "NM", 3: f"{code}^{_text(meaning)}^{SCHEME}", 5: value, 6: "%^Percent^UCUM"}


def _name(name: str) -> str:
    """Return a DICOM name as an XPN: family, given, further given, suffix, prefix."""
    family, given, middle, prefix, suffix = [*name.split("=", maxsplit=1)[0].split("^"), *[""] * 5][:5]
    return "^".join(map(_text, (family, given, middle, suffix, prefix))).rstrip("^")


def _text(text: str) -> str:
    """Return a text without control characters, with HL7's separators escaped."""
    shown = "".join(sign for sign in text[:_LONGEST] if unicodedata.category(sign)[0] != "C")
    return "".join(_ESCAPES.get(sign, sign) for sign in shown)


def _zoned(at: datetime) -> str:
    return at.astimezone().strftime("%Y%m%d%H%M%S%z")
