"""Differences of two columns of a comparison at the same test patients, with paired intervals.

No scores leave a hospital, so what two models have in common on the same patients is not known. Three intervals remain:

patients          at these sites: as wide as any correlation of the two models allows, so never too narrow
seeds             other initial weights, these patients: by Student's t over runs of both columns with the same seed; if
                  no seed is in both, as in masked studies, by Welch's t over all runs
sites and seeds   over the sites' own differences, by Student's t: at each site both models have the same patients, so
                  the differences are paired whatever the correlation. With several seeds, sites and seeds both count

Of a masked study only sums over the sites are known. So the difference is one of all patients together, and one of the
means over sites, with the first two intervals. No interval is paired by site.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from federation.protocol.metric_allowlist import AUC, EXAMPLES, LABELS
from federation.protocol.summed_answers import CLASSES, Summed, logit_counts
from federation.runs.figures_from_counts import ALL, summed_of
from federation.runs.listing import MANY, MEAN, federated, interval_of, places
from federation.runs.results import Results
from pipeline.evaluation.combining import (
    LEAST_REPEATS,
    Interval,
    difference_at_site,
    difference_of_repeats,
    mean_at_site,
    mean_of_repeats,
    mean_of_sites,
)

if TYPE_CHECKING:
    from federation.comparison.compare_runs import Column

PAIRED = ("auroc_severe", "auprc_severe", "auroc_pcr_positive")  # metrics that leave the sites with an interval
EQUAL = "all sites, equally"  # the mean of the sites' differences, each site counting the same

Ends = tuple[float, float]
Figures = Mapping[str, Mapping[str, float]]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Paired:
    """A difference, and the ends of its 95 % intervals; None where one cannot be known."""

    difference: float
    patients: Ends | None
    seeds: Ends | None
    sites_and_seeds: Ends | None

    def cells(self) -> list[str]:
        return [f"{self.difference:+.2f}", *map(_shown, (self.patients, self.seeds, self.sites_and_seeds))]


@dataclass(frozen=True)
class Difference:
    """The column `title` minus the first column, by metric and then by site or EQUAL; of a masked study by MEAN or ALL.

    `seeds`: the seeds that both columns have once. Without any, the columns' means over all runs are subtracted.
    """

    title: str
    minus: str
    seeds: tuple[int, ...]
    figures: dict[str, dict[str, Paired]]

    def lines(self) -> list[list[str]]:
        """Return rows of text: metric, place, difference, and its intervals over patients, seeds, sites and seeds.

        With many sites no single site has a row.
        """
        return [
            [name, place, *paired.cells()]
            for name, places in self.figures.items()
            for place, paired in places.items()
            if place in (EQUAL, MEAN, ALL) or len(places) <= MANY + 1
        ]

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "minus": self.minus,
            "seeds": list(self.seeds),
            "figures": {
                name: {place: vars(paired) for place, paired in places.items()} for name, places in self.figures.items()
            },
        }


def differences(first: "Column", other: "Column") -> Difference:
    """Return the differences of two columns at the sites whose test patients are the same in all their runs."""
    seeds = _common_seeds(first, other)
    runs: list[list[Figures]] = [[places(results) for results in _of_seeds(column, seeds)] for column in (first, other)]
    unlike, summed = unpaired(first, other), (MEAN, ALL) if _is_masked(first, other) else ()
    found = {}
    for name in PAIRED:
        having = [_having(run, name) for column in runs for run in column]
        alike = set.intersection(*having) - unlike if having else set()
        sites = sorted(alike - {MEAN, ALL})
        rows = {site: _at_site(runs, site, name, paired=bool(seeds)) for site in sites}
        if len(rows) > 1:
            rows[EQUAL] = _over_sites(runs, sites, name, paired=bool(seeds))
        rows |= {place: _at_site(runs, place, name, paired=bool(seeds)) for place in summed if place in alike}
        if rows:
            found[name] = rows
    return Difference(other.title, first.title, seeds, found)


def unpaired(first: "Column", other: "Column") -> set[str]:
    """Return the sites of both columns whose test patients are not the same in all runs.

    The server knows of them only their number and the share of each label. With a masked study also MEAN or ALL, if the
    patients of all sites together are not the same.
    """
    told: dict[str, list[tuple[float | None, ...]]] = {}
    for results in (*first.results, *other.results):
        figures = federated(results)
        for site, row in figures.items():
            patients = [row.get(name) for name in (EXAMPLES, "prevalence_severe", "prevalence_pcr_positive")]
            told.setdefault(site, []).append(tuple(patients))
        if summed := summed_of(results):
            told.setdefault(ALL, []).append((summed.patients, *_class_sizes(summed)))
        everybody = summed.patients if summed else sum(row.get(EXAMPLES, 0.0) for row in figures.values())
        told.setdefault(MEAN, []).append((everybody,))
    if not _is_masked(first, other):
        del told[MEAN]
    return {site for site, each in told.items() if len(set(each)) > 1}


def _class_sizes(summed: Summed) -> list[int]:
    """Return the numbers of patients without and with each label."""
    return [
        sum(summed.counts.get(name, 0) for (value, _), name in logit_counts(label).items() if value == of)
        for label in LABELS
        for of in CLASSES
    ]


def _is_masked(first: "Column", other: "Column") -> bool:
    return any(summed_of(results) for results in (*first.results, *other.results))


def _common_seeds(first: "Column", other: "Column") -> tuple[int, ...]:
    once = []
    for column in (first, other):
        seeds = [run.study.study.seed for run in column.runs]
        once.append({seed for seed in seeds if seeds.count(seed) == 1})
    return tuple(sorted(once[0] & once[1]))


def _of_seeds(column: "Column", seeds: tuple[int, ...]) -> list[Results]:
    """Return the results of these seeds in their order; all results of the column without any."""
    if not seeds:
        return list(column.results)
    by_seed = {run.study.study.seed: results for run, results in zip(column.runs, column.results, strict=True)}
    return [by_seed[seed] for seed in seeds]


def _having(figures: Figures, name: str) -> set[str]:
    return {site for site, row in figures.items() if name in row}


def _at_site(runs: list[list[Figures]], site: str, name: str, *, paired: bool) -> Paired:
    first, other = ([run[site][name] for run in column] for column in runs)
    over_patients = _of_patients(runs, site, name)
    return Paired(
        difference=math.fsum(other) / len(other) - math.fsum(first) / len(first),
        patients=_ends(over_patients),
        seeds=_ends(_of_seeds_alone(np.array(first), np.array(other), paired=paired)),
        sites_and_seeds=None,
    )


def _over_sites(runs: list[list[Figures]], sites: list[str], name: str, *, paired: bool) -> Paired:
    """Return the mean difference over sites. `each`: shape (seeds, sites); without common seeds one row of means."""
    first, other = (np.array([[run[site][name] for site in sites] for run in column]) for column in runs)
    each = other - first if paired else (other.mean(axis=0) - first.mean(axis=0))[None]
    over_patients = [found for site in sites if (found := _of_patients(runs, site, name))]
    draws = each if len(each) >= LEAST_REPEATS else each.mean(axis=0)
    return Paired(
        difference=float(each.mean()),
        patients=_ends(mean_of_sites(over_patients)) if len(over_patients) == len(sites) else None,
        seeds=_ends(_of_seeds_alone(first.mean(axis=1), other.mean(axis=1), paired=paired)),
        sites_and_seeds=_ends(mean_of_repeats(draws, least=AUC.size)),
    )


def _of_seeds_alone(first: Numbers, other: Numbers, *, paired: bool) -> Interval | None:
    """Return `other` minus `first` over seeds; shape (runs,), of the same seeds in the same order if `paired`."""
    if paired:
        return mean_of_repeats(other - first, least=AUC.size)
    return difference_of_repeats(other, first, least=AUC.size)


def _of_patients(runs: list[list[Figures]], site: str, name: str) -> Interval | None:
    intervals = [[interval_of(run[site], name) for run in column] for column in runs]
    first, other = ([found for found in column if found] for column in intervals)
    if len(first) < len(runs[0]) or len(other) < len(runs[1]):
        return None
    return difference_at_site(mean_at_site(other), mean_at_site(first))


def _ends(interval: Interval | None) -> Ends | None:
    return interval and (max(-1.0, interval.low), min(1.0, interval.high))


def _shown(ends: Ends | None) -> str:
    return f"{ends[0]:+.2f}, {ends[1]:+.2f}" if ends else "–"
