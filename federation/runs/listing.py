"""The runs of a server's folder, for `fedthorax study list` and `show`.

Everything is read from the runs' files, so the server need not run. The server is asked only for the state of a run
whose end was not recorded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from federation.protocol.metric_allowlist import EXAMPLES, LABELS
from federation.protocol.study_config import Study
from federation.runs import reasons
from federation.runs.failure import read_failure
from federation.runs.figures_from_counts import ALL, means_row, of_label, pooled_row, summed_of, why_none
from federation.runs.progress import asked_in, rounds_of, standing
from federation.runs.results import FEDERATED, Results, read_results
from federation.runs.run_folder import RunNote, find_run, read_history, read_note, read_study, run_names
from federation.runs.submission import UNDER_WAY, State, state
from federation.runs.tracking import how_to_see
from federation.runs.training_length import trained_long
from models.refusal import Refusal
from pipeline.evaluation.combining import Interval, mean_of_sites

# The metrics of the final model in tables; --json contains all metrics.
HEADLINES = (
    "auroc_severe",
    "auprc_severe",
    "sens_at_spec90_severe",
    "calibration_slope_severe",
    "brier_severe",
    "auroc_pcr_positive",
)
OF_COUNTS = ("sens_at_rule_out_severe", "spec_at_rule_in_severe")  # of a masked study, beside HEADLINES
MEAN = "mean by patients"  # over sites, weighted by their test patients
_INTERVAL_ENDS = ("_low", "_high")
_NUMBERS = ("positives_", "negatives_", "sites_")  # of patients and hospitals
MANY = 8  # with more sites than this, a terminal has no room for one column each
SPREAD: Mapping[str, Callable[[Sequence[float]], float]] = {"lowest": min, "median": median, "highest": max}


@dataclass(frozen=True)
class Run:
    """One run, as read from its files."""

    folder: Path
    study: Study
    note: RunNote
    state: State
    history: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    def summary(self) -> dict[str, Any]:
        """Return the run's entry in a list; `means` are over the sites that counted in the last round."""
        rounds = rounds_of(self.history)
        return {
            "run": self.name,
            "study": self.study.study.name,
            "strategy": self.study.strategy.name,
            "seed": self.study.study.seed,
            "group": self.note.group,
            "state": self.state,
            "begun": self.note.begun.isoformat(timespec="seconds"),
            "round": rounds[-1]["round"] if rounds else 0,
            "rounds": self.study.study.rounds,
            "means": rounds[-1]["means"] if rounds else {},
            "test_auroc_severe": self._on_test(),
        }

    def _on_test(self) -> dict[str, float] | None:
        """Return a complete run's mean AUROC of `severe` on test patients; None without an interval."""
        try:
            results = read_results(self.folder)
        except Refusal:  # `study show` says why
            return None
        found = mean_interval_of(results, HEADLINES[0])
        return found._asdict() if found else None


def read_run(server: Path, name: str) -> Run:
    """Read one run. Raises Refusal: E_RUN_UNKNOWN, E_RUN_FILES."""
    folder = find_run(server, name)
    return Run(folder, read_study(folder), read_note(folder), state(server, folder), read_history(folder))


def summaries(server: Path) -> list[dict[str, Any]]:
    """Return all runs of a server's folder, oldest first; only name and code for a run with unreadable files."""
    found = []
    for name in run_names(server):
        try:
            found.append(read_run(server, name).summary())
        except Refusal as refusal:
            found.append({"run": name, "state": refusal.code})
    return found


