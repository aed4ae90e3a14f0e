"""The figures that may leave a site besides weights: each with its name, its range and the patients it covers.

There is one table for all: the app reports no other figure, the gateway lets no other leave, and the server accepts no
other. It is part of the policy whose hash is in every line of a site's ledger. Works without torch, for the gateway.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from federation.protocol.grids import Digits, Grid, Ladder, Shares, Step, Threes
from models.operating_points import POINTS
from pipeline.evaluation.ladder import BEYOND, PERCENTS
from pipeline.evaluation.subgroups import GROUPS

# What a message asks for, by Flower's message type.
Kind = Literal[
    "query.handshake", "train", "train.head", "evaluate.calibrate", "evaluate.test", "evaluate.embed", "evaluate.assign"
]
HANDSHAKE: Kind = "query.handshake"
TRAINING: tuple[Kind, ...] = ("train", "train.head")  # replies to these kinds hold a model
Split = Literal["train", "validation", "test"]
SPLITS: Mapping[str, tuple[Split, ...]] = {
    "train": ("train",),
    "validation": ("validation",),
    "test": ("test",),
    "held_out": ("validation", "test"),
    "all": ("train", "validation", "test"),
}
ANY = "any"  # patients with a value for at least one label

LABELS = ("pcr_positive", "severe")  # the labels that the networks predict
BINS = 20  # per histogram
APPEARANCE_SIZE = 51  # numbers that describe the appearance of a scan (`models.familiarity`)
MAX_PROBED = 32  # the most sites that a test patient can be assigned to

NATS = Digits(3, 0.1)  # losses
OF_DISTANCES = Step(0.05)  # logarithms of distances
AUC = Step(0.01)  # areas under a curve
OF_LOGITS = Digits(4, 0.1)  # numbers on the scale of logits: a calibration


@dataclass(frozen=True)
class Figure:
    """A number from `low` to `high` over the patients of some SPLITS that have `label` (or ANY); all patients if empty.

    A figure of a label covers patients of both its classes, or reveals one class by the other, so each class must be
    large enough (`patient_counts.Patients.may_leave`). `group`: it covers only one group of
    `pipeline.evaluation.subgroups`. `fitted`: it describes a score of age and sex that was fitted to the train patients
    with the label. `reveals_classes`: it is the share of a class, which the gateway knows. `counts`: it is an integer
    number of patients whose label has this value; reported only if the site allows histograms. `embedding`: it
    describes scans' appearance or features; reported only if the site allows such statistics. `grid`: the values
    between `low` and `high` that it may take; None for a number that the gateway computes itself.
    """

    low: float
    high: float
    split: Literal["train", "validation", "test", "held_out", "all"]
    label: str = ""
    group: str = ""
    fitted: bool = False
    reveals_classes: bool = False
    counts: bool | None = None
    embedding: bool = False
    grid: Grid | None = None

    @property
    def of_class(self) -> tuple[str, str, bool]:
        """The class that a count covers: split, label, label's value."""
        return self.split, self.label, bool(self.counts)


def _with_interval(name: str, figure: Figure) -> dict[str, Figure]:
    """Return the figure and the limits of its 95 % interval."""
    return {name: figure, f"{name}_low": figure, f"{name}_high": figure}


def tail(point: str, label: str) -> tuple[str, ...]:
    """Return the names of the figures from which a threshold is chosen: one rung for each of PERCENTS."""
    return tuple(f"{point}_{label}_{percent:02}" for percent in PERCENTS)


def class_counts(label: str) -> tuple[str, str]:
    """Return the names of the two class sizes without which no tail leaves a site."""
    return f"positives_{label}", f"negatives_{label}"


TAILS = tuple(tail(point, label) for label in LABELS for point in POINTS)


def _round() -> dict[str, Figure]:
    """Return the figures of `pipeline.evaluation.figures.round_figures`, over validation patients; losses in nats."""
    losses = {f"loss_{label}": Figure(0, 100, "validation", label, grid=NATS) for label in LABELS}
    return losses | {f"auroc_{label}": Figure(0, 1, "validation", label, grid=AUC) for label in LABELS}


def _calibrate(label: str) -> dict[str, Figure]:
    """Return Platt's slope and intercept, their covariance, and the tails for two thresholds (`calibration_figures`).

    The fit's penalty counts as information, so a variance is at most 1/4 and the covariance 1/8; the rest is rounding.
    A tail is on raw logits. It leaves only together with the sizes of both classes, which must be large enough.
    """
    rung = Figure(-BEYOND, BEYOND, "validation", label, grid=Ladder())
    positives, negatives = class_counts(label)
    # Rounded outwards, so that the covariance matrix stays positive definite.
    variance = Figure(0, 0.26, "validation", label, grid=Digits(4, 1e-4, "infinity"))
    return {
        f"slope_{label}": Figure(0, 100, "validation", label, grid=OF_LOGITS),
        f"intercept_{label}": Figure(-100, 100, "validation", label, grid=OF_LOGITS),
        f"variance_slope_{label}": variance,
        f"covariance_{label}": Figure(-0.13, 0.13, "validation", label, grid=Digits(4, 1e-4, "zero")),
        f"variance_intercept_{label}": variance,
        positives: Figure(0, 1e6, "validation", label, reveals_classes=True, grid=Threes("true")),
        negatives: Figure(0, 1e6, "validation", label, reveals_classes=True, grid=Threes("false")),
        **{name: rung for point in POINTS for name in tail(point, label)},
    }


