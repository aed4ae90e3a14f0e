"""How much of the gateway's bounds on weights does honest training use, network by network?

    python benchmarks/network_bounds.py [--patients 110] [--until 20] [--networks densenet121:gated:batch ...]
    python benchmarks/network_bounds.py --networks resnet18:mean:batch:hidden_blocks     # or :auxiliary

One synthetic hospital trains alone with the settings of configs/study.toml, so each round moves the model as far as
local training can. After each round every tensor, filter and channel is compared with its bound
(`federation.protocol.tensor_bounds`). A share above 1 means that the gateway would refuse an honest model. Each
network's result is stored in benchmarks/results/network_bounds.json as soon as it is measured. With a fourth word, the
study is a pretraining: the same scans, no label, at the highest learning rate that a pretraining may have.
"""

import argparse
import json
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from federation.client.site_tasks import load_examples, train_site
from federation.gateway.batch_norm_bounds import LEAST, MAX_GROWTH
from federation.protocol.batch_norm import MEAN, VARIANCE, is_counter
from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS, group_of, pack, unpack
from federation.protocol.patient_counts import count_patients
from federation.protocol.study_config import PRETRAINING_RATE, Study
from federation.protocol.tensor_bounds import parts_of, reaches_of
from models.network import SeverityNetwork, build_network
from models.settings import load_settings
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import hospital
from pipeline.site.folder import Site
from pipeline.training.train import train

RESULTS = Path(__file__).with_name("results") / "network_bounds.json"
STUDY = Path(__file__).parents[1] / "configs" / "study.toml"
PLACES, SLICES = ("resnet18", "densenet121", "seresnet50", "convnext"), ("resnet18_slices", "efficientnet_b0_slices")
NETWORKS = [
    *(f"{name}:{pooling}:batch" for name in PLACES for pooling in ("mean", "gated", "attention")),
    *(f"{name}:{pooling}:batch" for name in SLICES for pooling in ("gated", "attention")),
    *(f"{name}:mean:group" for name in PLACES),
    *(f"{name}:gated:group" for name in ("densenet121", "seresnet50", "efficientnet_b0_slices", "convnext")),
]

Packed = dict[str, NDArray[np.float64]]
Shares = dict[str, dict[str, float]]


def study_of(network: str) -> Study:
    architecture, pooling, norm, *outputs = network.split(":")
    tables = load_settings(STUDY, Study).model_dump()
    tables["study"] |= {"sites": 1, "quorum": 1}
    tables["aggregation"] |= {"summed_answers": False}  # of one site there is no sum
    tables["network"] |= {"architecture": architecture, "pooling": pooling, "norm": norm}
    if outputs:
        tables["network"] |= {"outputs": outputs[0]}
        tables["training"] |= {"learning_rate": PRETRAINING_RATE}
    return Study.model_validate(tables)


def kind_of(name: str, network: SeverityNetwork) -> str:
    """Return the kind of a tensor, in the words of docs/one-reply.md."""
    first = next(name for name, weight in network.named_parameters() if weight.ndim > 2)
    if name.endswith((MEAN, VARIANCE)):
        return "running means" if name.endswith(MEAN) else "running variances"
    if name.startswith(("head", "tabular")):
        return name
    ndim = network.get_parameter(name).ndim
    if ".fc." in name or "._se_" in name:
        return f"squeeze-and-excitation, {name.rpartition('.')[2]}"
    if ndim > 2:
        return "first convolution" if name == first else "other convolutions"
    if any(part in name for part in ("content", "gate", "importance")):
        return f"attention, {name.rpartition('.')[2]}"
    return "shifts" if name.endswith("bias") else "norm scales"


def packed(network: SeverityNetwork) -> Packed:
    weights, buffers = pack(network)
    arrays = {**weights, **buffers}
    return {name: array.astype(np.float64) for name, array in arrays.items() if not is_counter(name)}


def names_at(network: SeverityNetwork, group: str, starts: NDArray[np.int64]) -> Iterator[str]:
    """Yield the tensor in which each piece of a packed array begins."""
    names, firsts, end = [], [], 0
    for name, tensor in network.state_dict().items():
        if group_of(name) == group:
            names.append(name)
            firsts.append(end)
            end += tensor.numel()
    for start in starts:
        yield names[bisect_right(firsts, int(start)) - 1]


