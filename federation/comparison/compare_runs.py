"""Compare the final metrics of runs: `fedthorax study compare`.

Runs of one group that differ only by seed share a column, with the mean and standard deviation over the seeds. Every
other run has its own column. The rows are the federated model's metrics at each site, and the mean over the sites. Of
a masked study they are those of all patients together and the mean. An interval is over the patients of these sites.
`federation.comparison.differences` subtracts the first column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from federation.comparison import reasons
from federation.comparison.differences import Difference, differences, unpaired
from federation.protocol.metric_allowlist import LABELS
from federation.runs import reasons as runs_reasons
from federation.runs.figures_from_counts import ALL, summed_of, why_none
from federation.runs.listing import (
    HEADLINES,
    MANY,
    MEAN,
    OF_COUNTS,
    SPREAD,
    Run,
    federated,
    interval_of,
    mean_interval_of,
    places,
    read_run,
    results_or_none,
)
from federation.runs.results import Results
from federation.runs.run_folder import read_note, run_names
from models.refusal import Refusal
from pipeline.evaluation.combining import Interval, mean_at_site

_NO_SITES = {MEAN, ALL}  # places that are not a site


@dataclass(frozen=True)
class Value:
    """A metric's mean over the seeds, and its standard deviation; None with one seed.

    `interval`: over the patients; None for a metric that leaves the sites without one.
    """

    mean: float
    deviation: float | None
    interval: Interval | None = None

    def __str__(self) -> str:
        text = f"{self.mean:.2f}" if self.interval is None else str(self.interval)
        return text + (f" ±{self.deviation:.2f}" if self.deviation is not None else "")

    def to_json(self) -> dict[str, float | None]:
        low, high = (None, None) if self.interval is None else self.interval[1:]
        return {"mean": self.mean, "low": low, "high": high, "deviation": self.deviation}


@dataclass(frozen=True)
class Column:
    """Runs that differ only by seed, and the results of each."""

    title: str
    runs: tuple[Run, ...]
    results: tuple[Results, ...]

    def values(self) -> dict[str, dict[str, Value]]:
        """Return the cells by metric, then by site or MEAN, over the runs that have the metric."""
        found: dict[str, dict[str, list[float]]] = {}
        intervals: dict[tuple[str, str], list[Interval]] = {}
        for results in self.results:
            for place, row in places(results).items():
                for name, value in row.items():
                    found.setdefault(name, {}).setdefault(place, []).append(value)
                    interval = mean_interval_of(results, name) if place == MEAN else interval_of(row, name)
                    if interval:
                        intervals.setdefault((name, place), []).append(interval)
        return {
            name: {place: _value(values, intervals.get((name, place), [])) for place, values in places.items()}
            for name, places in found.items()
        }


def _value(values: Sequence[float], intervals: Sequence[Interval]) -> Value:
    whole = mean_at_site(intervals) if len(intervals) == len(values) else None
    return Value(fmean(values), stdev(values) if len(values) > 1 else None, whole)


@dataclass(frozen=True)
class Comparison:
    """Columns, and warnings about their comparability."""

    columns: list[Column]
    warnings: list[Refusal]

    def differences(self) -> list[Difference]:
        """Return each further column minus the first one: the figures of two models at the same test patients."""
        first, *others = self.columns
        return [differences(first, other) for other in others]

    def to_json(self) -> dict[str, Any]:
        return {
            "columns": [
                {
                    "title": column.title,
                    "runs": [run.name for run in column.runs],
                    "seeds": [run.study.study.seed for run in column.runs],
                    "figures": {
                        name: {place: value.to_json() for place, value in places.items()}
                        for name, places in column.values().items()
                    },
                }
                for column in self.columns
            ],
            "differences": [each.to_json() for each in self.differences()],
            "warnings": [{"code": warning.code, "says": warning.says} for warning in self.warnings],
        }

    def lines(self) -> list[list[str]]:
        """Return the table of the main metrics: metric, place, then one cell for each column.

        A place is a site, the mean, or all patients together. With many sites their lowest, median and highest value
        stand instead of them.
        """
        values = [column.values() for column in self.columns]
        lines = []
        is_masked = any(ALL in places for each in values for places in each.values())
        for name in (*HEADLINES, *(OF_COUNTS if is_masked else ())):
            found = dict.fromkeys(place for each in values for place in each.get(name, {}))
            if len(found.keys() - _NO_SITES) > MANY:
                lines += [
                    [name, f"{word} site", *(_over(each, name, of) for each in values)] for word, of in SPREAD.items()
                ]
                found = dict.fromkeys(place for place in found if place in _NO_SITES)
            for place in sorted(found, key=lambda place: (place == ALL, place == MEAN, place)):
                cells = [str(each.get(name, {}).get(place, "")) for each in values]
                lines.append([name, place, *cells])
        return lines


def _over(values: Mapping[str, Mapping[str, Value]], name: str, of: Callable[[Sequence[float]], float]) -> str:
    known = [value.mean for place, value in values.get(name, {}).items() if place not in _NO_SITES]
    return f"{of(known):.2f}" if known else ""


def compare(server: Path, names: Sequence[str]) -> Comparison:
    """Compare runs of one server's folder, given by their names or by the names of their groups.

    Parameters
    ----------
    server : Path
        The server's folder, which holds runs/.
    names : sequence of str
        Names of runs or of groups.

    Returns
    -------
    Comparison
        One column for each run, or for runs of a group that differ by their seed alone, and warnings. Runs that are
        not complete are left out with a warning.

    Raises
    ------
    Refusal
        E_RUN_UNKNOWN, E_RUN_FILES; E_RESULTS where none of the runs is complete.
    """
    found: list[tuple[Run, Results]] = []
    warnings = []
    for name in dict.fromkeys(member for each in names for member in _members(server, each)):
        run = read_run(server, name)
        if results := results_or_none(run.folder):
            found.append((run, results))
        else:
            warnings.append(Refusal(reasons.RUN_LEFT_OUT, run=name, state=run.state))
    if not found:
        raise Refusal(runs_reasons.RESULTS)
    columns = _columns(found)
    others = sorted({site for other in columns[1:] for site in unpaired(columns[0], other)})
    if others:
        warnings.insert(0, Refusal(reasons.RUNS_UNPAIRED, sites=", ".join(others)))
    if masked := [run.name for run, results in found if summed_of(results)]:
        warnings.append(Refusal(reasons.RUNS_MASKED, runs=", ".join(masked)))
    warnings += [
        Refusal(reasons.RUN_NO_FIGURES, run=run.name, why=_why_none(results))
        for run, results in found
        if not _has_figures(results)
    ]
    return Comparison(columns, [*_unlike(found), *warnings])


def _has_figures(results: Results) -> bool:
    return any(name in row for row in places(results).values() for name in (*HEADLINES, *OF_COUNTS))


def _why_none(results: Results) -> str:
    if summed_of(results):
        return "; ".join(f"{label}: {why_none(results, label)}" for label in reversed(LABELS))
    return "no hospital reported one"


def _members(server: Path, name: str) -> list[str]:
    """Return the runs of the group with this name, or else the name itself, which may be an unknown run."""
    runs = server / "runs"
    if (runs / name).is_dir():
        return [name]
    return [run for run in run_names(server) if _group(runs / run) == name] or [name]


def _group(run: Path) -> str:
    """Return the name of the run's group, or "" if its note is damaged: another run does not stop a comparison."""
    try:
        return read_note(run).group
    except Refusal:
        return ""


