"""The figures that may leave a site beside weights: each by name, with its range and the patients it is over.

One table for all: the app reports no other figure, the gateway lets no other out, the server takes no other in. It is
part of the policy whose hash stands in every line of a site's ledger. Light on purpose: the gateway has no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["train", "evaluate"]

LABELS = ("pcr_positive", "severe")  # as the networks predict them


@dataclass(frozen=True)
class Figure:
    """A number from `low` to `high` over the patients of one split: those with `label`, or all if it is empty.

    `both`: it is defined only where some of them have the label true and some false.
    """

    low: float
    high: float
    split: Literal["train", "validation", "test"]
    label: str = ""
    both: bool = False


def _evaluation(split: Literal["validation", "test"]) -> dict[str, Figure]:
    """What `pipeline.evaluate.site_metrics` gives: losses are mean cross-entropies, in nats."""
    losses = {f"loss_{label}": Figure(0, 1000, split, label) for label in LABELS}
    return losses | {f"auroc_{label}": Figure(0, 1, split, label, both=True) for label in LABELS}


def _calibration() -> dict[str, Figure]:
    """Slope and intercept of each label's calibration (`models.calibration`)."""
    slopes = {f"slope_{label}": Figure(0, 100, "validation", label) for label in LABELS}
    return slopes | {f"intercept_{label}": Figure(-100, 100, "validation", label) for label in LABELS}


EPSILON = "epsilon"  # of all rounds of a private study's run so far; the gateway's own figure, from the site's budget
LOSS = "train_loss"  # which a private study does not tell

# By the kind of the message that asks for them.
FIGURES: Mapping[Kind, Mapping[str, Figure]] = {
    "train": {LOSS: Figure(0, 1000, "train"), EPSILON: Figure(0, 1000, "train"), **_evaluation("validation")},
    "evaluate": _evaluation("test") | _calibration(),
}
# Whose number the weight of a reply is (`num-examples`).
EXAMPLES_OF: Mapping[Kind, Literal["train", "test"]] = {"train": "train", "evaluate": "test"}
TRAIN_METRICS = tuple(FIGURES["train"])
EVALUATE_METRICS = tuple(FIGURES["evaluate"])
