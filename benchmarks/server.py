"""The cost of a round for the study's server: memory and time for 4 to 128 sites, with a model of 8 MB.

A real server runs on loopback, a new one for each number of sites. The sites are enrolled threads that use Flower's own
client through the server's ingress: each fetches its message and answers with a model of the same size. They have no
patients and train nothing, so only the server's work is measured.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import numpy as np
from common import Figure, Part, Table
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from flower_app import packed, start, wait
from flwr.app import MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import pull_objects, push_objects
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.fleet_http_connection import http_request_response
from fresh import peak_mb

sys.path.insert(0, str(Path(__file__).parents[1]))
from federation.enrolment.certificates import client_tls, create_node_key, load_node_key
from federation.enrolment.invitations import JoinRequest, accept, invite
from federation.enrolment.join import JoinCode
from federation.protocol.flat_weights import pack
from federation.server.start import SUPERLINK, init_server, start_server
from federation.superlink.control import ca_certificate, read_server_config
from federation.system.process import GUARD, LOOPBACK, free_port
from federation.system.reaper import descendants, read_parents
from models.network import build_network
from models.network_settings import NetworkSettings
from tests.federation.gateway.messages import message, record_of

SITES = (4, 16, 64, 128)
FEW, SOME, MANY, MOST = SITES
AT_ONCE = 4  # sites that answer at the same time, so that the SuperLink's concurrent work does not depend on the number
MEMORY = 1.3
REPEATS = 3  # repetitions for FEW and MANY, whose memory is compared
INGRESS = "federation.ingress"
_ANSWER = "measured.json"
_APP = {
    "server_app": f"""\
import json
import os
import time
from pathlib import Path

from flwr.serverapp import ServerApp

from federation.coordinator import server_app  # what a study's own app imports
from federation.strategy.aggregation import Aggregation
from federation.strategy.flower_strategies import build_strategy
from federation.coordinator.eager_grid import EagerGrid
from federation.protocol.flat_weights import pack
from federation.protocol.reply_validation import encode
from federation.strategy.guarded import GuardedStrategy, RoundRules, StartState
from models.network import build_network
from models.network_settings import NetworkSettings

app = ServerApp()
run = Aggregation.run
sums = []


def timed(self):
    began = time.process_time()
    new = run(self)
    sums.append(time.process_time() - began)
    return new


def peak_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


@app.main()
def main(grid, context):
    folder, sites = Path(os.environ["FEDTHORAX_SERVER_DIR"]), context.run_config["sites"]
    arrays, buffers = pack(build_network(NetworkSettings(), seed=1))
    Aggregation.run = timed
    reports = []
    rules = RoundRules(quorum=sites, metrics={{}}, max_examples=1000, wait_s=60, max_lost_rounds=0)
    start = StartState(buffers=buffers)
    strategy = GuardedStrategy(
        build_strategy("FedAvg", {{}}), rules, start, folder=folder / "round", on_round=reports.append
    )
    before_mb, began = peak_mb(), time.process_time()
    ours = grid if context.run_config["together"] else EagerGrid(grid)
    strategy.start(ours, encode(arrays), num_rounds=1, timeout=600)
    seconds = time.process_time() - began
    measured = {{"before_mb": before_mb, "peak_mb": peak_mb(), "processor_s": seconds, "summing_s": sums[0]}}
    (folder / "{_ANSWER}").write_text(json.dumps(measured))
""",
}


def measure(folder: Path) -> Part:
    runs = {
        sites: [_measured(folder / f"{sites}-{n}", sites) for n in range(REPEATS if sites in (FEW, MANY) else 1)]
        for sites in SITES
    }
    together = _measured(folder / "together", SOME, together=True)

    def figure(name: str, of: str, sites: int, against: int, target: str, *, a_site: bool = False) -> Figure:
        ours, theirs = ([run[of] / (n if a_site else 1) for run in runs[n]] for n in (sites, against))
        unit = "MB" if of.endswith("_mb") else "processor s"
        return Figure(f"{name}, {sites} sites", f"{against} sites", unit, ours, theirs, target)

    found = {sites: {key: statistics.median(run[key] for run in of) for key in of[0]} for sites, of in runs.items()}
    memory, app = f"at most {MEMORY}", "the study's process"
    figures = [
        figure(f"{app}: memory at most", "peak_mb", MANY, FEW, memory),
        figure("SuperLink: memory at most", "superlink_mb", MANY, FEW, memory),
        figure("ingress: memory at most", "door_mb", MANY, FEW, ""),
        figure("the three together: memory at most", "server_mb", MANY, FEW, memory),
        figure(f"{app}: a round, for each site", "processor_s", MOST, SOME, "about 1", a_site=True),
        figure("summing alone, for each site", "summing_s", MOST, SOME, "about 1", a_site=True),
        Figure(
            f"{app}: memory that a round of {SOME} sites adds",
            "all replies fetched at once, by Flower's own grid",
            "MB",
            *([each["peak_mb"] - each["before_mb"]] for each in (found[SOME], together)),
        ),
    ]
    columns = {
        "the study's process, MB": "peak_mb",
        "of it before the round": "before_mb",
        "SuperLink, MB": "superlink_mb",
        "ingress, MB": "door_mb",
        "database, MB": "database_mb",
        "round, processor s": "processor_s",
        "summing": "summing_s",
    }
    rows = [[str(sites), *(f"{each[key]:.3g}" for key in columns.values())] for sites, each in found.items()]
    notes = [
        f"One round of FedAvg for each number of sites, with {FEW} and {MANY} {REPEATS} times, else once. "
        f"{AT_ONCE} sites transfer at a time, through the ingress. Memory is the peak resident memory of a fresh "
        "process, including libraries. Handshake, final evaluation and MLflow are left out."
    ]
    return Part(notes, figures, [Table("A round at the server", ["sites", *columns], rows)], {"together": together})


def _measured(folder: Path, sites: int, *, together: bool = False) -> dict[str, float]:
    """Measure the server's cost of one round with this number of sites."""
    server = folder / "server"
    init_server(server, port=free_port())
    with start_server(server), contextlib.ExitStack() as connected:
        nodes = [connected.enter_context(_node(server, number)) for number in range(sites)]
        config = {"sites": sites, "together": together}
        run_id = start(server, packed(_APP, config), config)
        model = pack(build_network(NetworkSettings(), seed=1))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda number: _answer(nodes[number], number, *model), range(sites)))
        wait(server, run_id)
        found: dict[str, float] = json.loads((server / _ANSWER).read_text())
        found |= {"superlink_mb": peak_mb(_process(SUPERLINK)), "door_mb": peak_mb(_process(INGRESS))}
        found["server_mb"] = found["peak_mb"] + found["superlink_mb"] + found["door_mb"]
        found["database_mb"] = sum(file.stat().st_size for file in server.glob("state.db*")) / 2**20
        return found


