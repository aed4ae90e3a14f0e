"""The cost of a federated round without training: seconds by stage, and bytes in transit relative to the weights.

For the smallest network of a study, the default one and the widest ResNet-18 that can be selected by name; in single
and half precision; with the site's gateway and directly to the server, in turn. See round_rig.py.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import Figure, Part, Table
from flower_app import with_sandbox
from round_rig import DIRECT, MEMORY_MB, THROUGH, Rig, Round, gateway_peaks_mb, make_site

from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.study_config import Study, StudyNetwork
from models.network import build_network
from pipeline.training.train import step

REPEATS = 5
TRAINING_SECONDS = 20.0
MODELS = {
    "0.2 MB": StudyNetwork(architecture="resnet10", widen_factor=1 / 16),
    "8 MB": StudyNetwork(),
    "133 MB": StudyNetwork(architecture="resnet18", widen_factor=1.0),
}
SMALL, LARGE = "0.2 MB", "133 MB"
AT_MOST = {"float32": "at most 1.1", "float16": "at most 0.6"}  # goals for the bytes; the small model has none
SECONDS_AT_MOST = {"0.2 MB": 2.0, "8 MB": 2.5}  # goals; a frozen encoder's head is smaller than the small model
STAGES = ("down", "start", "compute", "up", "aggregate")

Rounds = Mapping[str, Sequence[Round]]  # rounds by site


def study(network: StudyNetwork, precision: str = "float32", rounds: int = REPEATS) -> Study:
    table = {"name": "bench", "rounds": rounds, "sites": 1, "quorum": 1}
    return Study.model_validate({"study": table, "network": network.model_dump(), "wire": {"precision": precision}})


def measure(folder: Path) -> Part:
    sites = {name: with_sandbox(make_site(folder / name)) for name in (THROUGH, DIRECT)}
    figures: list[Figure] = []
    rows: list[list[str]] = []
    with Rig(folder, sites) as rig:
        for way in (THROUGH, DIRECT):
            rig.run(study(MODELS[SMALL], rounds=1), way)  # warm-up: the app's libraries are not in memory yet
        for name, network in MODELS.items():
            for precision in AT_MOST:
                ways = (THROUGH, DIRECT) if precision == "float32" else (THROUGH,)
                found = {way: rig.run(study(network, precision), way) for way in ways}
                figures += _bytes(name, network, precision, found[THROUGH])
                rows += [_row(name, precision, way, rounds) for way, rounds in found.items()]
                if precision == "float32":
                    figures += _seconds(name, found)
        peaks_mb = gateway_peaks_mb()
    figures.append(Figure(f"{LARGE}: memory of the gateway", "the limit", "MB", peaks_mb, [MEMORY_MB], "at most 1"))
    head = ["model", "precision", "gateway", *STAGES, "together"]
    return Part(_notes(), figures, [Table("Seconds of a round by stage, medians", head, rows)])


def _bytes(name: str, network: StudyNetwork, precision: str, rounds: Sequence[Round]) -> list[Figure]:
    """Compare the bytes between site and server with the bytes of the weights in single precision."""
    weights = pack(build_network(network, seed=1))[0][WEIGHTS].nbytes / 1e6
    target = "" if name == SMALL else AT_MOST[precision]
    return [
        Figure(f"{name}, {precision}: {way}", "the weights in float32", "MB", passed, [weights] * len(passed), target)
        for way, passed in (
            ("down", [each.bytes_down / 1e6 for each in rounds]),
            ("up", [each.bytes_up / 1e6 for each in rounds]),
        )
    ]


def _seconds(name: str, found: Rounds) -> list[Figure]:
    against = "without the gateway"
    ours, theirs = ([each.seconds for each in found[way]] for way in (THROUGH, DIRECT))
    figures = [Figure(f"a round with a model of {name}: all but the training", against, "s", ours, theirs)]
    if name in SECONDS_AT_MOST:
        title = f"a round with a model of {name}: all but the training"
        figures.append(Figure(title, "the goal", "s", ours, [SECONDS_AT_MOST[name]] * len(ours), "at most 1"))
    if name == LARGE:
        trained = ([seconds + TRAINING_SECONDS for seconds in values] for values in (ours, theirs))
        title = f"a round with a model of {name}, with {TRAINING_SECONDS:.0f} s of training"
        figures.append(Figure(title, against, "s", *trained, "at most 1.15"))
    return figures


def _row(name: str, precision: str, way: str, rounds: Sequence[Round]) -> list[str]:
    def median(stage: str) -> str:
        return f"{statistics.median(getattr(each, stage) for each in rounds):.2f}"

    return [name, precision, "yes" if way == THROUGH else "no", *map(median, (*STAGES, "seconds"))]


def _notes() -> list[str]:
    large = study(MODELS[LARGE])
    steps = TRAINING_SECONDS / _step_seconds(large)
    return [
        "Stages of one site's round: down, from the server's sending until the app's process starts; start, until the "
        "app has imported the study's code and has the message; compute, the app's work without training; up, until "
        "the server has the reply; aggregate, the server's checks and the strategy. Down and up include the polling of "
        "Flower's SuperNode and SuperExec every 0.5 s, and ours. Both sites have a sandbox in which each task is a "
        "fork of a process with its libraries.",
        "Bytes are all traffic between the site and the server during the round, with TLS, polling and heartbeats. "
        f"The model of {SMALL} has no bound, because they are a large part of its traffic.",
        f"Nothing is trained: {TRAINING_SECONDS:.0f} s are added where stated. {steps:.0f} training steps of the model "
        f"of {LARGE} with batches of {large.training.batch_size} take this time here; two epochs over 100 patients are "
        "26 steps. Half precision is measured only with the gateway.",
    ]


def _step_seconds(what: Study) -> float:
    """Measure the seconds of one training step on all cores, with nothing else running."""
    network = build_network(what.network, seed=1)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    size = what.training.batch_size
    scans = torch.zeros(size, 2, *what.preprocessing.shape)
    batch = scans, torch.zeros(size, 4), torch.zeros(size, 2)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        step(network, optimiser, *batch)
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))
