"""Tests of a server's list of sites, without a running server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.control_pb2 import ListNodesResponse, RegisterNodeResponse, UnregisterNodeResponse
from flwr.proto.node_pb2 import NodeInfo

from federation.enrolment.certificates import create_node_key, load_node_public_key
from federation.superlink import nodes
from federation.superlink.nodes import Site, enrol, sites, strike_off
from models.refusal import Refusal


class FakeControl:
    """A stand-in for the calls of Flower's Control API that the list of sites needs."""

    def __init__(self, *nodes: NodeInfo) -> None:
        self.nodes = list(nodes)

    def ListNodes(self, request: object) -> ListNodesResponse:  # noqa: N802
        return ListNodesResponse(nodes_info=self.nodes)

    def RegisterNode(self, request: Any) -> RegisterNodeResponse:  # noqa: N802
        node = NodeInfo(
            node_id=len(self.nodes) + 1, name=request.name, public_key=request.public_key, status="registered"
        )
        self.nodes.append(node)
        return RegisterNodeResponse(node_id=node.node_id)

    def UnregisterNode(self, request: Any) -> UnregisterNodeResponse:  # noqa: N802
        for node in self.nodes:
            if node.node_id == request.node_id:
                node.status = "unregistered"
        return UnregisterNodeResponse()

    def active(self) -> list[tuple[str, bytes]]:
        return [(node.name, node.public_key) for node in self.nodes if node.status != "unregistered"]


@pytest.fixture
def fake_control(monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    fake = FakeControl()

    @contextmanager
    def control(folder: Path) -> Iterator[FakeControl]:
        yield fake

    monkeypatch.setattr(nodes, "control", control)
    return fake


def public_key(path: Path) -> bytes:
    return load_node_public_key(create_node_key(path))


def test_enrolment_registers_the_key_under_the_site_name(tmp_path: Path, fake_control: FakeControl) -> None:
    key = public_key(tmp_path / "node")
    assert enrol(tmp_path, key, "hospital-a") == 1
    assert fake_control.active() == [("hospital-a", key)]
    assert enrol(tmp_path, key, "hospital-a") == 1, "a second enrolment changes nothing"
    assert sites(tmp_path) == [Site("hospital-a", 1, online=False)]
    fake_control.nodes[0].status = "online"
    assert sites(tmp_path) == [Site("hospital-a", 1, online=True)]


def test_key_belongs_to_one_site(tmp_path: Path, fake_control: FakeControl) -> None:
    key = public_key(tmp_path / "a")
    enrol(tmp_path, key, "hospital-a")
    with pytest.raises(Refusal, match=r"E_ALREADY_ENROLLED: .* hospital-a"):
        enrol(tmp_path, key, "hospital-b")
    assert len(fake_control.nodes) == 1


def test_newest_key_replaces_the_earlier_key_of_a_site(tmp_path: Path, fake_control: FakeControl) -> None:
    first, second = public_key(tmp_path / "a"), public_key(tmp_path / "b")
    enrol(tmp_path, first, "hospital-a")
    enrol(tmp_path, second, "hospital-a")
    assert fake_control.active() == [("hospital-a", second)]


def test_removed_site_cannot_enrol_again_with_the_same_key(tmp_path: Path, fake_control: FakeControl) -> None:
    first, other = public_key(tmp_path / "a"), public_key(tmp_path / "b")
    enrol(tmp_path, first, "hospital-a")
    enrol(tmp_path, other, "hospital-b")
    strike_off(tmp_path, "hospital-a")
    assert fake_control.active() == [("hospital-b", other)]
    assert [site.name for site in sites(tmp_path)] == ["hospital-b"]
    with pytest.raises(Refusal, match="E_KEY_REVOKED"):
        enrol(tmp_path, first, "hospital-a")
