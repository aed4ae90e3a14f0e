"""A part of the replies that only one or two hospitals have does not enter a sum, whatever the server does."""

from pathlib import Path

import pytest

from federation.secure_aggregation.messages import Advertised, Header, Uploaded
from federation.secure_aggregation.server_round import ServerRound
from tests.federation.secure_aggregation.rig import Rig, mask, refused

BRINGS = (0b111, 0b011, 0b101, 0b001, 0b110)  # the parts 0, 1 and 2 are brought by 4, 3 and 3 of five hospitals


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path, 5)


def up_to_upload(rig: Rig, header: Header, brings: dict[str, int], leaves_before_shares: str = "") -> ServerRound:
    """Play a round in which the hospitals bring these parts, up to the masked replies."""
    server = rig.server(header)
    for name, parts in brings.items():
        server.advertise(name, rig.site(name, header).advertise(parts))
    advertised = server.freeze_advertised()
    present = [name for name in brings if name != leaves_before_shares]
    for name in present:
        server.share(name, rig.site(name, header).share(advertised))
    server.freeze_sharing()
    for name in present:
        server.upload(name, mask(rig, name, header, server))
    return server


def kept(rig: Rig, header: Header, names: list[str]) -> set[int]:
    return {rig.site(name, header).kept for name in names}


def test_parts_of_three_hospitals_are_kept_and_all_hospitals_agree(rig: Rig) -> None:
    header = rig.header()
    up_to_upload(rig, header, dict(zip(rig.names, BRINGS, strict=True)))
    assert kept(rig, header, rig.names) == {0b111}


def test_part_of_two_hospitals_is_left_out_by_all(rig: Rig) -> None:
    header = rig.header()
    up_to_upload(rig, header, dict(zip(rig.names, (0b11, 0b11, 0b01, 0b01, 0b00), strict=True)))
    assert kept(rig, header, rig.names) == {0b01}


def test_hospital_that_sends_no_shares_does_not_count(rig: Rig) -> None:
    header = rig.header()
    up_to_upload(rig, header, dict(zip(rig.names, BRINGS, strict=True)), leaves_before_shares=rig.names[1])
    assert kept(rig, header, [name for name in rig.names if name != rig.names[1]]) == {0b101}


def test_server_that_drops_a_hospital_after_its_reply_gets_no_sum(rig: Rig) -> None:
    """Without the second hospital, part 1 would be a sum of two."""
    header = rig.header()
    server = up_to_upload(rig, header, dict(zip(rig.names, BRINGS, strict=True)))
    present = [name for name in rig.names if name != rig.names[1]]
    for name in present:
        assert refused(lambda name=name: rig.site(name, header).confirm(Uploaded(hospitals=tuple(present)))) == (
            "E_SECAGG_FEW_BRING"
        )
    assert server.confirmations is None


def test_hospital_without_a_rare_part_may_drop_out(rig: Rig) -> None:
    header = rig.header()
    up_to_upload(rig, header, dict(zip(rig.names, (0b1, 0b1, 0b1, 0b1, 0b0), strict=True)))
    present = tuple(rig.names[:4])
    assert all(rig.site(name, header).confirm(Uploaded(hospitals=present)).signature for name in present)


def test_next_attempt_leaves_the_part_out(rig: Rig) -> None:
    up_to_upload(rig, rig.header(), dict(zip(rig.names, BRINGS, strict=True)))
    again = rig.header(attempt=2)
    brings = dict(zip(rig.names, BRINGS, strict=True))
    del brings[rig.names[1]]
    up_to_upload(rig, again, brings)
    assert kept(rig, again, list(brings)) == {0b101}


def test_server_cannot_change_what_a_hospital_says_that_it_brings(rig: Rig) -> None:
    header = rig.header()
    advertisements = [rig.site(name, header).advertise(0b1 if name == rig.names[0] else 0) for name in rig.names]
    claimed = [each.model_copy(update={"brings": "1"}) for each in advertisements]
    assert refused(lambda: rig.site(rig.names[0], header).share(Advertised(hospitals=tuple(claimed)))) == (
        "E_SECAGG_SIGNATURE"
    )
