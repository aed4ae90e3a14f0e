"""The figures of a masked study, of which the server knows only sums over the hospitals (`protocol.summed_answers`).

Counts of patients by class and bin give the AUROC, thresholds and calibration of all hospitals' test patients together.
Other figures are means over the hospitals, weighted by their test patients. No hospital's own figures are known. Begin
with `of_label`; `pooled_row` and `means_row` have the same for tables, under the names of `protocol.metric_allowlist`.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import expit, ndtri

from federation.protocol.metric_allowlist import AUC, LABELS
from federation.protocol.operating_points import lower_bound
from federation.protocol.summed_answers import (
    CLASSES,
    Summed,
    load_counts,
    logit_counts,
    sites_with,
    square_of,
)
from federation.runs.results import FEDERATED, Results
from models.calibration import Platt
from models.operating_points import OperatingPoint, few_hospitals
from pipeline.evaluation import grouped
from pipeline.evaluation.auroc_variance import hanley_mcneil, score_interval
from pipeline.evaluation.combining import Interval
from pipeline.evaluation.grouped import Binned, Grouped, Scale
from pipeline.evaluation.ladder import RUNGS

ALL = "all patients together"
PERCENTS = (10, 20, 30, 40, 50)  # threshold probabilities of the decision curve
_INNER = np.array(RUNGS[1:-1])  # edges between the bins of the logit
_ENDS = ("", "_low", "_high")  # of a figure's name: the figure and its interval
_TAIL = 0.025
_Z = float(ndtri(1 - _TAIL))
_SAME = 1e-9  # a threshold is a rung if its probability differs by at most this
_ROUNDING = AUC.size**2 / 12  # variance of a hospital's AUROC that its steps add


class Mean(NamedTuple):
    """A mean over hospitals, weighted by test patients. `known`: the share of patients whose hospitals have it."""

    value: float
    known: float


@dataclass(frozen=True)
class TwoByTwo:
    """Test patients at a threshold: those at or above it count as positive."""

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int

    @property
    def sensitivity(self) -> Interval | None:
        return share(self.true_positive, self.true_positive + self.false_negative)

    @property
    def specificity(self) -> Interval | None:
        return share(self.true_negative, self.true_negative + self.false_positive)

    @property
    def positive_predictive_value(self) -> Interval | None:
        return share(self.true_positive, self.true_positive + self.false_positive)

    @property
    def negative_predictive_value(self) -> Interval | None:
        return share(self.true_negative, self.true_negative + self.false_negative)


@dataclass(frozen=True)
class Hospitals:
    """The hospitals' AUROCs, of which the mean and the mean of the squares are known, weighted by patients.

    `here`: 95 % interval of the mean over other patients of these hospitals; `like`: for hospitals like these, by
    Student's t. `deviation`: their standard deviation; `by_chance`: the one to be expected if all had the same AUROC.
    `chance`: how likely such hospitals deviate as much.
    """

    mean: Mean
    here: tuple[float, float]
    like: tuple[float, float]
    deviation: float
    by_chance: float
    chance: float


@dataclass(frozen=True)
class Calibration:
    """How the calibrated probabilities fit to all test patients. `curve`: as `grouped.curve`."""

    slope: Binned
    intercept: Binned
    brier: Binned
    brier_of_prevalence: float
    curve: list[grouped.Point]


@dataclass(frozen=True)
class LabelFigures:
    """All figures of one label. `share`: of all test patients. `lesion_load`: None if no load was counted.

    `calibration`, `benefit` (by percent): None and empty if the label has no calibration. `tables`: by point.
    """

    sites: int
    positive: int
    negative: int
    share: float
    auroc: Binned
    roc: list[list[float]]
    lesion_load: Binned | None
    hospitals: Hospitals | None
    calibration: Calibration | None
    benefit: Mapping[int, Binned]
    tables: Mapping[str, TwoByTwo]

    @property
    def prevalence(self) -> Interval:
        found = share(self.positive, self.positive + self.negative)
        assert found is not None
        return found


def summed_of(results: Results, name: str = FEDERATED) -> Summed | None:
    """Return the sums of a model, empty if they were lost; None if the study was not masked."""
    model = results.model(name)
    if model is None:
        return None
    return model.summed or (Summed(sites=0, patients=0) if model.withheld else None)


def auroc_of(summed: Summed, label: str) -> Binned | None:
    """Return the AUROC of all patients together; None where too few hospitals are behind it."""
    counts = _grouped(summed, logit_counts(label))
    return grouped.auroc(counts) if summed.covers(label) and counts.has_both else None


def of_label(results: Results, label: str) -> LabelFigures | None:
    """Return the federated model's figures of a label; None where too few hospitals are behind it (`why_none`)."""
    summed = summed_of(results)
    if summed is None or not summed.covers(label):
        return None
    counts = _grouped(summed, logit_counts(label))
    if not counts.has_both:
        return None
    loads, platt = _grouped(summed, load_counts(label)), results.calibration.get(label)
    return LabelFigures(
        sites=summed.counts[sites_with(label)],
        positive=int(counts.positive.sum()),
        negative=int(counts.negative.sum()),
        share=min(1.0, counts.patients / summed.patients) if summed.patients else 1.0,
        auroc=grouped.auroc(counts),
        roc=grouped.roc(counts).tolist(),
        lesion_load=grouped.auroc(loads) if loads.has_both else None,
        hospitals=_hospitals(summed, label, counts),
        calibration=_calibration(counts, platt) if platt else None,
        benefit=_benefit(counts, platt) if platt else {},
        tables=dict(_tables(counts, platt, results.operating_points.get(label, {}))) if platt else {},
    )


