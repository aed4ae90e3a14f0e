"""Head gating: starting from the seed's model and within the bounds of a round, a head selects patients by age and sex.

Two ages in one band are the same to the network, so the attack seeks a patient's band, sex and PCR. The head's weights
on the scan are zero, so no gradient reaches the backbone. A patient's part in the head's update is then its fixed
features times (probability - label). The head's weights on these features are so large that the probability is 1 above
a chosen age of either sex, and 0 below it. In a late round, with a low learning rate, the steps add up linearly.
Updates of several heads are then linear equations in the number of patients in each band and sex. The second label is
known only for PCR-positive patients, so its equations count those.

The settings of a released study are unchanged, and the guards of models accept every message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import expit

from federation.protocol.study_config import Study
from models.network import HEAD_RMS, SeverityNetwork
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, own_study, released_study, rig, seed_network
from tests.attacks.score import HOSPITALS, score
from tests.attacks.trap import influence

HOLDS = "weights within bounds, a released study"
WORST = "weights within bounds, a study that the hospital was persuaded to approve"
BAND_YEARS = 5
BANDS = range(20, 100, BAND_YEARS)
CELLS = [(band, sex) for sex in "FM" for band in BANDS]
PATIENTS = 40
Matrix = NDArray[np.float64]
Row = tuple[int, str, bool]


def row(age: int, sex: str, pcr: bool) -> Row:
    return age // BAND_YEARS * BAND_YEARS, sex, pcr


@dataclass(frozen=True)
class Equations:
    """One update: the contribution of a patient of each cell per unit of probability, and the sums of both labels."""

    seen: Matrix  # (features, cells), times the probability
    sums: Matrix  # (labels, features)


@torch.no_grad()
def features_of_cells(network: SeverityNetwork) -> Matrix:
    """Return the fixed features of age and sex, and the constant, of each cell; shape (cells, features + 1)."""
    middles = [((band + BAND_YEARS / 2 - 60) / 20, 1.0, 1.0 if sex == "M" else -1.0, 1.0) for band, sex in CELLS]
    hidden: Matrix = network.tabular(torch.tensor(middles)).double().numpy()
    return np.hstack([hidden, np.ones((len(CELLS), 1))])


def gate(age: int) -> Matrix:
    """Return weights on the fixed features that are off below this age for women, and below one band more for men."""

    def rises(years: float) -> float:  # first feature minus the second one
        x = (years - 60) / 20
        return max(x + 0.5, 0.0) - max(-x + 0.5, 0.0)

    weights = np.zeros(8)
    weights[:2] = 1.0, -1.0
    weights[2], weights[3] = -rises(age + BAND_YEARS) / 1.5, -rises(age) / 1.5  # 1.5 for men, for women
    return weights


@torch.no_grad()
def gated(study: Study, weights: Matrix) -> SeverityNetwork:
    network = seed_network(study)
    network.head.weight.zero_()
    network.head.bias.zero_()
    network.head.weight[:, network.features :] = torch.from_numpy(weights).float()
    return network


def equations(before: SeverityNetwork, after: SeverityNetwork, study: Study, patients: int, number: int) -> Equations:
    """Return the content of an update, in units of one patient with the usual influence."""

    def head(network: SeverityNetwork) -> Matrix:
        weights = network.head.weight.detach().double().numpy()[:, network.features :]
        return np.hstack([weights, network.head.bias.detach().double().numpy()[:, None]])

    each = influence(study, patients, number).mean()
    decayed = each * patients * 2 * study.training.weight_decay * head(before)
    known, probability = features_of_cells(before), expit(features_of_cells(before) @ head(before)[0])
    return Equations((known * probability[:, None]).T, -(head(after) - head(before) + decayed) / each)


@dataclass(frozen=True)
class Way:
    """Settings of the attack: the rounds in which each gate's run trains, and the shape of the gate.

    The update of the last round is read. Two rounds are no further apart than the gateway allows. The head grows by
    `growth` from each round to the next. `steepness`: of the gate at the end. `longest`: the root mean square up to
    which training does not change a label's weights on age and sex; a gate is at most that steep.
    """

    rounds: Sequence[int] = (6, 12, 18, 20)
    growth: Sequence[float] = (12.0, 12.0, 1.0)
    steepness: float = 30.0
    longest: float = np.inf

    def weights(self, age: int) -> Matrix:
        """Return the final weights of the gate at this age."""
        flat = gate(age)
        return flat * min(self.steepness, self.longest / float(np.sqrt(np.mean(flat**2))))


def read(attacked: Rig, study: Study, ages: Sequence[int], way: Way) -> list[Row]:
    """Return the rows that are revealed by the updates of gates at these ages. Raises Refused."""
    found, patients = [], 0
    for place, age in enumerate(ages):
        for hop, number in enumerate(way.rounds):
            model = gated(study, way.weights(age) / np.prod(way.growth[hop:]))
            answer = attacked.must("train", study, model, round_number=number, run=f"gate-{place:04d}")
        patients = int(answer.metrics["num-examples"])
        found.append(equations(model, answer.network(study), study, patients, number))
    return decode(found, patients)


def decode(found: Sequence[Equations], patients: int) -> list[Row]:
    """Return the rows whose sums fit best: as many as there are patients, with the best number of positive ones."""
    everybody = _counts(found, 0)
    everybody *= patients / max(everybody.sum(), 1e-9)
    positive = _counts(found, 1)
    positive *= _share_positive(positive, patients)
    rows: list[Row] = []
    for cell, many, with_pcr in zip(CELLS, everybody, positive, strict=True):
        count = max(round(many), int(many > _LEAST))
        known = min(count, max(round(with_pcr), int(with_pcr > _LEAST)))
        rows += [(*cell, True)] * known + [(*cell, False)] * (count - known)
    return rows


_LEAST = 0.25  # share of a patient's usual influence
_USUAL_SHARE = 0.6  # share of patients whose second label is known


def _share_positive(counts: Matrix, patients: int) -> float:
    """Return the factor by which a patient's influence on the second label is larger. It makes all counts integers.

    The loss is a mean over the patients of a step whose label is known, and these are fewer.
    """
    shares = np.arange(1, patients + 1) / patients
    misfits = [float(np.abs(counts * share - np.round(counts * share)).mean()) for share in shares if share > 0.2]
    best = int(np.argmin(misfits))
    return float(shares[shares > 0.2][best]) if misfits[best] < 0.02 else _USUAL_SHARE


def _counts(found: Sequence[Equations], label: int) -> Matrix:
    """Return the number of patients in each cell whose label is known, none below 0. The sums of their labels are
    unknown.
    """
    features = found[0].seen.shape[0]
    left = np.vstack([each.seen for each in found])
    right = np.vstack([np.eye(features)] * len(found))
    solved, _ = nnls(np.hstack([left, right, -right]), np.concatenate([each.sums[label] for each in found]))
    counts: Matrix = solved[: len(CELLS)]
    return counts


def head_gating(study: Study, way: Way, *, name: str, holds: str, seeds: Sequence[int]) -> Result:
    """Set a gate at each age band, at a hospital for each seed."""
    claims, truths, asked, what = [], [], 0, "age band, sex, PCR"
    for seed in seeds:
        with rig(seed=seed, patients={"train": PATIENTS, "validation": 24, "test": 40}) as attacked:
            if holds == WORST:
                attacked.talk_into(study)
            truths.append([row(*patient.row) for patient in attacked.hospital.of("train")])
            try:
                claims.append(read(attacked, study, BANDS, way))
            except Refused as refused:
                return Result(name, holds, what, 0, 0, PATIENTS, stopped_by=refused.code)
            asked = attacked.asked
    return Result.scored(name, holds, what, score(claims, truths), note=f"{asked} messages to each hospital")


def worst_study() -> Study:
    """Train each step over all patients, so the order hides nothing; the low learning rate makes steps add up."""
    return own_study(
        study={"rounds": 1000, "local_epochs": 4},
        training={"batch_size": 64, "learning_rate": 1e-3, "momentum": 0.5, "weight_decay": 0.0},
    )


SHORT = Way(growth=(3.0, 1.0, 1.0), longest=0.97 * HEAD_RMS)
SEEDS = range(101, 101 + HOSPITALS)


def in_released_study() -> Result:
    return head_gating(released_study(), SHORT, name="head gating, default settings", holds=HOLDS, seeds=SEEDS)


def with_a_long_head() -> Result:
    name = "head gating, a head that grows from round to round"
    return head_gating(released_study(), Way(), name=name, holds=HOLDS, seeds=SEEDS)


def in_worst_study() -> Result:
    name, way = "head gating, steps over all patients", Way((6, 12), (3.0,), 3.0, longest=0.97 * HEAD_RMS)
    return head_gating(worst_study(), way, name=name, holds=WORST, seeds=SEEDS)


def attacks() -> Iterator[Result]:
    """Run at hospitals that were not used to build the decoder."""
    yield in_worst_study()
    yield with_a_long_head()
    yield in_released_study()
