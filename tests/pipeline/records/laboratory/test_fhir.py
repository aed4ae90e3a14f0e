"""Laboratory results as FHIR R4: bundles and NDJSON as several systems write them. All data are synthetic."""

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.refusal import Refusal
from pipeline.records.laboratory import FhirLaboratory, PcrResult, read_pcr

TODAY = date(2020, 5, 1)
MORNING = datetime(2020, 4, 1, 8, 30)
LOINC, SNOMED, MRN = "http://loinc.org", "http://snomed.info/sct", "https://hospital.example/mrn"
TYPES = "http://terminology.hl7.org/CodeSystem/v2-0203"
Json = dict[str, Any]


def concept(system: str, code: str, display: str = "") -> Json:
    return {"coding": [{"system": system, "code": code} | ({"display": display} if display else {})]}


RNA = concept(LOINC, "94500-6", "SARS-CoV-2 RNA [Presence] in Respiratory specimen by NAA with probe detection")
N_GENE = concept(LOINC, "94533-7", "SARS-CoV-2 N gene")
PANEL = concept(LOINC, "94531-1", "SARS-CoV-2 RNA panel")
DETECTED, NOT_DETECTED = concept(SNOMED, "260373001", "Detected"), concept(SNOMED, "260415000", "Not detected")


def patient(number: str, name: str = "", system: str = MRN) -> Json:
    identifier = {"type": concept(TYPES, "MR"), "system": system, "value": number}
    return {
        "resourceType": "Patient",
        "id": name or f"p{number}",
        "identifier": [identifier],
        "name": [{"family": "Synthetic"}],
    }


def specimen(name: str, collected: str) -> Json:
    return {
        "resourceType": "Specimen",
        "id": name,
        "receivedTime": "2020-04-09T10:00:00+02:00",
        "collection": {"collectedDateTime": collected},
    }


def observation(number: str, value: Json | None = DETECTED, **other: Any) -> Json:
    """A final overall result of patient `number`."""
    return {
        "resourceType": "Observation",
        "id": f"o{number}",
        "status": "final",
        "code": RNA,
        "subject": {"reference": f"Patient/p{number}"},
        "effectiveDateTime": "2020-04-01T08:30:00+02:00",
        "issued": "2020-04-20T10:00:00+02:00",
        **({"valueCodeableConcept": value} if value else {}),
        **other,
    }


def bundle(*resources: Json, kind: str = "collection", base: str = "") -> Json:
    urls = [{"fullUrl": f"{base}/{each['resourceType']}/{each['id']}"} if base else {} for each in resources]
    entries = [url | {"resource": each} for url, each in zip(urls, resources, strict=True)]
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


GOOD = [each for n in range(10) for each in (patient(f"G{n}"), observation(f"G{n}", NOT_DETECTED))]


def read(
    folder: Path, content: Any, *, name: str = "synthetic.json", issuer: str = "", **declared: Any
) -> tuple[list[PcrResult], list[tuple[str, str, str]]]:
    """Results, and findings as (code, patient, detail)."""
    table = FhirLaboratory(format="fhir", file=folder / name, **declared)
    table.file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    results, findings = read_pcr(table, time_zone="Europe/Paris", issuer=issuer, today=TODAY)
    return results, [(finding.reason.code, finding.patient_id, finding.detail) for finding in findings]


def told(folder: Path, *resources: Json, **how: Any) -> dict[str, list[bool | None]]:
    """Results by patient. Asserts that there are no findings."""
    results, findings = read(folder, bundle(*resources), **how)
    assert findings == []
    by_patient: dict[str, list[bool | None]] = {}
    for result in results:
        by_patient.setdefault(result.patient_id, []).append(result.positive)
    return by_patient


def beside_good(folder: Path, *resources: Json, **how: Any) -> tuple[list[PcrResult], list[tuple[str, str, str]]]:
    """The results and findings of these resources, read together with ten valid results."""
    results, findings = read(folder, bundle(*GOOD, *resources), **how)
    return results[10:], findings


