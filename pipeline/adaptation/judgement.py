"""Judges an adaptation on the hospital's own labelled validation patients, whose scans it did not use.

The rule: the adaptation is refused if, for a label, the 95 % interval of the change of the AUROC (DeLong, paired) is
below 0, or that of the change of the mean logarithmic loss (paired, normal) is above 0. There is no correction for
several tests, so a harmless adaptation is refused by chance in up to one of ten cases: the parent is always at hand.
With few patients the intervals are wide, and only a large harm is seen. A label needs LEAST_IN_CLASS patients of both
classes; otherwise it is not judged.

An operating point of the parent is kept only if the hospital's patients show its rate after the adaptation by the rule
for new operating points (`models.operating_points`). The threshold is the parent's: none is chosen.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from models.adaptation import Judged, Points
from models.calibration import Platt
from models.description import Description
from models.network_settings import LABELS
from models.operating_points import AIM, CONFIDENCE, FLOOR, LEAST_PATIENTS, Evidence, OperatingPoint
from models.refusal import Refusal
from pipeline.adaptation.reasons import ADAPT_WORSE
from pipeline.evaluation.discrimination import auroc, auroc_difference

LEAST_IN_CLASS = 10
_Z = 1.96

Logits = NDArray[np.float32]
Change = tuple[float, float, float]


def judge(parent: Description, before: Logits, after: Logits, targets: Logits) -> tuple[dict[str, Judged], Points]:
    """Return the figures of the labels that can be judged, and the operating points that hold after the adaptation.

    `before`, `after`: logits of parent and adapted model, `targets`: 0, 1 or NaN; shape (patients, labels). Raises
    Refusal E_ADAPT_WORSE.
    """
    judged: dict[str, Judged] = {}
    points: Points = {}
    for column, label in enumerate(LABELS):
        known = ~np.isnan(targets[:, column])
        y = targets[known, column].astype(np.int64)
        if min(y.sum(), len(y) - y.sum()) < LEAST_IN_CLASS:
            continue
        x, z = before[known, column].astype(np.float64), after[known, column].astype(np.float64)
        platt = parent.calibration.get(label)
        judged[label] = _judged(label, x, z, y, platt)
        kept = {} if platt is None else _points(parent, label, platt.probability(z), y)
        if kept:
            points[label] = kept
    return judged, points


def _judged(
    label: str, before: NDArray[np.float64], after: NDArray[np.float64], y: NDArray[np.int64], platt: Platt | None
) -> Judged:
    difference = auroc_difference(after, before, y)
    ranking = (difference.value, difference.low, difference.high)
    if difference.high < 0:
        raise _worse(label, "the AUROC", ranking)
    loss = None
    if platt is not None:
        loss = _paired(_log_loss(platt, after, y) - _log_loss(platt, before, y))
        if loss[1] > 0:
            raise _worse(label, "the log loss of the calibrated probability", loss)
    return Judged(
        positives=int(y.sum()),
        negatives=int(len(y) - y.sum()),
        auroc_before=auroc(before, y).value,
        auroc_after=auroc(after, y).value,
        auroc_change=ranking,
        log_loss_change=loss,
    )


def _log_loss(platt: Platt, logits: NDArray[np.float64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the logarithmic loss of each patient, in nats."""
    z = platt.slope * logits + platt.intercept
    loss: NDArray[np.float64] = np.logaddexp(0, z) - y * z
    return loss


def _paired(changes: NDArray[np.float64]) -> Change:
    mean, half = float(changes.mean()), _Z * float(changes.std(ddof=1)) / len(changes) ** 0.5
    return mean, mean - half, mean + half


def _worse(label: str, figure: str, change: Change) -> Refusal:
    value, low, high = (round(each, 3) for each in change)
    return Refusal(ADAPT_WORSE, label=label, figure=figure, change=value, low=low, high=high)


def _points(
    parent: Description, label: str, probabilities: NDArray[np.float64], y: NDArray[np.int64]
) -> dict[str, OperatingPoint]:
    """Return the parent's points of a label whose rate these patients show."""
    kept = {}
    for name, at in parent.operating_points.get(label, {}).items():
        is_high = probabilities >= at.threshold
        right = is_high[y == 1] if name == "rule_out" else ~is_high[y == 0]
        evidence = _evidence(int(right.sum()), len(right), y)
        enough = min(evidence.positives, evidence.negatives) >= LEAST_PATIENTS
        if enough and evidence.value >= AIM and evidence.low >= FLOOR:
            kept[name] = OperatingPoint(threshold=at.threshold, evidence=evidence)
    return kept


def _evidence(right: int, size: int, y: NDArray[np.int64]) -> Evidence:
    """Return a rate with its exact 90 % interval (Clopper & Pearson, Biometrika 1934; 26:404)."""
    low = float(betaincinv(right, size - right + 1, 1 - CONFIDENCE)) if right else 0.0
    high = float(betaincinv(right + 1, size - right, CONFIDENCE)) if right < size else 1.0
    positives = int(y.sum())
    return Evidence(value=right / size, low=low, high=high, positives=positives, negatives=len(y) - positives, sites=1)
