"""The table of codes of outcomes: which pattern counts, what is watched, and which tables are refused."""

import pytest
from pydantic import ValidationError

from pipeline.records.outcomes.event_codes import Coded, EventCodes

OPS, SNOMED = "http://fhir.de/CodeSystem/bfarm/ops", "http://snomed.info/sct"
CODES = EventCodes(
    intubated=["ops|8-701", "ops|8-713.*", "sct|112798008", "ccam|GLLD008", "icd-10-gm|Z99.1", "source|Beatmung"],
    icu=["ops|8-980*"],
    died=["discharge|exp"],
    neither=["ops|8-713.0", "ops|8-711*"],
    watched=["ops|8-71*", "source|*"],
    systems={"ops": ["https://hospital.example/ops"], "own": ["https://hospital.example/own"]},
)


@pytest.mark.parametrize(
    ("codes", "meaning"),
    [
        ([(OPS, "8-701")], "intubated"),
        ([("OPS", "8-701")], "intubated"),
        ([("https://hospital.example/ops", "8-701")], "intubated"),
        ([(OPS, "8-701.1")], None),
        ([(OPS, "8-713.1")], "intubated"),
        ([(OPS, "8-713.0")], "neither"),
        ([(OPS, "8-713")], "unknown"),
        ([(OPS, "8-711.2")], "neither"),
        ([(OPS, "8-714.0")], "unknown"),
        ([(OPS, "8-98f")], None),
        ([(OPS, "8-980.10")], "icu"),
        ([(OPS, "5-470")], None),
        ([(SNOMED, "8-701")], None),
        ([("SNOMED", "112798008")], "intubated"),
        ([("CCAM", "glld008")], "intubated"),
        ([("http://fhir.de/CodeSystem/bfarm/icd-10-gm", "Z99.1")], "intubated"),
        ([("http://hl7.org/fhir/sid/icd-10", "Z99.1")], None),
        ([("", "8-701"), (OPS, "")], None),
        ([(OPS, "8-714.0"), (SNOMED, "112798008")], "intubated"),
        ([(OPS, "8-713.0"), (SNOMED, "112798008")], "unknown"),
        ([("source", " BEATMUNG ")], "intubated"),
        ([("source", "Beatmung CPAP")], "unknown"),
        ([("http://terminology.hl7.org/CodeSystem/discharge-disposition", "exp")], "died"),
    ],
)
def test_meaning_of_an_event_by_its_codes(codes: list[Coded], meaning: str | None) -> None:
    """The longest pattern counts. Codes are never interpreted without a pattern."""
    assert CODES.meaning(tuple(codes)) == meaning


@pytest.mark.parametrize(
    ("codes", "meaning"),
    [
        ([("source", " 8-701")], "unknown"),
        ([("source", "8-980.1")], "unknown"),
        ([("source", "8-714.0")], "unknown"),
        ([("source", "8-711.0")], None),
        ([("source", "5-470")], None),
        ([("source", "vent 8-701")], "intubated"),
        ([("OPS", "8-701"), ("source", "8-701")], "intubated"),
        ([("SNOMED", "112798008"), ("source", "8-701")], "unknown"),
    ],
)
def test_source_value_that_is_a_code_of_a_system_is_not_guessed_without_its_concept(
    codes: list[Coded], meaning: str | None
) -> None:
    """All codes of a watched system, as of `visit`, do not make every source value unknown."""
    table = EventCodes(
        intubated=["ops|8-701", "source|vent 8-701"],
        icu=["ops|8-980*"],
        neither=["ops|8-711*"],
        watched=["ops|8-71*", "visit|*"],
    )
    assert table.meaning(tuple(codes)) == meaning


@pytest.mark.parametrize(
    "lists",
    [
        {"intubated": ["8-701"]},
        {"intubated": ["opps|8-701"]},
        {"intubated": ["ops|"]},
        {"intubated": ["ops|*"]},
        {"intubated": ["ops|8*701"]},
        {"intubated": ["ops|8-701"], "icu": ["OPS|8-701 "]},
        {"intubated": ["ops|8-701", "ops|8-701"]},
        {"severe": ["ops|8-701"]},
    ],
)
def test_faulty_table_is_refused(lists: dict[str, list[str]]) -> None:
    with pytest.raises(ValidationError):
        EventCodes.model_validate(lists)
