"""Measure the coverage of 95 % intervals on simulated cohorts with known truth. Not part of `make bench`.

    python benchmarks/coverage.py

Scores are normal in both classes with variance 1 (the binormal model), so the distance of the means determines the true
values. Writes benchmarks/results/coverage.json and coverage.md. Takes some minutes on one core.
"""

import json
import math
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm, rankdata

from federation.comparison.hospital_areas import areas_of
from federation.comparison.hospital_difference import chance_of_difference
from federation.comparison.hospital_mean import hospital_mean
from federation.comparison.pooled import pool
from federation.protocol.figure_rounding import rounded
from federation.protocol.patient_counts import Patients
from federation.protocol.summed_answers import Summed, logit_counts, sites_with, square_of
from federation.runs.figures_from_counts import LabelFigures, of_label
from federation.runs.results import FEDERATED, ModelFigures, Results
from models.calibration import Platt
from pipeline.evaluation.calibration import calibration_slope
from pipeline.evaluation.discrimination import (
    Estimate,
    auprc,
    auroc,
    auroc_difference,
    delong_variance,
    logit_interval,
    sensitivity_at,
    specificity_at,
)
from pipeline.evaluation.histograms import histograms
from pipeline.evaluation.ladder import RUNGS

COHORTS = 200
SIZES = ((10, 40), (25, 75), (50, 150), (100, 300))  # numbers of positive and negative patients
AREAS = (0.6, 0.7, 0.8, 0.9)
LESS, LEANING = 0.1, 0.5  # difference of the other score's AUROC; correlation of both scores within a class
STUDIES = 100  # simulated studies of three hospitals
HOSPITALS = ((12, 20), (25, 50), (100, 200))  # patients with and without the label at each of three hospitals
SHAPES = ("binormal", "mixture")
SHIFT = 0.5  # standard deviation between hospitals of the mean score
SKILL = 0.3  # standard deviation between hospitals of the distance of the means, where they differ in skill
LEAST = 10  # min_patients
NARROW = 0.3  # factor of the logits of a model that hardly spreads them, so that many share a bin
TRIALS = 300  # simulated studies of equal hospitals, and as many in which the last one is worse
GROUPS = ((5, 20), (10, 40), (25, 75), (50, 150), (40, 10))  # positive and negative patients at each hospital
SITES = (2, 5, 20)
WORSE = 0.2  # by how much the AUROC of the last hospital is lower
UNUSUAL = 0.01  # `release_gate.UNUSUAL`
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


