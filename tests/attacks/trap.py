"""Trap weights: a first layer of thresholds of age and sex. Its biases move with the patients above each threshold.

The gradient of a bias is the sum of head weight times (probability - label) over the patients whose unit is active. Two
adjacent thresholds differ by the patients between them, that is, those of one age and one sex.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit

from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from pipeline.training.train import epoch_batches
from tests.attacks.result import Result, compare
from tests.attacks.rig import Refused, Rig, any_study, rig, seed_network

AGES = range(18, 105)
SEX_STEP = 120  # added to the age of men, so that one number encodes both
PROBABILITIES = (0.37, 0.413)  # for both labels, everywhere: sums of (p - label) then reveal the number of patients
ADVERSARY = "the study's settings, first weights and round number"


@dataclass(frozen=True)
class Trap:
    """`slope`: of each unit, per year. `head`: the head's weights on every unit, by label."""

    slope: float
    head: tuple[float, float]


def keys() -> list[int]:
    """Return every age and sex as one number, in order."""
    return [age + step for step in (0, SEX_STEP) for age in AGES]


def row_of(key: int) -> tuple[int, str]:
    return (key - SEX_STEP, "M") if key >= SEX_STEP else (key, "F")


@torch.no_grad()
def trap_network(study: Study, thresholds: Sequence[float], trap: Trap) -> SeverityNetwork:
    """Return the study's network, which ignores the scan; its tabular units are active above these thresholds."""
    network = seed_network(study)
    blind(network)
    units, head = network.tabular[0], network.head
    units.weight.zero_()
    units.bias.fill_(-1.0)
    head.weight.zero_()
    head.bias.copy_(torch.from_numpy(logit(PROBABILITIES)))
    for unit, threshold in enumerate(thresholds):
        # age = 20 x + 60, and 60 + 60 s is 0 for a woman and SEX_STEP for a man
        units.weight[unit] = torch.tensor([20.0, 0.0, 60.0, 0.0]) * trap.slope
        units.bias[unit] = trap.slope * (120.0 - threshold)
        head.weight[:, network.features + unit] = torch.tensor(trap.head)
    return network


@torch.no_grad()
def blind(network: SeverityNetwork) -> None:
    """Set the backbone's output to zero for every scan, and prevent its weights from moving."""
    blocks = [block for layer in (network.backbone.layer1, network.backbone.layer4) for block in layer]
    last = blocks[-1]
    for norm in (last.bn2, last.downsample[1] if last.downsample is not None else None):
        if norm is not None:
            norm.weight.zero_()
            norm.bias.zero_()


def moved_biases(before: SeverityNetwork, after: SeverityNetwork) -> NDArray[np.float64]:
    change: NDArray[np.float64] = (after.tabular[0].bias.double() - before.tabular[0].bias.double()).detach().numpy()
    return change


# --- one step over all patients ---------------------------------------------------------------------------


def one_step(attacked: Rig) -> Result:
    """Try 256 units and one step over all patients."""
    study = any_study(
        study={"rounds": 1000, "local_steps": 1},
        network={"tabular_features": 256},
        training={"batch_size": 64, "learning_rate": 10.0, "augment": False, "weight_decay": 0.0},
    )
    trap = Trap(1e-7, (1e-2, 1.37e-3))
    name, what = "256 thresholds, one step over all", "age, sex, PCR, severity"
    truth = attacked.hospital.of("train")
    try:
        limits = [key - 0.5 for key in (*keys(), SEX_STEP + AGES.stop)]
        network = trap_network(study, limits, trap)
        answer = attacked.must("train", study, network)
        rate = study.schedule(1).learning_rate(10.0, 0, 0.0) * (1 + study.training.momentum) / 2
        sums = -moved_biases(network, answer.network(study))[: len(limits)] / rate
        found = decode(sums[:-1] - sums[1:], int(answer.metrics["num-examples"]), trap)
    except Refused as refused:
        return Result(name, ADVERSARY, what, 0, 0, len(truth), refused.code)
    right, wrong = compare(found, [patient.whole_row for patient in truth])
    return Result(name, ADVERSARY, what, right, wrong, len(truth))


Row = tuple[int, str, bool, bool | None]
_MOST = 4  # the largest number of patients of one age and sex
_TOLERANCE = 2e-3  # relative to the sum for one patient


def decode(sums: NDArray[np.float64], patients: int, trap: Trap) -> list[Row]:
    """Return rows from the sums of each age and sex. The number of patients with a known severity is the one that fits
    best.
    """
    best = min(range(1, patients + 1), key=lambda known: _misfit(sums, _cells(patients, known, trap)[1]))
    cells, values = _cells(patients, best, trap)
    rows: list[Row] = []
    for key, value in zip(keys(), sums, strict=True):
        distance = np.abs(values - value)
        if distance.min() < _TOLERANCE * trap.head[0] / patients:
            rows += [(*row_of(key), pcr, severe) for pcr, severe in cells[int(distance.argmin())]]
    return rows


