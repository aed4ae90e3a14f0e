"""What this hospital says of each model of a masked study: is it much worse than the ones before it?

The app evaluates the model that it receives on the validation patients before it trains, and reports the loss of each
label that has enough patients of both classes. The gateway compares these losses with those of the run's models before.
So the app, its sandbox and its messages need nothing new, and the memory survives a restart of either.

SITE_DIR/gateway/votes/<run>.json   the run's last models and their losses
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from federation.protocol.metric_allowlist import FIGURES, LABELS
from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, WORSE, Answer
from pipeline.system.atomic_files import write_durably

# Nats of the mean loss; a coin toss has 0.69. With 0.4 no honest round was taken back where it was measured, with 0.3
# two were. docs/secure-aggregation.md has the figures.
MARGIN = 0.5
MODELS = 3  # how many models before are compared
KEPT_RUNS = 16
LOSSES = {label: f"loss_{label}" for label in LABELS}
_HIGHEST = FIGURES["train"][LOSSES[LABELS[0]]].high  # a loss above it stays in the app: the model has diverged


@dataclass(frozen=True)
class Judged:
    """A model and its losses by label, in nats."""

    model: str
    losses: Mapping[str, float]


def judge(losses: Mapping[str, float], before: list[Judged]) -> Answer:
    """Compare a model's losses with those of the models before: much worse, not much worse, or no vote.

    It is much worse if its mean loss over the labels is higher by more than MARGIN than that of the best of the models
    before. A label that had a loss and has none any more counts with the highest possible one. The first model cannot
    be worse, and a site whose labels have too few patients does not vote.
    """
    labels = sorted({label for each in before for label in each.losses})
    if not labels and not losses:
        return NO_VOTE
    known = [mean(each.losses[label] for label in labels) for each in before if set(each.losses) >= set(labels)]
    if not known or not labels:
        return NOT_WORSE
    here = mean(losses.get(label, _HIGHEST) for label in labels)
    return WORSE if here > min(known) + MARGIN else NOT_WORSE


class ModelVotes:
    """The votes of one site. `folder`: SITE_DIR/gateway/votes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def cast(self, run: str, model: str, figures: Mapping[str, Any]) -> Answer:
        """Return the site's answer about a model, and remember its losses. The same model gets the same answer.

        `figures`: the checked figures of the reply. Raises OSError.
        """
        losses = {label: float(figures[name]) for label, name in LOSSES.items() if name in figures}
        judged = self._read(run)
        places = [place for place, each in enumerate(judged) if each.model == model]
        before = judged[: places[0]] if places else judged
        answer = judge(losses, before[-MODELS:])
        if not places:
            self._write(run, [*judged[-MODELS:], Judged(model, losses)])
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