def _distances() -> dict[str, Figure]:
    """Return mean and standard deviation of the logarithms of distance (`models.familiarity.log_distances`)."""
    return {
        "distance_mean": Figure(-20, 20, "validation", embedding=True, grid=OF_DISTANCES),
        "distance_sd": Figure(0, 20, "validation", embedding=True, grid=OF_DISTANCES),
    }


def _test(label: str) -> dict[str, Figure]:
    """Return the figures of `test_figures` for one label, without subgroups and histograms."""
    area = Figure(0, 1, "test", label, grid=AUC)
    of_positives = Figure(0, 1, "test", label, grid=Shares("true"))
    of_negatives = Figure(0, 1, "test", label, grid=Shares("false"))
    of_fit = Figure(-100, 100, "test", label, grid=Digits(3, 1))
    figures = {
        f"loss_{label}": Figure(0, 100, "test", label, grid=NATS),
        f"prevalence_{label}": Figure(0, 1, "test", label, reveals_classes=True, grid=Shares()),
        f"calibration_slope_{label}": of_fit,
        f"calibration_intercept_{label}": of_fit,
        # If a model's probabilities are all 0 or 1, these two and the net benefit are counts of patients.
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
    for point in POINTS:
        figures |= {f"sens_at_{point}_{label}": of_positives, f"spec_at_{point}_{label}": of_negatives}
    figures |= _with_interval(f"auroc_{label}_lesion_load", area)
    figures |= _with_interval(f"auroc_{label}_age_sex", replace(area, fitted=True))
    return figures | _with_interval(f"auroc_{label}_over_age_sex", replace(area, low=-1, fitted=True))


def _subgroups(label: str) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for group in GROUPS:
        figures |= _with_interval(f"auroc_{label}@{group}", Figure(0, 1, "test", label, group=group, grid=AUC))
    return figures


def _histogram(label: str) -> dict[str, Figure]:
    """Return the counts of patients by label and by bin of the probability."""
    return {
        f"count_{label}_{value:d}_{bin:02}": Figure(0, 1_000_000, "test", label, counts=value)
        for value in (False, True)
        for bin in range(BINS)
    }


def _shortcuts() -> dict[str, Figure]:
    """Return the figures of the shortcut audit (`pipeline.evaluation.shortcuts.shortcut_figures`)."""
    figures = {name: Figure(0, 1, "all", grid=Step(0.01)) for name in ("scanner_from_embedding", "scanner_chance")}
    for label in LABELS:
        figures |= _with_interval(f"auroc_{label}_tags", Figure(0, 1, "all", label, grid=AUC))
    return figures | _with_interval("auroc_severe_outside", Figure(0, 1, "held_out", "severe", grid=AUC))


def _of_labels(*tables: Callable[[str], dict[str, Figure]]) -> dict[str, Figure]:
    return {name: figure for label in LABELS for table in tables for name, figure in table(label).items()}


EXAMPLES = "num-examples"  # Flower's name for the weight of a reply
EPSILON = "epsilon"  # of all rounds of a private study's run so far; from the site's budget, through the gateway
LOSS = "train_loss"  # not reported in a private study

_TRAIN = {LOSS: Figure(0, 1000, "train", ANY, grid=NATS), EPSILON: Figure(0, 1000, "train"), **_round()}

# The figures by the kind of message that asks for them.
FIGURES: Mapping[Kind, Mapping[str, Figure]] = {
    "query.handshake": {},
    "train": _TRAIN,
    "train.head": {},
    "evaluate.calibrate": _of_labels(_calibrate) | _distances(),
    "evaluate.test": _of_labels(_test, _subgroups, _histogram) | _shortcuts(),
    "evaluate.embed": {},
    "evaluate.assign": {f"assigned_{site:02}": Figure(0, 1, "test", grid=Shares()) for site in range(MAX_PROBED)},
}
# The split whose patients the weight of a reply counts (`num-examples`); a handshake has no weight.
EXAMPLES_OF: Mapping[Kind, Split] = {
    "train": "train",
    "train.head": "train",
    "evaluate.calibrate": "validation",
    "evaluate.test": "test",
    "evaluate.embed": "train",
    "evaluate.assign": "test",
}


def withheld_figures(kind: Kind, *, is_private: bool) -> set[str]:
    """Return the listed figures that an app must not report: ε, which the gateway reports itself.

    In a private study also every figure computed from training patients, because no noise protects it.
    """
    table = FIGURES[kind]
    of_train = {name for name, figure in table.items() if figure.fitted or "train" in SPLITS[figure.split]}
    return {EPSILON, *(of_train if is_private else ())}
