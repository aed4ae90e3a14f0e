"""Start-up times: commands, node, server, and the process that the node starts for each message.

Each is compared with its minimum in the same run: Python alone, PyTorch's import, Flower's own processes without ours.
"""

import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chest import SYNTAXES, write_chest
from common import Figure, Part
from flower_app import packed, start, supernode, wait, with_sandbox
from scoring import random_release

from federation.enrolment.certificates import create_node_key, load_node_key, public_pem
from federation.enrolment.invitations import invite
from federation.enrolment.join import join
from federation.node import sandbox
from federation.server.start import init_server, start_server
from federation.superlink.control import loopback_certificate, read_server_config
from federation.superlink.nodes import enrol
from federation.system.process import LOOPBACK, Process, flower_command, flower_environment, free_port, port_is_taken
from pipeline.site.folder import Site, init_site, site_settings

COMMAND_REPEATS, PROCESS_REPEATS, MESSAGES = 3, 2, 3
LOOK_SECONDS, LIMIT_SECONDS = 0.02, 120.0
COMMAND = Path(sys.executable).with_name("fedthorax")
OURS, BARE = "ours", "bare"
ANSWER = "seconds.json"
_CONFIG = {"study": "", "run": "bench"}
_APP = {
    "client_app": """\
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from federation.client import client_app  # what a study's own app imports
from models.network import build_network
from models.network_settings import NetworkSettings

app = ClientApp()


@app.query()
def query(message, context):
    build_network(NetworkSettings(), seed=1)
    return Message(RecordDict(), reply_to=message)
""",
    "server_app": f"""\
import json
import os
import time
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

from federation.coordinator.eager_grid import EagerGrid
from federation.superlink.nodes import sites

app = ServerApp()


@app.main()
def main(grid, context):
    folder = Path(os.environ["FEDTHORAX_SERVER_DIR"])
    nodes = {{site.name: site.node_id for site in sites(folder) if site.name in ("{OURS}", "{BARE}")}}
    grid = EagerGrid(grid)
    while not set(nodes.values()) <= set(grid.get_node_ids()):
        time.sleep(0.5)
    seconds = {{name: [] for name in nodes}}
    for _ in range({MESSAGES} + 1):
        for name, node in nodes.items():
            began = time.perf_counter()
            (reply,) = grid.send_and_receive([Message(RecordDict(), node, "query")], timeout=60)
            seconds[name].append(time.perf_counter() - began)
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
    (folder / "{ANSWER}").write_text(json.dumps(seconds))
""",
}


def measure(folder: Path) -> Part:
    write_chest(folder / "series", SYNTAXES["uncompressed"])
    random_release(folder / "model")
    score = [COMMAND, "score", folder / "series", "--model", folder / "model"]
    figures = [
        _in_turn("`fedthorax --help`", "`python -c pass`", [COMMAND, "--help"], _python("pass")),
        _in_turn(
            "`fedthorax score`, 300 slices", "`python -c 'import torch'`", score, _python("import torch"), "at most 2"
        ),
    ]
    server = folder / "server"
    init_server(server, port=free_port())
    figures.append(_servers(server, folder / "bare"))
    with start_server(server):
        site = _site(folder / "site")
        join(site, invite(server, "joined"), name="joined")
        figures.append(_nodes(Site.open(site.folder), server))
        figures.append(_messages(folder, server))
    notes = [
        "Wall seconds of new processes whose files are in the page cache.",
        "Server: until it reports that it is up; bare: Flower's SuperLink until it answers. Node: until the server has "
        "accepted it, with gateway and sandbox; bare: only Flower's SuperNode, without a gateway.",
        "A message: from the server's sending to the answer of a ClientApp that imports what a site's app imports and "
        "builds a network. Up to 3 s of it is the polling interval of Flower's SuperNode, because no gateway polls for "
        "it here. Bare: Flower's SuperExec, which starts a new Python for each message. The first message is left out.",
    ]
    return Part(notes, figures)


def _python(code: str) -> list[str | Path]:
    return [sys.executable, "-c", code]