def list_lines(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of `study list`: run, state, round, strategy, seed, group, mean AUROC of severe, start time.

    The AUROC of a complete run is that of test patients, with its interval; that of another run is of its last round's
    validation patients, for which no interval leaves the sites.
    """
    return [
        [
            run["run"],
            run["state"],
            f"{run['round']} of {run['rounds']}" if "round" in run else "",
            run.get("strategy", ""),
            str(run.get("seed", "")),
            run.get("group", ""),
            _headline(run),
            run.get("begun", "")[:16].replace("T", " "),
        ]
        for run in runs
    ]


def _headline(run: Mapping[str, Any]) -> str:
    if on_test := run.get("test_auroc_severe"):
        return str(Interval(**on_test))
    validation = _figure(run.get("means", {}), HEADLINES[0], 2)
    return f"validation {validation}" if validation else ""


def detail(server: Path, name: str) -> dict[str, Any]:
    """Return all details of a run; of a masked study also the figures that follow from its sums.

    `failure`: code, text and remedy of what ended a run that failed; None if this is not known.

    Raises Refusal: E_RUN_UNKNOWN, E_RUN_FILES.
    """
    run = read_run(server, name)
    results = results_or_none(run.folder)
    failure = read_failure(run.folder) if run.state == "failed" else None
    return {
        **run.summary(),
        "standing": standing(run.study, run.history, has_ended=run.state not in UNDER_WAY).text,
        "failure": failure.model_dump() if failure else None,
        "history": run.history,
        "warnings": [{"code": each.code, "says": each.says} for each in trained_long(run.history)],
        "final": results.model_dump(mode="json", exclude={"history", "study"}) if results else None,
        **({"together": pooled_row(results), "means": means_row(results)} if results and summed_of(results) else {}),
        "where": _where(server, run.folder),
    }


def results_or_none(run: Path) -> Results | None:
    """Return a run's results, or None if it has none yet. Raises Refusal E_RESULTS if their format is unknown."""
    try:
        return read_results(run)
    except Refusal as refusal:
        if refusal.reason is reasons.RESULTS and not (run / "results.json").exists():
            return None
        raise


def _where(server: Path, folder: Path) -> dict[str, str]:
    """Return the paths of a run's outputs that exist."""
    places = {
        "candidate": folder / "release",
        "results": folder / "results.json",
        "report": folder / "report" / "report.html",
        "release": server / "releases" / folder.name,
    }
    found = {what: str(path) for what, path in places.items() if path.exists()}
    return found | {"mlflow": how_to_see(server, folder)}


def last_versions(server: Path) -> dict[str, str]:
    """Return the version that each site last reported in a handshake, by name. Damaged histories are left out."""
    versions: dict[str, str] = {}
    for name in run_names(server):
        with suppress(Refusal):
            for entry in read_history(server / "runs" / name):
                versions |= entry.get("versions", {})
    return versions


def round_lines(history: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of rounds, one row each.

    Columns: number, sites that counted (with many sites, their number and the number of sampled sites), loss, mean
    AUROC of `label_of_rounds`, seconds, MB up and down, flags.
    """
    from federation.strategy.round_report import flags

    lines, auroc = [], f"auroc_{label_of_rounds(history)}"
    for entry in rounds_of(history):
        remarks = [f"LOST ({entry['lost_for']})"] if entry["lost"] else []
        remarks += flags(entry)
        lines.append(
            [
                str(entry["round"]),
                _counted(entry),
                _figure(entry["means"], "train_loss", 3),
                _figure(entry["means"], auroc, 2),
                f"{entry['seconds']:.0f}",
                f"{entry['bytes_up'] / 1e6:.1f} / {entry['bytes_down'] / 1e6:.1f}",
                "\n".join(remarks),
            ]
        )
    return lines


def label_of_rounds(history: Sequence[Mapping[str, Any]]) -> str:
    """Return the label whose AUROC the table of rounds has: "severe", unless only the other one is known."""
    known = {label for entry in rounds_of(history) for label in LABELS if f"auroc_{label}" in entry["means"]}
    return "severe" if "severe" in known or not known else known.pop()


def _counted(entry: Mapping[str, Any]) -> str:
    asked = asked_in(entry)
    if len(asked) > MANY:
        return f"{len(entry['sites'])} of {len(asked)}"
    return ", ".join(entry["sites"]) or "none"


def final_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The main metrics of the federated model: one column for each site, and their mean.

    With many sites the columns are the lowest, median and highest value, and the number of sites that reported it. Of a
    masked study: all patients together, and the mean.
    """
    if summed_of(results):
        rows = {ALL: pooled_row(results), MEAN: means_row(results)}
        names = [name for name in (*HEADLINES, *OF_COUNTS) if any(name in row for row in rows.values())]
        return ["figure", *rows], [[name, *(_with_interval(row, name) for row in rows.values())] for name in names]
    figures = federated(results)
    if len(figures) > MANY:
        return ["figure", *SPREAD, "sites", MEAN], [_over_many(figures, name) for name in HEADLINES]
    lines = []
    for name in HEADLINES:
        cells = [_with_interval(figures[site], name) for site in figures]
        lines.append([name, *cells, _mean(figures, name)])
    return ["figure", *figures, MEAN], lines


def masked_lines(results: Results) -> list[str]:
    """Say what the figures of a masked study are over; empty of another study."""
    summed = summed_of(results)
    if summed is None:
        return []
    lines = [
        f"Masked: {summed.patients} test patients of {summed.sites} hospitals. The server knows sums and means over "
        "them, and no hospital's own figures."
    ]
    for label in reversed(LABELS):
        found = of_label(results, label)
        if found is None:
            lines.append(f"{label}: no figure, {why_none(results, label)}")
        else:
            lines.append(
                f"{label}: {found.positive} patients with and {found.negative} without it, at {found.sites} hospitals"
            )
    return lines


def _over_many(figures: Mapping[str, Mapping[str, float]], name: str) -> list[str]:
    known = [each[name] for each in figures.values() if name in each]
    cells = [f"{over(known):.2f}" if known else "" for over in SPREAD.values()]
    return [name, *cells, str(len(known)), _mean(figures, name)]


def federated(results: Results) -> dict[str, dict[str, float]]:
    """Return the federated model's metrics by site."""
    model = results.model(FEDERATED)
    return model.figures if model else {}


def places(results: Results) -> dict[str, dict[str, float]]:
    """Return the federated model's metrics by place: each site and MEAN, of a masked study MEAN and ALL."""
    if summed_of(results):
        return {MEAN: means_row(results), ALL: pooled_row(results)}
    figures = federated(results)
    return {**figures, MEAN: mean_over_sites(figures) if figures else {}}


def final_values(results: Results) -> dict[str, float]:
    """Return the final model's metrics under the names that MLflow gets: `<site>/...`, `mean_...`, `together/...`.

    The last are those of all patients of a masked study together, without their numbers.
    """
    prefixes = {MEAN: "mean_", ALL: "together/"}
    return {
        f"{prefixes.get(place, f'{place}/')}{name}": value
        for place, row in places(results).items()
        for name, value in row.items()
        if name != EXAMPLES and not name.startswith(_NUMBERS)
    }


def mean_over_sites(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric, weighted by the sites' test patients, with the ends of its interval as `mean_interval`.

    A mean of AUROCs is not the AUROC of all patients.
    """
    from federation.protocol.pooled_figures import weighted_means

    means = {
        name: mean for name, mean in weighted_means(list(figures.values())).items() if not name.endswith(_INTERVAL_ENDS)
    }
    for name in list(means):
        if interval := mean_interval(figures, name):
            means |= dict(zip((f"{name}{end}" for end in _INTERVAL_ENDS), interval[1:], strict=True))
    return means


def interval_of(figures: Mapping[str, float], name: str) -> Interval | None:
    """Return a site's metric with its 95 % interval over patients; None if the site gave no finite interval."""
    ends = [figures.get(each, math.nan) for each in (name, f"{name}_low", f"{name}_high")]
    return Interval(*ends) if all(map(math.isfinite, ends)) else None


def mean_interval(figures: Mapping[str, Mapping[str, float]], name: str) -> Interval | None:
    """Return the mean of `mean_over_sites` with its interval over the patients of these sites.

    None if no site, or not every site with this metric, gave an interval.
    """
    having = [each for each in figures.values() if name in each]
    found = [interval for each in having if (interval := interval_of(each, name))]
    if not found or len(found) < len(having):
        return None
    return mean_of_sites(found, [each[EXAMPLES] for each in having])


def mean_interval_of(results: Results, name: str) -> Interval | None:
    """Return the mean over sites of a metric with its interval over patients, of a masked study from its sums."""
    if summed_of(results):
        return interval_of(means_row(results), name)
    return mean_interval(federated(results), name)


def _mean(figures: Mapping[str, Mapping[str, float]], name: str) -> str:
    interval = mean_interval(figures, name)
    return str(interval) if interval else _figure(mean_over_sites(figures), name, 2)


def _figure(figures: Mapping[str, float], name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else ""


def _with_interval(figures: Mapping[str, float], name: str) -> str:
    interval = interval_of(figures, name)
    return str(interval) if interval else _figure(figures, name, 2)
