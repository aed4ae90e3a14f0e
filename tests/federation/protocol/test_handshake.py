"""Tests of the handshake before round 1: what a site reports, and which answers the server accepts."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.handshake import BANDS, EXPECTED, NOT_REPORTED, SiteAbout, answer, band, is_answer
from federation.protocol.reply_validation import validate
from federation.protocol.study_config import Study
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.doctor.digest import contract_digest
from pipeline.preprocessing.golden_volume import golden_digest
from pipeline.site.folder import Site
from tests.helpers.fake_grid import over_the_wire

OWN = version("fedthorax")
ALIKE = SiteAbout(version=OWN, contract="a" * 64, golden="b" * 64, patients="50-99")
STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2}})


# --- the site's answer ------------------------------------------------------------------------------------


def test_site_reports_version_two_digests_and_a_patient_band(site: Site) -> None:
    numbers = {"train": 50, "validation": 30, "test": 30}
    rows = [
        PatientRow(f"{split}{number:03}", split, "none.npy", 60.0, "F", True, None)  # type: ignore[arg-type]
        for split, count in numbers.items()
        for number in range(count)
    ]
    with Cohort(site) as cohort:
        cohort.replace(rows, [], [])
    told = answer(site, STUDY)
    assert told == {
        "version": OWN,
        "contract": contract_digest(site),
        "golden": golden_digest(STUDY.preprocessing),
        "patients": "50-99",
    }
    assert is_answer(told)


def test_site_without_a_cohort_reports_the_lowest_band(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.preprocessing.golden_volume.golden_digest", lambda settings: "b" * 64)
    assert answer(site, STUDY)["patients"] == "under 20"


@pytest.mark.parametrize(
    ("count", "min_patients", "expected"),
    [
        (0, 10, "under 20"),
        (19, 10, "under 20"),
        (20, 10, "20-49"),
        (49, 20, "20-49"),
        (49, 21, "under 50"),
        (100, 10, "100-199"),
        (999, 10, "500-999"),
        (1000, 10, "1000 or more"),
        (10**6, 10, "1000 or more"),
        (999, 1000, "under 1000"),
        (5000, 1001, NOT_REPORTED),
    ],
)
def test_band_contains_the_count_and_respects_the_minimum(count: int, min_patients: int, expected: str) -> None:
    assert band(count, min_patients) == expected


@given(st.integers(0, 3000), st.integers(2, 3000))
def test_band_does_not_distinguish_counts_below_the_minimum(count: int, least: int) -> None:
    assert band(count, least) in BANDS
    assert band(min(count, least - 1), least) == band(0, least)


# --- validation at the server -----------------------------------------------------------------------------


def reply(content: RecordDict) -> Message:
    ask = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=7, message_type="query.handshake")
    return over_the_wire(Message(content, reply_to=ask))


def refused_for(records: Mapping[str, Any]) -> str:
    reason = validate(reply(RecordDict(dict(records))), EXPECTED)
    return reason.code if reason else ""


def test_answer_is_accepted_with_or_without_a_ledger_head() -> None:
    about = ConfigRecord(ALIKE.model_dump())
    ledger = ConfigRecord({"head": "c" * 64, "lines": 3})
    for records in ({"site": about}, {"site": about, "ledger": ledger}):
        assert refused_for(records) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"version": ""},
        {"version": "SMITH^JOHN"},
        {"version": "1" * 41},
        {"version": "1.0\n"},
        {"contract": "a" * 63},
        {"contract": "A" * 64},
        {"golden": b"b" * 64},
        {"golden": ["b" * 64]},
        {"patients": "60"},
        {"patients": 60},
        {"patients": "50-99 SMITH"},
        {"beds": "900"},
    ],
    ids=str,
)
def test_a_malformed_answer_is_refused(change: dict[str, Any]) -> None:
    assert refused_for({"site": ConfigRecord(ALIKE.model_dump() | change)}) == "E_HANDSHAKE"
    assert not is_answer(ALIKE.model_dump() | change)


@pytest.mark.parametrize("key", SiteAbout.model_fields)
def test_incomplete_answer_is_refused(key: str) -> None:
    about = ALIKE.model_dump()
    del about[key]
    assert refused_for({"site": ConfigRecord(about)}) == "E_HANDSHAKE"


@pytest.mark.parametrize(
    "records",
    [
        {},
        {"site": MetricRecord({"patients": 60})},
        {"other": ConfigRecord(ALIKE.model_dump())},
        {"site": ConfigRecord(ALIKE.model_dump()), "metrics": MetricRecord({"num-examples": 60})},
        {"site": ConfigRecord(ALIKE.model_dump()), "notes": ConfigRecord({"row": "PCR positive"})},
    ],
    ids=lambda records: ",".join(records) or "none",
)
def test_other_records_are_refused(records: dict[str, Any]) -> None:
    assert refused_for(records) == "E_REPLY_RECORDS"
