"""A site's node: the SuperNode that asks the study's server for work and runs it beside the site's data."""

import re
from pathlib import Path

from federation import reasons
from federation.processes import LOOPBACK, Process, flower_command, flower_environment, free_port
from models.refusal import Refusal

ONLINE_SECONDS = 60.0

_NODE_ID = re.compile(r"SuperNode ID: (\d+)")
# What a node's log shows, and what it means; the first that is found is the cause.
_CAUSES = {
    "[code: 2004]": reasons.NOT_ENROLLED,  # Flower's FLEET_NODE_ACTIVATION_FAILED
    "CERTIFICATE_VERIFY_FAILED": reasons.SERVER_UNTRUSTED,
    "Connection attempt failed": reasons.SERVER_SILENT,
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

    With `seconds` = math.inf it waits for a server that may start much later.

    Raises Refusal, and the node is stopped then: E_NOT_ENROLLED if the server does not know the key,
    E_SERVER_UNTRUSTED, E_SERVER_SILENT if the time is over, E_NOT_STARTED for any other end.
    """

    def node_id() -> int | None:
        found = _NODE_ID.search(node.output())
        return int(found[1]) if found else None

    try:
        return node.wait_until(node_id, seconds=seconds)
    except Refusal as refusal:
        output = node.output()
        reason = next((reason for sign, reason in _CAUSES.items() if sign in output), refusal.reason)
        raise Refusal(reason, private=refusal.private, **refusal.numbers) from None
