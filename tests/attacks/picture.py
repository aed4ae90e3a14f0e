"""A coarse picture of one patient's scan, from the updates of a network with thresholds by place (`imprint`).

The server has its own phantoms. From them it computes the positions of the highest thresholds, how much a patient above
a threshold moves its shift, and the offset that all pictures share. It reads the highest threshold that a patient
exceeds.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.protocol.study_config import Study
from pipeline.cohort.dataset import Batch, Example, Examples
from pipeline.site.folder import Split
from pipeline.training.train import epoch_batches, train
from tests.attacks.cohort import Patient
from tests.attacks.imprint import Imprint, Matrix, Update, imprint, look, update, within_reach
from tests.attacks.phantoms import PREPROCESSING, scans, ward_patients
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, released_study, rig, seed_network
from tests.attacks.scan import halfway
from tests.attacks.score import HOSPITALS, from_matrix

HOLDS = "weights within bounds, a released study"
WHAT = "a picture of the scan, mirrored: brighter or darker than usual at each place"
NAME = "one patient's scan behind thresholds by place, default settings"
WITHIN_NAME = "one patient's scan behind thresholds by place, filters near the seed's"
HEAD = 0.1
PATIENTS, OWN, OTHERS = 40, 120, 12  # of a hospital; the server's own phantoms; for validation and test
ROUNDS = tuple(range(13, 21))
_PREPARED = (6, 12)  # rounds in which the weights are halfway to the target, and at the target
_PRACTICE = 4  # hospitals that the server simulates
_FROM, _BEYOND = 0.8, 1.1  # the thresholds: from this quantile of the measure to this multiple of its maximum
_SOMEBODY = 0.6  # share of the shift's change that one patient causes


@dataclass(frozen=True)
class Knowledge:
    """What the server knows from its phantoms. `moves`: the change of a shift by one patient above its threshold."""

    made: Imprint
    usual: Matrix
    moves: float
    offset: Matrix

    def claim(self, update: Update) -> NDArray[np.bool_]:
        """Return for each place of the picture whether it is brighter than usual."""
        found: NDArray[np.bool_] = update.picture(self.highest(update)) - self.offset > self.usual
        return found

    def truth(self, scan: Matrix) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = scan > self.usual
        return found

    def highest(self, update: Update) -> int:
        """Return the highest threshold that a patient seems to exceed."""
        return int(np.flatnonzero(np.abs(update.shift) > _SOMEBODY * self.moves).max(initial=0))


def thresholds_for(study: Study, own: NDArray[np.float32]) -> Matrix:
    """Place the thresholds: about a fifth of the patients are above the lowest one, and almost none above the highest
    one.
    """
    features = seed_network(study).features
    measure = look(imprint(study, np.full(features, 2.0), head=0.0), own).measure
    middle = float(np.median(measure))
    highest: float = middle + _BEYOND * (measure.max() - middle)
    return np.linspace(np.quantile(measure, _FROM), highest, features)


def between(made: Imprint, highest: float, second: float) -> NDArray[np.bool_]:
    """Return the thresholds that only the patient with the highest measure exceeds; the lowest one if there is none."""
    found: NDArray[np.bool_] = (made.thresholds < highest) & (made.thresholds >= second)
    found[0] |= not found.any()
    return found


def learn(made: Imprint, study: Study, own: Sequence[Patient]) -> Knowledge:
    """Simulate hospitals with the server's own phantoms and the release's own training."""
    seen = look(made, scans(own))
    rng = np.random.default_rng(31)
    played = []
    for number in range(_PRACTICE):
        chosen = rng.choice(len(own), PATIENTS, replace=False)
        found = practice(made, study, [own[place] for place in chosen], seed=number)
        played.append((chosen[np.argsort(-seen.measure[chosen])], found))
    moves = [np.abs(found.shift[between(made, *seen.measure[first[:2]])]).mean() for first, found in played]
    known = Knowledge(made, np.median(seen.picture, axis=0), float(np.median(moves)), np.zeros(1))
    offsets = [found.picture(known.highest(found)) - seen.picture[first[0]] for first, found in played]
    return replace(known, offset=np.mean(offsets, axis=0))


class _InMemory(Examples):
    """Training examples of patients whose scans are in memory and not in files."""

    def __init__(self, patients: Sequence[Patient]) -> None:
        super().__init__(
            [Example(Path(), float(each.age), each.sex, each.pcr, each.severe) for each in patients],
        )
        self._scans = torch.from_numpy(scans(patients))

    def batch(self, index: NDArray[np.int64], augment: Callable[[Tensor], Tensor] | None) -> Batch:
        chosen = [self._scans[place] if augment is None else augment(self._scans[place]) for place in index]
        return torch.stack(chosen), torch.from_numpy(self.tabular[index]), torch.from_numpy(self.targets[index])


def practice(
    made: Imprint, study: Study, patients: Sequence[Patient], *, seed: int, rounds: Sequence[int] = ROUNDS
) -> Update:
    """Return the mean update of a hospital that the server simulates."""
    examples, found = _InMemory(patients), []
    for number in rounds:
        network = copy.deepcopy(made.network)
        train(network, examples, study.training, study.schedule(number), seed=1_000 * seed + number)
        found.append(update(made, network, decay=decayed(study, len(patients), number)))
    return mean(found)


def mean(updates: Sequence[Update]) -> Update:
    return Update(
        np.mean([each.shift for each in updates], axis=0), np.mean([each.weights for each in updates], axis=0)
    )


def decayed(study: Study, patients: int, round_number: int) -> float:
    """Return the share by which weight decay shortens a weight in a round."""
    settings, schedule = study.training, study.schedule(round_number)
    moved = speed = 0.0
    for epoch in range(schedule.epochs):
        steps = len(epoch_batches(patients, settings.batch_size, schedule.steps, np.random.default_rng(0)))
        for number in range(steps):
            speed = settings.momentum * speed + 1
            rate = schedule.learning_rate(settings.learning_rate, epoch, number / steps)
            moved += rate * (1 + settings.momentum * speed)
    return settings.weight_decay * moved


def read(attacked: Rig, study: Study, made: Imprint) -> Update:
    """Return the mean update over the rounds of a run whose weights are those of the imprint. Raises Refused."""
    target = made.network
    attacked.must("train", study, halfway(study, target), round_number=_PREPARED[0])
    attacked.must("train", study, target, round_number=_PREPARED[1])
    found = []
    for number in ROUNDS:
        answer = attacked.must("train", study, target, round_number=number)
        decay = decayed(study, PATIENTS, number)
        found.append(update(made, answer.network(study), decay=decay))
    return mean(found)


def hospital(number: int) -> list[Patient]:
    """Return the patients of a hospital that the server does not know."""
    first = 10_000 + 100 * number
    others: tuple[Split, Split] = ("validation", "test")
    return [
        *ward_patients(first, PATIENTS),
        *(each for place, split in enumerate(others) for each in ward_patients(5_000 + 50 * place, OTHERS, split)),
    ]


def attack(study: Study, *, name: str, hospitals: Sequence[int], is_within: bool = False) -> Result:
    """At each of these hospitals, claim the picture of the patient with the highest measure.

    `is_within`: use weights as near to those of the imprint as a run allows.
    """
    own = ward_patients(0, OWN)
    made = imprint(study, thresholds_for(study, scans(own)), head=HEAD)
    if is_within:
        made = within_reach(study, made)
    known: Knowledge | None = None
    found, truths, asked = [], [], 0
    for number in hospitals:
        drawn = hospital(number)
        with rig(drawn=drawn, preprocessing=PREPROCESSING) as attacked:
            attacked.talk_into(study)  # the rig does the same for the released studies with small scans
            try:
                update = read(attacked, study, made)
            except Refused as refused:
                return Result(name, HOLDS, WHAT, 0, 0, 8 * made.pictures, stopped_by=refused.code)
            asked = attacked.asked
        known = known or learn(
            made, study, own
        )  # computed here, because it takes a minute and is not needed after a refusal
        seen = look(made, scans(drawn[:PATIENTS]))
        found.append(known.claim(update))
        truths.append(known.truth(seen.picture[seen.measure.argmax()]))
    right = np.array([[int((claim == truth).sum()) for truth in truths] for claim in found])
    places = len(hospitals) * 8 * made.pictures
    note = f"{asked} messages to each hospital"
    return Result.scored(name, HOLDS, WHAT, from_matrix(right, claimed=places, of=places), note=note)


def attacks() -> Iterator[Result]:
    """Run at hospitals that the server does not know."""
    study = released_study(preprocessing=PREPROCESSING)
    yield attack(study, name=NAME, hospitals=range(HOSPITALS))
    yield attack(study, name=WITHIN_NAME, hospitals=range(HOSPITALS), is_within=True)