def refused(folder: Path, content: Any, **how: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(folder, content, **how)
    return caught.value


# --- formats of several systems ---------------------------------------------------------------------------


def test_searchset_with_full_urls_report_panel_specimen_and_genes(tmp_path: Path) -> None:
    """The panel groups the overall result and a gene. A gene with another result changes nothing."""
    base = "https://fhir.hospital.example/r4"
    of_patient = {"subject": {"reference": "Patient/17"}, "specimen": {"reference": "Specimen/s1"}}
    absent = concept("http://terminology.hl7.org/CodeSystem/data-absent-reason", "not-permitted")
    members = [{"reference": "Observation/o1"}, {"reference": f"{base}/Observation/o2"}]
    panel = observation("panel", None, code=PANEL, dataAbsentReason=absent, hasMember=members, **of_patient)
    report = {
        "resourceType": "DiagnosticReport", "id": "r1", "status": "final", "code": PANEL,
        "subject": {"reference": f"{base}/Patient/17"}, "result": [{"reference": "Observation/opanel"}],
    }  # fmt: skip
    content = bundle(
        report,
        panel,
        observation("1", **of_patient),
        observation("2", NOT_DETECTED, code=N_GENE, **of_patient),
        patient("00123", "17"),
        specimen("s1", "2020-03-31T23:30:00Z"),
        kind="searchset",
        base=base,
    )
    results, findings = read(tmp_path, content)
    assert results == [PcrResult("00123", datetime(2020, 4, 1, 1, 30), True)]
    assert findings == []


def test_transaction_bundle_with_urns_and_text_values(tmp_path: Path) -> None:
    urn = "urn:uuid:4f0e7c1e-0000-4000-8000-000000000001"
    entries = [
        {"fullUrl": urn, "resource": patient("A", ""), "request": {"method": "POST", "url": "Patient"}},
        {
            "fullUrl": "urn:uuid:4f0e7c1e-0000-4000-8000-000000000002",
            "resource": observation("A", None, subject={"reference": urn}, valueString="Négatif"),
            "request": {"method": "POST", "url": "Observation"},
        },
    ]
    for entry in entries:
        del entry["resource"]["id"]
    content = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    results, findings = read(tmp_path, content, negative=["Négatif"])
    assert results == [PcrResult("A", MORNING, False)]
    assert findings == []


def test_bulk_export_with_one_ndjson_file_per_type(tmp_path: Path) -> None:
    """Any line ending is accepted. Blank lines and resources of other types are ignored."""
    files = {
        "Observation.ndjson": [observation("A"), observation("B", NOT_DETECTED), {"resourceType": "Practitioner"}],
        "Patient.ndjson": [patient("A"), patient("B"), patient("C")],
        "sub/Organization.ndjson": [{"resourceType": "Organization", "id": "x"}],
    }
    for name, resources in files.items():
        (tmp_path / "bulk" / name).parent.mkdir(parents=True, exist_ok=True)
        lines = "\r\n".join(json.dumps(each) for each in resources)
        (tmp_path / "bulk" / name).write_text(f"{lines}\n\n", encoding="utf-8-sig")
    table = FhirLaboratory(format="fhir", file=tmp_path / "bulk")
    results, findings = read_pcr(table, time_zone="Europe/Paris", today=TODAY)
    assert results == [PcrResult("A", MORNING, True), PcrResult("B", MORNING, False)]
    assert findings == []


def test_diagnostic_report_with_contained_resources(tmp_path: Path) -> None:
    """Contained results inherit patient, specimen and time from the report."""
    taken = {"collectedPeriod": {"start": "2020-04-01T08:30:00+02:00", "end": "2020-04-01T08:35:00+02:00"}}
    contained = [
        {"resourceType": "Specimen", "id": "s", "collection": taken},
        {"resourceType": "Observation", "id": "o", "status": "final", "code": RNA, "valueCodeableConcept": DETECTED},
        patient("A", "p"),
    ]
    report = {
        "resourceType": "DiagnosticReport", "status": "final", "code": PANEL, "contained": contained,
        "subject": {"reference": "#p"}, "specimen": [{"reference": "#s"}], "result": [{"reference": "#o"}],
        "issued": "2020-04-20T10:00:00+02:00",
    }  # fmt: skip
    results, findings = read(tmp_path, report)
    assert results == [PcrResult("A", MORNING, True)]
    assert findings == []


@pytest.mark.parametrize(
    ("conclusion", "positive"),
    [
        ({"conclusionCode": [NOT_DETECTED]}, False),
        ({"conclusion": "Detected"}, True),
        ({"conclusion": "see text", "conclusionCode": [DETECTED]}, True),
    ],
)
def test_conclusion_of_a_report_without_results_is_read(tmp_path: Path, conclusion: Json, positive: bool) -> None:
    report = observation("A", None, resourceType="DiagnosticReport", **conclusion)
    assert told(tmp_path, patient("A"), report) == {"A": [positive]}


def test_conclusion_of_a_report_with_results_is_ignored(tmp_path: Path) -> None:
    report = observation(
        "A", None, resourceType="DiagnosticReport", conclusion="Not detected", result=[{"reference": "Observation/oA"}]
    )
    assert told(tmp_path, patient("A"), observation("A"), report) == {"A": [True]}


def test_results_in_components_are_read(tmp_path: Path) -> None:
    """Components have no status, time or patient of their own. The panel observation has no value."""
    gene = {"code": N_GENE, "valueCodeableConcept": NOT_DETECTED}
    cycles = {"code": concept(LOINC, "94745-7"), "valueQuantity": {"value": 31.5, "unit": "{Ct_value}"}}
    overall = {"code": RNA, "valueCodeableConcept": DETECTED}
    inside = observation("A", None, code=PANEL, component=[gene, cycles, overall])
    assert told(tmp_path, patient("A"), inside) == {"A": [True]}
    beside = observation("B", component=[gene, cycles])
    assert told(tmp_path, patient("B"), beside) == {"B": [True]}
    headed = observation("C", None, component=[overall])
    assert told(tmp_path, patient("C"), headed) == {"C": [True]}


def test_single_resource_and_array_are_read(tmp_path: Path) -> None:
    logical = {"identifier": {"system": MRN, "value": "A"}}
    assert read(tmp_path, observation("A", subject=logical))[0] == [PcrResult("A", MORNING, True)]
    results, findings = read(tmp_path, [patient("A"), observation("A")])
    assert (results, findings) == ([PcrResult("A", MORNING, True)], [])


# --- values and tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"valueCodeableConcept": concept(SNOMED, "10828004")}, True),
        ({"valueCodeableConcept": concept("urn:local", "N", "Negative")}, False),
        ({"valueCodeableConcept": {"text": "NOT DETECTED"}}, False),
        ({"valueCodeableConcept": concept(LOINC, "LA6576-8")}, True),
        ({"valueCodeableConcept": {"coding": [{"code": "X"}, {"code": "260415000"}]}}, False),
        ({"valueCodeableConcept": concept(SNOMED, "82334004")}, None),
        ({"valueCodeableConcept": concept(SNOMED, "260373001", "Not detected")}, "260373001 / Not detected"),
        ({"valueCodeableConcept": {"text": "RNA non presente"}}, "RNA non presente"),
        ({"valueCodeableConcept": {}}, ""),
        ({"valueString": "Detected"}, True),
        ({"valueBoolean": True}, "true"),
        ({"valueInteger": 1}, "1"),
        ({"valueQuantity": {"comparator": "<", "value": 40, "unit": "Ct"}}, "< 40 Ct"),
        ({}, ""),
        ({"dataAbsentReason": concept("urn:absent", "not-performed")}, "not-performed"),
        ({"interpretation": [concept("urn:v3", "POS")]}, ""),
    ],
)
def test_value_is_mapped_by_the_word_lists_or_reported_as_unmapped(tmp_path: Path, value: Json, expected: Any) -> None:
    results, findings = beside_good(tmp_path, patient("A"), observation("A", None, **value))
    if isinstance(expected, str):
        assert (results, findings) == ([], [("W_PCR_UNMAPPED", "A", expected)])
    else:
        assert (results, findings) == ([PcrResult("A", MORNING, expected)], [])


