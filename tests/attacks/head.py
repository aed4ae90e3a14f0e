"""Fitting the head (`train.head`) as a trap: its optimum reveals the sum of (probability - label) of each unit.

No learning rate, batch or augmentation hides this. At the optimum, the gradient of the penalty on a weight equals the
sum over the patients of unit times (probability - label), and the probabilities follow from the returned head.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from pipeline.training.head_finetune import PENALTY
from tests.attacks.result import Result, compare
from tests.attacks.rig import Refused, Rig, any_study, rig, seed_network
from tests.attacks.trap import AGES, SEX_STEP, blind, keys, row_of

ADVERSARY = "the weights that a head is fitted to"
_SLOPE = 0.005  # of a unit, per year


@torch.no_grad()
def stairs(study: Study, thresholds: list[int]) -> SeverityNetwork:
    """Return weights of units of age and sex that are zero up to a threshold, and rise above it."""
    network = seed_network(study)
    blind(network)
    units = network.tabular[0]
    units.weight.zero_()
    units.bias.fill_(-1.0)
    network.head.weight.zero_()
    network.head.bias.zero_()
    for unit, threshold in enumerate(thresholds):
        units.weight[unit] = torch.tensor([20.0, 0.0, 60.0, 0.0]) * _SLOPE
        units.bias[unit] = _SLOPE * (120.0 - threshold)
    return network


def fitted_head(attacked: Rig) -> Result:
    """Return the second differences of the sums along the thresholds, which are the sums of single ages."""
    study = any_study(network={"tabular_features": 256})
    truth = attacked.hospital.of("train")
    name, what = "256 thresholds, the head fitted to them", "age, sex, PCR"
    limits = [key - 1 for key in (*keys(), SEX_STEP + AGES.stop, SEX_STEP + AGES.stop + 1)]
    try:
        network = stairs(study, limits)
        answer = attacked.must("train.head", study, network)
    except Refused as refused:
        return Result(name, ADVERSARY, what, 0, 0, len(truth), refused.code)
    after, patients = answer.network(study), int(answer.metrics["num-examples"])
    found = decode(network, after, patients, limits)
    right, wrong = compare(found, [patient.row for patient in truth])
    return Result(name, ADVERSARY, what, right, wrong, len(truth))


def decode(
    before: SeverityNetwork, after: SeverityNetwork, patients: int, limits: list[int]
) -> list[tuple[int, str, bool]]:
    """Return rows of (age, sex, PCR)."""
    rows: list[tuple[int, str, bool]] = []
    sums = _sums(before, after, patients)[: len(limits)] / _SLOPE
    single = sums[:-2] - 2 * sums[1:-1] + sums[2:]
    for key, value in zip(keys(), single, strict=False):
        p = _probability(after, key)
        best = min(((m, k) for m in range(4) for k in range(m + 1)), key=lambda mk: abs(mk[0] * p - mk[1] - value))
        if abs(best[0] * p - best[1] - value) < 0.1:
            rows += [(*row_of(key), True)] * best[1] + [(*row_of(key), False)] * (best[0] - best[1])
    return rows


def _sums(before: SeverityNetwork, after: SeverityNetwork, patients: int) -> NDArray[np.float64]:
    """Return for each unit the sum over patients of unit times (probability - label). The loss is a mean over two
    labels.
    """
    change = (after.head.weight - before.head.weight).detach().double().numpy()[0, before.features :]
    sums: NDArray[np.float64] = -PENALTY * change * 2
    return sums


@torch.no_grad()
def _probability(network: SeverityNetwork, key: int) -> float:
    """Return the probability of PCR for a patient of this age and sex."""
    age, sex = row_of(key)
    tabular = torch.tensor([[(age - 60) / 20, 1.0, 1.0 if sex == "M" else -1.0, 1.0]])
    units = network.tabular(tabular)
    features = torch.zeros(1, network.features)
    return float(expit(float(network.head(torch.cat([features, units], dim=1))[0, 0])))


def attacks() -> Iterator[Result]:
    """Run at a separate hospital."""
    with rig() as attacked:
        yield fitted_head(attacked)
