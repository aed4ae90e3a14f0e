"""Tests of starting a node: its command lines, the parsing of its log, and running in the foreground."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from federation.enrolment.join import node_certificate
from federation.flower.log_lines import LOOP_ENDED
from federation.gateway.loopback import loopback_certificate, loopback_tls
from federation.node import reasons
from federation.node import start as node
from federation.node.start import Node, node_status, run_node, start_node, wait_online
from federation.node.state import NodeState
from federation.system import reasons as system_reasons
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings


class RecordedProcess:
    """A stand-in for a process: records its arguments and starts nothing."""

    def __init__(self, name: str, command: list[str], *, log: Path, environment: dict[str, str]) -> None:
        self.name, self.command, self.log, self.environment = name, command, log, environment
        self.stopped = False

    def let_go(self) -> None:
        self.stopped = True

    def stop(self) -> None:
        self.stopped = True

    def __enter__(self) -> "RecordedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class EndedProcess:
    """A process that has printed `text` and has ended."""

    running = False
    log = Path("node.log")

    def __init__(self, text: str) -> None:
        self.text, self.stopped = text, False

    def output(self) -> str:
        return self.text

    def wait_until(self, ready: Callable[[], int | None], *, seconds: float) -> int:
        if answer := ready():
            return answer
        raise Refusal(system_reasons.NOT_STARTED, private="its log", process="the node", log="node.log")

    def let_go(self) -> None:
        self.stopped = True

    def stop(self) -> None:
        self.stopped = True


def ended(supernode: str, gateway: str = "") -> Node:
    """A node whose ended processes have printed these texts."""
    processes: Any = {
        "supernode": EndedProcess(supernode),
        "gateway": EndedProcess(gateway),
        "sandbox": EndedProcess(""),
    }
    return Node(**processes)


@pytest.fixture
def recorded(site: Site, monkeypatch: pytest.MonkeyPatch) -> dict[str, RecordedProcess]:
    """The options with which gateway and sandbox are started. The SuperNode is recorded too."""
    started: dict[str, RecordedProcess] = {}

    def start(name: str) -> Callable[..., RecordedProcess]:
        def record(_: Site, *, log: Path, **options: Any) -> RecordedProcess:
            started[name] = RecordedProcess(name, [], log=log, environment={k: str(v) for k, v in options.items()})
            return started[name]

        return record

    monkeypatch.setattr(node, "Process", RecordedProcess)
    monkeypatch.setattr(node, "start_gateway", start("gateway"))
    monkeypatch.setattr(node.sandbox, "start_superexec", start("sandbox"))
    return started


def test_supernode_connects_only_to_the_gateway(site: Site, recorded: dict[str, RecordedProcess]) -> None:
    started: Any = start_node(site)
    flags = started.supernode.command[1:]
    port = recorded["gateway"].environment["port"]
    assert f"--superlink=127.0.0.1:{port}" in flags
    assert f"--root-certificates={site.folder}/keys/gateway.crt" in flags
    assert {"--host=127.0.0.1", "--isolation=process"} <= set(flags)
    assert not any("study.example.org" in flag for flag in flags)
    assert started.supernode.environment["FLWR_HOME"] == f"{site.folder}/flower_home"
    runtime = recorded["sandbox"].environment
    assert f"--port={runtime['runtime_port']}" in flags
    assert f"--superexec-auth-secret-file={runtime['secret_file']}" in flags


def test_secret_is_new_at_each_start_and_private_to_its_owner(site: Site, recorded: dict[str, RecordedProcess]) -> None:
    secrets = set()
    for _ in range(2):
        start_node(site)
        path = Path(recorded["sandbox"].environment["secret_file"])
        assert path.stat().st_mode & 0o077 == 0
        secrets.add(path.read_bytes())
    assert len(secrets) == 2
    assert min(map(len, secrets)) == 64


def test_gateway_is_stopped_when_the_sandbox_does_not_start(
    site: Site, recorded: dict[str, RecordedProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise Refusal(reasons.SANDBOX)

    monkeypatch.setattr(node.sandbox, "start_superexec", fail)
    with pytest.raises(Refusal) as refused:
        start_node(site)
    assert refused.value.code == "E_SANDBOX"
    assert recorded["gateway"].stopped


def test_gateway_is_stopped_last(site: Site, recorded: dict[str, RecordedProcess]) -> None:
    started: Any = start_node(site)
    started.let_go()
    assert (started.sandbox.stopped, started.supernode.stopped, started.gateway.stopped) == (True, True, False)
    started.stop()
    assert started.gateway.stopped


def test_loopback_certificate_is_reused_while_its_key_exists(site: Site) -> None:
    certificate, key = loopback_certificate(site)
    before = certificate.read_bytes(), key.read_bytes()
    assert loopback_certificate(site) == (certificate, key)
    assert (certificate.read_bytes(), key.read_bytes()) == before
    assert key.stat().st_mode & 0o077 == 0
    key.unlink()
    loopback_certificate(site)
    assert certificate.read_bytes() != before[0]


def test_damaged_loopback_certificate_is_replaced(site: Site) -> None:
    for damaged in loopback_certificate(site):
        for content in (b"", bytes(range(256)), b"{}"):
            damaged.write_bytes(content)
            loopback_certificate(site)
            assert damaged.read_bytes() != content
            loopback_tls(site)


def test_node_is_online_when_the_log_shows_its_supernode_id() -> None:
    assert wait_online(ended("INFO:  SuperNode ID: 11763002427470149475\n")) == 11763002427470149475


@pytest.mark.parametrize(
    ("supernode", "gateway", "code"),
    [
        ("retrying\nExit Code: 305\n[code: 2004] Node activation failed", "", "E_NOT_ENROLLED"),
        ("Exit Code: 305\n[code: 0] E_SERVER_UNTRUSTED", "", "E_SERVER_UNTRUSTED"),
        ("Exit Code: 305\n[code: 401] E_CERTIFICATE_EXPIRED\nit has expired", "", "E_CERTIFICATE_EXPIRED"),
        ("INFO: terminated", "WARNING the server refused: E_CERTIFICATE_REVOKED", "E_CERTIFICATE_REVOKED"),
        ("Connection attempt failed, retrying in 3.40 seconds", "", "E_SERVER_SILENT"),
        ("Exit Code: 302\nUnable to parse the private key file.", "", "E_NOT_STARTED"),
    ],
)
def test_failed_connection_is_refused_with_its_cause(supernode: str, gateway: str, code: str) -> None:
    node = ended(supernode, gateway)
    with pytest.raises(Refusal) as refused:
        wait_online(node)
    assert refused.value.code == code
    assert refused.value.says
    assert refused.value.private == "its log"
    assert node.gateway.stopped  # type: ignore[attr-defined]


# --- in the foreground ------------------------------------------------------------------------------------

ONLINE = "INFO :      SuperNode ID: 42"


class ScriptedNode:
    """A stand-in for the node: each poll writes a log line or sends this process a signal. After the script it ends."""

    def __init__(self, site: Site, script: list[str | int]) -> None:
        self.log, self.script, self.stopped = site.logs / "node.log", script, False
        self.logs = [self.log]

    @property
    def running(self) -> bool:
        if not self.script:
            return False
        step = self.script.pop(0)
        if isinstance(step, int):
            os.kill(os.getpid(), step)
        else:
            with self.log.open("a") as log:
                log.write(step + "\n")
        return True

    ended_by = reasons.NODE_ENDED

    def outputs(self) -> tuple[str, str]:
        return "", self.log.read_text()

    def __enter__(self) -> "ScriptedNode":
        return self

    def __exit__(self, *_: object) -> None:
        for step in self.script:
            assert isinstance(step, int)
            os.kill(os.getpid(), step)  # while the processes end
        self.stopped = True


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = init_site(tmp_path / "site", site_settings(None, name="north", server="study.example.org:8443"))
    site.ca_certificate.write_text("certificate")
    site.node_key.write_text("key")
    node_certificate(site).write_text("certificate")
    return site


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Run the site's node from a script. Returns the messages to the operator, without their times."""
    monkeypatch.setattr(node, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(node, "STILL_CONNECTED_SECONDS", 0.0)

    def run(*script: str | int, json_lines: bool = False) -> list[str]:
        scripted = ScriptedNode(site, list(script))
        monkeypatch.setattr(node, "start_node", lambda *_, **__: scripted)
        said: list[str] = []
        try:
            run_node(site, said.append, json_lines=json_lines)
        finally:
            assert scripted.stopped
        if json_lines:
            return said
        assert all(line[4] == "-" and line[19:21] == "  " for line in said)
        return [line[21:] for line in said]

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGTERM]])
def test_node_that_receives_a_stop_signal_ends_without_error(
    run: Callable[..., list[str]], site: Site, signals: list[int]
) -> None:
    assert run(ONLINE, *signals) == [
        "the study's code runs without network, in a sandbox (bubblewrap)",
        "the node of north connects to study.example.org:8443; Ctrl-C stops it",
        "the node is online: the study's server has accepted it",
        "the node has ended, as requested",
    ]
    status = node_status(site)
    assert status["running"] is False
    assert status["connection"] == "ended"
    assert status["last_contact"] is not None
    assert status["processor"].startswith("networks are computed on ")


