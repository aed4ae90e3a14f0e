"""Tests of our processes: their environment, their ports, and that they end."""

import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.system import process
from federation.system.process import Process, flower_environment, free_port, port_is_taken
from federation.system.reaper import descendants, read_parents
from tests.helpers.waiting import eventually


def test_descendants_include_all_levels() -> None:
    parents = {2: 1, 10: 2, 11: 10, 12: 11, 13: 10, 20: 1, 21: 20}
    assert descendants(10, parents) == [11, 13, 12]
    assert descendants(12, parents) == []


def test_environment_disables_telemetry(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path, FEDTHORAX_SITE_DIR="x")
    expected = {
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FEDTHORAX_SITE_DIR": "x",
    }
    assert expected.items() <= environment.items()


def test_flower_respects_the_disabled_update_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore import update_check

    asked: list[object] = []
    monkeypatch.setattr(update_check, "_read_flwr_update_check_cache", lambda: None)
    monkeypatch.setattr(update_check, "_start_flwr_update_check_refresh_thread", asked.append)
    monkeypatch.delenv("FLWR_DISABLE_UPDATE_CHECK", raising=False)
    update_check.warn_if_flwr_update_available("flower-superlink")
    assert asked == ["flower-superlink"]  # Flower's default
    monkeypatch.setenv("FLWR_DISABLE_UPDATE_CHECK", flower_environment(tmp_path)["FLWR_DISABLE_UPDATE_CHECK"])
    update_check.warn_if_flwr_update_available("flower-superlink")
    assert len(asked) == 1


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_proxy_is_not_used_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    from httpx._utils import get_environment_proxies

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(variable, "pacs.example.org")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    for name, value in flower_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    proxies = get_environment_proxies()
    assert proxies["https://"] == "http://proxy.example.org:3128"
    unproxied = {pattern for pattern, proxy in proxies.items() if proxy is None}
    assert any("127.0.0.1" in pattern for pattern in unproxied)
    assert any("pacs.example.org" in pattern for pattern in unproxied)


def test_free_ports_differ_and_are_below_those_that_the_kernel_gives() -> None:
    ports = {free_port() for _ in range(200)}
    assert len(ports) == 200
    assert min(ports) >= 10_240
    assert max(ports) < 30_000


def test_free_port_is_not_one_on_which_a_program_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    others = random.sample(range(30_000, 32_768), 100)  # which `free_port` gives to nobody
    free = next(port for port in others if not port_is_taken("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(process, "PORTS", (taken.getsockname()[1], free))
        assert free_port() == free


def test_port_is_taken_while_a_socket_listens() -> None:
    port = free_port()
    assert not port_is_taken("127.0.0.1", port)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        assert port_is_taken("127.0.0.1", port)
    assert not port_is_taken("127.0.0.1", port)


# --- the end of a process ---------------------------------------------------------------------------------

STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Process]:
    """Return a function that starts a program with a short grace period, and waits until it prints "ready"."""
    monkeypatch.setattr(process, "GRACE_SECONDS", 0.5)

    def begin(code: str) -> Process:
        command = [sys.executable, "-I", "-c", code]
        started = Process("the program", command, log=tmp_path / "program.log", environment=os.environ)
        started.wait_until(lambda: "ready" in started.output(), seconds=60)
        return started

    return begin


def has_ended(pids: list[int]) -> bool:
    return not set(pids) & set(read_parents())


def test_child_that_ignores_the_signal_is_killed_and_its_log_says_so(start: Callable[[str], Process]) -> None:
    program = start(STUBBORN)
    members = descendants(program.pid, read_parents())
    assert len(members) == 1
    program.stop()
    assert has_ended(members)
    assert f"not ended 0.5 s after SIGTERM, killed: processes {members}" in program.output()


def test_process_ends_while_a_fork_holds_its_pipe_open(start: Callable[[str], Process]) -> None:
    """A fork of this process, such as a worker, has a copy of each pipe: closing this end tells the guard nothing."""
    program = start("import time; print('ready', flush=True); time.sleep(600)")
    if not (fork := os.fork()):
        signal.pause()
        os._exit(0)
    try:
        program.stop()
        assert not program.running
    finally:
        os.kill(fork, signal.SIGKILL)
        os.waitpid(fork, 0)


def test_stuck_guard_is_killed_with_all_below_it(
    start: Callable[[str], Process], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = start(STUBBORN)
    members = [*descendants(program.pid, read_parents()), program.pid]
    os.kill(program.pid, signal.SIGSTOP)
    monkeypatch.setattr(process, "STOP_SECONDS", 1.0)
    program.stop()
    assert not program.running
    assert eventually(lambda: has_ended(members))
    assert f"the program has not ended within 1 s; killed: processes {members}" in caplog.text


def test_signal_during_the_start_ends_what_was_started(start: Callable[[str], Process]) -> None:
    """Whoever waits for a process does not hold it yet, and could not end it."""
    program = start(STUBBORN)
    members = descendants(program.pid, read_parents())

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        program.wait_until(interrupted, seconds=60)
    assert has_ended(members)
