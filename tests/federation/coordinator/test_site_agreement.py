"""The handshake before round 1: differences between sites are reported, and only matching sites may start."""

from importlib.metadata import version
from typing import Any, cast

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from federation.coordinator.connected_sites import Sites
from federation.coordinator.site_agreement import judge, read, shake_hands
from federation.protocol.handshake import SiteAbout
from federation.protocol.reply_validation import LedgerHead
from federation.protocol.study_config import Study
from models.refusal import Refusal
from tests.helpers.fake_grid import FakeGrid, over_the_wire

OWN = version("fedthorax")
ALIKE = SiteAbout(version=OWN, contract="a" * 64, golden="b" * 64, patients="50-99")
STUDY = Study.model_validate({"study": {"name": "trial", "rounds": 3, "sites": 3, "quorum": 2}})


def test_handshake_reply_is_read_as_sent() -> None:
    asked = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=7, message_type="query.handshake")
    content = RecordDict({"site": ConfigRecord(ALIKE.model_dump())})
    assert read(over_the_wire(Message(content, reply_to=asked))) == ALIKE


# --- site differences -------------------------------------------------------------------------------------


def differences(**sites: dict[str, str]) -> str:
    """Return the refusal text for sites with these changed values, or "" if they are accepted."""
    try:
        judge({name: ALIKE.model_copy(update=changed) for name, changed in sites.items()})
    except Refusal as refusal:
        assert refusal.code == "E_SITES_UNLIKE"
        return refusal.says.removeprefix("the sites do not agree: ")
    return ""


def test_matching_sites_are_accepted_whatever_their_sizes() -> None:
    assert differences(north={}, south={"patients": "1000 or more"}, west={"patients": "under 20"}) == ""
    assert differences(north={}) == ""


def test_site_that_differs_from_the_majority_is_named_with_the_difference() -> None:
    assert differences(north={}, south={"golden": "c" * 64}, west={}) == (
        "the golden volume of south differs from that of 2 other sites"
    )
    assert differences(north={}, south={"contract": "c" * 64}, west={"contract": "d" * 64}, east={}) == (
        "the data contract of south, west differs from that of 2 other sites"
    )


def test_all_sites_are_named_without_a_majority() -> None:
    assert differences(north={}, south={"contract": "c" * 64}) == "the data contract differs between north / south"
    assert differences(a={}, b={}, c={"golden": "c" * 64}, d={"golden": "c" * 64}, e={"golden": "d" * 64}) == (
        "the golden volume differs between a, b / c, d / e"
    )


def test_all_differences_are_reported_at_once() -> None:
    told = differences(north={}, south={"golden": "c" * 64, "contract": "c" * 64}, west={})
    assert [part.split(" of ")[0] for part in told.split("; ")] == ["the data contract", "the golden volume"]
    assert told.count("south") == 2 and "north" not in told and "c" * 64 not in told


# --- asking all sites -------------------------------------------------------------------------------------


def sites(**answers: dict[str, str] | str) -> Sites:
    """Create sites that reply with changed values or with an error code."""

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


def test_handshake_results_are_returned_by_site_name() -> None:
    asked = sites(north={}, south={"patients": "200-499"}, west="E_SITE_LIMIT")
    agreed = shake_hands(asked, STUDY)
    entry = agreed.entry
    assert agreed.about == {"north": ALIKE, "south": ALIKE.model_copy(update={"patients": "200-499"})}
    assert entry["versions"] == {"north": OWN, "south": OWN}
    assert (entry["sites"], entry["refused"]) == (["north", "south"], {"west": "E_SITE_LIMIT"})
    assert asked.heads == {1: LedgerHead("c" * 64, 3), 2: LedgerHead("c" * 64, 3)}


@pytest.mark.parametrize(
    ("theirs", "who", "code"),
    [
        ("99.0.0", "the server must upgrade", "E_SERVER_OUTDATED"),
        ("0.0.9", "west must upgrade", "E_SITE_OUTDATED"),
        ("0.10.0", "the server must upgrade", "E_SERVER_OUTDATED"),
    ],
)
def test_site_of_another_version_is_left_out_by_name(theirs: str, who: str, code: str) -> None:
    unlike = {"version": theirs, "golden": "c" * 64}  # another version may prepare scans otherwise
    agreed = shake_hands(sites(north={}, south={}, west=unlike), STUDY)
    assert set(agreed.about) == {"north", "south"}
    assert agreed.entry["refused"] == {"west": code}
    assert agreed.entry["versions"]["west"] == theirs
    assert list(agreed.left_out) == [3]
    assert f"{who} ({code})" in agreed.left_out[3] and f"west has version {theirs}" in agreed.left_out[3]


def test_site_without_labels_is_left_out_of_the_run() -> None:
    agreed = shake_hands(sites(north={}, south={}, west="E_SITE_UNLABELLED", east="E_SITE_LIMIT"), STUDY)
    assert set(agreed.about) == {"north", "south"}
    assert agreed.entry["refused"] == {"west": "E_SITE_UNLABELLED", "east": "E_SITE_LIMIT"}
    assert agreed.left_out == {3: "west: the study learns from labels, and this site has chest CT only"}


def test_patch_release_takes_part() -> None:
    patch = {"version": ".".join(OWN.split(".")[:2]) + ".17"}
    agreed = shake_hands(sites(north={}, south=patch), STUDY)
    assert set(agreed.about) == {"north", "south"} and not agreed.left_out


def test_study_does_not_start_if_too_few_sites_have_the_servers_version() -> None:
    with pytest.raises(Refusal) as refused:
        shake_hands(sites(north={}, south={"version": "99.0"}), STUDY)
    assert refused.value.code == "E_HANDSHAKE_QUORUM"
    assert "south has version 99.0" in refused.value.says


def test_study_does_not_start_if_sites_differ() -> None:
    with pytest.raises(Refusal) as refused:
        shake_hands(sites(north={}, south={"golden": "c" * 64}, west={}), STUDY)
    assert refused.value.code == "E_SITES_UNLIKE"
    assert "south" in refused.value.says


def test_study_does_not_start_below_quorum_and_refusal_lists_replies() -> None:
    with pytest.raises(Refusal) as refused:
        shake_hands(sites(north={}, south="E_SITE_LIMIT", west={"patients": "60"}), STUDY)
    assert refused.value.code == "E_HANDSHAKE_QUORUM"
    assert "south: E_SITE_LIMIT, west: E_HANDSHAKE" in refused.value.says
    with pytest.raises(Refusal) as refused:
        shake_hands(sites(north={}), STUDY)
    assert "no other site is online" in refused.value.says
