"""Figures of training rounds: a hospital evaluates each received model on its validation patients.

No budget of questions counts these figures. The models are heads on age and sex alone, each in a run that the hospital
seems to join late: then a model may be further from the seed's. A patient's loss is a known function of its band of age
and sex and of its label, so a mean loss is a linear equation in the number of patients of each kind. It leaves with
three digits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from federation.protocol.metric_allowlist import LABELS
from federation.protocol.study_config import Study
from tests.attacks.gate import CELLS, Matrix, gated
from tests.attacks.invented import KINDS, NEGATIVE, POSITIVE, ROWS, Probe, Row, cell_logits, row
from tests.attacks.result import Result
from tests.attacks.rig import Refused, Rig, alone_study, released_study, rig
from tests.attacks.score import HOSPITALS, score

RELEASED = "heads on age and sex, and the sizes of both classes, a released study"
HOLDS = "the same, a study without sums that the hospital was persuaded to approve"
WHAT = "age band, sex, PCR, severity"
DEFAULT_NAME = "losses of 25 rounds on validation patients, default settings"
NAME = "losses of 25 rounds on validation patients"
SEEDS = range(501, 501 + HOSPITALS)
PATIENTS = {"train": 40, "validation": 40, "test": 40}
ROUNDS = 25
_LATE = 6  # the latest first round that a gateway accepts, by `max_missed_rounds`
_SURE, _LOSS = 0.1, 0.003  # standard deviations: of an exact number of patients, of a rounded loss


@dataclass(frozen=True)
class Told:
    """The mean losses of a round by label, and by label the logit of each cell."""

    losses: dict[str, float]
    logits: dict[str, Matrix]


def ask(attacked: Rig, study: Study, probe: Probe, *, run: str) -> Told | None:
    """Return what a round tells about the probe; None if it has no losses. Raises Refused."""
    model = gated(study, probe.weights)
    figures = attacked.must("train", study, model, run=run, round_number=_LATE).metrics
    losses = {label: float(figures[f"loss_{label}"]) for label in LABELS if f"loss_{label}" in figures}
    return Told(losses, cell_logits(model, probe.weights)) if losses else None


def decode(told: Sequence[Told], sizes: Sequence[int]) -> list[Row]:
    """Return the rows that fit best. `sizes`: the number of patients of each of KINDS."""
    left = [np.repeat(np.eye(len(KINDS))[kind], len(CELLS)) / _SURE for kind in range(len(KINDS))]
    right = [size / _SURE for size in sizes]
    for each in told:
        for label, loss in each.losses.items():
            of_label = sum(sizes[kind] for kind in (*POSITIVE[label], *NEGATIVE[label]))
            of_kind = np.zeros((len(KINDS), len(CELLS)))
            of_kind[list(POSITIVE[label])] = np.logaddexp(0, -each.logits[label])
            of_kind[list(NEGATIVE[label])] = np.logaddexp(0, each.logits[label])
            left.append(of_kind.ravel() / (of_label * _LOSS))
            right.append(loss / _LOSS)
    usual = np.repeat(sizes, len(CELLS)) / len(CELLS)
    pull = 1 / np.sqrt(np.maximum(usual, 0.1))
    counts = nnls(np.vstack([*left, np.diag(pull)]), np.concatenate([right, pull * usual]))[0]
    claimed = []
    for _ in range(sum(sizes)):
        claimed.append(ROWS[int(counts.argmax())])
        counts[counts.argmax()] -= 1
    return claimed


def attack_one(study: Study, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the claims about one hospital's validation patients, and the truth. Raises Refused."""
    rng = np.random.default_rng(8)
    with rig(seed=seed, patients=PATIENTS) as attacked:
        attacked.talk_into(study)
        truth = [row(patient) for patient in attacked.hospital.of("validation")]
        probes = [Probe.drawn(study, rng) for _ in range(ROUNDS)]
        answers = [ask(attacked, study, probe, run=f"losses-{n:04d}") for n, probe in enumerate(probes)]
    told = [answer for answer in answers if answer is not None]
    sizes = [sum(KINDS.index(each[2:]) == kind for each in truth) for kind in range(len(KINDS))]
    return (decode(told, sizes) if told else []), truth


def attacks() -> Iterator[Result]:
    """Run at hospitals whose patients are drawn from unused seeds."""
    for study, name, holds in ((released_study(), DEFAULT_NAME, RELEASED), (alone_study(), NAME, HOLDS)):
        try:
            found = [attack_one(study, seed) for seed in SEEDS]
        except Refused as refused:
            yield Result(name, holds, WHAT, 0, 0, PATIENTS["validation"], stopped_by=refused.code)
            continue
        claims, truths = [claimed for claimed, _ in found], [truth for _, truth in found]
        if not any(claims):
            yield Result(name, holds, WHAT, 0, 0, sum(map(len, truths)), note="the rounds have no losses")
            continue
        yield Result.scored(name, holds, WHAT, score(claims, truths), note=f"{ROUNDS} rounds at each hospital")
