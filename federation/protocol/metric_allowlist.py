"""The figures that may leave a site beside weights: each by name, with its range and the patients it is over.

One table for all: the app reports no other figure, the gateway lets no other out, the server takes no other in. It is
part of the policy whose hash stands in every line of a site's ledger. Light on purpose: the gateway has no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from federation.protocol.grids import Digits, Grid, Shares, Step
from pipeline.evaluation.subgroups import GROUPS

# What a message asks for, as Flower's message types have it.
Kind = Literal[
    "query.handshake", "train", "train.head", "evaluate.calibrate", "evaluate.test", "evaluate.embed", "evaluate.assign"
]
HANDSHAKE: Kind = "query.handshake"
TRAINING: tuple[Kind, ...] = ("train", "train.head")  # replies to these bring a model
Split = Literal["train", "validation", "test"]
SPLITS: Mapping[str, tuple[Split, ...]] = {
    "train": ("train",),
    "validation": ("validation",),
    "test": ("test",),
    "held_out": ("validation", "test"),
    "all": ("train", "validation", "test"),
}
ANY = "any"  # whoever has a label at all

LABELS = ("pcr_positive", "severe")  # as the networks predict them
BINS = 20  # of a histogram
LOOKS = 51  # numbers that say how a scan looks (`models.familiarity`)
MAX_PROBED = 32  # sites that a test patient can be assigned to

NATS = Digits(3, 0.1)  # losses
OF_DISTANCES = Step(0.05)  # logarithms of distances
AUC = Step(0.01)  # areas under a curve
OF_LOGITS = Digits(4, 0.1)  # what applies to logits: a calibration, a threshold


@dataclass(frozen=True)
class Figure:
    """A number from `low` to `high` over patients of some SPLITS: those with `label` (or ANY), or all if it is empty.

    `both`: it is defined only where some of them have the label true and some false. `group`: over one group of
    `pipeline.evaluation.subgroups` alone. `fitted`: it is of a score that was fitted to train patients with the label.
    `tells_classes`: it gives away how many there are of either class. `counts`: it is no more than a number of
    patients whose label is this, an integer; only where the site lets histograms out. `embedding`: it is of scans'
    looks or features; only where the site lets their statistics out. `grid`: the values between `low` and `high` that
    it may have; None for what the gateway counts itself.
    """

    low: float
    high: float
    split: Literal["train", "validation", "test", "held_out", "all"]
    label: str = ""
    both: bool = False
    group: str = ""
    fitted: bool = False
    tells_classes: bool = False
    counts: bool | None = None
    embedding: bool = False
    grid: Grid | None = None

    @property
    def of_class(self) -> tuple[str, str, bool]:
        """Whom a count counts: split, label, its value."""
        return self.split, self.label, bool(self.counts)


def _with_interval(name: str, figure: Figure) -> dict[str, Figure]:
    """The figure and the ends of its 95 % interval."""
    return {name: figure, f"{name}_low": figure, f"{name}_high": figure}


def _round() -> dict[str, Figure]:
    """What `pipeline.evaluation.figures.round_figures` gives of validation patients; losses are in nats."""
    losses = {f"loss_{label}": Figure(0, 100, "validation", label, grid=NATS) for label in LABELS}
    return losses | {f"auroc_{label}": Figure(0, 1, "validation", label, both=True, grid=AUC) for label in LABELS}


def _calibrate(label: str) -> dict[str, Figure]:
    """Platt's slope and intercept with their covariance, and two thresholds, all on raw logits (`calibration_figures`).

    The fit's penalty counts as information, so a variance is at most 1/4 and the covariance 1/8; the rest is rounding.
    """
    threshold = Figure(-100, 100, "validation", label, both=True, grid=OF_LOGITS)
    # Rounded outwards: the matrix of the three stays positive definite.
    variance = Figure(0, 0.26, "validation", label, grid=Digits(4, 1e-4, "infinity"))
    return {
        f"slope_{label}": Figure(0, 100, "validation", label, grid=OF_LOGITS),
        f"intercept_{label}": Figure(-100, 100, "validation", label, grid=OF_LOGITS),
        f"variance_slope_{label}": variance,
        f"covariance_{label}": Figure(-0.13, 0.13, "validation", label, grid=Digits(4, 1e-4, "zero")),
        f"variance_intercept_{label}": variance,
        f"rule_out_{label}": threshold,
        f"rule_in_{label}": threshold,
    }


def _distances() -> dict[str, Figure]:
    """Mean and standard deviation of the patients' logarithms of distance (`models.familiarity.log_distances`)."""
    return {
        "distance_mean": Figure(-20, 20, "validation", embedding=True, grid=OF_DISTANCES),
        "distance_sd": Figure(0, 20, "validation", embedding=True, grid=OF_DISTANCES),
    }