def why_none(results: Results, label: str) -> str:
    """Say why a label of a masked study has no figures."""
    model, summed = results.model(FEDERATED), summed_of(results)
    if model and label in model.withheld:
        return model.withheld[label]
    return few_hospitals(summed.counts.get(sites_with(label), 0) if summed else 0)


def _grouped(summed: Summed, names: Mapping[tuple[bool, int], str]) -> Grouped:
    negative, positive = (
        np.array([summed.counts.get(name, 0) for (value, _), name in names.items() if value == of]) for of in CLASSES
    )
    return Grouped(negative, positive)


def share(count: int, patients: int) -> Interval | None:
    """Return a share with its exact interval (Clopper & Pearson, Biometrika 1934; 26:404); None of no patients."""
    if not patients:
        return None
    low = float(lower_bound(count, patients, tail=_TAIL))
    return Interval(count / patients, low, 1 - float(lower_bound(patients - count, patients, tail=_TAIL)))


# --- hospitals --------------------------------------------------------------------------------------------------


def mean_of(summed: Summed, name: str) -> Mean | None:
    """Return a mean over hospitals; None if no hospital has this figure."""
    if name not in summed.means or not math.isfinite(summed.means[name]):
        return None
    return Mean(summed.means[name], min(1.0, summed.known.get(name, 1.0)))


def _hospitals(summed: Summed, label: str, counts: Grouped) -> Hospitals | None:
    """Return what mean and mean square of the hospitals' AUROCs tell of their differences.

    If a hospital's variance is inversely proportional to its patients, the mean weighted by patients has the variance V
    of one hospital with all patients, and hospitals with the same AUROC have the weighted variance (hospitals - 1) V on
    average: Cochran's Q is their weighted variance / V, chi-squared. V comes from the counts. The assumption does not
    hold where hospitals differ much in prevalence: then V is too small, and a difference may be chance.
    """
    from scipy.stats import chi2, t

    mean, square = mean_of(summed, f"auroc_{label}"), summed.means.get(square_of(f"auroc_{label}"))
    if mean is None or square is None:
        return None
    freedom = summed.counts[sites_with(label)] - 1
    variance_at = _variances(counts)
    variance = variance_at(mean.value)
    between = max(0.0, square - mean.value**2)
    q = between / (variance + _ROUNDING / freedom)
    errors = float(t.ppf(1 - _TAIL, freedom)) * math.sqrt(max(1.0, q / freedom))
    return Hospitals(
        mean=mean,
        here=score_interval(mean.value, variance_at, _Z),
        like=score_interval(mean.value, variance_at, errors),
        deviation=math.sqrt(between),
        by_chance=math.sqrt(freedom * variance),
        chance=float(chi2.sf(q, freedom)),
    )


