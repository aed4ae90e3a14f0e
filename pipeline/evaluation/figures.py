"""The metrics that leave a site after an evaluation: named, finite, and each over enough patients of both classes.

A label of which one class has fewer than `min_patients` has no metric, not even one over the other class alone. The
number of patients is known, so the size of one class reveals that of the other. Neither has a label for which the model
gives a patient a logit that is not finite: metrics of the other patients alone would show how many such patients there
are, and in which class (so too `federation.client.score_counts`).

`federation/protocol/metric_allowlist.py` lists the names; the site's gateway blocks all others. `logits` and `targets`
have the shape (patients, labels), in the order of LABELS; a missing target is NaN.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from models.calibration import Platt, fit_platt
from models.familiarity import log_distances
from models.network_settings import LABELS
from pipeline.cohort.dataset import Examples
from pipeline.evaluation import calibration as calibrated
from pipeline.evaluation import discrimination, ladder
from pipeline.evaluation.baselines import age_sex_scores, lesion_loads
from pipeline.evaluation.discrimination import classes_of
from pipeline.evaluation.histograms import histograms as merged_histograms
from pipeline.evaluation.subgroups import GROUPS, groups_of, groups_to_report, sexes_are_large

RATES_PERCENT = (90, 95)
BENEFITS_PERCENT = (10, 20, 30, 40, 50)  # threshold probabilities of the decision curve
LEAST_LOG_DISTANCE = math.log(0.5)  # smaller distances are rare and are clipped to this value
LARGEST = 100.0  # no valid metric is larger; larger ones, of a diverged model, stay at the site

Logits = NDArray[np.float32]
Figures = dict[str, float]


@dataclass(frozen=True)
class Deployed:
    """The model's settings by label: calibration, and the thresholds `rule_out` and `rule_in` on raw logits.

    Both may lack a label: then probabilities are not calibrated, and there is no metric at a threshold.
    """

    calibration: Mapping[str, Platt] = field(default_factory=dict)
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Known:
    """The patients with a known label: indices `where` among all patients, logits and labels, shape (patients,)."""

    column: int
    where: NDArray[np.int64]
    logits: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def label(self) -> str:
        return LABELS[self.column]


def may_report_loss(targets: Logits, *, min_patients: int) -> bool:
    """Whether the loss over all labels may leave the site, for targets of shape (patients, labels).

    It covers the classes of every label, so each label must have enough patients of both classes, or no patient at all.
    """
    classes = [classes_of(targets[:, column]) for column in range(len(LABELS))]
    known = [each for each in classes if any(each)]
    return bool(known) and all(min(each) >= min_patients for each in known)


def _known(logits: Logits, targets: Logits, min_patients: int) -> list[_Known]:
    """Select the patients with a known label: for each label with enough of both classes, all with a finite logit."""
    found = []
    for column in range(len(LABELS)):
        where = np.flatnonzero(~np.isnan(targets[:, column]))
        if min(classes_of(targets[:, column])) >= min_patients:
            x, y = discrimination.known_of(logits[:, column], targets[:, column])
            if np.isfinite(x).all():
                found.append(_Known(column, where, x, y))
    return found


def _sound(figures: Figures) -> Figures:
    return {name: value for name, value in figures.items() if math.isfinite(value) and abs(value) <= LARGEST}


def _with_interval(name: str, estimate: discrimination.Estimate) -> Figures:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _loss(known: _Known) -> float:
    """Return the mean binary cross-entropy in nats."""
    return float(np.mean(np.logaddexp(0, known.logits) - known.labels * known.logits))


def round_figures(logits: Logits, targets: Logits, *, min_patients: int) -> Figures:
    """Return the metrics after a round: `loss_<label>` and `auroc_<label>`."""
    figures: Figures = {}
    for known in _known(logits, targets, min_patients):
        figures[f"loss_{known.label}"] = _loss(known)
        figures[f"auroc_{known.label}"] = discrimination.auroc(known.logits, known.labels).value
    return _sound(figures)


def calibration_figures(logits: Logits, targets: Logits, *, min_patients: int) -> Figures:
    """Return the metrics of the validation patients from which the model's calibration is computed.

    `slope_`, `intercept_` (Platt, of raw logits) with `variance_slope_`, `covariance_`, `variance_intercept_`; and
    those of `tail_figures`, from which the server chooses the thresholds.
    """
    figures: Figures = {}
    tails: Figures = {}
    for known in _known(logits, targets, min_patients):
        x, y = known.logits, known.labels
        fitted = fit_platt(logits[:, known.column], targets[:, known.column])
        figures[f"slope_{known.label}"] = fitted.slope
        figures[f"intercept_{known.label}"] = fitted.intercept
        assert fitted.covariance is not None
        names = (f"variance_slope_{known.label}", f"covariance_{known.label}", f"variance_intercept_{known.label}")
        figures |= dict(zip(names, fitted.covariance, strict=True))
        tails |= tail_figures(x, y, known.label, min_patients=min_patients)
    return _sound(figures) | tails


def tail_figures(logits: NDArray[np.float64], labels: NDArray[np.int64], label: str, *, min_patients: int) -> Figures:
    """Return the ends of both classes' distributions on raw logits; nothing if a class has under `min_patients`.

    `logits`, `labels` (0 or 1): shape (patients,). `positives_`, `negatives_`: the sizes of the classes in steps of
    three. `rule_out_..._00`, `_10`, `_20`: the highest rung below which at most this percentage of the positives lies.
    `rule_in_..._00`, `_10`, `_20`: the lowest rung at or above which at most this percentage of the negatives lies
    (`pipeline.evaluation.ladder`).
    """
    positive, negative = logits[labels == 1], logits[labels == 0]
    if min(len(positive), len(negative)) < min_patients:
        return {}
    positives, negatives = ladder.counted_classes(len(positive), len(negative))
    rungs = np.array(ladder.RUNGS)
    below = (positive[:, None] < rungs).sum(axis=0)
    above = (negative[:, None] >= rungs).sum(axis=0)
    figures = {f"positives_{label}": float(positives), f"negatives_{label}": float(negatives)}
    for percent in ladder.PERCENTS:
        out = rungs[below <= ladder.most_missed(percent, positives)]
        into = rungs[above <= ladder.most_missed(percent, negatives)]
        figures[f"rule_out_{label}_{percent:02}"] = float(out.max(initial=-ladder.BEYOND))
        figures[f"rule_in_{label}_{percent:02}"] = float(into.min(initial=ladder.BEYOND))
    return figures


def distance_figures(appearance: Logits, mean: Logits, variance: Logits) -> Figures:
    """Return `distance_mean` and `distance_sd` of the log distances of patients from the typical scan.

    `appearance`: shape (patients, APPEARANCE_SIZE) of at least two patients; `mean` and `variance`: shape
    (APPEARANCE_SIZE,). The logarithm of a distance near 0 would outweigh all other patients, and reveal whether a scan
    with exactly these features is present.
    """
    distances = np.maximum(log_distances(appearance, mean, variance), LEAST_LOG_DISTANCE)
    return _sound({"distance_mean": float(distances.mean()), "distance_sd": float(distances.std(ddof=1))})


def test_figures(
    logits: Logits,
    test: Examples,
    train: Examples,
    deployed: Deployed,
    *,
    min_patients: int,
    histograms: bool,
    window_hu: tuple[float, float],
) -> Figures:
    """Return the metrics of the test patients: all of `metric_allowlist` except those of the shortcut audit.

    `train`: patients to fit the baseline of age and sex. `histograms`: whether counts may leave the site. `window_hu`:
    of the preprocessing, needed to measure the lesion load.
    """
    loads = lesion_loads(test, window_hu)
    figures: Figures = {}
    counts: dict[str, int] = {}
    for known in _known(logits, test.targets, min_patients):
        platt = deployed.calibration.get(known.label, Platt())
        corrected = platt.slope * known.logits + platt.intercept
        found = _discrimination(known) | _calibration(known, corrected)
        found |= _operating_points(known, deployed.thresholds.get(known.label, {}))
        found |= _baselines(known, train, test, loads, min_patients) | _subgroups(known, test, min_patients)
        figures |= found | {f"prevalence_{known.label}": float(known.labels.mean())}
        if histograms:
            cells = merged_histograms(expit(corrected), known.labels, min_patients=min_patients)
            counts |= {f"count_{known.label}_{value}_{bin:02}": count for (value, bin), count in cells.items()}
    return _sound(figures) | counts


def _discrimination(known: _Known) -> Figures:
    x, y, label = known.logits, known.labels, known.label
    figures = {f"loss_{label}": _loss(known)}
    figures |= _with_interval(f"auroc_{label}", discrimination.auroc(x, y))
    figures |= _with_interval(f"auprc_{label}", discrimination.auprc(x, y))
    for percent in RATES_PERCENT:
        figures |= _with_interval(f"sens_at_spec{percent}_{label}", discrimination.sensitivity_at(percent / 100, x, y))
        figures |= _with_interval(f"spec_at_sens{percent}_{label}", discrimination.specificity_at(percent / 100, x, y))
    return figures


def _calibration(known: _Known, logits: NDArray[np.float64]) -> Figures:
    """Return the calibration metrics. `logits`: after the model's calibration."""
    y, label, probabilities = known.labels, known.label, expit(logits)
    figures = {
        f"calibration_slope_{label}": calibrated.calibration_slope(logits, y),
        f"calibration_intercept_{label}": calibrated.calibration_intercept(logits, y),
        f"brier_{label}": calibrated.brier(probabilities, y),
        f"ece_{label}": calibrated.expected_calibration_error(probabilities, y),
    }
    for percent in BENEFITS_PERCENT:
        figures[f"net_benefit_{label}_{percent}"] = calibrated.net_benefit(probabilities, y, percent / 100)
    return figures


