"""The laboratory of a synthetic hospital as HL7 v2 messages or FHIR R4 resources, with the results of its CSV file.

They add what a CSV file cannot contain: preliminary or corrected results, single genes with other results, a second
identifier, codes besides words, and in FHIR times in another zone than the site's.
"""

import json
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pipeline.phantom.hospitals import LaboratoryDialect
from pipeline.phantom.records import PcrRow, write_laboratory
from pipeline.records.laboratory.settings import canonical

LaboratoryFormat = Literal["csv", "hl7", "fhir"]
FILES: dict[LaboratoryFormat, str] = {"csv": "laboratory.csv", "hl7": "laboratory.hl7", "fhir": "laboratory.ndjson"}
TIME_ZONE = "Europe/Paris"  # of every synthetic hospital, if the format needs one
CHARSETS = {"utf-8": "UNICODE UTF-8", "utf-8-sig": "UNICODE UTF-8", "latin-1": "8859/1"}  # HL7 table 0211
POSITIVE, NEGATIVE, INDETERMINATE = "260373001", "260415000", "419984006"  # SNOMED CT
LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
OVERALL, GENE = ("94500-6", "SARS-CoV-2 RNA"), ("94533-7", "SARS-CoV-2 N gene")


def write_feed(folder: Path, rows: list[PcrRow], dialect: LaboratoryDialect, form: LaboratoryFormat) -> None:
    """Write the laboratory's results into `folder`, in the file that `laboratory_table` names."""
    path = folder / FILES[form]
    if form == "csv":
        write_laboratory(path, rows, dialect)
    elif form == "hl7":
        text = "".join(_messages(number, row, dialect) for number, row in enumerate(rows, start=1))
        path.write_bytes(text.encode(dialect.encoding))
    else:
        resources = [each for number, row in enumerate(rows, start=1) for each in _resources(number, row, dialect)]
        lines = dict.fromkeys(json.dumps(each) for each in resources)  # a patient may have several rows
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def laboratory_table(dialect: LaboratoryDialect, form: LaboratoryFormat) -> str:
    """Return the table [laboratory] of the hospital's site.toml."""
    lines = [f"file = {_quoted(FILES[form])}"]
    codes: tuple[str, ...] = ()
    if form == "csv":
        patient, collected, result = map(_quoted, dialect.columns)
        lines += [
            f'encoding = "{dialect.encoding}"',
            f"separator = {_quoted(dialect.separator)}",
            f"patient_id = {patient}",
            f"collected = {collected}",
            f"result = {result}",
            f'date_format = "{dialect.date_format}"',
        ]
    else:
        lines = [f'format = "{form}"', *lines]
        codes = (POSITIVE, NEGATIVE, INDETERMINATE)
    if form == "hl7":
        lines.append(f'encoding = "{dialect.encoding}"')
    for number, name in enumerate(("positive", "negative", "indeterminate")):
        lines.append(f"{name} = {_quoted([*getattr(dialect, name), *codes[number : number + 1]])}")
    return "\n".join(["[laboratory]", *lines, ""])


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _code(row: PcrRow, dialect: LaboratoryDialect) -> str:
    """Return the SNOMED CT code of the row's word; "" if the laboratory does not use this word."""
    lists = {POSITIVE: dialect.positive, NEGATIVE: dialect.negative, INDETERMINATE: dialect.indeterminate}
    return next((code for code, words in lists.items() if canonical(row.result) in map(canonical, words)), "")


def _versions(number: int, code: str) -> list[tuple[str, str]]:
    """Return status (HL7 table 0085) and SNOMED CT code of each version of a result that ends as `code`."""
    other = NEGATIVE if code == POSITIVE else POSITIVE
    if number % 7 == 0:
        return [("F", other), ("C", code)]
    return [("P", other), ("F", code)] if number % 5 == 0 else [("F", code)]


def _in_words(number: int, coded: str, code: str) -> bool:
    """Whether a version is written as the row's word: if it has no code, and for every second final result."""
    return not coded or (coded == code and number % 2 == 1)


# --- HL7 v2 -----------------------------------------------------------------------------------------------


def _messages(number: int, row: PcrRow, dialect: LaboratoryDialect) -> str:
    """Return one ORU^R01 for each version of the result; only the last one is valid."""
    code = _code(row, dialect)
    taken = row.collected.strftime("%Y%m%d%H%M")
    text = ""
    for version, (status, coded) in enumerate(_versions(number, code)):
        sent = (row.collected + timedelta(hours=9 + 12 * version)).strftime("%Y%m%d%H%M%S")
        kind, value = ("ST", row.result) if _in_words(number, coded, code) else ("CWE", f"{coded}^^SCT")
        segments = [
            f"MSH|^~\\&|LIS|SYNTHETIC|||{sent}||ORU^R01^ORU_R01|{number}-{version}|P|2.5.1"
            f"||||||{CHARSETS[dialect.encoding]}",
            f"PID|1||{row.patient_id}^^^SYNTHETIC^MR~{number:07}^^^INSURANCE^NI||SYNTHETIC",
            f"OBR|1|P{number}|F{number}|94531-1^SARS-CoV-2 RNA panel^LN|||{'' if number % 3 == 0 else taken}",
            f"OBX|1|{kind}|{'^'.join(OVERALL)}^LN||{value}||||||{status}",
            f"OBX|2|CWE|{'^'.join(GENE)}^LN||{NEGATIVE}^Not detected^SCT||||||{status}",
        ]
        if number % 3 == 0:
            segments.append(f"SPM|1|S{number}{'|' * 15}{taken}")
        text += "\r".join(segments) + "\r"
    return text


# --- FHIR R4 ----------------------------------------------------------------------------------------------


def _resources(number: int, row: PcrRow, dialect: LaboratoryDialect) -> list[dict[str, Any]]:
    """Return patient, specimen, and each version of the result with its gene."""
    code = _code(row, dialect)
    taken = row.collected.replace(tzinfo=ZoneInfo(TIME_ZONE)).astimezone(UTC)
    patient = {
        "resourceType": "Patient",
        "id": row.patient_id,
        "identifier": [
            {
                "type": _concept("MR", "http://terminology.hl7.org/CodeSystem/v2-0203"),
                "system": "urn:synthetic:hospital",
                "value": row.patient_id,
            }
        ],
    }
    specimen = {
        "resourceType": "Specimen",
        "id": f"s{number}",
        "subject": {"reference": f"Patient/{row.patient_id}"},
        "collection": {"collectedDateTime": taken.isoformat()},
    }
    resources: list[dict[str, Any]] = [patient, specimen]
    for version, (status, coded) in enumerate(_versions(number, code), start=1):
        updated = taken + timedelta(hours=9 + 12 * version)
        value = {"text": row.result} if _in_words(number, coded, code) else _concept(coded, SNOMED)
        for name, test, result in (("o", OVERALL, value), ("g", GENE, _concept(NEGATIVE, SNOMED))):
            resources.append(
                {
                    "resourceType": "Observation",
                    "id": f"{name}{number}",
                    "meta": {"versionId": str(version), "lastUpdated": updated.isoformat()},
                    "status": {"P": "preliminary", "F": "final", "C": "corrected"}[status],
                    "code": _concept(test[0], LOINC, test[1]),
                    "subject": {"reference": f"Patient/{row.patient_id}"},
                    "specimen": {"reference": f"Specimen/s{number}"},
                    "issued": updated.isoformat(),
                    "valueCodeableConcept": result,
                }
            )
    return resources


def _concept(code: str, system: str, display: str = "") -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code} | ({"display": display} if display else {})]}