@contextlib.contextmanager
def _node(server: Path, number: int) -> Iterator[Any]:
    """Make Flower's own client of an enrolled site, which presents its certificate from its own address."""
    name, host = f"site-{number}", f"127.0.1.{number + 1}"  # the ingress limits the connections of each address
    key_file, certificate = server / f"{name}.key", server / f"{name}.crt"
    create_node_key(key_file)
    key = load_node_key(key_file)
    certificate.write_text(_let_in(server, name, key))
    tls = client_tls(ca_certificate(server), certificate=certificate, private_key=key_file)

    def with_certificate(address: str, *_: object, interceptors: Any) -> FleetHttpClient:
        client = FleetHttpClient(f"https://{address}", interceptors=interceptors, verify=tls)
        client._client = httpx.Client(transport=httpx.HTTPTransport(verify=tls, local_address=host), timeout=30)
        return client

    with contextlib.ExitStack() as connected:
        with patch.object(FleetHttpClient, "from_server_address", with_certificate):  # it would present none
            address = f"{LOOPBACK}:{read_server_config(server).port}"
            node = connected.enter_context(http_request_response(address, False, None, (key, key.public_key())))
        yield node


def _let_in(server: Path, name: str, key: ec.EllipticCurvePrivateKey) -> str:
    """Issue the site's certificate as the ingress does, whose limit of joins per minute and address is too low here."""
    code = JoinCode.read(invite(server, name))
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA384())
    pem = request.public_bytes(Encoding.PEM).decode()
    _, certificate = accept(server, JoinRequest(invitation=code.invitation, secret=code.secret, request=pem))
    return certificate


def _answer(node: Any, number: int, arrays: Mapping[str, np.ndarray], buffers: Mapping[str, np.ndarray]) -> None:
    """Wait for the round's message, fetch it, and answer with the site's own model."""
    _, receive, send, _, _, pull_object, push_object, confirm = node
    while (received := receive()) is None:
        time.sleep(1)
    asked, tree = received[0].metadata, received[1]
    pull_objects([each.object_id for each in iterate_object_tree(tree)], lambda each: pull_object(asked.run_id, each))
    confirm(asked.run_id, asked.message_id)
    draw = np.random.default_rng(number)
    moved = {name: a + np.float32(1e-3) * draw.standard_normal(a.shape, np.float32) for name, a in arrays.items()}
    metrics = MetricRecord({"num-examples": 30 + number})
    with no_object_id_recompute():
        reply = message(
            RecordDict({"arrays": record_of(moved), "buffers": record_of(buffers), "metrics": metrics}),
            run_id=asked.run_id,
            src_node_id=asked.dst_node_id,
            dst_node_id=asked.src_node_id,
            reply_to_message_id=asked.message_id,
            created_at=asked.created_at + 1,
            ttl=asked.ttl - 2,
        )
        wanted, session = send(reply, get_object_tree(reply), 1.0)
        push_objects(
            get_all_nested_objects(reply),
            lambda each, content: push_object(asked.run_id, session, each, content),
            object_ids_to_push=wanted,
        )


def _process(module: str) -> int:
    """Return the descendant process that runs a module. Its reaper's arguments contain the module's name too."""
    (found,) = [
        pid
        for pid in descendants(os.getpid(), read_parents())
        if module in (arguments := Path(f"/proc/{pid}/cmdline").read_text()) and str(GUARD) not in arguments
    ]
    return found
