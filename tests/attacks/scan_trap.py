"""Scan traps: from the seed's model, within the bounds of a round, thresholds on the size of the lungs.

The head's weights are zero, so the backbone does not move, and every patient's probability follows from the head's
bias. The update of the head's weight on a threshold is then the sum over patients of the threshold's output times
(probability - label). Runs with a high and with a low probability separate the numbers of patients and of labels. Each
run is read in its last four rounds, whose low learning rate lets the steps add up.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, released_study, rig
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
from tests.attacks.trap import influence

HOLDS = "weights within bounds, a released study"
WHAT = "size of the lungs (12 bands), PCR"
NAME = "thresholds on the scan in the last layer, default settings"
BINS, PATIENTS = 12, 40
READ = (17, 18, 19, 20)
BIASES = (-1.19, 1.19)
RUNS = 4  # runs for each bias
SEEDS = range(211, 212 + HOSPITALS)  # one hospital more than elsewhere, because each reveals little
SIMULATED = 2_000
Claim = tuple[int, bool]


def read(attacked: Rig, study: Study, runs: int) -> Matrix:
    """Return what the server observes: for each bias the mean update of the head over all readings. Raises Refused."""
    found = []
    for place, bias in enumerate(BIASES):
        target = scan_trap(study, gates="bn2", bias=(bias, bias))
        readings = []
        for run in range(runs):
            name = f"scan-{place}-{run:04d}"
            attacked.must("train", study, halfway(study, target), round_number=6, run=name)
            attacked.must("train", study, target, round_number=12, run=name)
            for number in READ:
                answer = attacked.must("train", study, target, round_number=number, run=name)
                patients = int(answer.metrics["num-examples"])
                readings.append(moved_head(target, answer.network(study), study, patients, number))
        found.append(np.mean(readings, axis=0))
    return np.concatenate(found)


def moved_head(
    before: SeverityNetwork, after: SeverityNetwork, study: Study, patients: int, round_number: int
) -> Matrix:
    """Return the updates of both labels on each threshold and on the constant, in units of one patient's usual
    influence.
    """

    def of(network: SeverityNetwork) -> Matrix:
        weight = network.head.weight[:, : network.features].detach().double().numpy()
        return np.hstack([weight, network.head.bias.detach().double().numpy()[:, None]])

    moved: Matrix = (of(before) - of(after)).ravel() / influence(study, patients, round_number).mean()
    return moved


def simulated_readings(
    hospital: Simulated, study: Study, all_shifts: NDArray[np.float32], rng: np.random.Generator
) -> Matrix:
    """As `read`, at a hospital that the server simulates."""
    patients, found = len(hospital.chosen), []
    for bias in BIASES:
        residuals = expit(bias) - np.stack([hospital.pcr.astype(np.float64), hospital.severe])
        total = np.zeros((2, len(all_shifts) + 1))
        readings = RUNS * len(READ)
        for _ in range(readings):
            order = order_of_round(study, patients, rng)
            for index in order:
                gates = np.hstack([gate_outputs(hospital.views(index, rng)[0], all_shifts), np.ones((len(index), 1))])
                for label in (0, 1):
                    known = ~np.isnan(residuals[label][index])
                    if known.any():
                        mean = residuals[label][index][known] @ gates[known] / known.sum()
                        total[label] += mean * patients / len(order)
        found.append(total.ravel() / readings)
    return np.concatenate(found)


def totals(hospital: Simulated) -> Matrix:
    """Return the number of PCR-positive patients. The biases of any head reveal it, without a threshold."""
    return np.array([float(hospital.pcr.sum())])


def kinds(hospital: Simulated) -> NDArray[np.int64]:
    return 2 * np.digitize(hospital.pool.measure[hospital.chosen], edges(BINS)) + hospital.pcr


def as_rows(expected: Matrix) -> list[Claim]:
    return [(kind // 2, bool(kind % 2)) for kind in claims(expected, PATIENTS)]


def attack(study: Study, *, name: str, seeds: Sequence[int], runs: int) -> Result:
    """Run at a hospital for each seed."""
    network = scan_trap(study, gates="bn2")
    all_shifts = shifts(network)
    pool = make_pool(network, gates="bn2")
    decoder = learn(
        pool,
        PATIENTS,
        kinds,
        lambda hospital, rng: simulated_readings(hospital, study, all_shifts, rng),
        simulated=SIMULATED,
    )
    labels_alone = learn(pool, PATIENTS, kinds, lambda hospital, rng: totals(hospital))
    found: list[list[Claim]] = []
    guessed: list[list[Claim]] = []
    truths: list[list[Claim]] = []
    asked = 0
    for seed in seeds:
        with rig(seed=seed, patients={"train": PATIENTS, "validation": 24, "test": 40}) as attacked:
            train = attacked.hospital.of("train")
            truths.append([(int(np.digitize(measure_of(each), edges(BINS))), each.pcr) for each in train])
            try:
                observed = read(attacked, study, runs)
            except Refused as refused:
                return Result(name, HOLDS, WHAT, 0, 0, PATIENTS, stopped_by=refused.code)
            found.append(as_rows(decoder.counts(observed)))
            guessed.append(as_rows(labels_alone.counts(np.array([float(sum(each.pcr for each in train))]))))
            asked = attacked.asked
    note = (
        f"{asked} messages to each hospital; {score(guessed, truths).right} right from the number of positives alone; "
        f"explains {decoder.gain:.0%} of simulated counts"
    )
    return Result.scored(name, HOLDS, WHAT, score(found, truths), note=note)


def attacks() -> Iterator[Result]:
    """Run at hospitals that were not used to build the decoder."""
    yield attack(released_study(), name=NAME, seeds=SEEDS, runs=RUNS)
