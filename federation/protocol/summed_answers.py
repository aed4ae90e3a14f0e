"""What a site of a study with secure aggregation answers to a question about a model: only as part of a sum.

The server learns the sums over all hospitals, and no hospital's own figures. Counts of patients by class and by bin
of a score are summed exactly; they are enough for a pooled ROC curve, calibration, thresholds and net benefit. Figures
that cannot be computed from counts are averaged over the hospitals, weighted by patients.

There is one table for all: the app reports what `reported` lists, the gateway lets nothing else into the sum than
`summands` of it, and the server expects nothing else. Works without torch, for the gateway.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from federation.protocol.figure_rounding import HIGH, LOW
from federation.protocol.metric_allowlist import LABELS, Kind
from pipeline.evaluation.ladder import RUNGS
from pipeline.evaluation.subgroups import GROUPS

LEAST_SITES = 3  # hospitals in a sum of a label's counts, below which the server uses no figure of the label
CLASSES = (False, True)
_SQUARED = "_squared"
LOGIT_BINS = len(RUNGS) - 1  # bin k holds the raw logits from RUNGS[k] to below RUNGS[k + 1]; the last one all above
# Bin k of the lesion load, a share of the lungs, begins at the k-th of these; narrow where most patients lie.
LOAD_EDGES = tuple(round((place / 40) ** 2, 6) for place in range(41))


def logit_counts(label: str) -> dict[tuple[bool, int], str]:
    """Return the names of the counts of patients by class and by bin of the raw logit."""
    return {(value, k): f"logits_{label}_{value:d}_{k:02}" for value in CLASSES for k in range(LOGIT_BINS)}


def load_counts(label: str) -> dict[tuple[bool, int], str]:
    """Return the names of the counts of patients by class and by bin of the lesion load."""
    return {(value, k): f"load_{label}_{value:d}_{k:02}" for value in CLASSES for k in range(len(LOAD_EDGES) - 1)}


def sites_with(label: str) -> str:
    """Return the name of the number of hospitals whose patients with this label are in the sums."""
    return f"sites_{label}"


def label_of(count: str) -> str:
    """Return the label whose patients a count of `Table.counts` covers."""
    return next(label for label in LABELS if count == sites_with(label) or f"_{label}_" in count)


@dataclass(frozen=True)
class Table:
    """What is summed for one kind of question. `counts`: whole numbers. `means`: figures of `metric_allowlist`, and
    squares of some (`square_of`). `moments`: array records with a mean and a variance, pooled by the law of total
    variance.

    A site counts a label's patients only if both classes reach its `min_patients` and all their scores are finite; else
    all counts of the label are 0. The counts of a class sum up to its patients.
    """

    counts: tuple[str, ...] = ()
    means: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()


def square_of(figure: str) -> str:
    """Return the name of a figure's square, from whose mean the spread between hospitals follows."""
    return f"{figure}{_SQUARED}"


def with_low(figure: str) -> tuple[str, str]:
    """Return a figure's name and that of its interval's lower end. The mean of lower ends is one of the mean.

    A mean's standard error is at most the mean of the standard errors.
    """
    return figure, f"{figure}{LOW}"


def _test_means() -> tuple[str, ...]:
    of_label = [
        name
        for label in LABELS
        for name in (
            f"auroc_{label}",
            square_of(f"auroc_{label}"),
            f"auroc_{label}_age_sex",
            f"auroc_{label}_over_age_sex",
            *with_low(f"auroc_{label}_tags"),
            *(f"auroc_{label}@{group}" for group in GROUPS),
        )
    ]
    return (*of_label, *with_low("auroc_severe_outside"), "scanner_from_embedding", "scanner_chance")


SUMMED: Mapping[Kind, Table] = {
    "evaluate.embed": Table(moments=("moments", "looks")),
    "evaluate.calibrate": Table(
        counts=tuple(name for label in LABELS for name in (sites_with(label), *logit_counts(label).values())),
        means=("distance_mean", square_of("distance_mean"), square_of("distance_sd")),
    ),
    "evaluate.test": Table(
        counts=tuple(
            name
            for label in LABELS
            for name in (sites_with(label), *logit_counts(label).values(), *load_counts(label).values())
        ),
        means=_test_means(),
    ),
}


def reported(kind: Kind) -> frozenset[str]:
    """Return the names of the figures, besides counts, that an app reports: those from which the means follow.

    No square is reported: the gateway computes it. A lower end is reported with its whole interval.
    """
    names = {name.removesuffix(_SQUARED) for name in SUMMED[kind].means}
    whole = {f"{name.removesuffix(LOW)}{end}" for name in names if name.endswith(LOW) for end in ("", LOW, HIGH)}
    return frozenset(names | whole)


def summands(figures: Mapping[str, float], kind: Kind) -> dict[str, float]:
    """Return what a site adds to the sum: its counts, and its means and their squares as far as it has them.

    `figures`: its counts, and its figures as rounded.
    """
    table = SUMMED[kind]
    found = {name: figures[name] for name in (*table.counts, *table.means) if name in figures}
    bases = {name: name.removesuffix(_SQUARED) for name in table.means if name.endswith(_SQUARED)}
    return found | {name: figures[base] ** 2 for name, base in bases.items() if base in figures}


class Summed(BaseModel):
    """What the server learns from one question. `sites`: how many hospitals are in the sum; `patients`: of the split.

    `counts`: sums over the hospitals. `means`: means over the hospitals that have the figure, weighted by patients;
    `known`: the share of all patients whose hospitals have it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: int
    patients: int
    counts: Mapping[str, int] = {}
    means: Mapping[str, float] = {}
    known: Mapping[str, float] = {}

    def covers(self, label: str) -> bool:
        """Whether enough hospitals' patients with this label are in the sums to use its figures."""
        return self.counts.get(sites_with(label), 0) >= LEAST_SITES