@pytest.mark.parametrize(
    ("code", "taken"),
    [
        (concept(LOINC, "94309-2"), True),
        (concept("urn:oid:2.16.840.1.113883.6.1", "94309-2"), True),
        (concept("urn:local", "94309-2"), False),
        (concept("urn:local", "COVPCR"), True),
        ({"text": "Covid PCR"}, True),
        ({"coding": [*N_GENE["coding"], {"system": "urn:local", "code": "COVPCR"}]}, True),
        (concept(LOINC, "94558-4", "Antigen"), False),
        ({}, False),
    ],
)
def test_pcr_test_is_identified_by_loinc_or_local_code(tmp_path: Path, code: Json, taken: bool) -> None:
    results, findings = beside_good(tmp_path, patient("A"), observation("A", code=code), tests=["COVPCR", "Covid PCR"])
    assert [result.patient_id for result in results] == ["A"] * taken
    assert [finding[0] for finding in findings] == ["W_OTHER_TEST"] * (not taken)


def test_single_genes_neither_replace_nor_override_an_overall_result(tmp_path: Path) -> None:
    beside = observation("B", code=N_GENE, id="gene")
    resources = [patient("A"), observation("A", code=N_GENE), patient("B"), observation("B", NOT_DETECTED), beside]
    results, findings = read(tmp_path, bundle(*resources))
    assert results == [PcrResult("B", MORNING, False)]
    assert findings == [("W_PCR_GENES_ONLY", "A", "2020-04-01 08:30:00")]


