"""All sites' test patients together, as far as sites let histograms out: the only AUROC that is not of one site."""

import math
from typing import Any

from federation.comparison.pooled import Pooled, pool
from federation.report.estimates import LABELS, federated
from federation.runs.results import Results


def pooled(results: Results) -> dict[str, Any]:
    """By label AUROC, ROC curve and reliability curve of the patients together; None where no site told histograms.

    `share`: of the sites' test patients that are among them. `possible`: the least and the greatest AUROC that the
    binned counts leave open. `curve`: [share of false alarms, sensitivity]. `reliability`: [predicted, observed].
    """
    return {label: _told(found) if (found := pool(federated(results), label)) else None for label in LABELS}


def _told(found: Pooled) -> dict[str, Any]:
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
