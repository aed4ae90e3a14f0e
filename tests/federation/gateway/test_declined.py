"""Tests of the requests that a node repeats for as long as it runs, when the server declines one of them.

Whatever stands before a study's server, such as a load balancer, may answer one request with an error of its own.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node

from federation.flower.log_lines import LOOP_ENDED
from federation.gateway import proxy, task_exchange
from federation.gateway.task_exchange import Exchange
from federation.node.start import SUPERNODE
from federation.system.process import LOOPBACK, Process, flower_environment, free_port
from tests.federation.gateway.fake_server import NODE_ID, Bench, Server
from tests.federation.gateway.messages import site_of_thirty
from tests.federation.gateway.test_hostile_node import post

STATUSES = (204, 302, 400, 403, 404, 408, 413, 429, 500, 501, 503)
REQUESTS = {
    "pull-messages": PullMessagesRequest(node=Node(node_id=NODE_ID)),
    "send-node-heartbeat": SendNodeHeartbeatRequest(node=Node(node_id=NODE_ID)),
}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(task_exchange, "SOON_SECONDS", 0.0)
    monkeypatch.setattr(proxy, "NODE_WAITS_SECONDS", 0.0)
    bench = Bench(site_of_thirty(tmp_path), Server())
    yield bench
    bench.close()


def ask(bench: Bench, path: str) -> int:
    """Send the node's request through the gateway; return the status of the answer."""
    return post(bench, path, REQUESTS[path].SerializeToString()).status_code


@pytest.mark.parametrize("path", REQUESTS)
def test_node_is_told_to_try_again_whatever_the_server_answers(bench: Bench, path: str) -> None:
    answers = {}
    for status in STATUSES:
        bench.server.declines = {path: status}
        answers[status] = ask(bench, path)
    assert answers == dict.fromkeys(STATUSES, 503)
    bench.server.declines = {}
    assert ask(bench, path) == 200


@pytest.mark.parametrize("path", REQUESTS)
def test_node_registers_again_if_the_server_does_not_know_it(bench: Bench, path: str) -> None:
    bench.server.declines = {path: 401}
    assert ask(bench, path) == 401


def test_heartbeat_that_the_server_does_not_accept_is_repeated(bench: Bench) -> None:
    bench.server.accepts_heartbeats = False
    assert ask(bench, "send-node-heartbeat") == 503


def test_node_is_told_to_try_again_after_an_error_of_the_gateway(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Exchange) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Exchange, "pull", fail)
        assert ask(bench, "pull-messages") == 503
    assert ask(bench, "pull-messages") == 200


# --- Flower's own program ---------------------------------------------------------------------------------


def supernode(bench: Bench, folder: Path, port: int) -> Process:
    """Start Flower's SuperNode as a node does. It connects to the gateway or the server on this port."""
    secret = folder / "secret"
    secret.write_text("a" * 64)
    secret.chmod(0o600)
    command = [
        *(sys.executable, "-I", "-m", SUPERNODE),
        f"--superlink={LOOPBACK}:{port}",
        f"--root-certificates={bench.site.folder / 'keys' / 'gateway.crt'}",
        f"--auth-supernode-private-key={bench.site.node_key}",
        f"--host={LOOPBACK}",
        f"--port={free_port()}",
        "--isolation=process",
        f"--superexec-auth-secret-file={secret}",
    ]
    environment = flower_environment(folder / "flower_home")
    return Process("the node", command, log=folder / "node.log", environment=environment)


def test_supernode_goes_on_asking_after_an_error_of_the_server(bench: Bench, tmp_path: Path) -> None:
    def pulls() -> int:
        return bench.server.paths.count("pull-messages")

    with supernode(bench, tmp_path, bench.port) as process:
        process.wait_until(lambda: pulls() or None, seconds=60)
        bench.server.declines = {"pull-messages": 500}
        before = pulls()
        process.wait_until(lambda: pulls() > before + 1 or None, seconds=60)
        bench.server.declines = {}
        process.wait_until(lambda: "Connection successful" in process.output() or None, seconds=60)


def test_process_ends_with_the_main_loop_of_the_supernode(bench: Bench, tmp_path: Path) -> None:
    """Without a gateway between them, Flower's loop ends at the error. Its other threads must not keep the process."""
    with supernode(bench, tmp_path, bench.server_port) as process:
        process.wait_until(lambda: "pull-messages" in bench.server.paths or None, seconds=60)
        bench.server.declines = {"pull-messages": 500}
        process.wait_until(lambda: not process.running or None, seconds=60)
        assert process.wait() == 1
        assert "500" in process.output()
        assert process.output().endswith(f"{LOOP_ENDED}\n")
