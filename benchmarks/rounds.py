"""What a federated round costs besides training: seconds by stage, and bytes on the wire beside the weights' own.

For the smallest network that a study can have, the default one and the widest ResNet-18 that it offers by name; in
single and in half precision; through the site's gateway and straight to the server, in turn. See round_rig.py.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import Figure, Part, Table
from round_rig import DIRECT, MEMORY_MB, THROUGH, Rig, Round, gateway_peak_mb, make_site

from federation.protocol.flat_weights import WEIGHTS, pack
from federation.protocol.study_config import Study, StudyNetwork
from models.network import build_network
from pipeline.training.train import step

REPEATS = 2
TRAINING_SECONDS = 20.0
MODELS = {
    "0.2 MB": StudyNetwork(architecture="resnet10", widen_factor=1 / 16),
    "8 MB": StudyNetwork(),
    "133 MB": StudyNetwork(architecture="resnet18", widen_factor=1.0),
}
SMALL, LARGE = "0.2 MB", "133 MB"
AT_MOST = {"float32": "at most 1.1", "float16": "at most 0.6"}  # of the bytes; the small model has no bound
STAGES = ("down", "start", "compute", "up", "aggregate")

Rounds = Mapping[str, Sequence[Round]]  # by site


def study(network: StudyNetwork, precision: str = "float32", rounds: int = REPEATS) -> Study:
    table = {"name": "bench", "rounds": rounds, "sites": 1, "quorum": 1}
    return Study.model_validate({"study": table, "network": network.model_dump(), "wire": {"precision": precision}})


def measure(folder: Path) -> Part:
    sites = {name: make_site(folder / name) for name in (THROUGH, DIRECT)}
    figures: list[Figure] = []
    rows: list[list[str]] = []
    with Rig(folder, sites) as rig:
        rig.run(study(MODELS[SMALL], rounds=1), both=True)  # the app is new, and its libraries are not in memory yet
        for name, network in MODELS.items():
            for precision in AT_MOST:
                found = rig.run(study(network, precision), both=precision == "float32")
                figures += _bytes(name, network, precision, found[THROUGH])
                rows += [_row(name, precision, way, rounds) for way, rounds in found.items()]
                if precision == "float32":
                    figures += _seconds(name, found)
        peak_mb = gateway_peak_mb()
    figures.append(Figure(f"{LARGE}: memory of the gateway", "the limit", "MB", [peak_mb], [MEMORY_MB], "at most 1"))
    head = ["model", "precision", "gateway", *STAGES, "together"]
    return Part(_notes(), figures, [Table("Seconds of a round by stage, medians", head, rows)])


def _bytes(name: str, network: StudyNetwork, precision: str, rounds: Sequence[Round]) -> list[Figure]:
    """What passes between the site and the server, beside the weights' bytes in single precision."""
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
        "A round is one site's: down, from the server's sending until the app's process begins; start, until the app "
        "has read its libraries and holds the message; compute, what the app does but for the training; up, until the "
        "server holds the reply; aggregate, its checks and the strategy. Down, start and up hold Flower's looks every "
        "0.5 to 3 s. No app is kept warm here.",
        "Bytes are all that passes on the line between the site and the server meanwhile, TLS, looks and heartbeats "
        f"among them. The model of {SMALL} has no bound: beside it they weigh.",
        f"Nothing is trained: {TRAINING_SECONDS:.0f} s are added where it is said, as long as {steps:.0f} steps of the "
        f"model of {LARGE}, with batches of {large.training.batch_size}, take here alone; two epochs over 100 patients "
        "are 26. Half precision is measured through the gateway alone.",
    ]


def _step_seconds(what: Study) -> float:
    """Of one step of training on as many cores as there are, nothing else running."""
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
