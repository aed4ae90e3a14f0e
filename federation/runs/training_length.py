"""Looks for labels that a study trained too long: their validation loss fell, and then rose again.

A small study learns its training patients by heart. Its AUROC on other patients may have fallen since, and a shorter
study is better. That is not the beginning of the longer one: its learning rate falls to zero over its own rounds.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from federation.runs import reasons
from models.network_settings import LABELS
from models.refusal import Refusal

WINDOW = 3  # rounds in a mean, because single rounds vary, above all the first ones
# Of the lowest loss. In studies of three synthetic hospitals with 27 or 54 training patients each, 20 rounds were too
# many for `severe`, and 8 were not (docs/pretraining.md). It rose so much in 21 of 25 studies of 20 rounds, and in 2 of
# 96 of 8 or 5 rounds. The loss of PCR, which gained by more rounds, did in 1 of 135.
LEAST_RISE = 1.4
LEAST_RISE_NATS = 0.05  # a loss near zero may be a multiple of another one, and tells nothing


def trained_long(history: Sequence[Mapping[str, Any]]) -> list[Refusal]:
    """Return a warning for each label whose mean validation loss ended LEAST_RISE times as high as its lowest.

    `history`: of a run. Both losses are means of WINDOW rounds. Rounds that were lost or do not tell the loss do not
    count. The loss of a round is that of the model at its start, on the hospitals' validation patients.
    """
    found = []
    for label in LABELS:
        known = [(entry["round"], loss) for entry in history if (loss := _loss(entry, label)) is not None]
        windows = [known[first : first + WINDOW] for first in range(len(known) - WINDOW + 1)]
        means = [fmean(loss for _, loss in window) for window in windows]
        lowest = min(means, default=0.0)
        if means and means[-1] >= max(LEAST_RISE * lowest, lowest + LEAST_RISE_NATS):
            rounds, _ = windows[means.index(lowest)][WINDOW // 2]
            numbers = {"lowest": f"{lowest:.2f}", "last": f"{means[-1]:.2f}", "rounds": rounds}
            found.append(Refusal(reasons.TRAINED_LONG, label=label, **numbers))
    return found


def _loss(entry: Mapping[str, Any], label: str) -> float | None:
    return None if entry.get("lost", True) else entry["means"].get(f"loss_{label}")
