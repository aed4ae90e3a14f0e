"""Outcomes from FHIR Encounters, Procedures, Conditions and Patients. All data are synthetic."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from models.refusal import Refusal
from pipeline.records.outcomes import FhirOutcomes, Outcome, read_outcomes
from pipeline.system.codes import BY_CODE
from tests.pipeline.records.laboratory.test_fhir import bundle, concept, patient

TODAY = date(2020, 6, 1)
OPS, SNOMED = "http://fhir.de/CodeSystem/bfarm/ops", "http://snomed.info/sct"
DISCHARGE = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
CODES = {
    "intubated": ["ops|8-701", "sct|112798008", "icd-10|Z99.1"],
    "icu": ["ops|8-980*", "sct|309904001"],
    "died": ["discharge|exp"],
    "neither": ["ops|8-711*"],
    "watched": ["ops|8-71*"],
}
Json = dict[str, Any]


def event(kind: str, number: str, name: str = "", **elements: Any) -> Json:
    return {
        "resourceType": kind,
        "id": f"{kind}-{number}-{name}",
        "subject": {"reference": f"Patient/p{number}"},
        **elements,
    }


def procedure(number: str, code: str = "8-701", at: str = "2020-04-02T10:00:00+02:00", **elements: Any) -> Json:
    elements = {"status": "completed", "code": concept(OPS, code), "performedDateTime": at, **elements}
    return event("Procedure", number, code, **elements)


def encounter(number: str, start: str = "2020-04-01", end: str = "2020-05-10", **elements: Any) -> Json:
    elements = {"status": "finished", "period": {"start": start, "end": end}, **elements}
    return event("Encounter", number, start, **elements)


def condition(number: str, code: str = "Z99.1", **elements: Any) -> Json:
    coded = concept("http://hl7.org/fhir/sid/icd-10", code)
    return event("Condition", number, code, code=coded, **{"onsetDateTime": "2020-04-03", **elements})


# Ten patients, of whom one was intubated.
GOOD = [each for n in range(10) for each in (patient(f"G{n}"), encounter(f"G{n}"))] + [procedure("G0")]


def read(
    folder: Path, *resources: Json, codes: Json | None = None, **how: Any
) -> tuple[dict[str, Outcome], list[tuple[str, str]]]:
    """Outcomes of the patients besides GOOD, and findings as (code, patient)."""
    path = folder / "synthetic.json"
    path.write_text(json.dumps(bundle(*GOOD, *resources)))
    table = FhirOutcomes.model_validate(
        {
            "format": "fhir",
            "file": path,
            "from_date": "2020-03-01",
            "codes": codes or CODES,
            "max_unmapped_percent": 60,
            **how.pop("declared", {}),
        }
    )
    how = {"time_zone": "Europe/Paris", "needed": ("intubated", "died"), **how}
    outcomes, findings = read_outcomes(table, today=TODAY, **how)
    others = {key: value for key, value in outcomes.items() if not key.startswith("G")}
    return others, [(finding.reason.code, finding.patient_id) for finding in findings]


def days(outcome: Outcome) -> tuple[str, str, str, str]:
    """Intubation, death, intensive care and the end of follow-up, as texts."""
    found = (outcome.intubated, outcome.died, outcome.icu, outcome.followed_until)
    return tuple(str(day or "")[5:] for day in found)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ([], ("", "", "", "05-10")),
        ([procedure("A")], ("04-02", "", "", "05-10")),
        ([procedure("A"), procedure("A", at="2020-04-09", id="later")], ("04-02", "", "", "05-10")),
        ([procedure("A", at="2019-04-02")], ("", "", "", "05-10")),
        ([procedure("A", code="5-470", at="2020-05-20")], ("", "", "", "05-20")),
        ([procedure("A", code="8-711.0")], ("", "", "", "05-10")),
        ([procedure("A", code="8-980.1")], ("", "", "04-02", "05-10")),
        ([procedure("A", status="not-done")], ("", "", "", "05-10")),
        ([procedure("A", status="entered-in-error")], ("", "", "", "05-10")),
        ([procedure("A", status="in-progress")], ("04-02", "", "", "05-10")),
        ([event("Procedure", "A", status="completed", code=concept(SNOMED, "112798008"),
                performedPeriod={"start": "2020-04-05", "end": "2020-04-20"})], ("04-05", "", "", "05-10")),
        ([condition("A")], ("04-03", "", "", "05-10")),
        ([condition("A", verificationStatus=concept("x", "refuted"))], ("", "", "", "05-10")),
        ([condition("A", verificationStatus=concept("x", "confirmed"))], ("04-03", "", "", "05-10")),
        ([encounter("A", "2020-04-04", "2020-04-08", type=[concept(SNOMED, "309904001")])], ("", "", "04-04", "05-10")),
        ([encounter("A", "2020-05-01", "2020-05-12",
                    hospitalization={"dischargeDisposition": concept(DISCHARGE, "exp")})], ("", "05-12", "", "05-12")),
        ([encounter("A", "2020-05-01", "2020-05-20", status="planned")], ("", "", "", "05-10")),
    ],
)  # fmt: skip
def test_events_of_each_resource(tmp_path: Path, resources: list[Json], expected: tuple[str, ...]) -> None:
    outcomes, findings = read(tmp_path, patient("A"), encounter("A"), *resources)
    assert findings == []
    assert days(outcomes["A"]) == expected


@pytest.mark.parametrize(
    ("deceased", "expected"),
    [
        ({"deceasedDateTime": "2020-04-20T23:30:00Z"}, "04-21"),
        ({"deceasedDateTime": "2020-04-20"}, "04-20"),
        ({"deceasedBoolean": False}, ""),
    ],
)
def test_death_of_a_patient_is_a_day_in_the_time_zone_of_the_site(
    tmp_path: Path, deceased: Json, expected: str
) -> None:
    outcomes, findings = read(tmp_path, {**patient("A"), **deceased}, encounter("A"))
    assert findings == []
    assert days(outcomes["A"])[1] == expected


def test_event_counts_on_the_calendar_day_of_the_site(tmp_path: Path) -> None:
    outcomes, _ = read(tmp_path, patient("A"), procedure("A", at="2020-04-01T22:30:00Z"))
    assert days(outcomes["A"])[0] == "04-02"
    with pytest.raises(Refusal, match="E_TIME_ZONE"):
        read(tmp_path, patient("A"), procedure("A"), time_zone="")


@pytest.mark.parametrize(
    ("resource", "code"),
    [
        (procedure("A", code="8-714.0"), "W_OUTCOME_CODE"),
        (procedure("A", status="unknown"), "W_OUTCOME_UNCERTAIN"),
        (procedure("A", at="2020-04"), "E_DATE"),
        (procedure("A", at=""), "E_DATE"),
        (condition("A", verificationStatus=concept("x", "provisional")), "W_OUTCOME_UNCERTAIN"),
        (condition("A", onsetDateTime=""), "E_DATE"),
        ({**patient("A"), "deceasedBoolean": True}, "E_DATE"),
        ({**patient("A"), "deceasedDateTime": "2020"}, "E_DATE"),
        ({**patient("A"), "deceasedDateTime": "2020-07-01"}, "E_OUTCOME_DATE"),
        ({**patient("A"), "deceasedDateTime": "2020-03-30"}, "E_OUTCOME_ORDER"),
    ],
)
def test_patient_with_an_uncertain_course_has_no_outcome(tmp_path: Path, resource: Json, code: str) -> None:
    """Such a patient must not count as one without event."""
    others = [] if resource["resourceType"] == "Patient" else [patient("A")]
    course = [procedure("A")] if code == "E_OUTCOME_ORDER" else []
    outcomes, findings = read(tmp_path, *others, encounter("A"), resource, *course)
    assert outcomes == {}
    assert findings == [(code, "A")]


def discharged_dead(*ends: str) -> list[Json]:
    died = {"dischargeDisposition": concept(DISCHARGE, "exp")}
    return [encounter("A", "2020-04-01", end, id=end, hospitalization=died) for end in ends]


@pytest.mark.parametrize(
    ("deceased", "ends"),
    [
        ("2020-04-20", ("2020-04-19",)),
        ("2020-04-20", ("2020-04-22",)),
        ("2020-04-20", ("2020-04-21", "2020-04-22")),
        ("", ("2020-04-20", "2020-04-21")),
    ],
)
def test_two_days_of_death_contradict_each_other(tmp_path: Path, deceased: str, ends: tuple[str, ...]) -> None:
    dead = {**patient("A"), **({"deceasedDateTime": deceased} if deceased else {})}
    outcomes, findings = read(tmp_path, dead, *discharged_dead(*ends))
    assert (outcomes, findings) == ({}, [("E_OUTCOME_CONFLICT", "A")])


def test_remedy_of_a_contradiction_fits_every_source_of_outcomes() -> None:
    """Nobody can export one row for each patient from FHIR or OMOP, where days of death contradict each other."""
    reason = BY_CODE["E_OUTCOME_CONFLICT"]
    assert "death" in reason.says
    assert all(source in reason.remedy for source in ("CSV", "FHIR", "OMOP"))


@pytest.mark.parametrize("ends", [("2020-04-20",), ("2020-04-21",), ("2020-04-20", "2020-04-21")])
def test_stay_that_is_closed_after_midnight_does_not_contradict_the_death(
    tmp_path: Path, ends: tuple[str, ...]
) -> None:
    """Otherwise only dead patients would be lost."""
    dead = {**patient("A"), "deceasedDateTime": "2020-04-20"}
    outcomes, findings = read(tmp_path, dead, *discharged_dead(*ends))
    assert (days(outcomes["A"])[1], findings) == ("04-20", [])


def test_newest_version_of_a_resource_counts(tmp_path: Path) -> None:
    old = procedure("A", meta={"lastUpdated": "2020-04-02T00:00:00Z"})
    new = procedure("A", status="entered-in-error", meta={"lastUpdated": "2020-04-03T00:00:00Z"})
    for versions in ((old, new), (new, old)):
        outcomes, findings = read(tmp_path, patient("A"), encounter("A"), *versions)
        assert (days(outcomes["A"])[0], findings) == ("", [])


def test_only_the_asked_patients_are_returned(tmp_path: Path) -> None:
    faulty = procedure("B", code="8-714.0")
    outcomes, findings = read(tmp_path, patient("A"), encounter("A"), patient("B"), faulty, patients={"A", "C"})
    assert (list(outcomes), findings) == (["A"], [])


def test_event_of_an_unknown_patient_is_a_finding(tmp_path: Path) -> None:
    assert read(tmp_path, procedure("nobody")) == ({}, [("E_NO_IDENTIFIER", "")])


def test_table_of_codes_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    many = [procedure("A", code=f"8-71{n}.x") for n in range(2, 9)]
    with pytest.raises(Refusal, match="E_OUTCOME_CODES") as caught:
        read(tmp_path, patient("A"), *many)
    assert "8-712.x" in caught.value.private
    assert "8-712.x" not in caught.value.says
    other = {"intubated": ["ccam|GLLD008"]}
    with pytest.raises(Refusal, match="E_OUTCOME_NO_EVENT"):
        read(tmp_path, patient("A"), codes=other)
    outcomes, _ = read(tmp_path, patient("A"), encounter("A"), codes=other, declared={"may_lack_events": True})
    assert days(outcomes["A"])[0] == ""


# --- resources that cannot be read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        procedure("A", performedPeriod=None),
        procedure("A", code="8-701", subject=[{"reference": "Patient/pA"}]),
        procedure("A", subject={"identifier": {"value": "A"}}, status=7),
        condition("A", recordedDate=2020),
        encounter("A", "2020-04-08", hospitalization=[]),
        patient("A") | {"deceasedBoolean": "dead"},
        patient("A") | {"identifier": "A", "deceasedDateTime": "2020-04-09"},
    ],
)
def test_invalid_resource_leaves_its_patient_without_outcome(tmp_path: Path, broken: Json) -> None:
    for resources in ([patient("A"), encounter("A"), broken], [broken, patient("A"), encounter("A")]):
        assert read(tmp_path, *resources) == ({}, [("E_FHIR", "A")])
    others, findings = read(tmp_path, patient("A"), encounter("A"), patient("B"), encounter("B"), broken)
    assert (others.keys(), findings) == ({"B"}, [("E_FHIR", "A")])


def test_newer_valid_version_does_not_hide_an_invalid_one(tmp_path: Path) -> None:
    """An invalid resource has no version that could be trusted."""
    newer = procedure("A", status="not-done") | {"meta": {"versionId": "2"}}
    broken = procedure("A", performedPeriod=None) | {"meta": {"versionId": "1"}}
    assert read(tmp_path, patient("A"), encounter("A"), broken, newer) == ({}, [("E_FHIR", "A")])