# --- statuses and versions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code"),
    [("final", ""), ("amended", ""), ("corrected", ""), ("appended", "")]
    + [(status, "W_PCR_PRELIMINARY") for status in ("registered", "preliminary", "partial", "unknown", "")]
    + [(status, "W_PCR_WITHDRAWN") for status in ("entered-in-error", "cancelled")],
)
def test_only_released_results_are_read(tmp_path: Path, status: str, code: str) -> None:
    results, findings = beside_good(tmp_path, patient("A"), observation("A", status=status))
    assert [result.patient_id for result in results] == ["A"] * (not code)
    assert [finding[:2] for finding in findings] == ([(code, "A")] if code else [])


def version(number: int, value: Json, *, status: str = "final", day: int = 1, **other: Any) -> Json:
    meta = {"versionId": str(number), "lastUpdated": f"2020-04-0{day}T12:00:00.123Z"}
    return observation("A", value, status=status, meta=meta, **other)


@pytest.mark.parametrize("backwards", [False, True])
def test_newest_version_is_used_in_any_order(tmp_path: Path, backwards: bool) -> None:
    def newest(*versions: Json) -> list[bool | None]:
        return told(tmp_path, patient("A"), *(reversed(versions) if backwards else versions))["A"]

    assert newest(version(1, DETECTED), version(2, NOT_DETECTED, status="corrected", day=2)) == [False]
    assert newest(version(9, DETECTED), version(10, NOT_DETECTED)) == [False]  # compared as numbers, not as text
    assert newest(version(1, DETECTED), version(1, NOT_DETECTED, status="amended")) == [False]
    assert sorted(newest(version(1, DETECTED), version(1, NOT_DETECTED))) == [False, True]  # a conflict in the join
    without_meta = observation("A", NOT_DETECTED, issued="2020-04-21T10:00:00+02:00")
    assert newest(without_meta, observation("A", DETECTED)) == [False]


def test_result_can_be_withdrawn_by_itself_or_by_its_report(tmp_path: Path) -> None:
    error = version(2, DETECTED, status="entered-in-error", day=2)
    assert beside_good(tmp_path, patient("A"), version(1, DETECTED), error)[1] == [
        ("W_PCR_WITHDRAWN", "A", "synthetic.json")
    ]
    report = observation("R", None, resourceType="DiagnosticReport", result=[{"reference": "Observation/oA"}])
    for subject in (report, error):
        subject["subject"] = {"reference": "Patient/pA"}
    wrong = report | {"status": "entered-in-error"}
    good = [patient("A"), observation("A")]
    assert beside_good(tmp_path, *good, wrong)[1] == [("W_PCR_WITHDRAWN", "A", "synthetic.json")]
    assert told(tmp_path, *good, wrong, report | {"id": "another"}) == {"A": [True]}
    assert told(tmp_path, *good, report, report | {"status": "preliminary"}) == {"A": [True]}


def test_correction_in_a_new_resource_is_matched_by_its_identifier(tmp_path: Path) -> None:
    number = {"identifier": [{"system": "urn:lis", "value": "77"}]}
    old = version(1, DETECTED, **number)
    new = version(1, NOT_DETECTED, status="corrected", day=2, **number, id="new")
    other = version(1, DETECTED, day=1, id="gene", **(number | {"code": N_GENE}))
    assert told(tmp_path, patient("A"), old, new, other) == {"A": [False]}
    del new["identifier"]
    assert told(tmp_path, patient("A"), old, new) == {"A": [True, False]}


def test_results_of_two_patients_with_one_identifier_are_kept_separate(tmp_path: Path) -> None:
    number = {"identifier": [{"system": "urn:lis", "value": "77"}]}
    results = [observation("A", **number), observation("B", NOT_DETECTED, **number)]
    assert told(tmp_path, patient("A"), patient("B"), *results) == {"A": [True], "B": [False]}


def test_duplicate_files_give_each_result_once(tmp_path: Path) -> None:
    once = read(tmp_path, bundle(*GOOD))
    (tmp_path / "copies").mkdir()
    for name in "ab":
        (tmp_path / "copies" / f"{name}.json").write_text(json.dumps(bundle(*GOOD)))
    results, findings = read_pcr(
        FhirLaboratory(format="fhir", file=tmp_path / "copies"), time_zone="Europe/Paris", today=TODAY
    )
    assert (results, findings) == once


