"""How well a model tells: AUROC with bootstrap intervals, losses, and what of it a site may hand out."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from models.network import LABELS

BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Auroc:
    """Area under the ROC curve with its 95 % bootstrap interval over `patients`; NaN where it is undefined."""

    value: float
    low: float
    high: float
    patients: int

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def auroc(scores: NDArray[np.floating], labels: NDArray[np.floating], *, seed: int = 0) -> Auroc:
    """AUROC by scikit-learn; percentile bootstrap over patients (Efron & Tibshirani 1993, ch. 13).

    `labels`: 0, 1 or NaN where missing, shape (patients,). Resamples with one class alone are drawn again by
    resampling within each class, so that the interval exists for small sites too.
    """
    known = ~np.isnan(labels)
    x, y = np.asarray(scores, dtype=np.float64)[known], labels[known].astype(int)
    if len(set(y.tolist())) < 2:
        return Auroc(math.nan, math.nan, math.nan, len(y))
    positive, negative = x[y == 1], x[y == 0]
    # AUROC is the share of pairs in the right order, so a resample only picks rows and columns of this table.
    right = (positive[:, None] > negative).astype(np.float64) + 0.5 * (positive[:, None] == negative)
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(len(positive), np.full(len(positive), 1 / len(positive)), size=BOOTSTRAPS)
    columns = rng.multinomial(len(negative), np.full(len(negative), 1 / len(negative)), size=BOOTSTRAPS)
    values = np.einsum("bp,pn,bn->b", rows, right, columns, optimize=True) / right.size
    low, high = np.percentile(values, [2.5, 97.5])
    return Auroc(float(roc_auc_score(y, x)), float(low), float(high), len(y))


def label_losses(logits: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean binary cross-entropy of each label over its known patients; NaN where nobody is known."""
    losses = np.logaddexp(0, logits.astype(np.float64)) - np.nan_to_num(targets) * logits
    known = ~np.isnan(targets)
    with np.errstate(invalid="ignore"):
        return np.where(known, losses, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def site_metrics(logits: NDArray[np.float32], targets: NDArray[np.float32], *, min_patients: int) -> dict[str, float]:
    """What a site may hand out of an evaluation: figures over at least `min_patients` known patients, and finite.

    Names: `loss_<label>` and `auroc_<label>`, the label being one of LABELS.
    """
    metrics: dict[str, float] = {}
    losses = label_losses(logits, targets)
    for column, label in enumerate(LABELS):
        if np.count_nonzero(~np.isnan(targets[:, column])) < min_patients:
            continue
        found = {f"loss_{label}": float(losses[column])}
        found[f"auroc_{label}"] = auroc(logits[:, column], targets[:, column]).value
        metrics |= {name: value for name, value in found.items() if math.isfinite(value)}
    return metrics


METRICS = tuple(f"{kind}_{label}" for kind in ("loss", "auroc") for label in LABELS)
