"""Metrics of sites for the report: single estimates with intervals, and summaries over sites.

An estimate is {"value", "low", "high"}; `low` and `high` are None if a site gave no interval. None instead of an
estimate means that the site did not release this metric.
"""

import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from federation.runs.results import FEDERATED, Results

PRIMARY = "severe"
LABELS = (PRIMARY, "pcr_positive")  # in the order of the report
NAMES = {"severe": "severe", "pcr_positive": "PCR-positive"}  # names of the labels in text

Figures = Mapping[str, float]
Estimate = dict[str, Any]  # value, low, high


def number(figures: Figures, name: str) -> float | None:
    value = figures.get(name)
    return value if value is not None and math.isfinite(value) else None


def estimate(figures: Figures, name: str) -> Estimate | None:
    """Return a metric with its 95 % interval."""
    value = number(figures, name)
    if value is None:
        return None
    return {"value": value, "low": number(figures, f"{name}_low"), "high": number(figures, f"{name}_high")}


def value_of(cell: float | Estimate | None) -> float | None:
    """Return a plain number, or the value of an estimate."""
    return cell["value"] if isinstance(cell, dict) else cell


def mean(values: Iterable[float]) -> float | None:
    """Return the unweighted mean."""
    found = list(values)
    return math.fsum(found) / len(found) if found else None


def spread(values: Mapping[str, float | None], weights: Mapping[str, float] | None = None) -> dict[str, Any] | None:
    """Summarise a metric over the sites that gave it: mean, median, and lowest and highest with their sites.

    `mean`: not weighted; `weighted_mean`: weighted by `weights`. A mean of AUROCs is not the AUROC of all patients
    together.
    """
    found = {site: value for site, value in values.items() if value is not None}
    if not found:
        return None
    lowest, highest = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    summary: dict[str, Any] = {
        "sites": len(found),
        "mean": mean(found.values()),
        "median": median(found.values()),
        "lowest": {"site": lowest, "value": found[lowest]},
        "highest": {"site": highest, "value": found[highest]},
    }
    if weights is not None and (total := math.fsum(weights.get(site, 0) for site in found)):
        summary["weighted_mean"] = math.fsum(found[site] * weights.get(site, 0) for site in found) / total
    return summary


def over_sites(
    rows: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float] | None = None
) -> dict[str, dict[str, Any] | None]:
    """Summarise each column of a table with one row for each site."""
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: spread({site: value_of(row.get(name)) for site, row in rows.items()}, weights) for name in columns}


def federated(results: Results) -> Mapping[str, Figures]:
    """Return the federated model's metrics by site."""
    model = results.model(FEDERATED)
    return model.figures if model else {}


def sites(results: Results) -> list[str]:
    """Return every site that answered the handshake or was evaluated, in the order of their first appearance."""
    names = dict.fromkeys(results.sites)
    for model in results.models:
        names |= dict.fromkeys(model.figures)
    return list(names)


def by_site(results: Results, *names: str) -> dict[str, dict[str, Estimate | None]]:
    """Return the federated model's metrics that at least one site gave, by site and name."""
    found = {site: {name: estimate(figures, name) for name in names} for site, figures in federated(results).items()}
    return {site: cells for site, cells in found.items() if any(cells.values())}