def _in_turn(name: str, against: str, ours: list[str | Path], theirs: list[str | Path], target: str = "") -> Figure:
    """Time two commands from start to end."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(COMMAND_REPEATS):
        for own, command in zip(times, (ours, theirs), strict=True):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            own.append(time.perf_counter() - began)
    return Figure(name, against, "s", *times, target)


def _until(process: Process, is_ready: Callable[[], bool]) -> float:
    """Return the seconds from now until the process is ready."""
    began = time.perf_counter()
    while not is_ready():
        if not process.running or time.perf_counter() > began + LIMIT_SECONDS:
            raise RuntimeError(f"{process.name} did not start:\n{process.output()[-2000:]}")
        time.sleep(LOOK_SECONDS)
    return time.perf_counter() - began


def _says(name: str, command: list[str], log: Path, word: str) -> float:
    """Start a process, and return the seconds until it prints a word; then stop it."""
    with Process(name, command, log=log, environment=flower_environment(log.parent / "flower")) as process:
        return _until(process, lambda: word in process.output())


def _servers(server: Path, bare: Path) -> Figure:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(PROCESS_REPEATS):
        ours = [str(COMMAND), "server", "start", str(server)]
        times[0].append(_says("the server", ours, bare / "server.log", "The server is up"))
        port = free_port()
        command = [flower_command("flower-superlink"), "--insecure", f"--port={port}"]
        environment = flower_environment(bare / "flower")
        with Process("SuperLink", command, log=bare / "superlink.log", environment=environment) as superlink:
            times[1].append(_until(superlink, lambda port=port: port_is_taken(LOOPBACK, port)))
    return Figure("`fedthorax server start`", "Flower's SuperLink", "s", *times)


def _nodes(site: Site, server: Path) -> Figure:
    other = _site(site.folder.with_name("other"))
    _enrol(other, server, "other")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(PROCESS_REPEATS):
        ours = [str(COMMAND), "node", "start", str(site.folder)]
        times[0].append(_says("the node", ours, site.folder / "start.log", "has accepted it"))
        times[1].append(
            _says("SuperNode", _supernode(other, server, free_port()), other.logs / "n.log", "SuperNode ID")
        )
    return Figure("`fedthorax node start`", "Flower's SuperNode", "s", *times)


def _messages(folder: Path, server: Path) -> Figure:
    with contextlib.ExitStack() as stack:
        for name in (OURS, BARE):
            site = _site(folder / name)
            _enrol(site, server, name)
            stack.enter_context(_node(site, server, is_ours=name == OURS))
        wait(server, start(server, packed(_APP, _CONFIG), _CONFIG))
    seconds: dict[str, list[float]] = json.loads((server / ANSWER).read_text())
    return Figure(
        "a message to a ClientApp, there and back", "Flower's SuperExec", "s", seconds[OURS][1:], seconds[BARE][1:]
    )


@contextlib.contextmanager
def _node(site: Site, server: Path, *, is_ours: bool) -> Iterator[None]:
    """Start a SuperNode, and what starts its ClientApps: our sandbox or Flower's SuperExec."""
    port = free_port()
    secret = site.folder / "keys" / "superexec.secret"
    secret.write_text(secrets.token_hex(32))
    command = [*_supernode(site, server, port), "--isolation=process", f"--superexec-auth-secret-file={secret}"]
    environment = flower_environment(site.folder / "flower")
    with Process("SuperNode", command, log=site.logs / "node.log", environment=environment):
        if is_ours:
            starts = sandbox.start_superexec(site, runtime_port=port, secret_file=secret, log=site.logs / "sandbox.log")
        else:
            bare = [flower_command("flower-superexec"), f"--runtime-api-address={LOOPBACK}:{port}", "--insecure"]
            bare.append(f"--superexec-auth-secret-file={secret}")
            starts = Process("SuperExec", bare, log=site.logs / "superexec.log", environment=environment)
        with starts:
            yield


def _supernode(site: Site, server: Path, port: int) -> list[str]:
    superlink_port = read_server_config(server).control_port
    return supernode(site, superlink_port=superlink_port, certificate=loopback_certificate(server), port=port)


def _enrol(site: Site, server: Path, name: str) -> None:
    enrol(server, public_pem(load_node_key(site.node_key).public_key()), name)


def _site(folder: Path) -> Site:
    """Make a site with a key and no patients; with a sandbox if this machine supports one."""
    site = init_site(folder, site_settings(None, name=folder.name))
    create_node_key(site.node_key)
    return with_sandbox(site)
