"""The figures of a masked study: of all hospitals' test patients together from exact sums, and means over hospitals."""

import math
from collections.abc import Mapping
from typing import Any

from federation.report.estimates import LABELS, Estimate, as_estimate, difference
from federation.report.trust import GROUPS
from federation.runs.figures_from_counts import (
    Calibration,
    Hospitals,
    LabelFigures,
    Mean,
    TwoByTwo,
    auroc_of,
    mean_of,
    of_label,
    share,
    summed_of,
    why_none,
)
from federation.runs.results import Results
from pipeline.evaluation.combining import Interval
from pipeline.evaluation.grouped import Binned

_MEANS = ("age_sex", "over_age_sex", "tags")
_AUDITED = (*(f"auroc_{label}_tags" for label in LABELS), "auroc_severe_outside")
_OF_SCANS = ("auroc_severe_outside", "scanner_from_embedding", "scanner_chance")


def sums(results: Results) -> dict[str, Any] | None:
    """Return what a masked study knows of its federated model; None if the study was not masked.

    `labels`: by label, None with the reason in `why`. A mean over hospitals is {"value", "known"}: the share of test
    patients whose hospitals have the figure. `lower_ends`: of the audit's figures, the mean of the hospitals' lower
    ends, which the audit judges.
    """
    summed = summed_of(results)
    if summed is None:
        return None
    found = {label: of_label(results, label) for label in LABELS}
    return {
        "sites": summed.sites,
        "patients": summed.patients,
        "labels": {label: _label(results, label, each) if each else None for label, each in found.items()},
        "why": {label: why_none(results, label) for label, each in found.items() if each is None},
        "models": _models(results),
        "scans": {name: _mean(mean_of(summed, name)) for name in _OF_SCANS},
        "lower_ends": {name: _mean(mean_of(summed, f"{name}_low")) for name in _AUDITED},
    }


def _label(results: Results, label: str, found: LabelFigures) -> dict[str, Any]:
    summed = summed_of(results)
    assert summed is not None
    auroc, load = _binned(found.auroc), _binned(found.lesion_load) if found.lesion_load else None
    means = {name: _mean(mean_of(summed, f"auroc_{label}_{name}")) for name in _MEANS}
    return {
        "sites": found.sites,
        "with_label": found.positive,
        "without_label": found.negative,
        "share": found.share,
        "prevalence": as_estimate(found.prevalence),
        "auroc": auroc,
        "curve": found.roc,
        "hospitals": _hospitals(found.hospitals) if found.hospitals else None,
        "calibration": _calibration(found.calibration) if found.calibration else None,
        "reliability": _reliability(found.calibration) if found.calibration else [],
        "benefit": _benefit(found),
        "tables": {point: _table(table) for point, table in found.tables.items()},
        "lesion_load": load,
        "over_lesion_load": difference(auroc, load) if load else None,
        "means": means,
        "groups": {
            kind: {group: _mean(mean_of(summed, f"auroc_{label}@{group}")) for group in groups}
            for kind, groups in GROUPS.items()
        },
    }


def _binned(found: Binned) -> Estimate:
    return {"value": found.value, "low": found.low, "high": found.high, "possible": list(found.possible)}


def _mean(found: Mean | None) -> dict[str, float] | None:
    return found._asdict() if found else None


def _hospitals(found: Hospitals) -> dict[str, Any]:
    """Return the mean of the hospitals' AUROCs with its intervals, and how far they are apart."""
    return {
        "mean": as_estimate(Interval(found.mean.value, *found.here)),
        "known": found.mean.known,
        "like": list(found.like),
        "deviation": found.deviation,
        "by_chance": found.by_chance,
        "chance": found.chance,
    }


def _calibration(found: Calibration) -> dict[str, Any] | None:
    """Return slope, intercept and Brier score; the slope is None where a threshold separates the classes."""
    return {
        "slope": _binned(found.slope) if math.isfinite(found.slope.value) else None,
        "intercept": _binned(found.intercept),
        "brier": _binned(found.brier),
        "brier_of_prevalence": found.brier_of_prevalence,
        "points": [
            {
                "patients": at.patients,
                "predicted": at.predicted,
                "observed": as_estimate(share(at.positive, at.patients)),
            }
            for at in found.curve
        ],
    }


def _reliability(found: Calibration) -> list[list[float]]:
    return [[at.predicted, at.positive / at.patients] for at in found.curve]


def _benefit(found: LabelFigures) -> dict[str, dict[str, Any]]:
    """Return the decision curve: by percent, `model`, and the net benefit of treating all; `interval`: of the model."""
    prevalence = found.prevalence.value
    return {
        str(percent): {
            "model": benefit.value,
            "interval": _binned(benefit),
            "treat_all": prevalence - (1 - prevalence) * percent / (100 - percent),
        }
        for percent, benefit in found.benefit.items()
    }


def _table(found: TwoByTwo) -> dict[str, Any]:
    rates: Mapping[str, Interval | None] = {
        "sensitivity": found.sensitivity,
        "specificity": found.specificity,
        "positive_predictive_value": found.positive_predictive_value,
        "negative_predictive_value": found.negative_predictive_value,
    }
    return vars(found) | {name: as_estimate(rate) if rate else None for name, rate in rates.items()}


def _models(results: Results) -> list[dict[str, Any]]:
    """Return the AUROC of every model of which sums are known, over all patients."""
    rows = []
    for model in results.models:
        if summed := summed_of(results, model.name):
            found = {label: auroc_of(summed, label) for label in LABELS}
            rows.append({"name": model.name, "auroc": {label: each and _binned(each) for label, each in found.items()}})
    return rows
