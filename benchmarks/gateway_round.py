"""A round of one site with a model of 126 MB, through its gateway and straight to the server, in turn, in one run.

Real processes on loopback, with TLS: SuperLink, two SuperNodes, the gateway before one of them, an app at each end. In
the place of training the app waits for a fixed time, and then answers with a model of the same size.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import Figure
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab

from federation.approval import fab
from federation.approval.approvals import Approvals
from federation.enrolment.certificates import load_node_key, public_pem
from federation.enrolment.join import node_certificate, with_server_address
from federation.gateway.loopback import loopback_certificate, self_signed
from federation.gateway.objects import object_id
from federation.gateway.process import start_gateway
from federation.processes.guard import descendants, read_parents
from federation.processes.process import GUARD, LOOPBACK, Process, flower_command, flower_environment, free_port
from federation.server.control import control, read_server_config
from federation.server.control import loopback_certificate as server_certificate
from federation.server.start import enrol, init_server, start_server
from federation.studies.runs import status
from federation.study import Study
from models.network import build_network
from pipeline.site import Site
from pipeline.train import step

REPEATS = 3
TRAINING_SECONDS = 20.0
MEMORY_MB = 150.0
THROUGH, DIRECT = "through", "direct"
_ANSWER = "seconds.json"
_FILES = {
    "pyproject.toml": """\
[project]
name = "bench-app"
version = "0.1.0"
description = "Asks two sites in turn."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "bench_app.server_app:app"
clientapp = "bench_app.client_app:app"

[tool.flwr.app.config]
study = ""
run = ""
""",
    "bench_app/__init__.py": "",
    "bench_app/client_app.py": f"""\
import time

import numpy as np
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from federation.rounds import local  # what a site's own app imports, torch among it
from federation.rounds.replies import decode, encode

app = ClientApp()


@app.train()
def train(message, context):
    records = message.content.array_records
    arrays = decode(records["arrays"])
    if message.content.config_records["config"]["server-round"]:
        time.sleep({TRAINING_SECONDS})
    arrays = {{name: array * np.float32(1.001) for name, array in arrays.items()}}
    metrics = MetricRecord({{"train_loss": 0.5, "num-examples": 30}})
    content = RecordDict({{"arrays": encode(arrays), "buffers": records["buffers"], "metrics": metrics}})
    return Message(content, reply_to=message)
""",
    "bench_app/server_app.py": f"""\
import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp

from federation.rounds.grid import EagerGrid
from federation.rounds.packing import pack
from federation.rounds.replies import encode
from federation.server.start import sites
from federation.study import Study
from models.network import build_network

app = ServerApp()


@app.main()
def main(grid, context):
    folder = Path(os.environ["FEDTHORAX_SERVER_DIR"])
    arrays, buffers = pack(build_network(Study.model_validate_json(context.run_config["study"]).network, seed=1))
    nodes = {{site.name: site.node_id for site in sites(folder)}}
    grid = EagerGrid(grid)
    while len(grid.get_node_ids()) < len(nodes):
        time.sleep(0.5)
    seconds = {{name: [] for name in nodes}}
    for number in range({REPEATS} + 1):
        for name, node in nodes.items():
            arrays = {{key: array + np.float32(1e-4) for key, array in arrays.items()}}  # no object is known already
            config = ConfigRecord({{"server-round": number, "ledger-head": "", "ledger-lines": 0}})
            content = RecordDict({{"arrays": encode(arrays), "buffers": encode(buffers), "config": config}})
            began = time.perf_counter()
            (reply,) = grid.send_and_receive([Message(content, node, "train")], timeout=300)
            seconds[name].append(time.perf_counter() - began)
            if reply.has_error():
                raise RuntimeError(reply.error.reason)
            assert reply.content.array_records["arrays"].keys() == arrays.keys()
    (folder / "{_ANSWER}").write_text(json.dumps(seconds))
