"""A server's folder, what it is started with, and enrolment, without a running server."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.proto.control_pb2 import ListNodesResponse, RegisterNodeResponse
from flwr.proto.node_pb2 import NodeInfo

from federation import server
from federation.certificates import create_node_key, load_node_public_key
from federation.control import read_server_config
from federation.processes import free_port
from federation.server import Site, enrol, init_server, sites, start_server
from models.refusal import Refusal


class RecordedProcess:
    """Stands where a process would be started, and keeps what it would be started with."""

    def __init__(self, name: str, command: list[str], *, log: Path, environment: dict[str, str]) -> None:
        self.command, self.log, self.environment = command, log, environment

    def wait_until(self, ready: object, *, seconds: float) -> bool:
        return True


class FakeControl:
    """The two calls of Flower's Control API that enrolment makes."""

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_server(tmp_path / "server", port=free_port())
    return tmp_path / "server"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "Process", RecordedProcess)


@pytest.fixture
def fake_control(monkeypatch: pytest.MonkeyPatch) -> FakeControl:
    fake = FakeControl()

    @contextmanager
    def control(folder: Path) -> Iterator[FakeControl]:
        yield fake

    monkeypatch.setattr(server, "control", control)
    return fake


def test_a_new_server_listens_on_loopback_alone(tmp_path: Path) -> None:
    init_server(tmp_path, port=9000)
    config = read_server_config(tmp_path)
    assert (config.host, config.port, config.simulated_sites) == ("127.0.0.1", 9000, 0)


def test_a_second_init_changes_nothing(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(Refusal, match="E_EXISTS"):
        init_server(folder, hosts=["study.example.org"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("port = 0", "port"),
        ("port = 8443\nhots = 'x'", "hots"),
        ("", "port"),
        ("port = ", "syntax"),
        ("port = 'a'", "port"),
    ],
)
def test_a_wrong_setting_is_named(folder: Path, text: str, key: str) -> None:
    (folder / "server.toml").write_text(text)
    with pytest.raises(Refusal, match=f"E_SERVER_CONFIG: server.toml: {key}: ") as refused:
        start_server(folder)
    assert str(folder) not in str(refused.value)


def test_a_folder_without_a_server_is_refused(tmp_path: Path) -> None:
    for act in (start_server, sites):
        with pytest.raises(Refusal, match="E_NO_SERVER"):
            act(tmp_path)


def test_a_taken_port_is_refused_before_anything_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "Process", None)
    with socket.socket() as other:
        other.bind(("127.0.0.1", read_server_config(folder).port))
        other.listen()
        with pytest.raises(Refusal, match="E_PORT_IN_USE"):
            start_server(folder)


def test_an_expired_certificate_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "Process", None)
    monkeypatch.setattr(server, "valid_until", lambda certificate: datetime(2020, 1, 2, tzinfo=UTC))
    with pytest.raises(Refusal, match=r"E_CERTIFICATE_EXPIRED: .* until 2020-01-02"):
        start_server(folder)


def test_the_server_speaks_tls_and_lets_in_enrolled_keys_alone(folder: Path, recorded: None) -> None:
    process: Any = start_server(folder)
    flags = set(process.command[1:])
    assert {
        "--host=127.0.0.1",
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        f"--database={folder}/state.db",
        f"--ssl-certfile={folder}/certificates/server.crt",
    } <= flags
    assert "--insecure" not in flags
    assert process.environment["FEDTHORAX_SERVER_DIR"] == str(folder)
    assert process.environment["FLWR_HOME"] == f"{folder}/flower_home"


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_listening_beyond_this_machine_is_flagged(
    folder: Path, recorded: None, caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    (folder / "server.toml").write_text(f'host = "{host}"\nport = {free_port()}\n')
    with caplog.at_level(logging.WARNING):
        start_server(folder)
    assert ("W_SERVER_EXPOSED" in caplog.text) == warned


def test_enrolment_registers_the_key_under_the_name(tmp_path: Path, fake_control: FakeControl) -> None:
    key = create_node_key(tmp_path / "node")
    assert enrol(tmp_path, key, "hospital-a") == 1
    assert [(node.name, node.public_key) for node in fake_control.nodes] == [("hospital-a", load_node_public_key(key))]
    fake_control.nodes[0].status = "online"
    assert sites(tmp_path) == [Site("hospital-a", 1, online=True)]


def test_neither_a_key_nor_a_name_is_enrolled_twice(tmp_path: Path, fake_control: FakeControl) -> None:
    first, second = create_node_key(tmp_path / "a"), create_node_key(tmp_path / "b")
    enrol(tmp_path, first, "hospital-a")
    with pytest.raises(Refusal, match=r"E_ALREADY_ENROLLED: .* hospital-a"):
        enrol(tmp_path, first, "hospital-b")
    with pytest.raises(Refusal, match="E_SITE_NAME_TAKEN"):
        enrol(tmp_path, second, "hospital-a")
    assert len(fake_control.nodes) == 1


@pytest.mark.parametrize("name", ["", "Hospital", "hôpital", "a b", "a_b", "a\n", "x" * 64])
def test_a_name_that_could_mislead_is_refused(tmp_path: Path, fake_control: FakeControl, name: str) -> None:
    with pytest.raises(Refusal, match="E_SITE_NAME:"):
        enrol(tmp_path, create_node_key(tmp_path / "node"), name)
    assert not fake_control.nodes
