"""A site's node: three processes that request tasks from the study's server and run them at the site.

Flower's SuperNode receives the tasks, the sandbox runs the study's code for them, and the gateway is the only one of
the three that communicates with the server. If one process ends, all are ended.
"""

import json
import math
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from federation.approval import peer_checks
from federation.approval import reasons as approval_reasons
from federation.enrolment import reasons as enrolment_reasons
from federation.enrolment.join import node_certificate
from federation.enrolment.standing import standing
from federation.flower import log_lines
from federation.gateway import reasons as gateway_reasons
from federation.gateway.loopback import loopback_certificate
from federation.gateway.process import start_gateway
from federation.ingress import reasons as ingress_reasons
from federation.ledger.chain import ledger_file, read_lines
from federation.ledger.reasons import RESTORED
from federation.ledger.restored import is_restored
from federation.node import reasons, sandbox
from federation.node.node_metrics import NodeMetrics
from federation.node.state import APP_LOG, NodeState, now
from federation.protocol import reasons as protocol_reasons
from federation.superlink import reasons as superlink_reasons
from federation.system.monitoring import monitored
from federation.system.process import LOOPBACK, Process, flower_environment, free_port
from federation.system.process_group import Together
from federation.system.refusals_page import REASONS
from models.processor_report import report
from models.refusal import Reason, Refusal
from pipeline.feeds.result_queue import queue_state
from pipeline.site.folder import Site
from pipeline.site.study_server import server_proxy
from pipeline.system.child_logs import Tail, cut, put_aside
from pipeline.system.folder_format import stamp_folder
from pipeline.system.locks import alone, is_held

ONLINE_SECONDS = 60.0
LOOK_SECONDS = 0.5  # between two looks at the processes and their logs
# A node that was killed counts as connected at the server for a minute, and its key is not accepted meanwhile.
STILL_CONNECTED_SECONDS = 90.0
AGAIN_SECONDS = 10.0
_SAVE_SECONDS = 10.0
_LAST_LINES = 30
LOCK = "node.lock"
SUPERNODE = "federation.node.supernode"

_NODE_ID = re.compile(log_lines.NODE_ID)
# What the gateway prints if the server was moved or has lost its database: the server had accepted the node, and no
# longer knows the id that it assigned. Flower's SuperNode then ends, not always with a reason.
_FORGOTTEN = re.compile(r"the server declined (?!activate-node)[a-z-]+: HTTP 401")
# The codes with which a server or the gateway can refuse a node. Other codes are not shown: a hostile server could send
# a code whose remedy is to switch the sandbox off.
_OF_SERVER = {
    reason.code
    for reason in (
        *(ingress_reasons.NO_CERTIFICATE, enrolment_reasons.CERTIFICATE_UNKNOWN, enrolment_reasons.CERTIFICATE_EXPIRED),
        *(
            enrolment_reasons.CERTIFICATE_REVOKED,
            gateway_reasons.CERTIFICATE_REFUSED,
            ingress_reasons.NODE_KEY,
            ingress_reasons.CLOCK,
        ),
        *(
            ingress_reasons.NO_WAY,
            superlink_reasons.NOT_FOR_NODE,
            ingress_reasons.BODY_SIZE,
            ingress_reasons.DOOR_BUSY,
            ingress_reasons.TOO_SLOW,
        ),
        *(
            ingress_reasons.SUPERLINK_SILENT,
            superlink_reasons.SERVER_UNREACHABLE,
            enrolment_reasons.SERVER_UNTRUSTED,
            gateway_reasons.GATEWAY_KEY,
        ),
        *(protocol_reasons.SITE_OUTDATED, protocol_reasons.SERVER_OUTDATED),
    )
}
_CODED = re.compile(r"(?:\[code: \d+\]|the server refused:) (E_[A-Z_]+)")


