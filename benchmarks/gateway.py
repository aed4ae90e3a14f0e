"""Cost of the gateway for a small message and a model of 133 MB, and its memory; for a whole round see rounds.py.

Flower's own client is the node, and the server has Flower's protocol. Between them is the gateway in its own process,
or nothing. All run on one machine, so that work is measured, not the network.
"""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from common import Figure, Part
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from round_rig import MEMORY_MB, gateway_peaks_mb, make_site

sys.path.insert(0, str(Path(__file__).parents[1]))
from federation.approval.studies import StudyApprovals
from federation.gateway.batch_norm_bounds import steps_of_round
from federation.gateway.schema import Schema, schema_of
from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.patient_counts import count_patients
from federation.protocol.study_config import Study, StudyNetwork
from models.network import build_network
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench, NodeSide, Server
from tests.federation.gateway.messages import Model, objects_of, record_of, trained

SMALL_REPEATS, LARGE_REPEATS = 30, 5
SMALL_MS = 50.0


def measure(folder: Path) -> Part:
    small = _study(StudyNetwork(architecture="resnet10", widen_factor=1 / 16))
    large = _study(StudyNetwork(architecture="resnet18", widen_factor=1.0))
    figures = []
    for study, name, unit, scale, repeats in (
        (small, "a small message, there and back", "ms", 1000.0, SMALL_REPEATS),
        (large, "a model of 133 MB, there and back", "s", 1.0, LARGE_REPEATS),
    ):
        site = make_site(folder / f"site-{len(figures)}")
        schema = schema_of(study.model_dump_json(), site.folder / "gateway" / "schemas", site.folder)
        with_gateway, without, peaks_mb = _times(site, study, schema, repeats)
        figures += [
            Figure(
                name, "without the gateway", unit, *([scale * t for t in times] for times in (with_gateway, without))
            ),
            Figure(f"{name}: memory at most", "the limit", "MB", peaks_mb, [MEMORY_MB], "at most 1"),
        ]
        if study is small:
            added = [1000 * (ours - theirs) for ours, theirs in zip(with_gateway, without, strict=True)]
            figures.append(Figure(f"{name}: added", "the limit", "ms", added, [SMALL_MS], "at most 1"))
    notes = [
        "There: message, run, app and objects are fetched; back: the reply is announced and pushed. By Flower's own "
        "client, two objects at a time, TLS, and with the gateway until the server has the whole reply."
    ]
    return Part(notes, figures)


def _study(network: StudyNetwork) -> Study:
    table = {"name": "bench", "rounds": 1000, "sites": 1, "quorum": 1}
    return Study.model_validate({"study": table, "network": network.model_dump()})


def _times(site: Site, study: Study, schema: Schema, repeats: int) -> tuple[list[float], list[float], list[float]]:
    """Measure seconds of a message's round trip with and without gateway, in turn, and the gateway's peak memory."""
    rng = np.random.default_rng(1)
    StudyApprovals(site).approve(study.model_dump_json(), by="the benchmark")
    arrays, buffers = pack(build_network(study.network, seed=study.study.seed))
    came_in: Model = {"arrays": arrays, "buffers": buffers}
    patients = count_patients(site).of_split["train"]
    steps = steps_of_round(patients, batch_size=schema.batch_size, epochs=schema.local_epochs, steps=0)
    out = trained(came_in, rng, steps)
    for start, end in schema.fixed(WEIGHTS):
        out["arrays"][WEIGHTS][start:end] = arrays[WEIGHTS][start:end]
    server = Server(study=study.model_dump_json())
    bench = Bench(site, server, own_process=True)
    times: tuple[list[float], list[float]] = ([], [])
    try:
        with bench.node() as through, bench.node(direct=True) as direct:
            for repeat in range(repeats + 1):
                for own, node in zip(times, (through, direct), strict=True):
                    seconds = _there_and_back(server, node, came_in, out, repeat)
                    if repeat:
                        own.append(seconds)
                    _wait(lambda: not (site.folder / "gateway" / "unanswered").exists())
        peaks_mb = gateway_peaks_mb()
    finally:
        bench.close()
    return (*times, peaks_mb)


def _there_and_back(server: Server, node: NodeSide, came_in: Model, out: Model, number: int) -> float:
    server.replies.clear()
    server.received.clear()
    config = ConfigRecord({"server-round": 1, "ledger-head": "", "ledger-lines": 0})
    server.give(RecordDict({**{name: record_of(arrays) for name, arrays in came_in.items()}, "config": config}))
    began = time.perf_counter()
    while (received := node.receive()) is None:  # warm-up: the first time, the gateway checks the app and the study
        _refuse_errors(server)
        time.sleep(0.1)
    proto, tree = received
    run_id = proto.metadata.run_id
    node.get_fab(node.get_run(run_id).fab_hash, run_id)
    with ThreadPoolExecutor(2) as pool:
        ids = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        contents = dict(zip(ids, pool.map(lambda id: node.pull_object(run_id, id), ids), strict=True))
        node.confirm(run_id, proto.metadata.message_id)
        there = time.perf_counter() - began
        task = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(task, Message)
        task.metadata.__dict__["_message_id"] = proto.metadata.message_id
        metrics = MetricRecord({"train_loss": 0.5, "num-examples": 30})
        records = {name: record_of(arrays) for name, arrays in out.items()}
        reply = Message(RecordDict({**records, "metrics": metrics}), reply_to=task)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = objects_of(reply)
        began = time.perf_counter()
        wanted, session = node.send(reply, get_object_tree(reply), 1.0)
        list(pool.map(lambda id: node.push_object(run_id, session, id, objects[id]), wanted))
        _wait(lambda: bool(server.replies) and server.replies[-1][1].object_id in server.received)
    _refuse_errors(server)
    return there + time.perf_counter() - began


def _refuse_errors(server: Server) -> None:
    for reply, _ in server.replies:
        if reply.HasField("error"):
            raise RuntimeError(reply.error.reason)


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        if time.monotonic() > deadline:
            raise RuntimeError("no reply reached the server")
        time.sleep(0.001)
