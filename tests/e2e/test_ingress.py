"""A complete server (SuperLink, SuperExec, ingress), and nodes that join, connect and are revoked."""

import http.client
import json
import os
import signal
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from federation.enrolment.certificates import client_tls, load_node_key, public_pem
from federation.enrolment.join import node_certificate
from federation.superlink.control import read_server_config
from federation.system.process import free_port
from federation.system.reaper import read_parents
from pipeline.site.folder import Site
from tests.e2e.conftest import Command, run_command

pytestmark = pytest.mark.e2e


def ok(*arguments: str | Path) -> str:
    done = run_command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Running:
    """The server's folder and the command that runs it."""

    folder: Path
    command: Command

    def sites(self) -> dict[str, dict[str, object]]:
        return {site["site"]: site for site in json.loads(ok("server", "sites", self.folder, "--json"))}

    def log(self) -> str:
        return (self.folder / "logs" / "door.log").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., Command]) -> Running:
    folder = tmp_path_factory.mktemp("study") / "server"
    ok("server", "init", folder, "--port", str(free_port()))
    command = start("server", "start", folder)
    command.wait_for("The server is up", seconds=300)
    return Running(folder, command)


def join(server: Running, folder: Path, name: str) -> Site:
    """Create a hospital that has joined the study as `name`."""
    code = json.loads(ok("server", "enrol", server.folder, name, "--patients", "90", "--json"))["code"]
    ok("node", "init", folder, "--name", name)
    ok("node", "join", folder, code)
    return Site.open(folder)


@pytest.fixture(scope="module")
def north(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return join(server, tmp_path_factory.mktemp("north") / "site", "north")


def fleet(site: Site) -> FleetHttpClient:
    """Return Flower's own Fleet client with the certificate of the site."""
    tls = client_tls(site.ca_certificate, certificate=node_certificate(site), private_key=site.node_key)
    key = load_node_key(site.node_key)
    return FleetHttpClient(
        f"https://{site.settings.server.address}",
        interceptors=[NodeAuthHttpInterceptor(key, key.public_key())],
        verify=tls,
    )


@pytest.fixture(scope="module")
def node(north: Site) -> Iterator[tuple[FleetHttpClient, Node]]:
    """The node of north, online."""
    with fleet(north) as client:
        key = public_pem(load_node_key(north.node_key).public_key())
        answer = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30))
        yield client, Node(node_id=answer.node_id)


def refusal(call: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(httpx.HTTPStatusError) as error:
        call()
    return error.value.response.status_code, error.value.response.json()["detail"]


def test_site_joins_with_its_code_and_its_node_is_admitted(
    server: Running, north: Site, node: tuple[FleetHttpClient, Node]
) -> None:
    client, me = node
    assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=me, heartbeat_interval=30)).success
    seen = server.sites()["north"]
    assert (seen["state"], seen["patients"], seen["online"]) == ("enrolled", 90, True)
    assert "joined site=? from=127.0.0.1 POST '/enrolment/join'  north" in server.log()


def test_join_code_works_only_once(server: Running, tmp_path: Path) -> None:
    code = json.loads(ok("server", "enrol", server.folder, "west", "--json"))["code"]
    ok("node", "init", tmp_path / "first")
    ok("node", "join", tmp_path / "first", code)
    ok("node", "init", tmp_path / "second")
    second = run_command("node", "join", tmp_path / "second", code)
    assert second.returncode == 1
    assert "E_JOIN_REFUSED" in second.stderr
    assert "E_INVITATION_OVER" in second.stderr
    assert not (tmp_path / "second" / "keys" / "node.crt").exists()


def test_ingress_refuses_node_registration_of_flower(server: Running, node: tuple[FleetHttpClient, Node]) -> None:
    client, _ = node
    call = refusal(lambda: client.RegisterNode(RegisterNodeFleetRequest(public_key=b"any")))
    assert call == (403, "E_NO_WAY")
    assert "refused site=north" in server.log()


def test_superlink_gives_no_task_without_the_secret(server: Running) -> None:
    """A local user of the server machine cannot take over a task of the study from the SuperLink."""
    certificate = server.folder / "certificates" / "loopback.crt"
    connection = http.client.HTTPSConnection(
        "127.0.0.1",
        read_server_config(server.folder).superlink_port,
        context=ssl.create_default_context(cafile=certificate),
        timeout=60,
    )
    connection.request("POST", "/v1/runtime/acquire-task", b"", {"content-type": "application/protobuf"})
    assert connection.getresponse().status == 401


def test_server_runs_the_code_of_the_study(server: Running, tmp_path: Path, start: Callable[..., Command]) -> None:
    """Without working nodes, the run waits for sites and ends with E_QUORUM."""
    study = tmp_path / "study.toml"
    study.write_text('[study]\nname = "nobody"\nrounds = 1\nsites = 3\nquorum = 3\nwait_s = 5\nsynthetic = true\n')
    run = start("study", "run", study, "--server", server.folder)
    assert run.wait(seconds=300) == 1
    assert "E_QUORUM" in run.text(), run.text()
    assert "Traceback" not in run.text()


def test_revocation_applies_to_open_connection(server: Running, tmp_path: Path, start: Callable[..., Command]) -> None:
    site = join(server, tmp_path / "site", "south")
    with fleet(site) as client:
        key = public_pem(load_node_key(site.node_key).public_key())
        answer = client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30))
        beat = SendNodeHeartbeatRequest(node=Node(node_id=answer.node_id), heartbeat_interval=30)
        assert client.SendNodeHeartbeat(beat).success
        ok("server", "revoke", server.folder, "south")
        assert refusal(lambda: client.SendNodeHeartbeat(beat)) == (401, "E_CERTIFICATE_REVOKED")
    assert server.sites()["south"]["state"] == "revoked"
    renewal = run_command("node", "renew", site.folder)
    assert renewal.returncode == 1
    assert "E_CERTIFICATE_REVOKED" in renewal.stderr

    code = json.loads(ok("server", "enrol", server.folder, "south", "--json"))["code"]
    same_key = run_command("node", "join", site.folder, code)
    assert "E_KEY_REVOKED" in same_key.stderr
    for file in ("node", "node.pub"):
        (site.folder / "keys" / file).unlink()
    ok("node", "join", site.folder, code)
    assert server.sites()["south"]["state"] == "enrolled"


def test_whole_server_ends_when_the_ingress_ends(server: Running, north: Site, start: Callable[..., Command]) -> None:
    """Must run last: it ends the server. Flower's state may be lost with it, but the sites stay enrolled."""
    family = server.command.family()
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family}
    (door,) = (pid for pid, line in commands.items() if b"federation.ingress" in line and b"reaper.py" not in line)
    os.kill(door, signal.SIGKILL)
    assert server.command.wait(seconds=300) != 0
    assert not set(family) & set(read_parents())

    for file in server.folder.glob("state.db*"):
        file.unlink()
    start("server", "start", server.folder).wait_for("The server is up", seconds=300)
    with fleet(north) as client:
        key = public_pem(load_node_key(north.node_key).public_key())
        assert client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30)).node_id
    assert server.sites()["north"]["online"] is True