class Node(Together):
    """The running processes of a node."""

    def __init__(self, *, gateway: Process, supernode: Process, sandbox: Process) -> None:
        super().__init__([sandbox, supernode, gateway], log=supernode.log)
        self.gateway, self.supernode, self.sandbox = gateway, supernode, sandbox

    @property
    def ended_by(self) -> Reason:
        """Return the reason for a node that is not running, if its logs contain no other."""
        return reasons.NODE_ENDED if self.gateway.running else approval_reasons.GATEWAY_FAILED

    def outputs(self) -> tuple[str, str]:
        """Return what gateway and SuperNode have printed since this start."""
        return self.gateway.output(), self.supernode.output()

    def let_go(self) -> None:
        """Ask all but the gateway to end, without waiting. The SuperNode deregisters through the gateway."""
        self.sandbox.let_go()
        self.supernode.let_go()


def start_node(site: Site) -> Node:
    """Start the site's node. It connects to the server of site.toml until it is stopped.

    Flower keeps its files in SITE_DIR/flower_home. This function returns when the gateway listens; see `wait_online`.

    Raises Refusal: E_NOT_STARTED, and those of `sandbox.start_superexec`.
    """
    gateway_port, runtime_port = free_port(), free_port()
    secret = site.folder / "keys" / "superexec.secret"
    _write_secret(secret)
    certificate, _ = loopback_certificate(site)
    with ExitStack() as stack:
        gateway = stack.enter_context(start_gateway(site, port=gateway_port, log=put_aside(site.logs / "gateway.log")))
        supernode = stack.enter_context(
            Process(
                "the node",
                [
                    *(sys.executable, "-I", "-m", SUPERNODE),
                    f"--superlink={LOOPBACK}:{gateway_port}",
                    f"--root-certificates={certificate}",
                    f"--auth-supernode-private-key={site.node_key}",
                    f"--host={LOOPBACK}",
                    f"--port={runtime_port}",
                    "--isolation=process",
                    f"--superexec-auth-secret-file={secret}",
                ],
                log=put_aside(site.logs / "node.log"),
                environment=flower_environment(site.folder / "flower_home"),
            )
        )
        superexec = sandbox.start_superexec(
            site, runtime_port=runtime_port, secret_file=secret, log=put_aside(site.logs / "sandbox.log")
        )
        stack.pop_all()
    return Node(gateway=gateway, supernode=supernode, sandbox=superexec)