def _variances(counts: Grouped) -> Callable[[float], float]:
    """Return the variance of an AUROC of all these patients by its true value.

    DeLong's, or if larger that of Hanley & McNeil. DeLong's is that of the pooled patients, whose AUROC may be larger
    than the hospitals' own.
    """
    delong = grouped.auroc_variance(counts)
    least = max(delong if math.isfinite(delong) else 0.0, _SAME)
    positive, negative = float(counts.positive.sum()), float(counts.negative.sum())
    return lambda area: max(least, hanley_mcneil(area, positive, negative))


# --- calibrated probabilities -----------------------------------------------------------------------------------


def _scale(platt: Platt) -> Scale:
    return Scale.of(_INNER, slope=platt.slope, intercept=platt.intercept)


def _calibration(counts: Grouped, platt: Platt) -> Calibration:
    scale, prevalence = _scale(platt), float(counts.positive.sum() / counts.patients)
    return Calibration(
        slope=grouped.slope(counts, scale),
        intercept=grouped.intercept(counts, scale),
        brier=grouped.brier(counts, scale),
        brier_of_prevalence=prevalence * (1 - prevalence),
        curve=grouped.curve(counts, scale),
    )


def _benefit(counts: Grouped, platt: Platt) -> dict[int, Binned]:
    return {percent: grouped.net_benefit(counts, _scale(platt), percent / 100) for percent in PERCENTS}


def _tables(counts: Grouped, platt: Platt, points: Mapping[str, OperatingPoint]) -> Iterator[tuple[str, TwoByTwo]]:
    """Yield the table at each threshold that is a rung, as every threshold of a masked study is."""
    for point, found in points.items():
        rungs = np.flatnonzero(np.abs(expit(platt.slope * _INNER + platt.intercept) - found.threshold) <= _SAME)
        if len(rungs) == 1:
            first = int(rungs[0]) + 1  # the bin that begins at this rung
            negative, positive = (
                (int(each[first:].sum()), int(each[:first].sum())) for each in (counts.negative, counts.positive)
            )
            yield point, TwoByTwo(*positive, *negative)


# --- rows of tables -----------------------------------------------------------------------------------------------


def pooled_row(results: Results) -> dict[str, float]:
    """Return the figures of all patients together by their names, with `_low` and `_high`; empty if not masked."""
    return {
        name: value
        for label in LABELS
        if (found := of_label(results, label))
        for name, value in _row(found, label).items()
        if math.isfinite(value)
    }


def _row(found: LabelFigures, label: str) -> dict[str, float]:
    cells: dict[str, tuple[float, float, float] | None] = {
        f"auroc_{label}": found.auroc[:3],
        f"auroc_{label}_lesion_load": found.lesion_load and found.lesion_load[:3],
        f"prevalence_{label}": found.prevalence,
    }
    if fits := found.calibration:
        cells[f"calibration_slope_{label}"] = fits.slope[:3]
        cells[f"calibration_intercept_{label}"] = fits.intercept[:3]
        cells[f"brier_{label}"] = fits.brier[:3]
    cells |= {f"net_benefit_{label}_{percent}": each[:3] for percent, each in found.benefit.items()}
    for point, table in found.tables.items():
        cells[f"sens_at_{point}_{label}"] = table.sensitivity
        cells[f"spec_at_{point}_{label}"] = table.specificity
    counts = {f"positives_{label}": found.positive, f"negatives_{label}": found.negative, f"sites_{label}": found.sites}
    ends = [(name, zip(_ENDS, each, strict=True)) for name, each in cells.items() if each]
    return counts | {f"{name}{end}": value for name, each in ends for end, value in each}


def means_row(results: Results) -> dict[str, float]:
    """Return the means over hospitals by name, the AUROCs of the labels with `_low` and `_high` for these hospitals.

    Labels without figures (`why_none`) have no means either, and squares are left out. Empty if not masked.
    """
    summed, row = summed_of(results), {}
    for name in summed.means if summed else ():
        label = next((label for label in LABELS if f"_{label}" in name), "")
        found = of_label(results, label) if label else None
        mean = mean_of(summed, name) if summed else None
        if mean is None or name.endswith("_squared") or (label and found is None):
            continue
        row[name] = mean.value
        if found and found.hospitals and name == f"auroc_{label}":
            row[f"{name}_low"], row[f"{name}_high"] = found.hospitals.here
    return row