def test_events_are_one_json_object_a_line_on_request(run: Callable[..., list[str]]) -> None:
    lines = run(
        "WARNING :  Connection attempt failed, retrying",
        "WARNING :  Connection attempt failed, retrying",
        15,
        json_lines=True,
    )
    events = [json.loads(line) for line in lines]
    assert all(set(event) == {"time", "site", "code", "event"} and event["site"] == "north" for event in events)
    assert [event["code"] for event in events if event["code"]] == ["E_SERVER_SILENT"]
    assert events[-1]["event"] == "the node has ended, as requested"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("[code: 2004] Failed to activate SuperNode.", "E_NOT_ENROLLED"),
        ("[code: 0] E_SERVER_UNTRUSTED", "E_SERVER_UNTRUSTED"),
        ("[code: 0] E_NEVER_HEARD_OF", "E_NODE_ENDED"),
        ("[code: 0] E_SANDBOX", "E_NODE_ENDED"),  # its remedy would be to switch the sandbox off
        ("WARNING :  Connection attempt failed, retrying", "E_NODE_ENDED"),
    ],
)
def test_node_that_ends_by_itself_is_refused_with_the_cause(
    run: Callable[..., list[str]], line: str, code: str
) -> None:
    with pytest.raises(Refusal) as refused:
        run(line)
    assert refused.value.code == code