# --- times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "local"),
    [
        ({"effectiveDateTime": "2020-03-31T22:30:00Z"}, datetime(2020, 4, 1, 0, 30)),
        ({"effectiveDateTime": "2020-04-01"}, datetime(2020, 4, 1)),
        ({"effectiveDateTime": "2020-04-01T08:30:00"}, MORNING),
        ({"effectiveInstant": "2020-04-01T08:30:00.123456789+02:00"}, MORNING),
        ({"effectivePeriod": {"start": "2020-04-01T08:30:00+02:00", "end": "2020-04-09"}}, MORNING),
        ({"effectiveDateTime": "2020-03-29T01:00:00Z"}, datetime(2020, 3, 29, 3)),  # clocks skip an hour
        ({"effectiveDateTime": "2019-10-27T01:30:00Z"}, datetime(2019, 10, 27, 2, 30)),  # clocks repeat one
        ({"specimen": {"reference": "Specimen/s"}}, datetime(2020, 3, 30, 7)),
        ({"specimen": {"reference": "Specimen/elsewhere"}, "effectiveDateTime": "2020-04-01"}, datetime(2020, 4, 1)),
    ],
)
def test_collection_time_is_converted_to_the_site_time_zone(tmp_path: Path, times: Json, local: datetime) -> None:
    event = observation("A") | {"effectiveDateTime": ""} | times
    results, findings = read(tmp_path, bundle(patient("A"), specimen("s", "2020-03-30T07:00:00+02:00"), event))
    assert [result.collected for result in results] == [local]
    assert findings == []


@pytest.mark.parametrize("text", ["", "2020", "2020-04", "20200401", "01/04/2020", "2020-02-30", "2020-04-01T24:00:00Z",
                                  "0001-01-01T00:00:00+14:00", "2020-04-01T08:30:00+99:00"])  # fmt: skip
def test_result_without_collection_day_is_skipped_and_issued_is_not_used(tmp_path: Path, text: str) -> None:
    results, findings = beside_good(tmp_path, patient("A"), observation("A", effectiveDateTime=text))
    assert (results, findings) == ([], [("E_DATE", "A", text)])


def test_specimen_with_a_future_date_is_skipped(tmp_path: Path) -> None:
    results, findings = beside_good(tmp_path, patient("A"), observation("A", effectiveDateTime="2099-04-01"))
    assert (results, findings) == ([], [("E_PCR_DATE", "A", "2099-04-01")])


def test_report_with_specimens_of_different_times_is_skipped(tmp_path: Path) -> None:
    specimens = [specimen("s", "2020-04-01"), specimen("t", "2020-04-05")]
    references = [{"reference": "Specimen/s"}, {"reference": "Specimen/t"}]
    report = observation("A", None, resourceType="DiagnosticReport", conclusion="Detected", specimen=references)
    results, findings = beside_good(tmp_path, patient("A"), report, *specimens)
    assert (results, findings) == ([], [("E_DATE", "A", "")])


def test_time_with_utc_offset_is_refused_without_a_site_time_zone(tmp_path: Path) -> None:
    table = FhirLaboratory(format="fhir", file=tmp_path / "a.json")
    table.file.write_text(json.dumps(bundle(*GOOD)))
    with pytest.raises(Refusal) as caught:
        read_pcr(table, today=TODAY)
    assert caught.value.code == "E_TIME_ZONE"


# --- patients ---------------------------------------------------------------------------------------------


def identifiers(*given: tuple[str, str, str]) -> Json:
    """The patient of observation A with (system, value, type)."""
    return patient("A") | {
        "identifier": [{"system": s, "value": v, "type": concept(TYPES, kind)} for s, v, kind in given]
    }


@pytest.mark.parametrize(
    ("person", "issuer", "expected"),
    [
        (identifiers((MRN, "007", "MR")), "", "007"),
        (identifiers((MRN, "a7", "PI"), ("urn:city", "A7", "PI")), MRN, "a7"),
        (identifiers(("urn:oid:1.2.3", "7", "PI"), ("urn:city", "8", "MR")), "1.2.3", "7"),
        (identifiers((MRN, "7", "MR"), ("urn:city", "8", "SS")), "", "7"),
        (identifiers((MRN, "7", "PI"), ("urn:city", "8", "PI")), "", "E_IDENTIFIER_AMBIGUOUS"),
        (identifiers((MRN, "7", "PI"), (MRN, "8", "PI")), MRN, "E_IDENTIFIER_AMBIGUOUS"),
        (identifiers(("urn:city", "8", "MR")), MRN, "E_NO_IDENTIFIER"),
        (identifiers(("urn:city", "8", "MR")), "URN:CITY", "E_NO_IDENTIFIER"),
        (identifiers(), "", "E_NO_IDENTIFIER"),
        (patient("A") | {"id": "another"}, "", "E_NO_IDENTIFIER"),  # the reference cannot be resolved
        (patient("A") | {"identifier": [{"value": "1", "use": "old"}, {"value": "2"}]}, "", "2"),
    ],
)
def test_only_the_patient_identifier_of_the_site_is_used(
    tmp_path: Path, person: Json, issuer: str, expected: str
) -> None:
    good: list[Json] = []
    if expected.startswith("E_"):
        good = [each for n in range(10) for each in (patient(f"G{n}", system=issuer or MRN), observation(f"G{n}"))]
    results, findings = read(tmp_path, bundle(*good, person, observation("A")), issuer=issuer)
    if expected.startswith("E_"):
        assert [finding[:2] for finding in findings] == [(expected, "")]
    else:
        assert ([result.patient_id for result in results], findings) == ([expected], [])


