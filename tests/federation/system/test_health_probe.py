"""The health check of a container: the answer of a service of this machine, and of no other."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client.core import Metric

from federation.system.health_probe import is_healthy
from federation.system.monitoring import monitored
from federation.system.process import LOOPBACK, free_port


def figures() -> Iterator[Metric]:
    yield from ()


def test_probe_follows_the_state_of_the_service() -> None:
    state = {"connected": False}
    with monitored(port := free_port(), figures, lambda: state):
        ready = f"http://{LOOPBACK}:{port}/health/ready"
        assert not is_healthy(ready)
        state["connected"] = True
        assert is_healthy(ready)
    assert not is_healthy(ready)  # nothing listens any more


def test_probe_as_a_program_needs_nothing_but_its_exit_code() -> None:
    command = [sys.executable, "-P", "-m", "federation.system.health_probe"]
    with monitored(port := free_port(), figures, lambda: {"works": True}):
        done = subprocess.run([*command, f"http://{LOOPBACK}:{port}/health/ready"], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("url", ["http://server.example:9464/health/ready", "file:///etc/passwd", "127.0.0.1:9464"])
def test_probe_asks_no_other_machine(url: str) -> None:
    with pytest.raises(ValueError, match="not an address of this machine"):
        is_healthy(url)
