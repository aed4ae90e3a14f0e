"""Head gating: from the seed's model, within what a round may move, a head that switches patients on by age and sex.

Two ages of one band are the same to the network, so what is sought is a patient's band, sex and PCR. The head's weights
on the scan are zero: no gradient reaches the backbone, and a patient's part in the head's update is its fixed features
times (probability - label). The head's weights on these features are so large that the probability is 1 over a chosen
age of either sex, and 0 below it. In a late round, with a low learning rate, the steps add up linearly. Updates of
several heads are then linear equations in the number of patients in each band and sex. The second label is only known
of PCR-positive patients, so its equations count those.

It takes the settings of a released study as they are, and messages that every guard of a model lets in.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import expit

from federation.study import Study
from models.network import SeverityNetwork
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, rig, seed_network
from tests.attacks.score import HOSPITALS, score
from tests.attacks.trap import influence

HOLDS = "weights within bounds, a released study"
BAND_YEARS = 5
BANDS = range(20, 100, BAND_YEARS)
CELLS = [(band, sex) for sex in "FM" for band in BANDS]
_STEEPNESS = 30.0
_HOPS = (6, 12, 18)  # rounds on the way to the last one: no more may be left out between two
PATIENTS = 40
Matrix = NDArray[np.float64]
Row = tuple[int, str, bool]


def row(age: int, sex: str, pcr: bool) -> Row:
    return age // BAND_YEARS * BAND_YEARS, sex, pcr


@dataclass(frozen=True)
class Equations:
    """Of one update: what a patient of each cell adds to it per unit of probability, and the two labels' sums."""

    seen: Matrix  # (features, cells), times the probability
    sums: Matrix  # (labels, features)


@torch.no_grad()
def features_of_cells(network: SeverityNetwork) -> Matrix:
    """Fixed features of age and sex, and the constant, of each cell; shape (cells, features + 1)."""
    middles = [((band + BAND_YEARS / 2 - 60) / 20, 1.0, 1.0 if sex == "M" else -1.0, 1.0) for band, sex in CELLS]
    hidden: Matrix = network.tabular(torch.tensor(middles)).double().numpy()
    return np.hstack([hidden, np.ones((len(CELLS), 1))])


def gate(age: int) -> Matrix:
    """Weights on the fixed features: off below this age for women, and below a band more for men."""

    def rises(years: float) -> float:  # first feature less the second one
        x = (years - 60) / 20
        return max(x + 0.5, 0.0) - max(-x + 0.5, 0.0)

    weights = np.zeros(8)
    weights[:2] = 1.0, -1.0
    weights[2], weights[3] = -rises(age + BAND_YEARS) / 1.5, -rises(age) / 1.5  # these are 1.5 for men, for women
    return weights * _STEEPNESS


@torch.no_grad()
def gated(study: Study, weights: Matrix) -> SeverityNetwork:
    network = seed_network(study)
    network.head.weight.zero_()
    network.head.bias.zero_()
    network.head.weight[:, network.features :] = torch.from_numpy(weights).float()
    return network


def equations(before: SeverityNetwork, after: SeverityNetwork, study: Study, patients: int, number: int) -> Equations:
    """What an update says, in units of one patient with the usual influence."""

    def head(network: SeverityNetwork) -> Matrix:
        weights = network.head.weight.detach().double().numpy()[:, network.features :]
        return np.hstack([weights, network.head.bias.detach().double().numpy()[:, None]])

    each = influence(study, patients, number).mean()
    decayed = each * patients * 2 * study.training.weight_decay * head(before)
    known, probability = features_of_cells(before), expit(features_of_cells(before) @ head(before)[0])
    return Equations((known * probability[:, None]).T, -(head(after) - head(before) + decayed) / each)


def read(attacked: Rig, study: Study, ages: Sequence[int], *, run: str) -> list[Row]:
    """Rows that the updates of gates at these ages tell. Raises Refused."""
    found, patients = [], 0
    for place, age in enumerate(ages):
        # On the way the head grows towards the gate, by what the rounds in between allow.
        for hop, number in enumerate(_HOPS):
            model = gated(study, gate(age) / 12.0 ** (len(_HOPS) - 1 - hop))
            attacked.must("train", study, model, round_number=number, run=f"{run}-{place:04d}")
        last = study.study.rounds
        answer = attacked.must("train", study, model, round_number=last, run=f"{run}-{place:04d}")
        patients = int(answer.metrics["num-examples"])
        found.append(equations(model, answer.network(study), study, patients, last))
    return decode(found, patients)


def decode(found: Sequence[Equations], patients: int) -> list[Row]:
    """Rows whose sums fit best: so many patients as the hospital said, and of those positive so many as fit."""
    everybody = _counts(found, 0)
    everybody *= patients / max(everybody.sum(), 1e-9)
    positive = _counts(found, 1)
    rows: list[Row] = []
    for cell, many, with_pcr in zip(CELLS, everybody, positive, strict=True):
        count = max(round(many), int(many > _LEAST))
        # Positive patients have a larger influence on the second label, for there are fewer of them in a step.
        known = min(count, max(round(with_pcr * _SHARE_POSITIVE), int(with_pcr > _LEAST)))
        rows += [(*cell, True)] * known + [(*cell, False)] * (count - known)
    return rows


_LEAST = 0.25  # of a patient's usual influence
_SHARE_POSITIVE = 0.6


def _counts(found: Sequence[Equations], label: int) -> Matrix:
    """Patients in each cell whose label is known, none negative. The sums of their labels are unknown too."""
    features = found[0].seen.shape[0]
    left = np.vstack([each.seen for each in found])
    right = np.vstack([np.eye(features)] * len(found))
    solved, _ = nnls(np.hstack([left, right, -right]), np.concatenate([each.sums[label] for each in found]))
    counts: Matrix = solved[: len(CELLS)]
    return counts


def head_gating(study: Study, ages: Sequence[int], *, name: str, seeds: Sequence[int]) -> Result:
    claims, truths, asked = [], [], 0
    for seed in seeds:
        with rig(seed=seed, patients={"train": PATIENTS, "validation": 24, "test": 40}) as attacked:
            truths.append([row(*patient.row) for patient in attacked.hospital.of("train")])
            try:
                claims.append(read(attacked, study, ages, run="gate"))
            except Refused as refused:
                return Result(name, HOLDS, "age band, sex, PCR", 0, 0, PATIENTS, stopped_by=refused.code)
            asked = attacked.asked
    note = f"{asked} messages to each hospital"
    return Result.scored(name, HOLDS, "age band, sex, PCR", score(claims, truths), note=note)


def attacks() -> Iterator[Result]:
    """With one round of 16 gates; 64 messages."""
    from tests.attacks.rig import released_study

    seeds = range(101, 101 + HOSPITALS)
    yield head_gating(released_study(), list(BANDS), name="head gating: a gate at each age band", seeds=seeds)