def _test(label: str) -> dict[str, Figure]:
    """What `test_figures` gives of one label, but subgroups and histograms."""
    area = Figure(0, 1, "test", label, both=True, grid=AUC)
    of_positives = Figure(0, 1, "test", label, both=True, grid=Shares("true"))
    of_negatives = Figure(0, 1, "test", label, both=True, grid=Shares("false"))
    of_fit = Figure(-100, 100, "test", label, both=True, grid=Digits(3, 1))
    figures = {
        f"loss_{label}": Figure(0, 100, "test", label, grid=NATS),
        f"prevalence_{label}": Figure(0, 1, "test", label, tells_classes=True, grid=Shares()),
        f"calibration_slope_{label}": of_fit,
        f"calibration_intercept_{label}": of_fit,
        # A model whose probabilities are all 0 or 1 makes a count of these two, and of net benefit.
        f"brier_{label}": Figure(0, 1, "test", label, grid=Shares()),
        f"ece_{label}": Figure(0, 1, "test", label, grid=Shares()),
    }
    for percent in (10, 20, 30, 40, 50):
        figures[f"net_benefit_{label}_{percent}"] = Figure(-1, 1, "test", label, grid=Shares())
    for what in ("auroc", "auprc"):
        figures |= _with_interval(f"{what}_{label}", area)
    for percent in (90, 95):
        figures |= _with_interval(f"sens_at_spec{percent}_{label}", of_positives)
        figures |= _with_interval(f"spec_at_sens{percent}_{label}", of_negatives)
    for point in ("rule_out", "rule_in"):
        figures |= {f"sens_at_{point}_{label}": of_positives, f"spec_at_{point}_{label}": of_negatives}
    figures |= _with_interval(f"auroc_{label}_lesion_load", area)
    figures |= _with_interval(f"auroc_{label}_age_sex", replace(area, fitted=True))
    return figures | _with_interval(f"auroc_{label}_over_age_sex", replace(area, low=-1, fitted=True))


def _subgroups(label: str) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for group in GROUPS:
        figures |= _with_interval(
            f"auroc_{label}@{group}", Figure(0, 1, "test", label, both=True, group=group, grid=AUC)
        )
    return figures


def _histogram(label: str) -> dict[str, Figure]:
    """Counts of patients by label and bin of the probability."""
    return {
        f"count_{label}_{value:d}_{bin:02}": Figure(0, 1_000_000, "test", label, both=True, counts=value)
        for value in (False, True)
        for bin in range(BINS)
    }


def _shortcuts() -> dict[str, Figure]:
    """The shortcut audit (`pipeline.evaluation.shortcuts.shortcut_figures`)."""
    figures = {name: Figure(0, 1, "all", grid=Step(0.01)) for name in ("scanner_from_embedding", "scanner_chance")}
    for label in LABELS:
        figures |= _with_interval(f"auroc_{label}_tags", Figure(0, 1, "all", label, both=True, grid=AUC))
    return figures | _with_interval("auroc_severe_outside", Figure(0, 1, "held_out", "severe", both=True, grid=AUC))


def _of_labels(*tables: Callable[[str], dict[str, Figure]]) -> dict[str, Figure]:
    return {name: figure for label in LABELS for table in tables for name, figure in table(label).items()}


EPSILON = "epsilon"  # of all rounds of a private study's run so far; the gateway's own figure, from the site's budget
LOSS = "train_loss"  # which a private study does not tell

_TRAIN = {LOSS: Figure(0, 1000, "train", ANY, grid=NATS), EPSILON: Figure(0, 1000, "train"), **_round()}

# By the kind of the message that asks for them.
FIGURES: Mapping[Kind, Mapping[str, Figure]] = {
    "query.handshake": {},
    "train": _TRAIN,
    "train.head": {},
    "evaluate.calibrate": _of_labels(_calibrate) | _distances(),
    "evaluate.test": _of_labels(_test, _subgroups, _histogram) | _shortcuts(),
    "evaluate.embed": {},
    "evaluate.assign": {f"assigned_{site:02}": Figure(0, 1, "test", grid=Shares()) for site in range(MAX_PROBED)},
}
# Whose number the weight of a reply is (`num-examples`); a handshake has none.
EXAMPLES_OF: Mapping[Kind, Split] = {
    "train": "train",
    "train.head": "train",
    "evaluate.calibrate": "validation",
    "evaluate.test": "test",
    "evaluate.embed": "train",
    "evaluate.assign": "test",
}


def unspoken(kind: Kind, *, is_private: bool) -> set[str]:
    """Figures of the table that an app must not tell: ε, which is the gateway's own to tell.

    And in a private study all that comes of training patients, for no noise covers it.
    """
    table = FIGURES[kind]
    of_train = {name for name, figure in table.items() if figure.fitted or "train" in SPLITS[figure.split]}
    return {EPSILON, *(of_train if is_private else ())}
