"""Known order: the same weights in many rounds give a system of equations for every patient.

If the order of patients follows from the study's seed and the round's number, the server knows which patient is in
which batch and how much each patient's gradient counts in a round. With a small learning rate, the change in a round is
a known weighted sum over the patients. As many rounds as there are patients give as many equations. The weights need no
trap.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from federation.protocol.study_config import Study
from models.network import SeverityNetwork
from pipeline.training.train import epoch_batches
from tests.attacks.result import Result, compare
from tests.attacks.rig import Answer, Refused, Rig, own_study, rig, seed_network
from tests.attacks.trap import influence

ADVERSARY = "the seed's own weights in each of many late rounds, and the order of patients"
PATIENTS = 32
ROUNDS = 96
_BATCH_NORM_MOMENTUM = 0.1
Matrix = NDArray[np.float64]


def late_rounds(study: Study, count: int) -> range:
    last = study.study.rounds
    return range(last - count + 1, last + 1)


def ask_all(attacked: Rig, study: Study, model: SeverityNetwork) -> dict[int, Answer]:
    """Return the answers of many late rounds to the same model. Raises Refused."""
    return {number: attacked.must("train", study, model, round_number=number) for number in late_rounds(study, ROUNDS)}


# --- ages, sexes and labels from the head -----------------------------------------------------------------


def rows(study: Study, model: SeverityNetwork, answers: dict[int, Answer]) -> list[tuple[int, str, bool]]:
    """Return age, sex and PCR for each position in the order, from the changes of the head's weights on age and sex."""
    patients = int(next(iter(answers.values())).metrics["num-examples"])
    weights = np.stack([influence(study, patients, number) for number in answers])
    moved = np.stack([_moved_head(study, model, answer, number) for number, answer in answers.items()])
    solved, *_ = np.linalg.lstsq(weights, -moved, rcond=None)
    residual, units = solved[:, -1], solved[:, :-1] / solved[:, -1:]  # probability - label, and units of age and sex
    return [(*nearest(model, unit), bool(r < 0)) for r, unit in zip(residual, units, strict=True)]


def _moved_head(study: Study, model: SeverityNetwork, answer: Answer, round_number: int) -> Matrix:
    """Return the first label's gradient on the units of age and sex and on the constant, without the weight decay."""
    after = answer.network(study)

    def of(network: SeverityNetwork) -> Matrix:
        weight = network.head.weight[0, network.features :].detach().double().numpy()
        return np.append(weight, network.head.bias[0].item())

    shrunk = _decay(study, int(answer.metrics["num-examples"]), round_number)
    change: Matrix = of(after) - of(model) * (1 - shrunk)
    return change


def _decay(study: Study, patients: int, round_number: int) -> float:
    """Return the share by which a weight shrinks in a round. A gradient of one in each step changes it by the same
    amount.
    """
    return float(influence(study, patients, round_number).sum() * 2 * study.training.weight_decay)


@torch.no_grad()
def nearest(model: SeverityNetwork, unit: Matrix) -> tuple[int, str]:
    """Return the age and sex whose units are nearest to these."""
    people = [(age, sex) for sex in ("F", "M") for age in range(18, 105)]
    tabular = torch.tensor([[(age - 60) / 20, 1.0, 1.0 if sex == "M" else -1.0, 1.0] for age, sex in people])
    distance = np.linalg.norm(model.tabular(tabular).double().numpy() - unit, axis=1)
    return people[int(distance.argmin())]


def from_the_head(attacked: Rig, study: Study, name: str) -> Result:
    truth = attacked.hospital.of("train")
    what = "PCR of each place in the order"
    model = seed_network(study)
    try:
        answers = ask_all(attacked, study, model)
    except Refused as refused:
        return Result(name, ADVERSARY, what, 0, 0, len(truth), refused.code)
    found = rows(study, model, answers)
    right = sum(row[2] == patient.pcr for row, patient in zip(found, truth, strict=True))
    whole, _ = compare(found, [patient.row for patient in truth])
    near = sum(
        row[1:] == patient.row[1:] and abs(row[0] - patient.age) <= 5 for row, patient in zip(found, truth, strict=True)
    )
    note = f"{len(answers)} rounds; age, sex and PCR exactly of {whole}, age within 5 years of {near}"
    return Result(name, ADVERSARY, what, right, len(truth) - right, len(truth), note=note)


# --- scans from the running means -------------------------------------------------------------------------


def mean_influence(study: Study, patients: int, round_number: int) -> Matrix:
    """Return the weight of each patient in a running mean after a round."""
    schedule, kept = study.schedule(round_number), np.zeros(patients)
    for epoch in range(schedule.epochs):
        rng = np.random.default_rng((study.study.seed, schedule.first_epoch + epoch))
        if study.training.augment:
            rng.integers(2**31)
        for index in epoch_batches(patients, study.training.batch_size, schedule.steps, rng):
            kept *= 1 - _BATCH_NORM_MOMENTUM
            kept[index] += _BATCH_NORM_MOMENTUM / len(index)
    return kept


def from_running_means(attacked: Rig, study: Study, name: str) -> Result:
    """Read the mean of the first layer's first channel of each scan, which is linear in the scan."""
    truth = attacked.hospital.of("train")
    what = "a linear measure of the scan, to a tenth of its spread"
    model = seed_network(study)
    try:
        answers = ask_all(attacked, study, model)
    except Refused as refused:
        return Result(name, ADVERSARY, what, 0, 0, len(truth), refused.code)
    weights = np.stack([mean_influence(study, len(truth), number) for number in answers])
    means = np.stack([answer.buffers["batch_norm.running_mean"][:4] for answer in answers.values()])
    solved, *_ = np.linalg.lstsq(weights, means.astype(np.float64), rcond=None)  # running means start at zero
    with torch.no_grad():
        scans = torch.from_numpy(np.stack([patient.tensor for patient in truth])).float()
        true = model.backbone.conv1(scans).mean(dim=(2, 3, 4)).double().numpy()
    right = int((np.abs(solved - true)[:, 0] < 0.1 * true[:, 0].std()).sum())
    return Result(name, ADVERSARY, what, right, len(truth) - right, len(truth), note=f"{len(answers)} rounds")


def attacks() -> Iterator[Result]:
    """Run each at a separate hospital."""
    plain = own_study(study={"rounds": 1000}, training={"learning_rate": 1e-3, "augment": False})
    usual = own_study(study={"rounds": 1000}, training={"learning_rate": 1e-3})
    few = {"train": PATIENTS, "validation": 24, "test": 40}
    for study, how in ((plain, "without augmentation"), (usual, "default training")):
        with rig(patients=few) as attacked:
            yield from_the_head(attacked, study, f"known order, the head, {how}")
        with rig(patients=few) as attacked:
            yield from_running_means(attacked, study, f"known order, running means, {how}")
