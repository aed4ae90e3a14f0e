"""`fedthorax node start` and `node status` as real processes, with a server that does not respond."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.system.process import free_port
from tests.e2e.conftest import Command, enter, ok, run_command

pytestmark = pytest.mark.e2e


def status(site: Path) -> dict[str, object]:
    done = run_command("node", "status", site, "--json")
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_node_retries_until_sigterm_when_the_server_is_down(tmp_path: Path, start: Callable[..., Command]) -> None:
    site, folder = tmp_path / "site", tmp_path / "server"
    ok("server", "init", folder, "--port", str(free_port()))
    server = start("server", "start", folder)
    server.wait_for("The server is up", seconds=300)
    ok("node", "init", site, "--name", "north")
    enter(site, folder, "north")
    server.interrupt()
    assert status(site)["running"] is False

    node = start("node", "start", site)
    node.wait_for(r"no answer yet \(E_SERVER_SILENT\)", seconds=300)
    seen = status(site)
    assert (seen["running"], seen["pid"], seen["connection"]) == (True, node.process.pid, "dialling")
    second = run_command("node", "start", site)
    assert second.returncode == 1
    assert "E_NODE_RUNNING" in second.stderr

    family = node.family()
    node.process.send_signal(signal.SIGTERM)
    assert node.wait(seconds=300) == 0
    assert "has ended, as requested" in node.text()
    assert "Traceback" not in node.text()
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    assert status(site)["running"] is False