def _columns(found: Sequence[tuple[Run, Results]]) -> list[Column]:
    alike: dict[str, list[tuple[Run, Results]]] = {}
    for run, results in found:
        key = run.note.group + run.study.with_seed(0).model_dump_json() if run.note.group else run.name
        alike.setdefault(key, []).append((run, results))
    columns = [
        Column(_title([run for run, _ in each]), tuple(run for run, _ in each), tuple(results for _, results in each))
        for each in alike.values()
    ]
    titles = [column.title for column in columns]
    return [
        Column(f"{c.title}\n{c.runs[0].name}", c.runs, c.results) if titles.count(c.title) > 1 else c for c in columns
    ]


def _title(runs: Sequence[Run]) -> str:
    """Return the run's name, or the group's name with its strategy and number of seeds, and of runs if these differ."""
    first = runs[0]
    if len(runs) == 1:
        return f"{first.name}\n{first.study.strategy.name}"
    seeds = len({run.study.study.seed for run in runs})
    many = f"{seeds} seed{'s' * (seeds > 1)}" + (f" in {len(runs)} runs" if len(runs) > seeds else "")
    return f"{first.note.group}\n{first.study.strategy.name}, {many}"


def _unlike(found: Sequence[tuple[Run, Results]]) -> list[Refusal]:
    """Return the differences that make the metrics of these runs not comparable.

    The data contract's digest stands for how the hospitals label patients, that of the golden volume for how they
    compute tensors. In one run all hospitals have the same.
    """
    greeted = [results.sites.values() for _, results in found if results.sites]
    differ: dict[str, set[Any]] = {
        "the data contract (the labels' rules)": {frozenset(site.contract for site in sites) for sites in greeted},
        "the golden volume (how tensors are computed)": {frozenset(site.golden for site in sites) for sites in greeted},
        "preprocessing": {results.study.preprocessing.model_dump_json() for _, results in found},
        "the sites": {tuple(_sites(results)) for _, results in found},
        "whether the patients are synthetic": {results.synthetic for _, results in found},
    }
    return [Refusal(reasons.RUNS_UNLIKE, what=what) for what, kinds in differ.items() if len(kinds) > 1]


def _sites(results: Results) -> list[str]:
    """Return the sites that evaluated the model; of a masked study, where these have no names, all that greeted."""
    return sorted(results.sites if summed_of(results) else federated(results))
