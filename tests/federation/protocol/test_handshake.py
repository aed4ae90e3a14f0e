"""Before round 1: what a site tells of itself, and who is told to be unlike whom."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from federation.coordinator.connected_sites import Sites
from federation.coordinator.site_agreement import judge, read, shake_hands
from federation.protocol.handshake import BANDS, EXPECTED, UNTOLD, SiteAbout, answer, band, is_answer
from federation.protocol.reply_validation import LedgerHead, validate
from federation.protocol.study_config import Study
from models.refusal import Refusal
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.doctor.digest import contract_digest
from pipeline.preprocessing.golden_volume import golden_digest
from pipeline.site.folder import Site
from tests.helpers.fake_grid import FakeGrid, over_the_wire

OWN = version("fedthorax")
ALIKE = SiteAbout(version=OWN, contract="a" * 64, golden="b" * 64, patients="50-99")
STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2}})


# --- at the site ------------------------------------------------------------------------------------------


def test_a_site_tells_its_version_two_digests_and_about_how_many_patients_it_learns_from(site: Site) -> None:
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


def test_a_site_without_a_cohort_tells_so_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
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
        (5000, 1001, UNTOLD),
    ],
)
def test_bands(count: int, min_patients: int, expected: str) -> None:
    assert band(count, min_patients) == expected


@given(st.integers(0, 3000), st.integers(2, 3000))
def test_a_band_parts_no_numbers_below_the_least(count: int, least: int) -> None:
    assert band(count, least) in BANDS
    assert band(min(count, least - 1), least) == band(0, least)


# --- what a reply must be ---------------------------------------------------------------------------------


def reply(content: RecordDict) -> Message:
    ask = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=7, message_type="query.handshake")
    return over_the_wire(Message(content, reply_to=ask))


def refused_for(records: Mapping[str, Any]) -> str:
    reason = validate(reply(RecordDict(dict(records))), EXPECTED)
    return reason.code if reason else ""


def test_an_answer_is_read_as_it_was_told() -> None:
    about = ConfigRecord(ALIKE.model_dump())
    ledger = ConfigRecord({"head": "c" * 64, "lines": 3})
    for records in ({"site": about}, {"site": about, "ledger": ledger}):
        assert refused_for(records) == ""
        assert read(reply(RecordDict(dict(records)))) == ALIKE


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
def test_an_answer_that_lacks_something_is_refused(key: str) -> None:
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


# --- who is unlike whom -----------------------------------------------------------------------------------


def differences(**sites: dict[str, str]) -> str:
    """What the refusal says of sites that tell these things in place of the usual; "" where they may begin."""
    try:
        judge({name: ALIKE.model_copy(update=changed) for name, changed in sites.items()})
    except Refusal as refusal:
        assert refusal.code == "E_SITES_UNLIKE"
        return refusal.says.removeprefix("the sites do not agree: ")
    return ""


def test_sites_that_are_alike_begin_whatever_their_sizes() -> None:
    assert differences(north={}, south={"patients": "1000 or more"}, west={"patients": "under 20"}) == ""
    assert differences(north={}) == ""


def test_who_differs_from_most_is_named_with_what_differs() -> None:
    assert differences(north={}, south={"golden": "c" * 64}, west={}) == (
        "the golden volume of south differs from that of 2 other sites"
    )
    assert differences(north={}, south={"contract": "c" * 64}, west={"contract": "d" * 64}, east={}) == (
        "the data contract of south, west differs from that of 2 other sites"
    )


def test_where_no_group_is_larger_all_are_named() -> None:
    assert differences(north={}, south={"contract": "c" * 64}) == "the data contract differs between north / south"
    assert differences(a={}, b={}, c={"golden": "c" * 64}, d={"golden": "c" * 64}, e={"golden": "d" * 64}) == (
        "the golden volume differs between a, b / c, d / e"
    )


def test_the_version_that_counts_is_the_servers_own() -> None:
    other = {"version": "99.0"}
    assert (
        differences(north=other, south=other)
        == f"the version of north (99.0), south (99.0) is not the server's ({OWN})"
    )


def test_all_that_differs_is_told_at_once() -> None:
    told = differences(north={}, south={"golden": "c" * 64, "contract": "c" * 64, "version": "99.0"}, west={})
    assert [part.split(" of ")[0] for part in told.split("; ")] == [
        "the version",
        "the data contract",
        "the golden volume",
    ]
    assert told.count("south") == 3 and "north" not in told and "c" * 64 not in told


# --- asking all sites -------------------------------------------------------------------------------------


def sites(**answers: dict[str, str] | str) -> Sites:
    """Sites that answer with what differs from the usual, or with a code."""

    def playing(told: dict[str, str] | str) -> Any:
        def play(message: Message) -> list[RecordDict | Error]:
            assert message.metadata.message_type == "query.handshake"
            assert set(message.content) == {"config"}
            if isinstance(told, str):
                return [Error(1001, told)]
            ledger = ConfigRecord({"head": "c" * 64, "lines": 3})
            return [RecordDict({"site": ConfigRecord(ALIKE.model_dump() | told), "ledger": ledger})]

        return play

    numbers = dict(enumerate(answers, start=1))
    grid = FakeGrid({node: playing(answers[name]) for node, name in numbers.items()})
    return Sites(cast(Any, grid), numbers, {}, {})


def test_what_the_sites_are_is_known_by_their_names() -> None:
    asked = sites(north={}, south={"patients": "200-499"}, west="E_SITE_LIMIT")
    about, entry = shake_hands(asked, STUDY)
    assert about == {"north": ALIKE, "south": ALIKE.model_copy(update={"patients": "200-499"})}
    assert (entry["sites"], entry["refused"]) == (["north", "south"], {"west": "E_SITE_LIMIT"})
    assert asked.heads == {1: LedgerHead("c" * 64, 3), 2: LedgerHead("c" * 64, 3)}


def test_a_study_does_not_start_with_sites_that_are_unlike() -> None:
    with pytest.raises(Refusal) as refused:
        shake_hands(sites(north={}, south={"golden": "c" * 64}, west={}), STUDY)
    assert refused.value.code == "E_SITES_UNLIKE"
    assert "south" in refused.value.says


def test_a_study_does_not_start_with_too_few_and_says_what_each_answered() -> None:
    with pytest.raises(Refusal) as refused:
        shake_hands(sites(north={}, south="E_SITE_LIMIT", west={"patients": "60"}), STUDY)
    assert refused.value.code == "E_HANDSHAKE_QUORUM"
    assert "south: E_SITE_LIMIT, west: E_HANDSHAKE" in refused.value.says
    with pytest.raises(Refusal) as refused:
        shake_hands(sites(north={}), STUDY)
    assert "no other site is online" in refused.value.says