def lengths(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the root mean square of each piece."""
    sizes = np.diff([*starts, len(values)])
    rms: NDArray[np.float64] = np.sqrt(np.add.reduceat(values**2, starts) / sizes)
    return rms


class Watch:
    """The largest share of each bound that a training has used, by kind of tensor."""

    def __init__(self, network: SeverityNetwork, study: Study) -> None:
        rate, epochs = study.training.learning_rate, study.epochs_a_round
        self.network, self.seed = network, packed(network)
        self.parts = parts_of(network, learning_rate=rate, epochs=epochs)
        self.reaches = reaches_of(network, learning_rate=rate, epochs=epochs, rounds=study.study.rounds)
        self.shares: Shares = {}

    def note(self, bound: str, group: str, starts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
        for name, share in zip(names_at(self.network, group, starts), shares, strict=True):
            kinds = self.shares.setdefault(bound, {})
            kind = kind_of(name, self.network)
            kinds[kind] = max(kinds.get(kind, 0.0), float(share))

    def after_round(self, old: Packed, new: Packed) -> None:
        for group, parts in self.parts.items():
            if is_counter(group):
                continue
            starts = np.array([part.start for part in parts])
            _, at_seed, share, floor, longest = np.array(parts).T
            moved, before, after = (lengths(v, starts) for v in (new[group] - old[group], old[group], new[group]))
            allowed = np.maximum(share * np.maximum(before, at_seed), floor)
            learnt = allowed > 0
            self.note("a round", group, starts[learnt], moved[learnt] / allowed[learnt])
            if group == WEIGHTS:
                self.note("length", group, starts[learnt], after[learnt] / longest[learnt])
        reaches = self.reaches[WEIGHTS]
        starts, farthest = np.array([reach.start for reach in reaches]), np.array([reach.farthest for reach in reaches])
        held = farthest < 1e20
        away = lengths(new[WEIGHTS] - self.seed[WEIGHTS], starts)
        self.note("the whole run", WEIGHTS, starts[held], away[held] / farthest[held])
        if mean := BATCH_NORM + MEAN in new and BATCH_NORM + MEAN:
            variance = BATCH_NORM + VARIANCE
            power = [values[mean] ** 2 + values[variance] for values in (old, new)]
            growth = float((power[1] / np.maximum(power[0], LEAST)).max()) / MAX_GROWTH
            self.shares.setdefault("a round", {})["mean² + variance, growth"] = max(
                growth, self.shares["a round"].get("mean² + variance, growth", 0.0)
            )


def train_round(network: SeverityNetwork, site: Site, study: Study, number: int) -> None:
    """Train the network in place for a round."""
    if study.network.pretrains:
        trained = train_site(site, study, *pack(network), round_number=number)
        unpack(network, trained.arrays, trained.buffers)
        print(f"round {number}: {trained.metrics}", flush=True)
    else:
        train(network, load_examples(site, study, "train"), study.training, study.schedule(number), seed=number)


def measure(network_name: str, site: Site, until: int) -> Shares:
    """Train until this round of the study's 20, which decide the learning rate."""
    study = study_of(network_name)
    network = build_network(study.network, seed=study.study.seed)
    watch, old = Watch(network, study), packed(network)
    for number in range(1, until + 1):
        train_round(network, site, study, number)
        new = packed(network)
        watch.after_round(old, new)
        old = new
    return {bound: {kind: round(share, 3) for kind, share in kinds.items()} for bound, kinds in watch.shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=110)
    parser.add_argument("--until", type=int, default=20)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        site = synthetic_site(Path(folder) / "site", "here", seed=1, min_patients=10)
        settings = study_of(NETWORKS[0]).preprocessing
        write_cohort(site, hospital(0), patients=asked.patients, seed=1, settings=settings, anatomy="template")
        patients = count_patients(site).of_split["train"]
        stored = json.loads(asked.out.read_text()) if asked.out.is_file() else {}
        for name in asked.networks:
            found = measure(name, site, asked.until)
            stored[f"{name}, {patients} patients, {asked.until} rounds"] = found
            asked.out.write_text(json.dumps(stored, indent=1) + "\n")
            print(name, patients, json.dumps(found, indent=1), flush=True)


if __name__ == "__main__":
    main()
