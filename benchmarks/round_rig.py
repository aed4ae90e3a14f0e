"""Rounds of a federation with real processes on loopback but without training: duration and bytes.

All connections use TLS. One site runs a whole node, as `fedthorax node start` does; the other only its SuperNode and
its sandbox, without a gateway. In both sandboxes each task is a fork of a process that has imported its libraries. Each
node runs the study's own app, with a multiplication instead of training, and the server runs the study's own strategy.
Between each site and the server is a relay that counts bytes.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding
from flower_app import packed, start, supernode, wait

from federation.approval.approvals import Approvals
from federation.approval.studies import StudyApprovals
from federation.enrolment.certificates import create_node_key, load_node_key, public_pem
from federation.enrolment.join import node_certificate, with_server_address
from federation.gateway.loopback import self_signed
from federation.gateway.schema import schema_of
from federation.node import sandbox
from federation.node.start import start_node
from federation.protocol.study_config import Study
from federation.server.start import init_server, start_server
from federation.superlink.control import loopback_certificate as server_certificate
from federation.superlink.control import read_server_config
from federation.superlink.nodes import enrol
from federation.system.process import GUARD, LOOPBACK, Process, flower_environment, free_port
from federation.system.reaper import descendants, read_parents
from pipeline.cohort.store import Cohort, PatientRow
from pipeline.site.folder import Site, init_site, site_settings

MEMORY_MB = 150.0
THROUGH, DIRECT = "through", "direct"
_AT_SERVER, _AT_SITE = "rounds.json", "client.log"  # the one file of the site that its sandbox may write to
_PIECE = 2**16
_APP = Path(__file__).with_name("round_app")


@dataclass(frozen=True)
class Round:
    """One round of one site: seconds of its stages, and all bytes between the site and the server.

    `down`: from the server's sending until the app's process starts; `start`: until the app has the message, which the
    process takes from the node before its imports; `compute`: in the app; `up`: until the server has the reply;
    `aggregate`: the server's checks and the strategy.
    """

    down: float
    start: float
    compute: float
    up: float
    aggregate: float
    bytes_down: int
    bytes_up: int

    @property
    def seconds(self) -> float:
        return self.down + self.start + self.compute + self.up + self.aggregate


def make_site(folder: Path) -> Site:
    """Make a site with a key and some patients. Here the gateway accepts any certificate as its own."""
    site = init_site(folder, site_settings(None, name=folder.name))
    create_node_key(site.node_key)
    rows = [
        PatientRow(f"{split}{number}", split, f"{split}{number}.npy", None, None, number % 2 == 0, number % 3 == 0)
        for split in ("train", "validation", "test")
        for number in range(60)  # so that ten of them have each value of each label
    ]
    with Cohort(site) as cohort:
        cohort.replace(rows, [], [])  # type: ignore[arg-type]
    return site


class Line:
    """A relay to a port on loopback that counts the bytes."""

    def __init__(self, port: int) -> None:
        self._port, self._passed = port, list[tuple[float, str, int]]()
        self._listener = socket.create_server((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, far = self._listener.accept()[0], socket.create_connection((LOOPBACK, self._port))
                for end in (near, far):  # otherwise a short request waits for the acknowledgement of its beginning
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                    threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                self._passed.append((time.time(), direction, len(data)))
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def passed(self, direction: str, began: float, ended: float) -> int:
        """Return the bytes between two points in time."""
        return sum(size for at, way, size in self._passed if way == direction and began <= at <= ended)

    def close(self) -> None:
        self._listener.close()


class Rig:
    """Start a server and two sites with keys and patients, which have joined no study, for the block."""

    def __init__(self, folder: Path, sites: dict[str, Site]) -> None:
        self._server, self._sites = folder / "server", sites
        self._app = packed({file.stem: file.read_text() for file in _APP.glob("*_app.py")}, {"study": "", "run": ""})
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Rig":
        Approvals(self._sites[THROUGH]).approve(self._app, by="the benchmark")
        init_server(self._server, port=free_port())
        self._stack.enter_context(start_server(self._server))
        for name, site in self._sites.items():
            enrol(self._server, public_pem(load_node_key(site.node_key).public_key()), name)
        port = read_server_config(self._server).control_port
        self._lines = {name: Line(port) for name in self._sites}
        self._stack.enter_context(self._with_gateway(self._sites[THROUGH], self._lines[THROUGH].port))
        self._stack.enter_context(self._without_gateway(self._sites[DIRECT], self._lines[DIRECT].port))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for line in self._lines.values():
            line.close()

    @contextlib.contextmanager
    def _with_gateway(self, site: Site, server_port: int) -> Iterator[None]:
        """Start a node whose gateway has a certificate. Without an ingress nobody asks for it."""
        certificate = self_signed(load_node_key(site.node_key))
        node_certificate(site).write_bytes(certificate.public_bytes(Encoding.PEM))
        site.ca_certificate.write_bytes(server_certificate(self._server).read_bytes())
        settings = site.folder / "site.toml"
        settings.write_text(with_server_address(settings.read_text(), f"{LOOPBACK}:{server_port}"))
        with start_node(Site.open(site.folder)):
            yield

    @contextlib.contextmanager
    def _without_gateway(self, site: Site, server_port: int) -> Iterator[None]:
        """Start what a node starts, but for the gateway."""
        port, secret = free_port(), site.folder / "keys" / "superexec.secret"
        secret.write_text(secrets.token_hex(32))
        certificate = server_certificate(self._server)
        command = supernode(site, superlink_port=server_port, certificate=certificate, port=port)
        command += ["--isolation=process", f"--superexec-auth-secret-file={secret}"]
        environment = flower_environment(site.folder / "flower_home")
        with (
            Process("the node", command, log=site.logs / "node.log", environment=environment),
            sandbox.start_superexec(site, runtime_port=port, secret_file=secret, log=site.logs / "sandbox.log"),
        ):
            yield

    def run(self, study: Study, site: str) -> list[Round]:
        """Run the study's rounds at one site; return them."""
        folder = self._sites[site].folder
        StudyApprovals(self._sites[THROUGH]).approve(study.model_dump_json(), by="the benchmark")
        # The gateway's first check of a study takes as long as an import of torch, and does not belong to a round.
        through = self._sites[THROUGH].folder
        schema_of(study.model_dump_json(), through / "gateway" / "schemas", through)
        # The run's name begins with the site to ask. A site refuses a second study in the same run, so it ends anew.
        config = {"study": study.model_dump_json(), "run": f"{site}-{secrets.token_hex(4)}"}
        wait(self._server, start(self._server, self._app, config))
        stages = _taken(folder / "logs" / _AT_SITE)
        return [self._round(each, next(stages)) for each in json.loads((self._server / _AT_SERVER).read_text())]

    def _round(self, server: dict[str, Any], site: dict[str, float]) -> Round:
        moments = [server["began"], *site.values(), server["arrived"], server["done"]]
        down, start, compute, up, aggregate = (later - at for at, later in pairwise(moments))
        line = self._lines[server["site"]]
        passed = (line.passed(direction, server["began"], server["arrived"]) for direction in ("down", "up"))
        return Round(down, start, compute, up, aggregate, *passed)


def _taken(file: Path) -> Iterator[dict[str, float]]:
    """Read the app's record of each message, once; the other lines are log lines."""
    lines = file.read_text().splitlines()
    os.truncate(file, 0)  # the sandbox sees this file alone, so it must stay
    return map(json.loads, (line for line in lines if line.startswith("{")))


def supernode_process(site: Site, port: int, certificate: Path) -> Process:
    """Start Flower's SuperNode of a site; it reaches the server at `port` of loopback."""
    return Process(
        "the node",
        [
            *supernode(site, superlink_port=port, certificate=certificate, port=free_port()),
            "--isolation=subprocess",
        ],
        log=site.logs / "node.log",
        environment=flower_environment(site.folder / "flower_home", FEDTHORAX_SITE_DIR=str(site.folder)),
    )


def gateway_peaks_mb() -> list[float]:
    """Return the peak resident memory of each gateway below this process, without their reapers and helpers."""
    gateways = [pid for pid in descendants(os.getpid(), read_parents()) if _is_gateway(pid)]
    found = [re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in gateways]
    return [int(each[1]) * 1024 / 1e6 for each in found if each]


def _is_gateway(pid: int) -> bool:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return "federation.gateway" in arguments and str(GUARD) not in arguments
