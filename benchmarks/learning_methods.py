"""The rows of learning.py: how each model is trained, and what that costs."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from learning_sites import KINDS, Form, orders

from federation.client.site_tasks import load_examples, load_network
from federation.coordinator.baselines import train_together
from federation.coordinator.inprocess import sites_here
from federation.coordinator.rounds import Training
from federation.protocol.flat_weights import pack, unpack
from federation.protocol.study_config import Study
from models.network import SeverityNetwork, build_network
from pipeline.cohort.dataset import Examples
from pipeline.site.folder import Site
from pipeline.training.train import augmentation_of, batches, step

POOLED, OURS, NAIVE = "pooled", "ours", "naive FedAvg"
ALONE = " alone"
# Of naive FedAvg: rounds, and the local epochs of a round. Their product is that of the study's defaults.
NAIVE_EPOCHS = 5


@dataclass(frozen=True)
class Cost:
    """What a training took: rounds, bytes from one hospital and to it, passes over each patient, processor seconds."""

    rounds: int
    bytes_up: int
    bytes_down: int
    passes: float
    processor_s: float


@dataclass(frozen=True)
class Job:
    """One model to be trained: `method` is POOLED, OURS, NAIVE or the name of a hospital followed by ALONE."""

    root: Path
    form: Form
    kind: str
    seed: int
    method: str

    @property
    def key(self) -> tuple[str, int, str]:
        return self.kind, self.seed, self.method

    def settings(self) -> Study:
        return self.form.settings(self.seed, len(KINDS[self.kind].places))


def methods(kind: str) -> list[str]:
    """Return the rows of a kind that have to be trained for it."""
    alone = [] if KINDS[kind].locals_of else [name + ALONE for name in KINDS[kind].names]
    return [POOLED, OURS, NAIVE, *alone]


def trained(job: Job) -> tuple[SeverityNetwork, Cost]:
    """Train one model."""
    sites = [Site.open(order.folder) for order in orders(job.root, job.form, job.kind, job.seed)]
    what, began = job.settings(), time.process_time()
    how: Callable[[Job, Study, list[Site]], tuple[SeverityNetwork, int, int, int]]
    if job.method == OURS:
        how = _ours
    elif job.method == NAIVE:
        how = _naive
    else:
        how = _together
    network, rounds, up, down = how(job, what, sites)
    return network, Cost(rounds, up, down, what.total_epochs, time.process_time() - began)


def _together(job: Job, what: Study, sites: list[Site]) -> tuple[SeverityNetwork, int, int, int]:
    """Train on all patients in one place, or on one hospital's."""
    chosen = [site for site in sites if job.method in (POOLED, site.name + ALONE)]
    return train_together(what, chosen), 0, 0, 0


def _ours(job: Job, what: Study, sites: list[Site]) -> tuple[SeverityNetwork, int, int, int]:
    """Train the default study with the app and the guarded strategy, with messages and checkpoints."""
    run = f"{job.form.name} {job.kind} {job.seed}"
    training = Training(what, job.root / "runs" / run, "bench")
    model = training.execute(sites_here(what, [site.folder for site in sites]))
    if any(entry["sites"] != sorted(site.name for site in sites) for entry in training.history):
        raise RuntimeError(f"a site did not count in every round: {run}")
    up, down = (sum(entry[way] for entry in training.history) // len(sites) for way in ("bytes_up", "bytes_down"))
    return load_network(what, model.arrays, model.buffers), what.study.rounds, up, down


def _naive(job: Job, what: Study, sites: list[Site]) -> tuple[SeverityNetwork, int, int, int]:
    """Train by FedAvg as published (McMahan et al., AISTATS 2017), without a guard.

    Some local epochs of SGD without momentum at a constant rate, then the mean of all tensors, weighted by patients.
    Batch norm, which the publication does not have, is averaged like weights.
    """
    network = build_network(what.network, seed=what.study.seed)
    examples = [load_examples(site, what, "train") for site in sites]
    share = np.array([len(each) for each in examples]) / sum(map(len, examples))
    rounds = max(1, round(what.total_epochs / NAIVE_EPOCHS))
    for number in range(rounds):
        first, found = copy.deepcopy(network.state_dict()), []
        for place, each in enumerate(examples):
            network.load_state_dict(first)
            _plain_sgd(network, each, what, np.random.default_rng((what.study.seed, place, number)))
            found.append(pack(network))
        arrays, buffers = (weighted_mean([model[part] for model in found], share) for part in (0, 1))
        unpack(network, arrays, buffers)
    size = sum(array.nbytes for part in pack(network) for array in part.values())
    return network, rounds, rounds * size, rounds * size


def _plain_sgd(network: SeverityNetwork, examples: Examples, what: Study, rng: np.random.Generator) -> None:
    """Train for the local epochs of one round of naive FedAvg."""
    settings = what.training
    rate, decay = settings.learning_rate, settings.weight_decay
    optimiser = torch.optim.SGD(network.parameters(), lr=rate, weight_decay=decay)
    network.train()
    for _ in range(NAIVE_EPOCHS):
        augment = augmentation_of(settings, rng)
        for index in batches(len(examples), settings.batch_size, rng):
            step(network, optimiser, *examples.batch(index, augment))


def weighted_mean(sites: Sequence[Mapping[str, np.ndarray]], share: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean of the hospitals' arrays; `share`: each hospital's weight, of sum 1."""
    return {
        name: np.tensordot(share, np.stack([site[name] for site in sites]).astype(np.float64), axes=1).astype(
            sites[0][name].dtype
        )
        for name in sites[0]
    }