""",
}


def measure_rounds(folder: Path, through: Site, direct: Site, study: Study) -> tuple[list[Figure], str]:
    """Figures of a round, and what they are worth. The sites have keys and patients, and have joined no study yet."""
    app = fab.pack({name: text.encode() for name, text in _FILES.items()})
    Approvals(through).approve(app, by="the benchmark")
    server = folder / "server"
    init_server(server, port=free_port())
    with start_server(server):
        for name, site in ((THROUGH, through), (DIRECT, direct)):
            enrol(server, public_pem(load_node_key(site.node_key).public_key()), name)
        with _with_gateway(through, server), _straight(direct, server):
            times = _run(server, app, study)
            peak_mb = gateway_peak_mb()
    ours, theirs = (times[name][1:] for name in (THROUGH, DIRECT))  # the first look at app and study is no round
    name, against = "a round with a model of 126 MB", "without the gateway"
    exchange = [[seconds - TRAINING_SECONDS for seconds in values] for values in (ours, theirs)]
    return [
        Figure(f"{name}, {TRAINING_SECONDS:.0f} s of it training", against, "s", ours, theirs, "at most 1.15"),
        Figure(f"{name}: all but the training", against, "s", *exchange),
        Figure(f"{name}: memory at most", "the limit", "MB", [peak_mb], [MEMORY_MB], "at most 1"),
    ], (
        f"A round is one site's, from the server's sending to the reply's arrival there. {TRAINING_SECONDS:.0f} s of "
        f"waiting stand for its training: as long as {TRAINING_SECONDS / _step_seconds(study):.0f} steps of this "
        f"network, with batches of {study.training.batch_size}, take here alone; two epochs over 100 patients are 26. "
        "The rest is Flower's start of an app, its looks every 0.5 to 3 s, and the exchange."
    )


@contextlib.contextmanager
def _with_gateway(site: Site, server: Path) -> Iterator[None]:
    """A node whose gateway holds a certificate that the SuperLink, being behind no door here, does not ask for."""
    certificate = self_signed(load_node_key(site.node_key))
    node_certificate(site).write_bytes(certificate.public_bytes(Encoding.PEM))
    site.ca_certificate.write_bytes(server_certificate(server).read_bytes())
    settings = site.folder / "site.toml"
    address = f"{LOOPBACK}:{read_server_config(server).control_port}"
    settings.write_text(with_server_address(settings.read_text(), address))
    port = free_port()
    with (
        start_gateway(Site.open(site.folder), port=port, log=site.logs / "gateway.log"),
        _supernode(site, port, loopback_certificate(site)[0]),
    ):
        yield


def _straight(site: Site, server: Path) -> Process:
    return _supernode(site, read_server_config(server).control_port, server_certificate(server))


def _supernode(site: Site, port: int, certificate: Path) -> Process:
    return Process(
        "the node",
        [
            flower_command("flower-supernode"),
            f"--superlink={LOOPBACK}:{port}",
            f"--root-certificates={certificate}",
            f"--auth-supernode-private-key={site.node_key}",
            f"--host={LOOPBACK}",
            f"--port={free_port()}",
            "--isolation=subprocess",
        ],
        log=site.logs / "node.log",
        environment=flower_environment(site.folder / "flower_home"),
    )


def _run(server: Path, app: bytes, study: Study) -> dict[str, list[float]]:
    """Seconds of the rounds by site."""
    config = user_config_to_proto({"study": study.model_dump_json(), "run": "bench"})
    request = StartRunRequest(fab=Fab(hash_str=object_id(app), content=app), override_config=config)
    with control(server) as client:
        run_id = int(client.StartRun(request).run_id)
    while not (ended := status(server, run_id)).startswith("finished"):
        time.sleep(2)
    if ended != "finished:completed":
        raise RuntimeError(f"{ended}:\n{(server / 'logs' / 'superexec.log').read_text()[-2000:]}")
    seconds: dict[str, list[float]] = json.loads((server / _ANSWER).read_text())
    return seconds


def _step_seconds(study: Study) -> float:
    """Of one step of training on as many cores as there are, nothing else running."""
    network = build_network(study.network, seed=1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    size = study.training.batch_size
    scans = torch.zeros(size, 2, *study.preprocessing.shape)
    batch = scans, torch.zeros(size, 4), torch.zeros(size, 2)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step(network, optimiser, *batch)
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def gateway_peak_mb() -> float:
    """Resident memory at most of the one gateway below this process, its guard and its helpers left out."""
    (gateway,) = [pid for pid in descendants(os.getpid(), read_parents()) if _is_gateway(pid)]
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{gateway}/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


def _is_gateway(pid: int) -> bool:
    arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return "federation.gateway" in arguments and str(GUARD) not in arguments
