"""What this hospital says of each model of a masked study: is it much worse than the ones before it?

The app evaluates the model that it receives on the validation patients before it trains, and reports loss and AUROC of
each label that has enough patients of both classes. The gateway compares them with those of the run's models before.
So the app, its sandbox and its messages need nothing new, and the memory survives a restart of either.

SITE_DIR/gateway/votes/<run>.json   the run's last models, their losses and AUROCs
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from federation.protocol.metric_allowlist import FIGURES, LABELS
from federation.protocol.patient_counts import Patients
from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, WORSE, Answer
from pipeline.system.atomic_files import write_durably

# Nats of the mean loss; a coin toss has 0.69. Honest training with batch norm and a high learning rate makes single
# models whose loss is up to 0.9 higher at small hospitals, and which the next round mends: with 0.5 an honest study
# ended. docs/secure-aggregation.md has the figures.
MARGIN = 1.0
# A model that orders patients wrongly need not have a high loss: labels that are flipped in one round cost 0.1 to 0.5
# nats. docs/secure-aggregation.md has the figures.
FALL = 0.1  # of an AUROC
ERRORS = 1.645  # how many standard errors a fall must exceed besides
MODELS = 3  # how many models before are compared
KEPT_RUNS = 16
LOSSES = {label: f"loss_{label}" for label in LABELS}
AUROCS = {label: f"auroc_{label}" for label in LABELS}
_HIGHEST = FIGURES["train"][LOSSES[LABELS[0]]].high  # a loss above it stays in the app: the model has diverged


@dataclass(frozen=True)
class Judged:
    """A model, its losses by label in nats, and its AUROCs by label."""

    model: str
    losses: Mapping[str, float]
    aurocs: Mapping[str, float] = field(default_factory=dict)


def judge(now: Judged, before: list[Judged], classes: Mapping[str, tuple[int, int]]) -> Answer:
    """Compare a model with those before: much worse, not much worse, or no vote.

    It is much worse if its mean loss over the labels is higher by more than MARGIN than that of the best of the models
    before. A label that had a loss and has none any more counts with the highest possible one. It is much worse too if
    the AUROC of a label fell, see `has_fallen`. The first model cannot be worse, and a site whose labels have too few
    patients does not vote. `classes`: validation patients without and with each label.
    """
    labels = sorted({label for each in before for label in each.losses})
    if not labels and not now.losses:
        return NO_VOTE
    known = [mean(each.losses[label] for label in labels) for each in before if set(each.losses) >= set(labels)]
    if not known or not labels:
        return NOT_WORSE
    here = mean(now.losses.get(label, _HIGHEST) for label in labels)
    if here > min(known) + MARGIN:
        return WORSE
    for label, auroc in now.aurocs.items():
        best = max((each.aurocs[label] for each in before if label in each.aurocs), default=0.0)
        if has_fallen(auroc, best, *classes.get(label, (0, 0))):
            return WORSE
    return NOT_WORSE


def has_fallen(auroc: float, best: float, negatives: int, positives: int) -> bool:
    """Whether an AUROC is lower than the best one before by more than FALL, and by more than ERRORS standard errors.

    The standard error is that of Hanley and McNeil (Radiology 1982; 143:29) for the difference of two AUROCs of
    different patients, both at their mean. It is too large here, because the patients are the same.
    """
    if min(negatives, positives) < 1:
        return False
    area = (auroc + best) / 2
    of_positives, of_negatives = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    spread = area * (1 - area) + (positives - 1) * of_positives + (negatives - 1) * of_negatives
    error = math.sqrt(2 * max(spread, 0.0) / (positives * negatives))
    return best - auroc > max(FALL, ERRORS * error)


class ModelVotes:
    """The votes of one site. `folder`: SITE_DIR/gateway/votes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def cast(self, run: str, model: str, figures: Mapping[str, Any], patients: Patients) -> Answer:
        """Return the site's answer about a model, and remember its figures. The same model gets the same answer.

        `figures`: the checked figures of the reply. `patients`: of the site. Raises OSError.
        """
        losses, aurocs = (
            {label: float(figures[name]) for label, name in names.items() if name in figures}
            for names in (LOSSES, AUROCS)
        )
        now, judged = Judged(model, losses, aurocs), self._read(run)
        places = [place for place, each in enumerate(judged) if each.model == model]
        before = judged[: places[0]] if places else judged
        answer = judge(now, before[-MODELS:], _classes(patients))
        if not places:
            self._write(run, [*judged[-MODELS:], now])
        return answer

    def _read(self, run: str) -> list[Judged]:
        with suppress(FileNotFoundError):
            return [Judged(**each) for each in json.loads(self._file(run).read_bytes())]
        return []

    def _write(self, run: str, judged: list[Judged]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(self._file(run), json.dumps([asdict(each) for each in judged]).encode())
        runs = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for old in runs[:-KEPT_RUNS]:
            old.unlink(missing_ok=True)

    def _file(self, run: str) -> Path:
        return self._folder / f"{run}.json"


def _classes(patients: Patients) -> dict[str, tuple[int, int]]:
    """Return how many validation patients are without and with each label."""
    figures = {label: FIGURES["train"][name] for label, name in AUROCS.items()}
    return {label: (patients.among(each, "false"), patients.among(each, "true")) for label, each in figures.items()}
