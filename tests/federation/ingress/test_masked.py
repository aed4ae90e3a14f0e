"""What the ingress does with messages of masked rounds: it names the caller, and passes nothing else on."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.coordinator.masked_round import MaskedRound
from federation.coordinator.masked_service import MaskedService
from federation.enrolment import invitations as enrolment
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.roster import Roster
from federation.superlink.masked_address import PATH, ROUND_HEADER, SITE_HEADER
from tests.e2e.ingress_rig import Node, Rig, open_rig

PEERS = PATH + "peers"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_rig(tmp_path / "server") as rig:
        yield rig


def key_of(path: Path) -> bytes:
    return json.dumps({"key": base64.b64encode(Identity.kept(path).public).decode()}).encode()


def present(rig: Rig, node: Node, key: bytes) -> Roster:
    status, text = rig.ask(node, PEERS, body=key)
    assert status == 200
    return Roster.parse(text.encode())


def test_sites_get_the_list_of_all_that_presented_a_key(rig: Rig, tmp_path: Path) -> None:
    north, south = rig.enrol_node("north"), rig.enrol_node("south")
    assert [m.name for m in present(rig, north, key_of(tmp_path / "n")).members] == ["north"]
    both = present(rig, south, key_of(tmp_path / "s"))
    assert {member.name: member.key for member in both.members} == {
        name: Identity.kept(tmp_path / name[0]).public for name in ("north", "south")
    }
    renewed = present(rig, north, key_of(tmp_path / "other"))
    assert renewed.code != both.code, "another key makes another list, which everybody approves anew"
    enrolment.revoke(rig.folder, "south")
    assert [m.name for m in present(rig, north, key_of(tmp_path / "n")).members] == ["north"]


def test_strangers_and_malformed_keys_are_refused(rig: Rig, tmp_path: Path) -> None:
    north = rig.enrol_node("north")
    assert rig.ask(None, PEERS, body=key_of(tmp_path / "n"))[0] == 401
    for body in (b"", b"{}", b'{"key": "YQ=="}', b'{"key": 1}', b"x" * 100_000):
        assert rig.ask(north, PEERS, body=body)[0] in (403, 413)
    assert rig.ask(None, PATH + "begin", body=b"{}")[0] == 401
    assert rig.ask(north, PATH + "other", body=b"{}") == (403, "E_NO_WAY")


class Noted(MaskedRound):
    """Remembers who asked what."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes, str]] = []

    def answer(self, site: str, step: str, content: bytes, about: str) -> bytes | None:
        self.asked.append((site, step, content, about))
        return b"[]" if content == b"answer" else None


def test_message_reaches_the_coordinator_under_the_name_of_its_certificate(rig: Rig) -> None:
    north, noted = rig.enrol_node("north"), Noted()
    assert rig.ask(north, PATH + "begin", body=b"{}") == (502, "E_SUPERLINK_SILENT")
    with MaskedService(rig.folder, lambda: noted):
        headers = {SITE_HEADER: "south", ROUND_HEADER: "a" * 64}  # a site cannot speak for another
        assert rig.ask(north, PATH + "advertise", body=b"answer", headers=headers) == (200, "[]")
        connection = rig.connect(north)
        connection.request("POST", PATH + "share", body=b"none", headers=headers)
        assert connection.getresponse().status == 204
        connection.close()
        assert rig.ask(north, PATH + "share", body=b"x" * 200_000, headers=headers)[0] == 413
    assert noted.asked == [("north", "advertise", b"answer", "a" * 64), ("north", "share", b"none", "a" * 64)]
    assert rig.ask(north, PATH + "begin", body=b"{}") == (502, "E_SUPERLINK_SILENT")
