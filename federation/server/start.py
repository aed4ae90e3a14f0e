"""The study's server: create its folder once, and start it.

server.toml      the addresses on which it listens; people edit this
certificates/    the study's authority, the server's certificate, the revocation list; ca.crt is for the hospitals
sites.sqlite     the invited and joined sites and their certificates (federation.enrolment)
superexec.secret the secret that authenticates the process of the study's server code to the SuperLink
state.db         Flower's database of nodes and runs, and temporarily the contents of messages
started          a random word of the last start
flower_home/     Flower's own files, and the apps that it received
logs/

Only the ingress (federation.ingress) can be reached from outside. The SuperLink listens on loopback behind it.
"""

import http.client
import json
import logging
import os
import secrets
import socket
import sqlite3
import ssl
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from federation.enrolment import reasons as enrolment_reasons
from federation.enrolment.certificates import (
    create_server_certificates,
    renew_server_certificate,
    trust_file,
    valid_until,
    write_new,
)
from federation.server import reasons
from federation.superlink.control import ServerConfig, ca_certificate, loopback_certificate, read_server_config
from federation.superlink.superlink import ENROLLED
from federation.system.certificate_files import read_pair
from federation.system.process import (
    LOOPBACK,
    QUIET,
    Process,
    flower_command,
    flower_environment,
    free_port,
    port_is_taken,
)
from federation.system.process_group import Together
from models.refusal import Refusal
from pipeline.system.folder_format import stamp_folder

if TYPE_CHECKING:
    from federation.enrolment.authority import Authority

DEFAULT_PORT = 8443
START_SECONDS = 60.0
WARN_BEFORE = timedelta(days=30)
SUPERLINK = "federation.superlink.superlink"
STARTED = "started"  # a random word of each start: runs of an earlier start are no longer active

# The SuperLink handles objects of 5 MiB in many threads. By default glibc keeps one heap for each thread and does not
# return such blocks. These settings allocate them directly from the system, see mallopt(3). Other libcs ignore them.
_SMALL_HEAP = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**20)}

_SERVER_TOML = """\
# The study's server.

# The name and port to which hospitals connect. The codes of `fedthorax server enrol` contain it.
address = {address}

# The address and the port of this machine on which the ingress listens. 127.0.0.1 means this machine only,
# 0.0.0.0 means all of its networks.
host = {host}
port = {port}

# The port on loopback on which Flower's SuperLink listens behind the ingress.
superlink_port = {superlink_port}

# Health and metrics for Prometheus at http://127.0.0.1:PORT/metrics, for this machine only; 0: none are served.
monitoring_port = 0

# With nginx in front (docs/nginx/fedthorax.conf): the ingress listens only on this socket, not on host and port.
# socket = "/run/fedthorax/door.sock"
"""

log = logging.getLogger("fedthorax")


def init_server(
    folder: Path,
    *,
    hosts: Sequence[str] = (),
    port: int = DEFAULT_PORT,
    authority: "Authority | None" = None,
    address: str = "",
) -> None:
    """Create a server in `folder`: settings, and certificates for the names `hosts`.

    With `hosts`, the ingress listens on every network, and hospitals connect to the first name. Without, it listens on
    this machine only. `address` is for hospitals that connect to another address (nginx in front).
    Raises Refusal: E_EXISTS, E_HOST_NAME.
    """
    certificates = ca_certificate(folder).parent
    if (folder / "server.toml").exists() or certificates.exists():
        raise Refusal(reasons.EXISTS, private=str(folder))
    create_server_certificates(certificates, hosts=hosts, authority=authority)
    folder.chmod(0o700)
    write_new(folder / "superexec.secret", secrets.token_hex(32).encode(), mode=0o600)
    dialled = hosts[0] if hosts else "localhost"
    settings = _SERVER_TOML.format(
        address=_toml_string(address or (f"[{dialled}]:{port}" if ":" in dialled else f"{dialled}:{port}")),
        host=_toml_string("0.0.0.0" if hosts else LOOPBACK),  # noqa: S104
        port=port,
        superlink_port=next(free for free in iter(free_port, 0) if free != port),
    )
    (folder / "server.toml").write_text(settings, encoding="utf-8")
    stamp_folder(folder, "server")