def _write_secret(path: Path) -> None:
    """Write a new secret at each start, with which the sandbox authenticates to the SuperNode."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secrets.token_hex(32).encode())


def wait_online(node: Node, *, seconds: float = ONLINE_SECONDS) -> int:
    """Wait until the server has accepted the node; return the node's id there.

    Raises Refusal after it has stopped the node: E_NOT_ENROLLED if the server does not accept the key,
    E_SERVER_UNTRUSTED, E_CERTIFICATE_REFUSED, E_SERVER_SILENT after the time limit, E_NOT_STARTED for any other end.
    """

    def node_id() -> int | None:
        found = _NODE_ID.search(node.supernode.output())
        return int(found[1]) if found else None

    try:
        return node.supernode.wait_until(node_id, seconds=seconds)
    except Refusal as refusal:
        node.stop()
        output = "\n".join(node.outputs())
        is_silent = log_lines.NOT_CONNECTED in output
        reason = _cause(output, enrolment_reasons.SERVER_SILENT if is_silent else refusal.reason)
        raise Refusal(reason, private=refusal.private, **refusal.numbers) from None


def _cause(output: str, otherwise: Reason) -> Reason:
    if log_lines.NOT_ENROLLED in output:
        return reasons.NOT_ENROLLED
    if log_lines.LOOP_ENDED in output:
        return reasons.NODE_LOOP
    codes = [code for code in _CODED.findall(output) if code in _OF_SERVER]
    # E_NOT_FOR_NODE refuses one request, for example about a run that has just ended; it ends no node.
    if set(codes) <= {superlink_reasons.NOT_FOR_NODE.code} and _FORGOTTEN.search(output):
        return reasons.NODE_FORGOTTEN
    found = REASONS.get(codes[-1]) if codes else None
    if found is not None and "{" in found.says:  # its text has values that only the server knows
        return Reason(found.code, "the study's server does not accept this node", found.remedy)
    return found or otherwise


# --- the node in the foreground ---------------------------------------------------------------------------


def run_node(site: Site, say: Callable[[str], None], *, json_lines: bool = False) -> None:
    """Run the site's node until SIGTERM or Ctrl-C; `say` gets one line with its time for each event, also as JSON.

    The node retries until the server responds, and for a minute and a half if the server still counts an earlier start
    as connected. If the server was moved, the node registers again. If its loop ended, it restarts. If systemd started
    this process, it gets the same messages.
    Raises Refusal: E_NO_SERVER_SET, E_SERVER_PROXY, E_NODE_FILE, E_NODE_RUNNING, E_NOT_ENROLLED, E_SERVER_UNTRUSTED,
    E_CERTIFICATE_REFUSED, E_MONITORING_PORT, those of `start_node`, and E_NODE_ENDED or E_GATEWAY_FAILED for any other
    unexpected end.
    """
    if not site.settings.server.address:
        raise Refusal(enrolment_reasons.NO_SERVER_SET)
    server_proxy(site, site.settings.server.address)  # refuses an unusable proxy before anything starts
    for what, path in (
        ("the study's certificate", site.ca_certificate),
        ("the node's key", site.node_key),
        ("the node's certificate", node_certificate(site)),
    ):
        if not os.access(path, os.R_OK):
            raise Refusal(enrolment_reasons.NODE_FILE, file=what, private=str(path))

    def tell(text: str) -> None:
        say(_as_json(site, text) if json_lines else f"{now():%Y-%m-%d %H:%M:%S}  {text}")
        _notify_systemd(f"READY=1\nSTATUS={text}")

    site.logs.mkdir(exist_ok=True)  # a site that was restored from a backup has no such folder
    with alone(site.logs / LOCK, reasons.NODE_RUNNING):  # two nodes with the same key would take each other's tasks
        stamp_folder(site.folder, "site")
        signal.signal(signal.SIGTERM, _end)
        state, running = NodeState.begin(site.logs), list[Node]()
        metrics = NodeMetrics(site, state, lambda: running[0].each_running if running else {})
        try:
            with monitored(site.settings.monitoring.port, metrics.collect, metrics.ready):
                _run_again(site, state, running, tell)
        except KeyboardInterrupt:
            tell("the node has ended, as requested")
        finally:
            state.connection, state.doing = "ended", ""
            state.save(site.logs)


def _end(*_: object) -> NoReturn:
    """End as at Ctrl-C; a second SIGTERM, as `make` and `timeout` send it, must not disturb this."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _as_json(site: Site, text: str) -> str:
    """Return an event as one line of JSON with the first code in it."""
    code = re.search(r"\b[EW]_[A-Z_]+\b", text)
    return json.dumps({"time": now().isoformat(), "site": site.name, "code": code and code[0], "event": text})


def _run_again(site: Site, state: NodeState, running: list[Node], tell: Callable[[str], None]) -> None:
    """Run the node; start it again if the server has forgotten it, or still counts an earlier start as connected.

    `running` holds the node while it runs.
    Raises Refusal for any other end, and if the server has not accepted the key for STILL_CONNECTED_SECONDS.
    """
    until = math.inf
    while True:
        try:
            _run_once(site, state, running, tell)
        except Refusal as refusal:
            # With systemd's sandbox, systemd restarts node and sandbox together.
            if site.settings.sandbox.kind == "systemd":
                raise
            if refusal.reason is reasons.NODE_FORGOTTEN:
                until = math.inf
                tell(f"{refusal}; the node restarts")
            elif refusal.reason is reasons.NODE_LOOP:
                tell(f"{refusal}; the node restarts")
                time.sleep(AGAIN_SECONDS)
            elif refusal.reason is reasons.NOT_ENROLLED:
                until = min(until, time.monotonic() + STILL_CONNECTED_SECONDS)
                if time.monotonic() >= until:
                    raise
                tell(f"{refusal}, perhaps because it was killed a moment ago; it tries again")
                time.sleep(AGAIN_SECONDS)
            else:
                raise


