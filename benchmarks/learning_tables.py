"""The results of learning.py as tables, raw numbers and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import Part, Table
from learning import (
    AGE_SEX,
    LEARNING_RATE,
    LOCAL_EPOCHS,
    POOLED,
    ROUNDS,
    SEEDS,
    STRATEGIES,
    Options,
    Outcome,
    all_methods,
)
from learning_sites import KINDS, PATIENTS, UNSEEN_PATIENTS
from scipy import stats

GOAL_RATIO = 0.98
FIGURE = Path(__file__).with_name("results") / "learning.png"
SEVERE, PCR = "severe", "pcr_positive"


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval by Student's t."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        known = np.asarray(values, dtype=np.float64)
        half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known))
        return cls(float(known.mean()), float(known.mean() - half), float(known.mean() + half))

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"

    def signed(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


class Found:
    """Lookup of the outcomes by kind, method and label; values are in the order of the seeds."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = sorted(outcomes, key=lambda outcome: outcome.job.seed)
        self.methods = list(all_methods())
        self.alone = [method for method in self.methods if method.endswith("alone")]

    def unseen(self, kind: str, method: str, label: str) -> list[float]:
        return [o.unseen[label] for o in self.outcomes if (o.job.kind, o.job.method) == (kind, method)]

    def own(self, kind: str, method: str, label: str) -> dict[str, list[float]]:
        chosen = [o.own for o in self.outcomes if (o.job.kind, o.job.method) == (kind, method)]
        return {name: [each[name][label] for each in chosen] for name in chosen[0]}

    def ratio(self, kind: str, method: str, label: str) -> Mean:
        """Return the ratio of each seed's AUROC to that of the pooled model on the same patients."""
        pairs = zip(self.unseen(kind, method, label), self.unseen(kind, POOLED, label), strict=True)
        return Mean.of([ours / pooled for ours, pooled in pairs])

    def best(self, kind: str, methods: Sequence[str], label: str) -> str:
        return max(methods, key=lambda method: np.mean(self.unseen(kind, method, label)))

    def difference(self, kind: str, one: str, other: str, label: str) -> Mean:
        pairs = zip(self.unseen(kind, one, label), self.unseen(kind, other, label), strict=True)
        return Mean.of([a - b for a, b in pairs])


def report(best_reader: dict[int, float], outcomes: Sequence[Outcome], *, wall_s: float) -> Part:
    found = Found(outcomes)
    draw(found)
    return Part(
        _notes(best_reader, found, wall_s),
        [],
        [goals(found), *(unseen_table(found, label) for label in (SEVERE, PCR)), own_table(found)],
        {
            "best_reader": best_reader,
            "outcomes": [
                {
                    "kind": o.job.kind,
                    "seed": o.job.seed,
                    "method": o.job.method,
                    "unseen": _rounded(o.unseen),
                    "own": {name: _rounded(areas) for name, areas in o.own.items()},
                }
                for o in found.outcomes
            ],
        },
    )


def _notes(best_reader: dict[int, float], found: Found, wall_s: float) -> list[str]:
    described = "; ".join(f"{name} with {_listed(options)}" for name, options in STRATEGIES.items() if options)
    return [
        f"Synthetic patients: {PATIENTS} at three hospitals that train, of which three in five are for training, and "
        f"{UNSEEN_PATIENTS} at a fourth with another scanner, which no model has seen. Severity is evaluated among "
        "its PCR-positive patients.",
        *(f"{kind.capitalize()}: {described.says}" for kind, described in KINDS.items()),
        f"All methods: {ROUNDS * LOCAL_EPOCHS} epochs over each patient, a narrow 3D ResNet-10, SGD with momentum, "
        f"peak rate {LEARNING_RATE}, one cosine; federated methods: {ROUNDS} rounds of {LOCAL_EPOCHS} local epochs. "
        f"Options, chosen on other seeds: {described}.",
        f"Seeds {', '.join(map(str, SEEDS))}: each has other patients at all four hospitals, other first weights and "
        "another order. Intervals: 95 %, Student's t over the seeds. A ratio is computed for each seed on the same "
        "patients, then averaged.",
        f"A reader who knows the true lesion load and the formula of severity: mean over seeds of the AUROC "
        f"{Mean.of(list(best_reader.values()))}.",
        f"{wall_s / 60:.0f} minutes in all, cohorts included; {sum(o.processor_s for o in found.outcomes) / 60:.0f} "
        "processor minutes of training and testing.",
    ]


