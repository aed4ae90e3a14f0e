"""Metrics of sites for the report: single estimates with intervals, and summaries over sites.

An estimate is {"value", "low", "high"}; `low` and `high` are None if a site gave no interval. None instead of an
estimate means that the site did not release this metric.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from federation.runs.results import FEDERATED, Results
from pipeline.evaluation.combining import Interval, difference_at_site, mean_of_sites

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


def interval(cell: float | Estimate | None) -> Interval | None:
    """Return a cell's value with the ends of its interval; None if it has none."""
    if not isinstance(cell, dict) or None in (cell["value"], cell["low"], cell["high"]):
        return None
    return Interval(cell["value"], cell["low"], cell["high"])


def as_estimate(found: Interval | None, value: float | None = None) -> Estimate:
    """Return an estimate for the page and the JSON; of only `value` if there is no interval."""
    return found._asdict() if found else {"value": value, "low": None, "high": None}


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return `one` minus `other`, two models at the same patients; the interval holds for any correlation of them."""
    ends = interval(one), interval(other)
    found = difference_at_site(ends[0], ends[1]) if ends[0] and ends[1] else None
    return as_estimate(found, one["value"] - other["value"])


def mean_estimate(cells: Iterable[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Return the mean of estimates at different sites, with its interval if all of them have one."""
    cells = list(cells)
    found = [end for cell in cells if (end := interval(cell))]
    if len(found) == len(cells):
        return as_estimate(mean_of_sites(found, weights))
    shares = weights or [1.0] * len(cells)
    values = [share * cell["value"] for share, cell in zip(shares, cells, strict=True)]
    return as_estimate(None, math.fsum(values) / math.fsum(shares))


def spread(
    cells: Mapping[str, float | Estimate | None], weights: Mapping[str, float] | None = None
) -> dict[str, Any] | None:
    """Summarise a metric over the sites that gave it: mean, median, and lowest and highest with their sites.

    `mean`: not weighted; `weighted_mean`: weighted by `weights`. A mean of AUROCs is not the AUROC of all patients
    together. `mean_low` and `mean_high`: its 95 % interval over the patients of these sites, None where a site gave no
    interval; it needs different patients in each cell. So for the weighted mean.
    """
    found = {site: cell for site, cell in cells.items() if value_of(cell) is not None}
    if not found:
        return None
    values: dict[str, float] = {site: cell["value"] if isinstance(cell, dict) else cell for site, cell in found.items()}  # type: ignore[misc]
    estimates = [cell if isinstance(cell, dict) else as_estimate(None, cell) for cell in found.values()]
    lowest, highest = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    summary: dict[str, Any] = {
        "sites": len(values),
        **_named("mean", mean_estimate(estimates)),
        "median": median(values.values()),
        "lowest": {"site": lowest, "value": values[lowest]},
        "highest": {"site": highest, "value": values[highest]},
    }
    if weights is not None and math.fsum(weights.get(site, 0) for site in values):
        shares = [weights.get(site, 0.0) for site in values]
        summary |= _named("weighted_mean", mean_estimate(estimates, shares))
    return summary


def _named(name: str, cell: Estimate) -> dict[str, Any]:
    return {name: cell["value"], f"{name}_low": cell["low"], f"{name}_high": cell["high"]}


def over_sites(
    rows: Mapping[str, Mapping[str, Any]], weights: Mapping[str, float] | None = None
) -> dict[str, dict[str, Any] | None]:
    """Summarise each column of a table with one row for each site, over the patients of that site."""
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: spread({site: row.get(name) for site, row in rows.items()}, weights) for name in columns}


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
