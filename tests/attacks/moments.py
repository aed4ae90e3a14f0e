"""Batch-norm moments as a carrier: running means and variances behind thresholds on the size of the lungs.

For each threshold, the following norm keeps a running mean and variance of its output over the patients of each step;
the newest steps count most. The first norm keeps a running mean of the measure itself. The hospital is small, so each
moment covers few patients. One study is the release's own. The other has the smallest batch and the fewest steps that
the gateway allows by default (`min_batch_size`, `min_local_steps`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from federation.gateway.batch_norm_bounds import MOMENTUM
from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, own_study, released_study, rig
from tests.attacks.scan import (
    Matrix,
    Simulated,
    claims,
    edges,
    gate_outputs,
    halfway,
    learn,
    make_pool,
    measure_of,
    order_of_round,
    scan_trap,
    shifts,
)
from tests.attacks.score import HOSPITALS, score

RELEASED = "weights within bounds, a released study"
WORST = "weights within bounds, a study that the hospital was persuaded to approve"
NAME = "running moments behind thresholds on the scan, default settings"
SMALLEST_NAME = "running moments behind thresholds on the scan, fewest patients and steps"
WHAT = "size of the lungs (12 bands)"
BINS, PATIENTS, STEPS = 12, 16, 4
SEEDS = range(311, 311 + HOSPITALS)


@dataclass(frozen=True)
class Way:
    """The rounds in which each run is read, and the number of runs."""

    rounds: Sequence[int]
    runs: int

    @property
    def readings(self) -> int:
        return len(self.rounds) * self.runs


def smallest_study() -> Study:
    return own_study(study={"rounds": 1000, "local_steps": STEPS}, training={"batch_size": 4, "learning_rate": 1e-3})


def read(attacked: Rig, study: Study, way: Way) -> Matrix:
    """Return what the server observes, over all readings. Raises Refused."""
    target, found = scan_trap(study, gates="bn1"), []
    for run in range(way.runs):
        name = f"moments-{run:04d}"
        attacked.must("train", study, halfway(study, target), round_number=6, run=name)
        for number in way.rounds:
            answer = attacked.must("train", study, target, round_number=number, run=name)
            found.append(reading(target, answer.network(study)))
    return summary(found)


@torch.no_grad()
def reading(before: SeverityNetwork, after: SeverityNetwork) -> Matrix:
    """Return what one round added to the running moments of the measure and of each threshold's output."""
    first, block = after.backbone.bn1, after.backbone.layer4[0]
    steps = int(first.num_batches_tracked - before.backbone.bn1.num_batches_tracked)
    kept = (1 - MOMENTUM) ** steps
    middle = block.conv2.weight.shape[2] // 2
    length = before.backbone.layer4[0].conv2.weight[0, 0, middle, middle, middle].double()
    mean = (block.bn2.running_mean - kept * before.backbone.layer4[0].bn2.running_mean).double() / length
    variance = (block.bn2.running_var - kept * before.backbone.layer4[0].bn2.running_var).double() / length**2
    whole = (first.running_mean - kept * before.backbone.bn1.running_mean).double()[:1]
    added: Matrix = torch.cat([whole, mean, variance]).numpy()
    return added


def summary(readings: Sequence[Matrix]) -> Matrix:
    """Return mean and spread of the readings, because the last steps of each round cover other patients."""
    return np.concatenate([np.mean(readings, axis=0), np.std(readings, axis=0)])


def simulated_readings(
    hospital: Simulated, study: Study, way: Way, all_shifts: NDArray[np.float32], rng: np.random.Generator
) -> Matrix:
    """As `read`, at a hospital that the server simulates."""
    found = []
    for _ in range(way.readings):
        added = np.zeros(1 + 2 * len(all_shifts))
        for index in order_of_round(study, len(hospital.chosen), rng):
            last, first = hospital.views(index, rng)
            gates = gate_outputs(last, all_shifts)
            new = np.concatenate([[first.mean()], gates.mean(axis=0), gates.var(axis=0, ddof=1)])
            added = (1 - MOMENTUM) * added + MOMENTUM * new
        found.append(added)
    return summary(found)


def kinds(hospital: Simulated) -> NDArray[np.int64]:
    return np.digitize(hospital.pool.measure[hospital.chosen], edges(BINS))


def attack(study: Study, way: Way, *, name: str, holds: str, seeds: Sequence[int]) -> Result:
    """Run at a small hospital for each seed."""
    network = scan_trap(study, gates="bn1")
    all_shifts, pool = shifts(network), make_pool(network, gates="bn1")
    decoder = learn(
        pool, PATIENTS, kinds, lambda hospital, rng: simulated_readings(hospital, study, way, all_shifts, rng)
    )
    found, truths, asked = [], [], 0
    for seed in seeds:
        with rig(seed=seed, patients={"train": PATIENTS, "validation": 24, "test": 40}) as attacked:
            if holds == WORST:
                attacked.talk_into(study)
            train = attacked.hospital.of("train")
            truths.append([int(np.digitize(measure_of(each), edges(BINS))) for each in train])
            try:
                found.append(claims(decoder.counts(read(attacked, study, way)), PATIENTS))
            except Refused as refused:
                return Result(name, holds, WHAT, 0, 0, PATIENTS, stopped_by=refused.code)
            asked = attacked.asked
    note = f"{asked} messages to each hospital; explains {decoder.gain:.0%} of simulated counts"
    return Result.scored(name, holds, WHAT, score(found, truths), note=note)


def attacks() -> Iterator[Result]:
    """Run at hospitals that were not used to build the decoder."""
    yield attack(smallest_study(), Way(range(12, 36), 1), name=SMALLEST_NAME, holds=WORST, seeds=SEEDS)
    yield attack(released_study(), Way(range(12, 21), 2), name=NAME, holds=RELEASED, seeds=SEEDS)