def _operating_points(known: _Known, thresholds: Mapping[str, float]) -> Figures:
    """Return sensitivity and specificity at the model's own thresholds."""
    figures: Figures = {}
    for name, threshold in thresholds.items():
        reached = known.logits >= threshold
        figures[f"sens_at_{name}_{known.label}"] = float(reached[known.labels == 1].mean())
        figures[f"spec_at_{name}_{known.label}"] = float(1 - reached[known.labels == 0].mean())
    return figures


def _baselines(
    known: _Known, train: Examples, test: Examples, loads: NDArray[np.float64], min_patients: int
) -> Figures:
    label, y = known.label, known.labels
    figures = _with_interval(f"auroc_{label}_lesion_load", discrimination.auroc(loads[known.where], y))
    by_age_sex = age_sex_scores(train, test, known.column, min_patients=min_patients)
    classes = {group: classes_of(y[members]) for group, members in _members(known, test).items()}
    if by_age_sex is not None and sexes_are_large(classes_of(y), classes, min_patients=min_patients):
        scores = by_age_sex[known.where]
        figures |= _with_interval(f"auroc_{label}_age_sex", discrimination.auroc(scores, y))
        figures |= _with_interval(
            f"auroc_{label}_over_age_sex", discrimination.auroc_difference(known.logits, scores, y)
        )
    return figures


def _subgroups(known: _Known, test: Examples, min_patients: int) -> Figures:
    members = _members(known, test)
    classes = {group: classes_of(known.labels[inside]) for group, inside in members.items()}
    told = groups_to_report(classes_of(known.labels), classes, min_patients=min_patients)
    figures: Figures = {}
    for group, inside in members.items():
        if group in told:
            found = discrimination.auroc(known.logits[inside], known.labels[inside])
            figures |= _with_interval(f"auroc_{known.label}@{group}", found)
    return figures


def _members(known: _Known, test: Examples) -> dict[str, NDArray[np.bool_]]:
    """Return for each group which of the patients with the label are in it."""
    groups = [
        groups_of(e.age_years, e.sex, e.measures.manufacturer if e.measures else "")
        for e in (test.examples[i] for i in known.where)
    ]
    return {group: np.array([group in each for each in groups], dtype=bool) for group in GROUPS}
