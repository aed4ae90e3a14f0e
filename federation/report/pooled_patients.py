"""Results over all sites' test patients together, for sites that release histograms: the only pooled AUROC."""

import math
from typing import Any

from federation.comparison.pooled import Pooled, pool
from federation.report.estimates import LABELS, federated
from federation.runs.results import Results


def pooled(results: Results) -> dict[str, Any]:
    """By label: AUROC, ROC curve and reliability curve over all patients; None if no site released histograms.

    `share`: the share of the sites' test patients that is included. `possible`: the smallest and largest AUROC that
    the binned counts allow. `curve`: [false-positive rate, sensitivity]. `reliability`: [predicted, observed].
    """
    return {label: _summary(found) if (found := pool(federated(results), label)) else None for label in LABELS}


def _summary(found: Pooled) -> dict[str, Any]:
    value = found.auroc
    points = zip(found.reliability.predicted.tolist(), found.reliability.observed.tolist(), strict=True)
    return {
        "sites": list(found.sites),
        "with_label": found.positive,
        "without_label": found.negative,
        "share": min(1.0, found.share),
        "auroc": {"value": value.value, "low": _finite(value.low), "high": _finite(value.high)},
        "possible": list(found.possible),
        "curve": found.curve.tolist(),
        "reliability": [list(point) for point in points if all(map(math.isfinite, point))],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