def _rounded(areas: dict[str, float]) -> dict[str, float | None]:
    """Convert values for JSON: None if there is no AUROC."""
    return {label: round(value, 4) if np.isfinite(value) else None for label, value in areas.items()}


def _listed(options: Options) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def goals(found: Found) -> Table:
    """Table of the two goals for each kind: the best federated model against the pooled one and the best hospital."""
    rows = []
    for kind in KINDS:
        for label in (SEVERE, PCR):
            federated = found.best(kind, list(STRATEGIES), label)
            local = found.best(kind, found.alone, label)
            ratio, gain = found.ratio(kind, federated, label), found.difference(kind, federated, local, label)
            verdicts = (_verdict(ratio, GOAL_RATIO), _verdict(gain, 0.0))
            rows.append([kind, label, federated, str(ratio), verdicts[0], local, gain.signed(), verdicts[1]])
    return Table(
        "Goals at the unseen hospital. The best is the one with the highest mean over these seeds, which is an "
        "optimistic choice; no hospital knows in advance that it is the best one",
        [
            "difference",
            "label",
            "best federated",
            "ratio to pooled",
            f"at least {GOAL_RATIO}",
            "best hospital alone",
            "federated minus that",
            "above 0",
        ],
        rows,
    )


def _verdict(mean: Mean, goal: float) -> str:
    if mean.value < goal:
        return "**not met**"
    return "met" if mean.low >= goal else "met by the mean; the interval extends below"


def unseen_table(found: Found, label: str) -> Table:
    rows = []
    for kind in KINDS:
        for method in [POOLED, *STRATEGIES, *found.alone, AGE_SEX]:
            values = found.unseen(kind, method, label)
            ratio = "" if method == POOLED else str(found.ratio(kind, method, label))
            rows.append([kind, method, str(Mean.of(values)), " ".join(f"{value:.3f}" for value in values), ratio])
    return Table(
        f"`{label}` at the unseen hospital",
        ["difference", "trained", "mean over seeds of the AUROC", "each seed", "ratio to pooled"],
        rows,
    )


def own_table(found: Found) -> Table:
    """Table for each training hospital's own test patients; a cell is empty if a seed has no defined AUROC."""
    rows = []
    for kind in KINDS:
        for method in [POOLED, *STRATEGIES, *found.alone]:
            cells = [
                f"{np.mean(values):.3f}" if np.isfinite(values).all() else "–"
                for label in (SEVERE, PCR)
                for values in found.own(kind, method, label).values()
            ]
            rows.append([kind, method, *cells])
    hospitals = [at.name for at in next(iter(KINDS.values())).hospitals]
    return Table(
        "Each training hospital's own test patients (a quarter of its patients, few where it is small): mean over "
        "seeds of the AUROC; – if a seed had only one class",
        ["difference", "trained", *(f"{label}, {name}" for label in (SEVERE, PCR) for name in hospitals)],
        rows,
    )


def draw(found: Found) -> None:
    """Draw the AUROC of `severe` at the unseen hospital: every seed as a dot, the mean with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes: Any = figure.subplots(1, len(KINDS), sharey=True)
    for panel, kind in zip(axes, KINDS, strict=True):
        best = found.best(kind, list(STRATEGIES), SEVERE)
        shown = [AGE_SEX, *found.alone, "FedAvg", *([best] if best != "FedAvg" else []), POOLED]
        for place, method in enumerate(shown):
            values = found.unseen(kind, method, SEVERE)
            mean = Mean.of(values)
            colour = "tab:orange" if method in STRATEGIES else "tab:blue" if method == POOLED else "0.45"
            panel.plot([place] * len(values), values, "o", color=colour, alpha=0.35, markersize=4)
            panel.errorbar(place, mean.value, mean.high - mean.value, fmt="_", color=colour, capsize=4, markersize=14)
        names = [f"{method}\n(best)" if method == best else method for method in shown]
        panel.set_xticks(range(len(shown)), names, rotation=45, ha="right")
        panel.set_title(kind)
        panel.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("AUROC of severe, unseen hospital")
    figure.suptitle(f"Synthetic hospitals: {len(SEEDS)} seeds, mean over them with 95 % interval", fontsize=10)
    figure.savefig(FIGURE, dpi=110)