def _run_once(site: Site, state: NodeState, running: list[Node], tell: Callable[[str], None]) -> None:
    """Run the node until it ends unexpectedly; then raise the Refusal with the reason."""
    # In the order in which they are written: the app's last line about a task, the SuperNode's line that the reply was
    # sent, the gateway's line on whether the reply was released.
    tails = [Tail(put_aside(site.logs / name)) for name in ("client.log", "node.log", "gateway.log")]
    with start_node(site) as node, ExitStack() as ends:
        running.append(node)
        ends.callback(running.clear)
        tell(sandbox.describe(site))
        if is_restored(read_lines(ledger_file(site))):
            tell(str(Refusal(RESTORED)))
        tell(f"the node of {site.name} connects to {site.settings.server.address}; Ctrl-C stops it")
        _follow(node, tails, state, site.logs, tell)


def _follow(node: Node, tails: Sequence[Tail], state: NodeState, logs: Path, tell: Callable[[str], None]) -> None:
    """Report from the logs until the node ends unexpectedly; then raise the Refusal with the reason."""
    saved_at = -math.inf
    while True:
        is_last_look = not node.running
        news = [text for tail in tails for line in tail.lines() if (text := state.read(line, tail.path.name))]
        for text in news:
            tell(text)
        state.touch()
        if news or time.monotonic() > saved_at + _SAVE_SECONDS:
            state.save(logs)
            saved_at = time.monotonic()
            cut([*node.logs, logs / APP_LOG])
        if is_last_look:
            end = "\n".join(line for log in node.outputs() for line in log.splitlines()[-_LAST_LINES:])
            raise Refusal(_cause(end, node.ended_by), private=str(node.log))
        time.sleep(LOOK_SECONDS)


def _notify_systemd(message: str) -> None:
    """Send a message with the protocol of sd_notify(3); do nothing if systemd does not ask for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.sendto(message.encode(), address.replace("@", "\0", 1))


def _of_site(site: Site) -> dict[str, Any]:
    """Return the installed version, the node's certificate, when the cohort was last written, and the listener."""
    found, ingested = standing(site), None
    with suppress(OSError):
        written = (site.cohort_folder / "refusals.csv").stat().st_mtime  # by each ingest
        ingested = datetime.fromtimestamp(written).astimezone().isoformat(timespec="seconds")
    return {
        "version": version("fedthorax"),
        "name_in_study": found.name if found else None,
        "certificate_until": found.until.isoformat() if found else None,
        "last_ingest": ingested,
        **_of_listener(site),
    }


def _of_listener(site: Site) -> dict[str, Any]:
    """Return whether the listener for laboratory results runs, and what its queue holds; nothing without listener."""
    queue = queue_state(site)
    if queue is None:
        return {}
    return {
        "results_listening": queue.is_listening,
        "results_queued": queue.messages,
        "last_result": queue.last.isoformat(timespec="seconds") if queue.last else None,
    }


def node_status(site: Site) -> dict[str, Any]:
    """Return whether the site's node runs, what it does and has done, and the size of the cohort, as counts only.

    Times are ISO 8601 with their zone. None means that the event has never happened.
    """
    from pipeline.cohort.store import Cohort

    masked, processor = list(peer_checks.lines(site)), report(site.settings.compute)
    state, is_running = NodeState.load(site.logs), is_held(site.logs / LOCK)
    with Cohort(site) as cohort:
        patients, unlabelled = cohort.patients(), cohort.unlabelled()
    return {
        "site": site.name,
        "server": site.settings.server.address,
        "running": is_running,
        "pid": state.pid if state and is_running else None,
        "since": state.started.isoformat() if state and is_running else None,
        "connection": state.connection if state and is_running else "ended",
        "doing": state.doing if state and is_running else "",
        "last_contact": state.contact.isoformat() if state and state.contact else None,
        "rounds": state.rounds if state else 0,
        "last_refusal": state.refused or None if state else None,
        "last_refusal_at": state.refused_at.isoformat() if state and state.refused_at else None,
        "masked_rounds": [line.exactly for number, line in enumerate(masked) if number == 0 or line.status != "ok"],
        "processor": " ".join(filter(None, (processor.says, processor.detail and f"({processor.detail})"))),
        **_of_site(site),
        "has_labels": site.settings.has_labels,
        "patients": len(patients),
        "splits": dict(Counter(p.split for p in patients)),
        "pcr_positive": sum(p.pcr_positive is True for p in patients),
        "unlabelled": len(unlabelled),
    }
