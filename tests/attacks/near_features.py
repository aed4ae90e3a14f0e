"""Features within the bounds on filters: what the update of a head on them reveals about scans and labels.

The bounds do not allow the thresholds of `scan_trap`. Here each filter is moved towards them only as far as a run
allows, or not at all: the features of the seed's filters are functions of the scan too. The head's weights are zero, so
the update of the head's weight on a feature is the sum over patients of the feature times (probability - label). What
the features mean need not be understood: the decoder is fitted to hospitals that the server simulates.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from pipeline.training.train import augmentation
from tests.attacks.cohort import draw_patients
from tests.attacks.imprint import reached
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, released_study, rig, seed_network
from tests.attacks.scan import (
    POOL,
    POOL_SEED,
    VIEWS,
    Matrix,
    Pool,
    Simulated,
    edges,
    halfway,
    learn,
    measure_of,
    order_of_round,
    scan_trap,
)
from tests.attacks.scan_trap import BIASES, BINS, PATIENTS, READ, WHAT, Claim, as_rows, kinds, moved_head
from tests.attacks.score import HOSPITALS, score

HOLDS = "weights within all bounds, a released study"
MOVED = "features moved towards thresholds on the scan, filters near the seed's"
AS_SEED = "features of the seed's own filters"
SEEDS = range(231, 232 + HOSPITALS)
RUNS, SIMULATED = 4, 1_000


@torch.no_grad()
def target_of(study: Study, bias: float, *, moves: bool) -> SeverityNetwork:
    """Return the network whose updates are read. `moves`: whether its filters are moved towards those of the trap."""
    network = reached(study, scan_trap(study, gates="bn2")) if moves else seed_network(study)
    network.head.weight.zero_()
    network.head.bias.fill_(bias)
    return network


@torch.no_grad()
def features_of_pool(network: SeverityNetwork, batch: int) -> NDArray[np.float32]:
    """Return the features of the pool's patients in augmented views, shape (patients, views, features).

    Batches are as large as in training, because batch norm makes a feature depend on the other patients of a step.
    """
    patients, augment = draw_patients(POOL_SEED, {"train": POOL}), augmentation(POOL_SEED)
    rng, found = np.random.default_rng(POOL_SEED), np.zeros((POOL, VIEWS, network.features), np.float32)
    network.train()
    for view in range(VIEWS):
        order = rng.permutation(POOL)
        for index in np.array_split(order, POOL // batch):
            scans = torch.stack([augment(torch.from_numpy(patients[place].tensor).float()) for place in index])
            found[index, view] = network.backbone(scans).numpy()
    return found


def simulated(hospital: Simulated, study: Study, features: NDArray[np.float32], rng: np.random.Generator) -> Matrix:
    """Return what the server would observe at a hospital that it simulates, as `read` does."""
    patients, found = len(hospital.chosen), []
    for bias in BIASES:
        residuals = expit(bias) - np.stack([hospital.pcr.astype(np.float64), hospital.severe])
        total = np.zeros((2, features.shape[2] + 1))
        for _ in range(RUNS * len(READ)):
            order = order_of_round(study, patients, rng)
            for index in order:
                seen = features[hospital.chosen[index], rng.integers(VIEWS, size=len(index))]
                seen = np.hstack([seen, np.ones((len(index), 1))])
                for label in (0, 1):
                    known = ~np.isnan(residuals[label][index])
                    if known.any():
                        total[label] += (
                            residuals[label][index][known] @ seen[known] / known.sum() * patients / len(order)
                        )
        found.append(total.ravel() / (RUNS * len(READ)))
    return np.concatenate(found)


def read(attacked: Rig, study: Study, *, moves: bool) -> Matrix:
    """Return what the server observes: for each bias the mean update of the head over all readings. Raises Refused."""
    found = []
    for place, bias in enumerate(BIASES):
        target, readings = target_of(study, bias, moves=moves), []
        for run in range(RUNS):
            ask = partial(attacked.must, "train", study, run=f"near-{place}-{run:04d}")
            ask(halfway(study, target), round_number=6)
            ask(target, round_number=12)
            for number in READ:
                answer = ask(target, round_number=number)
                patients = int(answer.metrics["num-examples"])
                readings.append(moved_head(target, answer.network(study), study, patients, number))
        found.append(np.mean(readings, axis=0))
    return np.concatenate(found)


def attack(study: Study, *, name: str, seeds: Sequence[int], moves: bool) -> Result:
    """Run at a hospital for each seed."""
    drawn = draw_patients(POOL_SEED, {"train": POOL})
    unused = np.zeros((POOL, VIEWS))
    pool = Pool(drawn, np.array([measure_of(patient) for patient in drawn]), unused, unused)
    features = features_of_pool(target_of(study, 0.0, moves=moves), study.training.batch_size)

    def observe(hospital: Simulated, rng: np.random.Generator) -> Matrix:
        return simulated(hospital, study, features, rng)

    decoder = learn(pool, PATIENTS, kinds, observe, simulated=SIMULATED)
    found: list[list[Claim]] = []
    truths: list[list[Claim]] = []
    asked = 0
    for seed in seeds:
        with rig(seed=seed, patients={"train": PATIENTS, "validation": 24, "test": 40}) as attacked:
            train = attacked.hospital.of("train")
            truths.append([(int(np.digitize(measure_of(each), edges(BINS))), each.pcr) for each in train])
            try:
                observed = read(attacked, study, moves=moves)
            except Refused as refused:
                return Result(name, HOLDS, WHAT, 0, 0, PATIENTS, stopped_by=refused.code)
            found.append(as_rows(decoder.counts(observed)))
            asked = attacked.asked
    note = f"{asked} messages to each hospital; explains {decoder.gain:.0%} of simulated counts"
    return Result.scored(name, HOLDS, WHAT, score(found, truths), note=note)


def attacks() -> Iterator[Result]:
    """Run at hospitals that were not used to build the decoder."""
    yield attack(released_study(), name=MOVED, seeds=SEEDS, moves=True)
    yield attack(released_study(), name=AS_SEED, seeds=SEEDS, moves=False)