def _toml_string(text: str) -> str:
    """Quote a text for TOML, whose basic strings escape as JSON does, so that it cannot end its line."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def renew_server(folder: Path) -> datetime:
    """Renew the certificate of the server in `folder` and return its expiry. It is used from the next start on.

    Raises Refusal: E_NO_SERVER, E_AUTHORITY, E_CERTIFICATE_FILE, and those of `load_settings`.
    """
    read_server_config(folder)
    return renew_server_certificate(ca_certificate(folder).parent)


def valid_certificates(folder: Path) -> dict[str, datetime]:
    """Return when the certificates of the server in `folder` end, by holder. Raises Refusal E_CERTIFICATE_FILE."""
    return {
        "authority": valid_until(ca_certificate(folder)),
        "server": valid_until(ca_certificate(folder).with_name("server.crt")),
    }


def start_server(folder: Path) -> Together:
    """Start the server in `folder`. It is ready when this function returns.

    It uses TLS, accepts only nodes with an enrolled key and certificate, and installs nothing at run time. The app on
    the server finds `folder` in `FEDTHORAX_SERVER_DIR`.

    Raises Refusal: E_NO_SERVER, E_CERTIFICATE_EXPIRED, E_CERTIFICATE_FILE, E_PORT_IN_USE, E_SERVER_DATABASE,
    E_NOT_STARTED, and those of `load_settings`.
    """
    from federation.enrolment.invitations import restore_roster

    folder = folder.resolve()
    config = read_server_config(folder)
    _judge_certificates(folder)
    if config.socket is None and port_is_taken(config.host, config.port):
        raise Refusal(reasons.PORT_IN_USE, port=config.port)
    for database in ("sites.sqlite", "state.db"):
        _judge_database(folder / database)
    stamp_folder(folder, "server")
    secret = f"--superexec-auth-secret-file={folder / 'superexec.secret'}"
    certificate = loopback_certificate(folder)
    with ExitStack() as started:
        superlink = started.enter_context(
            start_superlink(
                folder,
                config=config,
                arguments=[
                    f"--ssl-ca-certfile={certificate}",
                    f"--ssl-certfile={certificate}",
                    f"--ssl-keyfile={certificate.with_suffix('.key')}",
                    ENROLLED,
                    f"--database={folder / 'state.db'}",
                    "--isolation=process",
                    secret,
                ],
                tls=trust_file(certificate),
                **_SMALL_HEAP,
            )
        )
        restore_roster(folder)
        superexec = started.enter_context(
            Process(
                "the process that runs the study's server code",
                [
                    flower_command("flower-superexec"),
                    f"--runtime-api-address={LOOPBACK}:{config.control_port}",
                    f"--root-certificates={certificate}",
                    secret,
                ],
                log=folder / "logs" / "superexec.log",
                environment=flower_environment(folder / "flower_home", FEDTHORAX_SERVER_DIR=str(folder)),
            )
        )
        ingress = started.enter_context(
            Process(
                "the server's ingress",
                [sys.executable, "-P", "-m", "federation.ingress", str(folder)],
                log=folder / "logs" / "door.err",
                environment={**os.environ, **QUIET},
            )
        )
        ingress.wait_until(lambda: _ingress_answers(folder, config), seconds=START_SECONDS)
        started.pop_all()
    return Together([ingress, superexec, superlink], log=folder / "logs" / "door.log")


def start_superlink(
    folder: Path,
    *,
    config: ServerConfig,
    arguments: Sequence[str],
    tls: ssl.SSLContext | None = None,
    **environment: str,
) -> Process:
    """Start a SuperLink on loopback with its files in `folder`, and wait until it responds.

    Raises Refusal: E_PORT_IN_USE, E_NOT_STARTED.
    """
    port = config.control_port
    if port_is_taken(LOOPBACK, port):
        raise Refusal(reasons.PORT_IN_USE, port=port)
    (folder / STARTED).write_text(secrets.token_hex(8))
    process = Process(
        "the study's server",
        [
            *(sys.executable, "-I", "-m", SUPERLINK),
            f"--host={LOOPBACK}",
            f"--port={port}",
            "--disable-runtime-dependency-installation",
            *arguments,
        ],
        log=folder / "logs" / "superlink.log",
        environment=flower_environment(folder / "flower_home", FEDTHORAX_SERVER_DIR=str(folder), **environment),
    )
    process.wait_until(lambda: _answers(LOOPBACK, port, "/health", tls), seconds=START_SECONDS)
    return process


def this_start(folder: Path) -> str:
    """Return the random word of the last start of the server in `folder`; "" if there was none."""
    path = folder / STARTED
    return path.read_text() if path.exists() else ""


# --- checks before and at the start -----------------------------------------------------------------------


def _judge_certificates(folder: Path) -> None:
    for certificate in (ca_certificate(folder).with_name("server.crt"), loopback_certificate(folder)):
        read_pair(certificate)
    now, until_by_holder = datetime.now(UTC), valid_certificates(folder)
    for holder, until in (
        ("the study's authority", until_by_holder["authority"]),
        ("the server", until_by_holder["server"]),
    ):
        if until < now:
            raise Refusal(enrolment_reasons.CERTIFICATE_EXPIRED, holder=holder, until=f"{until:%Y-%m-%d}")
        if until < now + WARN_BEFORE:
            log.warning(str(Refusal(reasons.CERTIFICATE_ENDS, holder=holder, until=f"{until:%Y-%m-%d}")))


def _judge_database(path: Path) -> None:
    """Check a whole database before it is used, because SQLite detects damage only in the pages that it reads."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path, timeout=30)) as db:
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found != "ok":
        raise Refusal(reasons.SERVER_DATABASE, file=path.name, private=f"{path}: {found}")


def _ingress_answers(folder: Path, config: ServerConfig) -> bool:
    if config.socket is not None:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(config.socket)) == 0
    # Any name of this machine is valid here: a process on our port with our certificate is our ingress.
    tls = trust_file(ca_certificate(folder))
    tls.check_hostname = False
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(config.host, config.host)  # noqa: S104
    return _answers(host, config.port, "/enrolment/ca.crt", tls)


def _answers(host: str, port: int, path: str, tls: ssl.SSLContext | None) -> bool:
    connection = (
        http.client.HTTPSConnection(host, port, timeout=2, context=tls)
        if tls
        else http.client.HTTPConnection(host, port, timeout=2)
    )
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
