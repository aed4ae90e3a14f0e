"""A site's node: the SuperNode that asks the study's server for work and runs it beside the site's data."""

import fcntl
import math
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from federation import reasons
from federation.node_state import NodeState, Tail, now, put_aside
from federation.processes import LOOPBACK, Process, flower_command, flower_environment, free_port
from models.refusal import Reason, Refusal
from pipeline.locks import alone
from pipeline.site import Site

ONLINE_SECONDS = 60.0
_LOOK_SECONDS = 0.5
_SAVE_SECONDS = 10.0
_LAST_LINES = 30
_LOCK = "node.lock"

_NODE_ID = re.compile(r"SuperNode ID: (\d+)")
# What a node's log shows when the server does not let it in, and what it means.
_CAUSES = {
    "[code: 2004]": reasons.NOT_ENROLLED,  # Flower's FLEET_NODE_ACTIVATION_FAILED
    "CERTIFICATE_VERIFY_FAILED": reasons.SERVER_UNTRUSTED,
}


def start_node(
    site_dir: Path,
    *,
    server: str,
    ca_certificate: Path,
    private_key: Path,
    log: Path,
    runtime_port: int | None = None,
) -> Process:
    """Start the node of the site in `site_dir`; it dials `server` ("host:port") until it is stopped.

    The app finds the site by the environment variable `FEDTHORAX_SITE_DIR`; Flower's node config would show
    the path to every user of the machine in the list of processes. (Neither leaves the machine.) Flower keeps
    its files in `site_dir`/flower_home. `runtime_port` is where the node's own processes meet, on loopback.

    This returns at once; see `wait_online`.
    """
    site_dir = site_dir.resolve()
    return Process(
        "the node",
        [
            flower_command("flower-supernode"),
            f"--superlink={server}",
            f"--root-certificates={ca_certificate.resolve()}",
            f"--auth-supernode-private-key={private_key.resolve()}",
            f"--host={LOOPBACK}",
            f"--port={runtime_port or free_port()}",
        ],
        log=log,
        environment=flower_environment(site_dir / "flower_home", FEDTHORAX_SITE_DIR=str(site_dir)),
    )


def wait_online(node: Process, *, seconds: float = ONLINE_SECONDS) -> int:
    """Wait until the server has let the node in; the node's id there.

    Raises Refusal, and the node is stopped then: E_NOT_ENROLLED if the server does not let the key in,
    E_SERVER_UNTRUSTED, E_SERVER_SILENT if the time is over, E_NOT_STARTED for any other end.
    """

    def node_id() -> int | None:
        found = _NODE_ID.search(node.output())
        return int(found[1]) if found else None

    try:
        return node.wait_until(node_id, seconds=seconds)
    except Refusal as refusal:
        output = node.output()
        is_silent = "Connection attempt failed" in output
        reason = _cause(output, reasons.SERVER_SILENT if is_silent else refusal.reason)
        raise Refusal(reason, private=refusal.private, **refusal.numbers) from None


def _cause(output: str, otherwise: Reason) -> Reason:
    return next((reason for sign, reason in _CAUSES.items() if sign in output), otherwise)


# --- the node in the foreground ---------------------------------------------------------------------------


def run_node(site: Site, say: Callable[[str], None]) -> None:
    """Run the site's node until SIGTERM or Ctrl-C; `say` gets one line, with its time, for each thing that happens.

    A server that does not answer is dialled until it does. Where systemd started us, it is told the same.
    Raises Refusal: E_NO_SERVER_SET, E_NODE_FILE, E_NODE_RUNNING, E_NOT_ENROLLED, E_SERVER_UNTRUSTED, and
    E_NODE_ENDED for any other end that nobody asked for.
    """
    server = site.settings.server.address
    if not server:
        raise Refusal(reasons.NO_SERVER_SET)
    for what, path in (("the study's certificate", site.ca_certificate), ("the node's key", site.node_key)):
        if not os.access(path, os.R_OK):
            raise Refusal(reasons.NODE_FILE, file=what, private=str(path))

    def tell(text: str) -> None:
        say(f"{now():%Y-%m-%d %H:%M:%S}  {text}")
        _tell_systemd(f"READY=1\nSTATUS={text}")

    site.logs.mkdir(exist_ok=True)  # a site restored from its backup has none
    with alone(site.logs / _LOCK, reasons.NODE_RUNNING):  # two nodes with one key would take each other's tasks
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # systemd's way to say Ctrl-C
        state = NodeState.begin(site.logs)
        # The app's log first: its last word on a task is written before the SuperNode says that the reply was sent.
        tails = [Tail(put_aside(site.logs / name)) for name in ("client.log", "node.log")]
        try:
            with start_node(
                site.folder,
                server=server,
                ca_certificate=site.ca_certificate,
                private_key=site.node_key,
                log=tails[-1].path,
            ) as node:
                tell(f"the node of {site.name} dials {server}; Ctrl-C ends it")
                _follow(node, tails, state, site.logs, tell)
        except KeyboardInterrupt:
            tell("the node has ended, as it was told to")
        finally:
            state.connection, state.doing = "ended", ""
            state.save(site.logs)


def _follow(node: Process, tails: Sequence[Tail], state: NodeState, logs: Path, tell: Callable[[str], None]) -> None:
    """Pass on what the logs say until the node ends by itself; then raise the Refusal that tells why."""
    saved_at = -math.inf
    while True:
        is_last_look = not node.running
        news = [text for tail in tails for line in tail.lines() if (text := state.read(line))]
        for text in news:
            tell(text)
        state.touch()
        if news or time.monotonic() > saved_at + _SAVE_SECONDS:
            state.save(logs)
            saved_at = time.monotonic()
        if is_last_look:
            end = "\n".join(node.output().splitlines()[-_LAST_LINES:])
            raise Refusal(_cause(end, reasons.NODE_ENDED), private=str(node.log))
        time.sleep(_LOOK_SECONDS)


def _is_running(site: Site) -> bool:
    try:
        with (site.logs / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _tell_systemd(message: str) -> None:
    """The protocol of sd_notify(3); nothing where systemd does not ask for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, suppress(OSError):
            sender.sendto(message.encode(), address.replace("@", "\0", 1))


def node_status(site: Site) -> dict[str, Any]:
    """Whether the site's node runs, what it does and has done, and how large the cohort is: counts alone.

    Times are ISO 8601 with their zone; None stands for what has never been.
    """
    from pipeline.cohort import Cohort

    state, is_running = NodeState.load(site.logs), _is_running(site)
    with Cohort(site) as cohort:
        patients = cohort.patients()
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
        "patients": len(patients),
        "splits": dict(Counter(p.split for p in patients)),
        "pcr_positive": sum(p.pcr_positive is True for p in patients),
    }
