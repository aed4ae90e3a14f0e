"""The study's server: made once in a folder, started, and told which sites may take part.

server.toml      where it listens; people edit this
certificates/    the study's authority and the server's certificate; ca.crt goes to the hospitals
state.db         Flower's memory of nodes and runs, and for a while the messages' contents
flower_home/     what Flower keeps for itself, the apps it was sent
logs/
"""

import http.client
import logging
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from federation import reasons
from federation.certificates import create_server_certificates, load_node_public_key, valid_until
from federation.control import ServerConfig, ca_certificate, control, read_server_config
from federation.processes import LOOPBACK, Process, flower_command, flower_environment, port_is_taken
from models.refusal import Refusal

DEFAULT_PORT = 8443
START_SECONDS = 60.0

_SITE_NAME = re.compile(r"[a-z0-9-]{1,63}")
_SERVER_TOML = """\
# The study's server.

# The address of this machine that it listens on. 127.0.0.1 means this machine alone. Leave it so unless a
# firewall lets only the hospitals in: whoever reaches the port can enrol nodes and send code to every site.
host = "{host}"

# Its port, on which the hospitals' nodes arrive as well.
port = {port}
"""

log = logging.getLogger("fedthorax")


@dataclass(frozen=True)
class Site:
    """One enrolled node. `node_id` stays the same across restarts, because it belongs to the key."""

    name: str
    node_id: int
    online: bool


def init_server(folder: Path, *, hosts: Sequence[str] = ("localhost",), port: int = DEFAULT_PORT) -> None:
    """Make a server in `folder`: settings and certificates, the latter for the names `hosts`.

    Raises Refusal: E_EXISTS, E_HOST_NAME.
    """
    certificates = ca_certificate(folder).parent
    if (folder / "server.toml").exists() or certificates.exists():
        raise Refusal(reasons.SERVER_EXISTS, private=str(folder))
    create_server_certificates(certificates, hosts=hosts)
    (folder / "server.toml").write_text(_SERVER_TOML.format(host=LOOPBACK, port=port))


def start_server(folder: Path) -> Process:
    """Start the server in `folder`; it is ready when this returns.

    TLS, nodes by enrolled key only, nothing installed at run time. `FEDTHORAX_SERVER_DIR` tells the app that
    runs on it where `folder` is.

    Raises Refusal: E_NO_SERVER, E_SERVER_CONFIG, E_CERTIFICATE_EXPIRED, E_PORT_IN_USE, E_NOT_STARTED.
    """
    folder = folder.resolve()
    config = read_server_config(folder)
    certificates = ca_certificate(folder).parent
    until = valid_until(certificates / "server.crt")
    if until < datetime.now(UTC):
        raise Refusal(reasons.CERTIFICATE_EXPIRED, until=f"{until:%Y-%m-%d}")
    if config.host not in (LOOPBACK, "localhost"):
        log.warning(str(Refusal(reasons.SERVER_EXPOSED, host=config.host)))
    tls = {"ca-certfile": "ca.crt", "certfile": "server.crt", "keyfile": "server.key"}
    return start_superlink(
        folder,
        config=config,
        arguments=[
            *(f"--ssl-{option}={certificates / file}" for option, file in tls.items()),
            "--enable-supernode-auth",
            f"--database={folder / 'state.db'}",
        ],
        tls=ssl.create_default_context(cafile=certificates / "ca.crt"),
    )


def start_superlink(
    folder: Path,
    *,
    config: ServerConfig,
    arguments: Sequence[str],
    tls: ssl.SSLContext | None = None,
    **environment: str,
) -> Process:
    """Start a SuperLink whose files lie in `folder` and wait until it answers.

    Raises Refusal: E_PORT_IN_USE, E_NOT_STARTED.
    """
    if port_is_taken(config.host, config.port):
        raise Refusal(reasons.PORT_IN_USE, port=config.port)
    process = Process(
        "the study's server",
        [
            flower_command("flower-superlink"),
            f"--host={config.host}",
            f"--port={config.port}",
            "--disable-runtime-dependency-installation",
            *arguments,
        ],
        log=folder / "logs" / "superlink.log",
        environment=flower_environment(folder / "flower_home", FEDTHORAX_SERVER_DIR=str(folder), **environment),
    )
    process.wait_until(lambda: _healthy(config, tls), seconds=START_SECONDS)
    return process


def enrol(folder: Path, public_key: Path, name: str) -> int:
    """Let the holder of a node key take part as site `name`, on the running server. Returns the node's id.

    Raises Refusal: E_SITE_NAME, E_PUBLIC_KEY, E_ALREADY_ENROLLED, E_SITE_NAME_TAKEN, E_NO_SERVER,
    E_SERVER_UNREACHABLE.
    """
    if not _SITE_NAME.fullmatch(name):
        raise Refusal(reasons.SITE_NAME)
    key = load_node_public_key(public_key)
    from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest

    with control(folder) as client:
        for node in client.ListNodes(ListNodesRequest()).nodes_info:
            if node.public_key == key:
                raise Refusal(reasons.ALREADY_ENROLLED, site=node.name)
            if node.name == name:
                raise Refusal(reasons.SITE_NAME_TAKEN, site=name)
        return int(client.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)


def sites(folder: Path) -> list[Site]:
    """The enrolled sites of the running server, by name.

    Raises Refusal: E_NO_SERVER, E_SERVER_UNREACHABLE.
    """
    from flwr.proto.control_pb2 import ListNodesRequest

    with control(folder) as client:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    return sorted(
        (Site(node.name, node.node_id, node.status == "online") for node in nodes), key=lambda site: site.name
    )


def _healthy(config: ServerConfig, tls: ssl.SSLContext | None) -> bool:
    host, port = config.reached_at, config.port
    connection = (
        http.client.HTTPSConnection(host, port, timeout=2, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=2)
    )
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