def test_ambiguous_patient_id_is_refused_and_servers_are_separated_by_url(tmp_path: Path) -> None:
    one, two = patient("1", "x"), patient("2", "x")
    result = observation("A", subject={"reference": "Patient/x"})
    assert beside_good(tmp_path, one, two, result)[1] == [("E_IDENTIFIER_AMBIGUOUS", "", "synthetic.json")]
    assert beside_good(tmp_path, one, one, result)[0] == [PcrResult("1", MORNING, True)]
    (tmp_path / "two").mkdir()
    for server, person, value in (("a", one, DETECTED), ("b", two, NOT_DETECTED)):
        content = bundle(person, result | {"valueCodeableConcept": value}, base=f"https://{server}.example")
        (tmp_path / "two" / f"{server}.json").write_text(json.dumps(content))
    table = FhirLaboratory(format="fhir", file=tmp_path / "two")
    results, findings = read_pcr(table, time_zone="Europe/Paris", today=TODAY)
    assert results == [PcrResult("1", MORNING, True), PcrResult("2", MORNING, False)]
    assert findings == []


def test_servers_are_separated_by_url_within_one_bundle(tmp_path: Path) -> None:
    entries: list[Json] = []
    for server, number, value in (("a", "1", DETECTED), ("b", "2", NOT_DETECTED)):
        result = observation("A", value, subject={"reference": "Patient/x"})
        entries += bundle(patient(number, "x"), result, base=f"https://{server}.example/r4")["entry"]
    results, findings = read(tmp_path, {"resourceType": "Bundle", "entry": entries})
    assert results == [PcrResult("1", MORNING, True), PcrResult("2", MORNING, False)]
    assert findings == []


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("https://a.example/r4/Patient/pA", True),
        ("https://a.example/r4/Patient/pA/_history/3", True),
        ("Patient/pA", True),
        ("https://b.example/r4/Patient/pA", False),
        ("Patient?identifier=A", False),
        ("Patient/", False),
    ],
)
def test_reference_resolves_to_one_resource_or_none(tmp_path: Path, reference: str, found: bool) -> None:
    there = bundle(patient("A"), base="https://a.example/r4")["entry"]
    here = bundle(*GOOD, observation("A", subject={"reference": reference}))["entry"]
    results, findings = read(tmp_path, {"resourceType": "Bundle", "entry": there + here})
    assert [result.patient_id for result in results[10:]] == ["A"] * found
    assert [finding[0] for finding in findings] == ["E_NO_IDENTIFIER"] * (not found)


def test_entries_without_a_resource_are_ignored(tmp_path: Path) -> None:
    """A history has such entries for deletions, and a transaction response for performed requests."""
    entries = [{"request": {"method": "DELETE", "url": "Observation/x"}}, {"response": {"status": "201"}}, {}]
    content = bundle(*GOOD)
    content["entry"] += [*entries, "?", None]
    results, findings = read(tmp_path, content)
    assert len(results) == 10
    assert findings == []


def test_reference_text_is_not_used_as_patient_identifier(tmp_path: Path) -> None:
    refusal = refused(tmp_path, bundle(*(each for each in GOOD if each["resourceType"] != "Patient")))
    assert refusal.code == "E_IDENTIFIERS"


def test_identifiers_of_two_issuers_are_refused_until_one_is_configured(tmp_path: Path) -> None:
    content = bundle(*GOOD, patient("A", system="urn:city"), observation("A"))
    assert refused(tmp_path, content).code == "E_LABORATORY_ISSUERS"
    assert len(read(tmp_path, content, issuer=MRN)[0]) == 10


# --- invalid files ----------------------------------------------------------------------------------------

