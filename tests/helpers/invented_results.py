"""Metrics of invented patients, computed with the same formulas as real metrics.

Scores are drawn from two overlapping normal distributions. The distance of their means is the skill of a model at a
site. Intervals use the formula of Hanley and McNeil instead of a site's method: fast, and accurate enough for plots.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import rankdata

from federation.runs.results import Kind, ModelFigures
from models.network_settings import LABELS

MIN_PATIENTS = 10
BINS = 20
SKILL = {"severe": 1.55, "pcr_positive": 1.9}  # distance of the means, in standard deviations
PREVALENCE = {"severe": 0.35, "pcr_positive": 0.55}
WEAKER = {"federated": 0.0, "pooled": -0.05, "fine_tuned": -0.08, "left_out": 0.25, "local": 0.55}
AWAY = 0.35  # additional loss of skill of a local model at other sites
GROUPS = {
    **dict.fromkeys(("female", "male"), 0.5),
    **{"under_50": 0.25, "50_to_69": 0.45, "from_70": 0.3},
    **{"siemens": 0.5, "ge": 0.35, "philips": 0.15, "canon": 0.0, "other_scanner": 0.0},
}
POINTS = {"rule_out": 0.18, "rule_in": 0.55}

Figures = dict[str, float]


class Draw:
    """Draws the metrics of models. Every model has the same patients of a site."""

    def __init__(self, rng: np.random.Generator, patients: dict[str, int]) -> None:
        self.rng = rng
        self.patients = patients
        self.labels = {
            (name, label): (rng.random(count) < PREVALENCE[label] + rng.normal(0, 0.06)).astype(int)
            for name, count in patients.items()
            for label in LABELS
        }
        self.noise = {key: rng.normal(0, 1, len(labels)) for key, labels in self.labels.items()}
        self.hardness = {name: abs(rng.normal(0, 0.25)) for name in patients}

    def model(
        self, name: str, kind: Kind, trained_at: Sequence[str], at: Sequence[str], *, histograms: bool = False
    ) -> ModelFigures:
        figures = {}
        for site in at:
            weaker = WEAKER[kind] + self.hardness[site]
            if kind in ("local", "fine_tuned") and site not in trained_at:
                weaker += AWAY
            if kind == "left_out" and site in trained_at:
                weaker -= 0.2
            found: Figures = {"num-examples": float(self.patients[site])}
            for label in LABELS:
                skill = SKILL[label] - weaker
                if kind == "federated":
                    found |= self._label(site, label, skill, histograms=histograms)
                else:
                    found |= self._compared(site, label, skill)
            figures[site] = found
        return ModelFigures(name=name, kind=kind, trained_at=list(trained_at), figures=figures)

    def _compared(self, site: str, label: str, skill: float) -> Figures:
        """Compute only the AUROC, from the distance of the means: 100 sites need 10,000 of these."""
        y = self.labels[site, label]
        value = float(ndtr((skill + self.rng.normal(0, 0.12)) / math.sqrt(2)))
        return {f"prevalence_{label}": float(y.mean()), **interval(f"auroc_{label}", value, y)}

    def _label(self, site: str, label: str, skill: float, *, histograms: bool) -> Figures:
        y = self.labels[site, label]
        # A second draw: two models do not make exactly the same errors.
        z = skill * y + 0.9 * self.noise[site, label] + 0.44 * self.rng.normal(0, 1, len(y))
        prevalence = y.mean()
        logit = skill * z - skill**2 / 2 + math.log(prevalence / (1 - prevalence))
        p = 1 / (1 + np.exp(-(0.85 * logit + self.rng.normal(0, 0.15))))
        found = {
            f"loss_{label}": float(-np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))),
            f"prevalence_{label}": float(prevalence),
            **interval(f"auroc_{label}", _auroc(z, y), y),
            **interval(f"auprc_{label}", _average_precision(z, y), y),
            **_ranks(label, z, y),
            **_calibration(label, p, y),
            **_points(label, p, y),
            **self._baselines(label, y, _auroc(z, y)),
            **self._subgroups(label, z, y),
        }
        return found | (_histogram(label, p, y) if histograms else {})

    def _baselines(self, label: str, y: NDArray[Any], own: float) -> Figures:
        age, lesions = (np.clip(own - less + self.rng.normal(0, 0.02), 0.5, 1) for less in (0.16, 0.07))
        over = own - float(age)
        return {
            **interval(f"auroc_{label}_age_sex", float(age), y),
            **interval(f"auroc_{label}_lesion_load", float(lesions), y),
            f"auroc_{label}_over_age_sex": over,
            f"auroc_{label}_over_age_sex_low": over - 0.09,
            f"auroc_{label}_over_age_sex_high": over + 0.08,
        }

    def _subgroups(self, label: str, z: NDArray[Any], y: NDArray[Any]) -> Figures:
        found: Figures = {}
        for group, share in GROUPS.items():
            members = self.rng.random(len(y)) < share
            if min(y[members].sum(), (1 - y[members]).sum()) >= MIN_PATIENTS:
                found |= interval(f"auroc_{label}@{group}", _auroc(z[members], y[members]), y[members])
        return found


def _auroc(z: NDArray[Any], y: NDArray[Any]) -> float:
    positive = int(y.sum())
    ranks = rankdata(z)[y == 1].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * (len(y) - positive)))


def _average_precision(z: NDArray[Any], y: NDArray[Any]) -> float:
    hits = y[np.argsort(-z)]
    return float((hits.cumsum() / np.arange(1, len(y) + 1))[hits == 1].mean())


def interval(name: str, value: float, y: NDArray[Any]) -> Figures:
    """Compute the interval from the standard error of Hanley and McNeil (Radiology 1982;143:29)."""
    a, positive = value, max(1, int(y.sum()))
    negative = max(1, len(y) - positive)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = a * (1 - a) + (positive - 1) * (q1 - a * a) + (negative - 1) * (q2 - a * a)
    half = 1.96 * math.sqrt(max(variance, 1e-6) / (positive * negative))
    return {name: a, f"{name}_low": max(0.0, a - half), f"{name}_high": min(1.0, a + half)}


def _ranks(label: str, z: NDArray[Any], y: NDArray[Any]) -> Figures:
    found: Figures = {}
    for level in (90, 95):
        sensitivity = float((z[y == 1] > np.quantile(z[y == 0], level / 100)).mean())
        specificity = float((z[y == 0] < np.quantile(z[y == 1], 1 - level / 100)).mean())
        found |= interval(f"sens_at_spec{level}_{label}", sensitivity, y)
        found |= interval(f"spec_at_sens{level}_{label}", specificity, y)
    return found


def _calibration(label: str, p: NDArray[Any], y: NDArray[Any]) -> Figures:
    """Compute slope and intercept by a Newton fit of outcome on logit, and ECE over ten equal bins."""
    x = np.column_stack([np.ones(len(p)), np.log(p / (1 - p))])
    beta = np.array([0.0, 1.0])
    for _ in range(12):
        mu = 1 / (1 + np.exp(-x @ beta))
        beta = beta + np.linalg.solve((x.T * (mu * (1 - mu))) @ x, x.T @ (y - mu))
    bins = np.minimum((p * 10).astype(int), 9)
    error = sum(abs(p[bins == b].mean() - y[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))
    found = {
        f"calibration_slope_{label}": float(beta[1]),
        f"calibration_intercept_{label}": float(beta[0]),
        f"brier_{label}": float(np.mean((p - y) ** 2)),
        f"ece_{label}": float(error),
    }
    for percent in (10, 20, 30, 40, 50):
        t, calls = percent / 100, p >= percent / 100
        benefit = (calls & (y == 1)).mean() - (calls & (y == 0)).mean() * t / (1 - t)
        found[f"net_benefit_{label}_{percent}"] = float(benefit)
    return found


def _points(label: str, p: NDArray[Any], y: NDArray[Any]) -> Figures:
    found: Figures = {}
    for kind, threshold in POINTS.items():
        found[f"sens_at_{kind}_{label}"] = float((p[y == 1] >= threshold).mean())
        found[f"spec_at_{kind}_{label}"] = float((p[y == 0] < threshold).mean())
    return found


def _histogram(label: str, p: NDArray[Any], y: NDArray[Any]) -> Figures:
    """Count patients in 20 bins. Merge small bins with the following ones, as a site does before it releases counts."""
    found: Figures = {}
    for outcome in (0, 1):
        counts = np.bincount(np.minimum((p[y == outcome] * BINS).astype(int), BINS - 1), minlength=BINS)
        ends: list[tuple[int, int]] = []
        waiting = 0
        for index, count in enumerate(counts.tolist()):
            waiting += count
            if waiting >= MIN_PATIENTS:
                ends.append((index, waiting))
                waiting = 0
        if ends and waiting:
            ends[-1] = (BINS - 1, ends[-1][1] + waiting)
        found |= {f"count_{label}_{outcome}_{index:02d}": float(count) for index, count in ends}
    return found
