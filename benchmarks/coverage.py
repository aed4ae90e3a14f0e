"""Measure the coverage of 95 % intervals on simulated cohorts with known truth. Not part of `make bench`.

    python benchmarks/coverage.py

Scores are normal in both classes with variance 1 (the binormal model), so the distance of the means determines the true
values. Writes benchmarks/results/coverage.json and coverage.md. Takes some minutes on one core.
"""

import json
import math
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from pipeline.evaluation.calibration import calibration_slope
from pipeline.evaluation.discrimination import Estimate, auprc, auroc, auroc_difference, sensitivity_at, specificity_at

COHORTS = 200
SIZES = ((10, 40), (25, 75), (50, 150), (100, 300))  # numbers of positive and negative patients
AREAS = (0.6, 0.7, 0.8, 0.9)
LESS, LEANING = 0.1, 0.5  # difference of the other score's AUROC; correlation of both scores within a class
RESULTS = Path(__file__).with_name("results")
INTERVALS = ("AUROC", "difference", "AUPRC", "sens at spec 0.90", "spec at sens 0.90")


def apart(area: float) -> float:
    """Return the distance of the means, in standard deviations, for which the AUROC is `area`."""
    return math.sqrt(2) * float(norm.ppf(area))


def truths(area: float, prevalence: float) -> tuple[float, ...]:
    """Return the true values, in the order of INTERVALS."""
    distance = apart(area)
    thresholds = np.linspace(-8, 8 + distance, 20_001)[::-1]
    found, alarms = norm.sf(thresholds - distance), norm.sf(thresholds)
    precision = prevalence * found / (prevalence * found + (1 - prevalence) * alarms)
    at_90 = float(norm.sf(norm.ppf(0.9) - distance))
    return area, LESS, float(np.trapezoid(precision, found)), at_90, at_90  # the curve is symmetric


def estimates(area: float, positive: int, negative: int, rng: np.random.Generator) -> tuple[list[Estimate], float]:
    """Return the metrics of one cohort with intervals, and the calibration slope of perfectly calibrated logits."""
    labels = np.repeat([1.0, 0.0], [positive, negative])
    noise = rng.multivariate_normal([0, 0], [[1, LEANING], [LEANING, 1]], positive + negative)
    scores = noise[:, 0] + labels * apart(area)
    others = noise[:, 1] + labels * apart(area - LESS)
    logits = apart(area) * scores - apart(area) ** 2 / 2 + math.log(positive / negative)
    found = [
        auroc(scores, labels),
        auroc_difference(scores, others, labels),
        auprc(scores, labels),
        sensitivity_at(0.9, scores, labels),
        specificity_at(0.9, scores, labels),
    ]
    return found, calibration_slope(logits, labels.astype(int))


def measure(positive: int, negative: int, area: float) -> dict[str, Any]:
    truth = truths(area, positive / (positive + negative))
    held, slopes = np.zeros(len(truth)), []
    for number in range(COHORTS):
        rng = np.random.default_rng([positive, negative, round(100 * area), number])
        found, slope = estimates(area, positive, negative, rng)
        held += [each.low <= true <= each.high for each, true in zip(found, truth, strict=True)]
        slopes.append(slope)
    low, median, high = np.nanpercentile(slopes, [2.5, 50, 97.5])
    return {
        "positive": positive,
        "negative": negative,
        "auroc": area,
        "coverage": dict(zip(INTERVALS, (held / COHORTS).round(3).tolist(), strict=True)),
        "slope": {"median": round(median, 2), "low": round(low, 2), "high": round(high, 2)},
        "slope_undefined": round(float(np.isnan(slopes).mean()), 3),
    }


def markdown(result: dict[str, Any]) -> str:
    head = ["patients", "true AUROC", *INTERVALS, "calibration slope (truth: 1)"]
    lines = [head, ["---"] * len(head)]
    for row in result["rows"]:
        slope = row["slope"]
        lines.append(
            [
                f"{row['positive']} + {row['negative']}",
                f"{row['auroc']:.2f}",
                *(f"{row['coverage'][name]:.3f}" for name in INTERVALS),
                f"{slope['median']:.2f} ({slope['low']:.2f} to {slope['high']:.2f})",
            ]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"""# Coverage of the intervals

The share of {result["cohorts"]} simulated cohorts in which the 95 % interval contains the true value. Chance alone
changes a share by 0.03. {result["date"]}; {result["machine"]}; simulated scores, no patients.

{table}

Intervals: AUROC by DeLong's variance on the logit scale; difference of two AUROCs of the same patients (truth: {LESS})
by DeLong's variance for pairs; AUPRC by the bootstrap's standard error on the logit scale; sensitivity at a
specificity of at least 0.90, and the reverse, by the percentile bootstrap. The calibration slope is reported without
an interval: the last column shows its median, and the range of 95 % of the cohorts' slopes.
"""


def main() -> None:
    rows = [measure(positive, negative, area) for positive, negative in SIZES for area in AREAS]
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
        "cohorts": COHORTS,
        "rows": rows,
    }
    (RESULTS / "coverage.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "coverage.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