DEEP = b'{"resourceType":' * 5000 + b"1" + b"}" * 5000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"7",
        b'"Observation"',
        b"[" * 100_000,
        DEEP,
        b'{"resourceType": "Observation", "valueInteger": NaN}',
        b'{"resourceType": "Observation", "valueInteger": ' + b"9" * 10_000 + b"}",
        b'{"resourceType": "Observation", "code": "94500-6"}',
        b'{"resourceType": "Patient", "identifier": [{"value": 123}]}',  # a number may have lost leading zeros
        b'{"resourceType": "Observation", "status": null}',
        b'{"resourceType": ["Observation"]}',
        b'{"resourceType": {}}',
        b'{"id": "1"}',
        b"\xff\xfe{",
        '{"resourceType": "Observation"}'.encode("utf-16"),
        b"<Bundle/>",
        json.dumps(observation("A")).encode() + b"\n" + json.dumps(observation("B")).encode(),  # NDJSON in a .json file
    ],
    ids=lambda content: content[:40],
)
def test_invalid_fhir_file_is_a_finding_and_many_of_them_refuse_the_files(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path, content).code == "E_FHIR_FILES"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.json").write_bytes(content)
    (tmp_path / "in" / "good.json").write_text(json.dumps(bundle(*GOOD)))
    results, findings = read_pcr(
        FhirLaboratory(format="fhir", file=tmp_path / "in"), time_zone="Europe/Paris", today=TODAY
    )
    assert len(results) == 10
    assert [(finding.reason.code, finding.patient_id) for finding in findings] == [("E_FHIR", "")]


def test_number_too_large_for_a_float_is_unmapped(tmp_path: Path) -> None:
    text = json.dumps(bundle(*GOOD, patient("A"), observation("A", None, valueQuantity={"value": "@"})))
    results, findings = read(tmp_path, text.replace('"@"', "1e400").encode())
    assert len(results) == 10
    assert [finding[:2] for finding in findings] == [("W_PCR_UNMAPPED", "A")]


def test_oversized_json_file_is_refused_but_not_ndjson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.records.laboratory.fhir_files.MAX_BYTES", 1000)
    assert refused(tmp_path, bundle(*GOOD)).code == "E_FHIR_FILES"
    lines = "\n".join(json.dumps(each) for each in GOOD)
    assert len(read(tmp_path, lines.encode(), name="a.ndjson")[0]) == 10  # each line is small


def test_files_without_a_pcr_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, bundle(patient("A"))).code == "E_NO_PCR_TEST"
    refusal = refused(tmp_path, bundle(patient("A"), observation("A", code=concept("urn:local", "COV"))))
    assert refusal.code == "E_NO_PCR_TEST"
    assert refusal.private == "COV: 1"


def test_findings_contain_no_values_of_a_resource(tmp_path: Path) -> None:
    wrong = patient("A") | {"identifier": [{"value": 4711}], "name": [{"family": "CANARY"}]}
    _, findings = read(tmp_path, bundle(*GOOD, wrong))
    assert findings == [("E_FHIR", "", "synthetic.json: Patient.identifier.0.value: Input should be a valid string")]


# --- whose an invalid resource is --------------------------------------------------------------------------

LOGICAL = {"identifier": {"system": MRN, "value": "A"}}


@pytest.mark.parametrize(
    "broken",
    [
        observation("A", component={"code": {}}),
        observation("A", issued=None),
        observation("A", specimen=[{"reference": "Specimen/s"}]),
        observation("A", code="94500-6"),
        observation("A", subject=[{"reference": "Patient/pA"}]),
        observation("A", subject={"reference": "https://fhir.example/r4/Patient/pA"}, issued=None),
        observation("A", subject=LOGICAL, issued=None),
        observation("A", subject={"reference": 7, **LOGICAL}),
        observation("A", subject={"reference": "Patient/unknown", "identifier": [LOGICAL["identifier"], 7]}),
        specimen("s", "2020-04-01") | {"collection": [], "subject": {"reference": "Patient/pA"}},
        {"resourceType": "DiagnosticReport", "subject": {"reference": "Patient/pA"}, "status": 1},
        {"subject": {"reference": "Patient/pA"}},
        patient("A", "again") | {"meta": []},
        patient("4711", "pA") | {"identifier": "4711"},
        {"resourceType": "Patient", "identifier": [{"system": MRN, "value": "A", "type": "MR"}]},
    ],
)
def test_invalid_resource_names_its_patient(tmp_path: Path, broken: Json) -> None:
    for resources in ([patient("A"), broken], [broken, patient("A")]):
        results, findings = beside_good(tmp_path, *resources)
        assert [each[:2] for each in findings] == [("E_FHIR", "A")]
        assert results == []