def _misfit(sums: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    return float(np.sum(np.abs(values[:, None] - sums).min(axis=0)))


Cell = tuple[tuple[bool, bool | None], ...]


@cache
def _cells(patients: int, known: int, trap: Trap) -> tuple[list[Cell], NDArray[np.float64]]:
    """Return the possible contents of one cell, and the sum that each gives."""
    kinds: list[tuple[bool, bool | None]] = [(False, None), (True, False), (True, True)]
    cells = [cell for size in range(_MOST + 1) for cell in itertools.combinations_with_replacement(kinds, size)]
    values = [sum(_sum_of(pcr, severe, patients, known, trap) for pcr, severe in cell) for cell in cells]
    return cells, np.array(values)


def _sum_of(pcr: bool, severe: bool | None, patients: int, known: int, trap: Trap) -> float:
    first = trap.head[0] * (PROBABILITIES[0] - pcr) / patients
    return first if severe is None else first + trap.head[1] * (PROBABILITIES[1] - severe) / known


# --- many steps that add up linearly ----------------------------------------------------------------------


def influence(study: Study, patients: int, round_number: int) -> NDArray[np.float64]:
    """Return how much a patient's gradient moves a weight in a round, for each position in the cohort's order.

    The order of patients and the learning rate follow only from the study's seed and the round's number, so the server
    knows them. This is for PCR, which is known for all patients.
    """
    settings, schedule = study.training, study.schedule(round_number)
    moved = np.zeros(patients)
    momentum = np.zeros(patients)
    for epoch in range(schedule.epochs):
        rng = np.random.default_rng((study.study.seed, schedule.first_epoch + epoch))
        if settings.augment:
            rng.integers(2**31)
        order = epoch_batches(patients, settings.batch_size, schedule.steps, rng)
        for number, index in enumerate(order):
            rate = schedule.learning_rate(settings.learning_rate, epoch, number / len(order))
            gradient = np.zeros(patients)
            gradient[index] = 0.5 / len(index)
            momentum = settings.momentum * momentum + gradient
            moved += rate * (gradient + settings.momentum * momentum)
    return moved


def many_steps(attacked: Rig, study: Study, *, name: str, rounds: Sequence[int]) -> Result:
    """Use few units and usual batches, with such a small learning rate that all steps add up.

    The thresholds cover all ages, a few at a time. Each message is sent with several round numbers, in which the same
    patients have different weights.
    """
    truth = attacked.hospital.of("train")
    width = study.network.tabular_features - 1
    found = []
    try:
        for start in range(0, len(keys()), width):
            some = keys()[start : start + width]
            weights, sums = zip(*(_sums(attacked, study, some, number) for number in rounds), strict=True)
            for key, *values in zip(some, *sums, strict=True):
                found += [(*row_of(key), pcr) for pcr in decode_places(np.array(values), np.array(weights))]
    except Refused as refused:
        return Result(name, ADVERSARY, "age, sex, PCR", 0, 0, len(truth), refused.code)
    right, wrong = compare(found, [patient.row for patient in truth])
    return Result(name, ADVERSARY, "age, sex, PCR", right, wrong, len(truth), note=f"{attacked.asked} messages")


def _sums(
    attacked: Rig, study: Study, some: Sequence[int], round_number: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the influence of each position in the order, and the sum of each cell."""
    weights = influence(study, len(attacked.hospital.of("train")), round_number)
    slope = 1e-6
    head = slope / weights.sum()  # so that no bias moves by half a year
    network = trap_network(study, [key - 0.5 for key in (*some, some[-1] + 1)], Trap(slope, (head, 0.0)))
    answer = attacked.must("train", study, network, round_number=round_number)
    sums = -moved_biases(network, answer.network(study))[: len(some) + 1] / head
    return weights, sums[:-1] - sums[1:]


def decode_places(values: NDArray[np.float64], weights: NDArray[np.float64]) -> list[bool]:
    """Return the labels of the patients in a cell, from their sums in some rounds; an empty result if they are
    ambiguous.

    `weights`: of each position in the order, shape (rounds, patients).
    """
    unit, p = weights.mean(), PROBABILITIES[0]
    if np.abs(values).max() < 0.05 * unit:
        return []
    single = np.concatenate([(weights * (p - label)).T for label in (0, 1)])
    labels = np.repeat([False, True], weights.shape[1])
    distance = np.abs(single - values).max(axis=1)
    if distance.min() < _NOISE * unit:
        return [bool(labels[distance.argmin()])]
    pairs = np.abs(single[:, None] + single - values).max(axis=2)
    one, other = np.nonzero(pairs < _NOISE * unit)
    guesses = {tuple(sorted((bool(labels[a]), bool(labels[b])))) for a, b in zip(one, other, strict=True)}
    return list(guesses.pop()) if len(guesses) == 1 else []


_NOISE = 0.01  # share of a patient's mean influence: the rounding error of a bias in single precision


def attacks() -> Iterator[Result]:
    """Run each at a separate hospital."""
    few = {"tabular_features": 16}
    with rig() as attacked:
        yield one_step(attacked)
    with rig() as attacked:
        late = any_study(study={"rounds": 1000}, network=few, training={"weight_decay": 0.0})
        name = "16 thresholds, default training, last rounds"
        yield many_steps(attacked, late, name=name, rounds=(999, 1000))
    with rig() as attacked:
        tiny = any_study(network=few, training={"learning_rate": 1e-6, "weight_decay": 0.0})
        yield many_steps(attacked, tiny, name="16 thresholds, tiny learning rate", rounds=(2, 3))