def test_old_log_line_is_not_reported_as_the_cause(run: Callable[..., list[str]]) -> None:
    with pytest.raises(Refusal) as refused:
        run("[code: 2004]", *["later"] * 30)
    assert refused.value.code == "E_NODE_ENDED"


@pytest.fixture
def run_several(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Run the site's node, which is started once for each script. Returns the messages to the operator."""
    monkeypatch.setattr(node, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(node, "AGAIN_SECONDS", 0.0)

    def run(*scripts: list[str | int]) -> list[str]:
        nodes = [ScriptedNode(site, script) for script in scripts]
        waiting = iter(nodes)
        monkeypatch.setattr(node, "start_node", lambda *_, **__: next(waiting))
        said: list[str] = []
        run_node(site, said.append)
        assert all(each.stopped for each in nodes)
        return said

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def test_node_restarts_when_a_moved_server_does_not_know_it(run_several: Callable[..., list[str]]) -> None:
    """Flower's SuperNode ends in this case. Our node restarts it, each time that it is needed.

    A request that the server refused before, because its run was ending, is not the cause.
    """
    forgotten = "2026-01-01 00:00:00,000 WARNING the server declined send-node-heartbeat: HTTP 401"
    said = run_several(
        [ONLINE, "2026-01-01 00:00:00,000 WARNING the server refused: E_NOT_FOR_NODE", forgotten],
        [*["later"] * 30, ONLINE, forgotten],
        [*["later"] * 30, ONLINE, signal.SIGTERM],
    )
    assert [line[21:37] for line in said if "E_NODE_FORGOTTEN" in line] == ["E_NODE_FORGOTTEN"] * 2
    assert sum("is online" in line for line in said) == 3


def test_node_that_counts_as_connected_after_a_kill_tries_again(run_several: Callable[..., list[str]]) -> None:
    refused = "[code: 2004] Failed to activate SuperNode."
    said = run_several([refused], [refused], [*["later"] * 30, ONLINE, signal.SIGTERM])
    assert sum("E_NOT_ENROLLED" in line and "tries again" in line for line in said) == 2
    assert sum("is online" in line for line in said) == 1


def test_node_restarts_after_the_end_of_its_loop(run_several: Callable[..., list[str]]) -> None:
    """A code that the server has sent before, at a request that the node repeated, is not the cause."""
    silent = "2026-01-01 00:00:00,000 WARNING the server refused: E_SUPERLINK_SILENT"
    said = run_several([ONLINE, silent, LOOP_ENDED], [*["later"] * 30, ONLINE, signal.SIGTERM])
    assert sum("E_NODE_LOOP" in line and "restarts" in line for line in said) == 1
    assert sum("is online" in line for line in said) == 2


def test_node_that_was_never_accepted_is_not_restarted(run: Callable[..., list[str]]) -> None:
    with pytest.raises(Refusal) as refused:
        run("WARNING the server declined activate-node: HTTP 401")
    assert refused.value.code == "E_NODE_ENDED"
    with pytest.raises(Refusal) as refused:  # the server's own code takes precedence
        run("WARNING the server declined pull-messages: HTTP 401", "the server refused: E_CERTIFICATE_REVOKED")
    assert refused.value.code == "E_CERTIFICATE_REVOKED"


def test_second_node_is_refused_and_status_shows_the_first(run: Callable[..., list[str]], site: Site) -> None:
    seen = []

    class Second(str):
        """A log line that checks the status and starts a second node when it is written."""

        def __add__(self, other: str) -> str:
            seen.append(node_status(site))
            with pytest.raises(Refusal) as refused:
                run_node(site, print)
            seen.append(refused.value.code)
            return str(self)

    run(ONLINE, Second(""), signal.SIGTERM)
    status, code = seen
    assert code == "E_NODE_RUNNING"
    assert status["running"] is True
    assert status["pid"] == os.getpid()
    assert status["connection"] == "online"
    assert status["since"] is not None


def test_a_node_without_server_certificate_or_key_is_not_started(site: Site) -> None:
    def code() -> str:
        with pytest.raises(Refusal) as refused:
            run_node(site, print)
        assert str(site.folder) not in str(refused.value)
        return refused.value.code

    node_certificate(site).unlink()
    assert code() == "E_NODE_FILE"
    site.node_key.unlink()
    assert code() == "E_NODE_FILE"
    site.ca_certificate.unlink()
    assert code() == "E_NODE_FILE"
    site.settings.server.address = ""
    assert code() == "E_NO_SERVER_SET"


def test_systemd_receives_the_operator_messages(
    run: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        said = run(ONLINE, signal.SIGTERM)
        assert [systemd.recv(1000).decode() for _ in said] == [f"READY=1\nSTATUS={text}" for text in said]


def test_status_of_a_site_that_never_ran_is_empty(site: Site) -> None:
    status = node_status(site)
    assert (status["running"], status["pid"], status["rounds"], status["patients"]) == (False, None, 0, 0)
    assert (status["since"], status["last_contact"], status["last_refusal"]) == (None, None, None)


def test_killed_node_is_not_running_despite_its_state_file(site: Site) -> None:
    state = NodeState.begin(site.logs)
    state.connection, state.doing, state.rounds = "online", "training for round 2", 5
    state.save(site.logs)
    status = node_status(site)
    assert (status["running"], status["connection"], status["doing"]) == (False, "ended", "")
    assert status["rounds"] == 5