def test_invalid_observation_without_subject_is_of_the_patient_of_its_report(tmp_path: Path) -> None:
    report = {
        "resourceType": "DiagnosticReport",
        "id": "r",
        "status": "final",
        "subject": {"reference": "Patient/pA"},
        "result": [{"reference": "Observation/oA"}],
    }
    broken = observation("A", issued=None)
    del broken["subject"]
    assert [each[:2] for each in beside_good(tmp_path, patient("A"), report, broken)[1]] == [("E_FHIR", "A")]
    assert [each[:2] for each in beside_good(tmp_path, patient("A"), broken)[1]] == [("E_FHIR", "")]


def test_invalid_resource_that_contradicts_itself_is_of_both_patients(tmp_path: Path) -> None:
    broken = observation("A", subject={"reference": "Patient/pG1", **LOGICAL}, issued=None)
    findings = beside_good(tmp_path, broken)[1]
    assert [each[:2] for each in findings] == [("E_FHIR", ""), ("W_UNREAD_RECORD", "A"), ("W_UNREAD_RECORD", "G1")]
    foreign = observation("A", subject={"identifier": {"system": "urn:other", "value": "A"}}, issued=None)
    assert [each[:2] for each in beside_good(tmp_path, foreign, issuer=MRN)[1]] == [("E_FHIR", "")]


def test_file_that_was_cut_is_of_all_known_patients_in_it(tmp_path: Path) -> None:
    """Without them, a Bundle with many positive results would count as one unreadable resource of nobody."""
    whole = bundle(observation("G1"), patient("G2", "other"), observation("G3", subject={"reference": "urn:uuid:3"}))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.json").write_text(json.dumps(whole).replace("/", r"\/")[:-1])
    (tmp_path / "in" / "good.json").write_text(json.dumps(bundle(*GOOD)))
    table = FhirLaboratory(format="fhir", file=tmp_path / "in")
    results, findings = read_pcr(table, time_zone="Europe/Paris", today=TODAY)
    assert len(results) == 10
    assert [(each.reason.code, each.patient_id) for each in findings] == [
        ("E_FHIR", ""), ("W_UNREAD_RECORD", "G1"), ("W_UNREAD_RECORD", "G2"),
    ]  # fmt: skip


# --- arbitrary input --------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    ["resourceType", "id", "meta", "lastUpdated", "versionId", "identifier", "system", "value", "use", "type", "status",
     "code", "coding", "text", "display", "subject", "reference", "specimen", "effectiveDateTime", "effectivePeriod",
     "start", "issued", "valueString", "valueCodeableConcept", "valueBoolean", "valueQuantity", "component",
     "hasMember", "result", "contained", "entry", "resource", "fullUrl", "conclusion", "conclusionCode"]
)  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["Bundle", "Patient", "Observation", "DiagnosticReport", "Specimen", "final", "Patient/pA", "#",
                       "#x", "94500-6", LOINC, "260373001", "2020-04-01", "2020-04-01T00:00:00Z", "urn:uuid:1",
                       "https://a/Patient/pA/_history/2", "/", "//", "://", "?"])
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=25
)
WHOLE = [patient("A"), observation("A"), specimen("s", "2020-04-01"), bundle(patient("A"), observation("A"))]


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A valid resource with one value replaced by random JSON."""
    tree = json.loads(json.dumps(draw(st.sampled_from(WHOLE))))
    at = tree
    while isinstance(at, dict | list) and at:
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
        if draw(st.booleans()) or not isinstance(at[key], dict | list):
            at[key] = draw(TREES)
            break
        at = at[key]
    return tree


@settings(max_examples=400, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=100),
        (spoilt() | TREES | st.lists(spoilt(), max_size=3)).map(lambda tree: json.dumps(tree).encode()),
    ),
    name=st.sampled_from(["a.json", "a.ndjson"]),
)
def test_arbitrary_json_gives_results_or_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str
) -> None:
    try:
        results, findings = read(tmp_path_factory.getbasetemp(), content, name=name)
    except Refusal as refusal:
        assert refusal.code in {
            "E_FHIR_FILES", "E_NO_PCR_TEST", "E_IDENTIFIERS", "E_DATES", "E_PCR_UNMAPPED", "E_LABORATORY_ISSUERS",
            "E_FILE_CUT",
        }  # fmt: skip
    else:
        assert all(result.patient_id and result.collected.date() <= TODAY for result in results)
        assert all(code[:2] in {"E_", "W_"} for code, _, _ in findings)
