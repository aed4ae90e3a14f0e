"""Results over all sites: the AUROC of all test patients from histograms, and the mean of the hospitals' AUROCs."""

import math
from typing import Any

from federation.comparison.hospital_areas import areas_of
from federation.comparison.hospital_mean import HospitalMean, hospital_mean
from federation.comparison.pooled import Pooled, pool
from federation.report.estimates import LABELS, federated
from federation.runs.results import Results


def pooled(results: Results) -> dict[str, Any]:
    """By label: AUROC, ROC curve and reliability curve over all patients; None if no site released histograms.

    `auroc` is None and `curve` empty if the counts are too coarse for them.
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
        "auroc": {"value": value.value, "low": value.low, "high": value.high} if math.isfinite(value.value) else None,
        "possible": list(found.possible),
        "curve": found.curve.tolist(),
        "reliability": [list(point) for point in points if all(map(math.isfinite, point))],
    }


def mean_over_hospitals(results: Results) -> dict[str, Any]:
    """By label: the random-effects mean of the hospitals' AUROCs; None without any.

    `low`, `high`: 95 % interval for hospitals like these, None if two hospitals differ; `here`: for these hospitals.
    """
    return {label: _mean(hospital_mean(areas_of(federated(results), label))) for label in LABELS}


def _mean(found: HospitalMean | None) -> dict[str, Any] | None:
    if found is None:
        return None
    low, high = (end if math.isfinite(end) else None for end in (found.low, found.high))
    return {"value": found.value, "low": low, "high": high, "here": list(found.here), "sites": found.sites}