def drawn(shape: str, distance: float, positive: int, negative: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return scores, positives first. In a mixture, half of the positives look like negatives."""
    means = np.zeros(positive + negative)
    means[:positive] = distance if shape == "binormal" else distance * (rng.random(positive) < 0.5)
    return means + rng.normal(0, 1, len(means))


def true_auroc(shape: str, distance: float) -> float:
    area = float(norm.cdf(distance / math.sqrt(2)))
    return area if shape == "binormal" else (area + 0.5) / 2


def true_of_all(shape: str, distance: float, shifts: Sequence[float]) -> float:
    """Return the AUROC of all patients of hospitals of equal size: the mean over pairs of hospitals."""
    return float(np.mean([true_auroc_apart(shape, distance, one - other) for one in shifts for other in shifts]))


def true_auroc_apart(shape: str, distance: float, shift: float) -> float:
    parts = (distance,) if shape == "binormal" else (distance, 0.0)
    return float(np.mean([norm.cdf((part + shift) / math.sqrt(2)) for part in parts]))


def study(shape: str, positive: int, negative: int, skill: float, number: int) -> dict[str, float]:
    """Return whether each interval of one study covers its truth, and the width; NaN where there is no interval."""
    rng = np.random.default_rng([positive, len(shape), round(10 * skill), number])
    distances = (1.2 if shape == "binormal" else 3.0) + skill * rng.normal(size=3)
    shifts = SHIFT * rng.normal(size=3)
    labels = np.repeat([1.0, 0.0], [positive, negative])
    sites: dict[str, dict[str, float]] = {}
    logits: list[NDArray[np.float64]] = []
    for name, (distance, shift) in enumerate(zip(distances, shifts, strict=True)):
        scores = drawn(shape, distance, positive, negative, rng)
        area = auroc(scores, labels)
        told = rounded(
            {"auroc_severe": area.value, "auroc_severe_low": area.low, "auroc_severe_high": area.high},
            "evaluate.test",
            Patients(),
        )
        logits.append(scores - 1 + shift)
        cells = histograms(expit(logits[-1]), labels.astype(int), min_patients=LEAST)
        counts = {f"count_severe_{label}_{bin:02}": float(count) for (label, bin), count in cells.items()}
        sites[str(name)] = {"num-examples": float(len(labels)), **told, **counts}
    mean = hospital_mean(areas_of(sites, "severe"))
    assert mean is not None
    here = float(np.mean([true_auroc(shape, distance) for distance in distances]))
    typical = true_auroc(shape, 1.2 if shape == "binormal" else 3.0)
    found = None if skill else pool(sites, "severe")
    covers = math.nan
    of_all = math.nan if skill else true_of_all(shape, distances[0], shifts.tolist())
    if found is not None and math.isfinite(found.auroc.low):
        covers = float(found.auroc.low <= of_all <= found.auroc.high)
    areas = [figures["auroc_severe"] for figures in sites.values()]
    return {
        **of_sums(np.concatenate(logits), np.tile(labels, 3).astype(int), areas, here, of_all),
        "mean, these hospitals": float(mean.here[0] <= here <= mean.here[1]),
        "mean, hospitals like these": float(mean.low <= typical <= mean.high),
        "width of the mean": mean.high - mean.low,
        "all patients": covers,
    }


def of_sums(
    logits: NDArray[np.float64], labels: NDArray[np.int64], areas: Sequence[float], here: float, of_all: float
) -> dict[str, float]:
    """Return the same for a masked study, of which only sums are known. `of_all`, `here`: the truths."""
    found, narrow = (summed(scale * logits, labels, areas) for scale in (1.0, NARROW))
    assert found.hospitals is not None
    assert found.calibration is not None
    slope = calibration_slope(logits, labels)
    within = found.calibration.slope.possible
    return {
        "sums: all patients": math.nan if math.isnan(of_all) else float(found.auroc.low <= of_all <= found.auroc.high),
        "sums: width": found.auroc.high - found.auroc.low,
        "sums: bins": found.auroc.possible[1] - found.auroc.possible[0],
        "sums: narrow": math.nan if math.isnan(of_all) else float(narrow.auroc.low <= of_all <= narrow.auroc.high),
        "sums: narrow width": narrow.auroc.high - narrow.auroc.low,
        "sums: mean": float(found.hospitals.here[0] <= here <= found.hospitals.here[1]),
        "sums: differ": float(found.hospitals.chance < 0.01),
        "sums: slope": float(within[0] <= slope <= within[1]) if math.isfinite(slope) else math.nan,
    }


def summed(logits: NDArray[np.float64], labels: NDArray[np.int64], areas: Sequence[float]) -> LabelFigures:
    """Return the figures of a masked study of three hospitals of equal size with these AUROCs."""
    places = np.digitize(logits, RUNGS[1:-1])
    names = logit_counts("severe")
    counts = {name: int(((places == bin) & (labels == value)).sum()) for (value, bin), name in names.items()}
    name = "auroc_severe"
    means = {name: float(np.mean(areas)), square_of(name): float(np.mean(np.square(areas)))}
    both = Summed(sites=3, patients=len(labels), counts=counts | {sites_with("severe"): 3}, means=means)
    model = ModelFigures(name=FEDERATED, kind="federated", trained_at=[], figures={}, summed=both)
    results = Results.model_construct(models=[model], calibration={"severe": Platt()}, operating_points={})
    found = of_label(results, "severe")
    assert found is not None
    return found


def measure_studies(shape: str, positive: int, negative: int, skill: float) -> dict[str, Any]:
    found = [study(shape, positive, negative, skill, number) for number in range(STUDIES)]
    values = {name: np.array([each[name] for each in found]) for name in found[0]}
    shown = np.isfinite(values["all patients"])
    return {
        "positive": positive,
        "negative": negative,
        "shape": shape,
        "skill": skill,
        **{name: round(float(np.nanmean(each)), 3) for name, each in values.items() if np.isfinite(each).any()},
        "studies with an AUROC of all patients": round(float(shown.mean()), 3),
    }


def released(area: float, positive: int, negative: int, rng: np.random.Generator) -> dict[str, float]:
    """Return what a hospital with this true AUROC releases without histograms.

    As `auroc`, but without scikit-learn, whose checks take most of the time.
    """
    labels = np.repeat([1, 0], [positive, negative])
    scores = rng.normal(size=len(labels)) + apart(area) * labels
    pairs = rankdata(scores)[:positive].sum() - positive * (positive + 1) / 2
    value = round(float(pairs / (positive * negative)), 12)
    low, high = logit_interval(value, delong_variance(scores, labels), rarer=min(positive, negative))
    told = {"auroc_severe": value, "auroc_severe_low": low, "auroc_severe_high": high}
    patients = {"num-examples": float(len(labels)), "prevalence_severe": round(positive / len(labels), 2)}
    return rounded(told, "evaluate.test", Patients()) | patients


def measure_difference(positive: int, negative: int, area: float, hospitals: int) -> dict[str, Any]:
    """Return how often equal hospitals, and hospitals of which the last one is worse, are called different.

    Also how often the interval of the equal hospitals' mean contains the true AUROC, and its mean width.
    """
    called, held, width = np.zeros(2), 0, 0.0
    for number in range(TRIALS):
        rng = np.random.default_rng([positive, negative, round(100 * area), hospitals, number])
        sites = {str(place): released(area, positive, negative, rng) for place in range(hospitals)}
        worse = sites | {"0": released(area - WORSE, positive, negative, rng)}
        called += [chance_of_difference(areas_of(each, "severe")) < UNUSUAL for each in (sites, worse)]
        mean = hospital_mean(areas_of(sites, "severe"))
        assert mean is not None
        held += mean.here[0] <= area <= mean.here[1]
        width += mean.here[1] - mean.here[0]
    false, right = (called / TRIALS).round(3).tolist()
    sizes = {"positive": positive, "negative": negative, "auroc": area, "hospitals": hospitals}
    mean_of_equal = {"mean": round(held / TRIALS, 3), "width of the mean": round(width / TRIALS, 3)}
    return {**sizes, "equal": false, "one worse": right, **mean_of_equal}


def equal_hospitals_table(rows: Sequence[dict[str, Any]], cell: str) -> str:
    """Return a table of `measure_difference`. `cell`: format of a cell, with the row's names."""
    lines = [["patients each", "true AUROC", *(f"{sites} hospitals" for sites in SITES)], ["---"] * (2 + len(SITES))]
    for positive, negative in GROUPS:
        for area in sorted({row["auroc"] for row in rows}):
            wanted = {"positive": positive, "negative": negative, "auroc": area}
            having = [row for row in rows if wanted.items() <= row.items()]
            lines.append([f"{positive} + {negative}", f"{area:g}", *(cell.format(**row) for row in having)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def studies_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["patients x 3", "scores", "mean: these hospitals", "mean: hospitals like these", "its width"]
    lines = [[*head, "all patients", "has it"], ["---"] * 7]
    for row in rows:
        shape = row["shape"] + (", skill differs" if row["skill"] else "")
        cells = [f"{row[name]:.3f}" for name in ("mean, these hospitals", "mean, hospitals like these")]
        pooled = f"{row['all patients']:.3f}" if "all patients" in row else "none"
        has = "not measured" if row["skill"] else f"{row['studies with an AUROC of all patients']:.2f}"
        patients = f"{row['positive']} + {row['negative']}"
        lines.append([patients, shape, *cells, f"{row['width of the mean']:.2f}", pooled, has])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sums_table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["patients x 3", "scores", "all patients", "its width", "bins leave open", "narrow logits", "its width"]
    lines = [[*head, "mean: these hospitals", "called different", "slope within"], ["---"] * 10]
    for row in rows:
        shape = row["shape"] + (", skill differs" if row["skill"] else "")
        names = ("all patients", "width", "bins", "narrow", "narrow width", "mean", "differ", "slope")
        found = [row.get(f"sums: {name}") for name in names]
        cells = ["not measured" if value is None else f"{value:.3f}" for value in found]
        lines.append([f"{row['positive']} + {row['negative']}", shape, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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

## AUROC over three hospitals

The share of {STUDIES} simulated studies in which the 95 % interval contains the true value. Sites report AUROCs in
hundredths and histograms with cells of at least {LEAST} patients; their mean scores differ (standard deviation
{SHIFT}). Chance alone changes a share by 0.04.
In a mixture half of the positives look like negatives. "Skill differs": the distance of the means varies between
hospitals (standard deviation {SKILL}). The mean is that of the hospitals' AUROCs (`hospital_mean`). "All patients" is
the AUROC of all patients together (`pool`), in the studies whose counts allow one ("has it").

{studies_table(result["studies"])}

## Figures of three masked hospitals, from their sums

The same studies, of which the server knows only counts of all hospitals' patients by class and bin of the logit, and
the mean and mean square of the hospitals' AUROCs (`figures_from_counts`). "All patients": the share of studies whose
interval contains the true AUROC of all patients together. "Bins leave open": the distance of the largest and the
smallest AUROC that the counts allow. Narrow logits are {NARROW} times as wide, so that many patients share a bin.
"Mean": the same for the mean of these hospitals' AUROCs, whose variance is known only on an assumption. "Called
different": the share of studies whose hospitals differ by p < 0.01; without a difference in skill it should be 0.01.
"Slope within": the share in which the calibration slope of the patients' own logits is within the range that is shown
as left open.

{sums_table(result["studies"])}

## Hospitals called different

The share of {TRIALS} simulated studies whose hospitals are called different (`W_SITES_DIFFER`, p < {UNUSUAL}): first of
hospitals with the same AUROC, where it should be {UNUSUAL} or less, then of the same hospitals if the AUROC of one is
lower by {WORSE}. Chance alone changes the first share by 0.006. Sites report AUROCs and intervals in hundredths.

{equal_hospitals_table(result["differences"], "{equal:.3f} / {one worse:.2f}")}

A small hospital's AUROC says little, so a worse one among many small hospitals is seldom found.

## Mean over equal hospitals

The same equal hospitals: the share of studies in which the 95 % interval of the hospitals' mean contains the true
AUROC, and the mean width of the interval. Chance alone changes the share by 0.013.

{equal_hospitals_table(result["differences"], "{mean:.3f} / {width of the mean:.3f}")}
"""


def main() -> None:
    rows = [measure(positive, negative, area) for positive, negative in SIZES for area in AREAS]
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
        "cohorts": COHORTS,
        "rows": rows,
        "studies": [
            measure_studies(shape, *patients, skill)
            for patients in HOSPITALS
            for shape in SHAPES
            for skill in (0.0, SKILL)
        ],
        "differences": [
            measure_difference(*patients, area, hospitals)
            for patients in GROUPS
            for area in (0.7, 0.8, 0.9, 0.95, 0.98, 0.995)
            for hospitals in SITES
        ],
    }
    (RESULTS / "coverage.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "coverage.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
