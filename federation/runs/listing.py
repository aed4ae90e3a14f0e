"""The runs of a server's folder, as `fedthorax study list` and `show` tell of them.

They work from the run's files, whether the server runs or not; that is asked for the state of a run alone whose end
nobody noted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from federation.protocol.study_config import Study
from federation.runs import reasons
from federation.runs.progress import asked_in, rounds_of, standing
from federation.runs.results import FEDERATED, Results, read_results
from federation.runs.run_folder import RunNote, find_run, read_history, read_note, read_study, run_names
from federation.runs.submission import State, state
from federation.runs.tracking import how_to_see
from models.refusal import Refusal

# What people are shown of the final model; --json has every figure.
HEADLINES = (
    "auroc_severe",
    "auprc_severe",
    "sens_at_spec90_severe",
    "calibration_slope_severe",
    "brier_severe",
    "auroc_pcr_positive",
)
MEAN = "mean over sites"
MANY = 8  # sites; a terminal has no column for each of more
SPREAD: Mapping[str, Callable[[Sequence[float]], float]] = {"lowest": min, "median": median, "highest": max}


@dataclass(frozen=True)
class Run:
    """One run by its files."""

    folder: Path
    study: Study
    note: RunNote
    state: State
    history: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.name

    def summary(self) -> dict[str, Any]:
        """What a list shows; `means` are those of the last round over the sites that counted in it."""
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
        }


def read_run(server: Path, name: str) -> Run:
    """Raises Refusal: E_RUN_UNKNOWN, E_RUN_FILES."""
    folder = find_run(server, name)
    return Run(folder, read_study(folder), read_note(folder), state(server, folder), read_history(folder))


def summaries(server: Path) -> list[dict[str, Any]]:
    """All runs of a server's folder, oldest first; of one whose files cannot be read only its name and the code."""
    found = []
    for name in run_names(server):
        try:
            found.append(read_run(server, name).summary())
        except Refusal as refusal:
            found.append({"run": name, "state": refusal.code})
    return found


def list_lines(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of `study list`: run, state, round, strategy, seed, group, mean AUROC of severe, when begun."""
    return [
        [
            run["run"],
            run["state"],
            f"{run['round']} of {run['rounds']}" if "round" in run else "",
            run.get("strategy", ""),
            str(run.get("seed", "")),
            run.get("group", ""),
            _figure(run.get("means", {}), "auroc_severe", 2),
            run.get("begun", "")[:16].replace("T", " "),
        ]
        for run in runs
    ]


def detail(server: Path, name: str) -> dict[str, Any]:
    """All that is known of a run. Raises Refusal: E_RUN_UNKNOWN, E_RUN_FILES."""
    run = read_run(server, name)
    results = results_or_none(run.folder)
    return {
        **run.summary(),
        "standing": standing(run.study, run.history).text,
        "history": run.history,
        "final": results.model_dump(mode="json", exclude={"history", "study"}) if results else None,
        "where": _where(server, run.folder),
    }


def results_or_none(run: Path) -> Results | None:
    """The results of a run; None while it has none. Raises Refusal E_RESULTS where there are some, but not ours."""
    try:
        return read_results(run)
    except Refusal as refusal:
        if refusal.reason is reasons.RESULTS and not (run / "results.json").exists():
            return None
        raise


def _where(server: Path, folder: Path) -> dict[str, str]:
    """Where what came of a run lies, as far as it is there."""
    places = {
        "candidate": folder / "release",
        "results": folder / "results.json",
        "report": folder / "report" / "report.html",
        "release": server / "releases" / folder.name,
    }
    found = {what: str(path) for what, path in places.items() if path.exists()}
    return found | {"mlflow": how_to_see(server, folder)}


def round_lines(history: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The table of rounds: number, sites that counted (of many how many of those asked), loss, mean AUROC of severe,
    seconds, MB up and down, flags.
    """
    from federation.strategy.round_report import flags

    lines = []
    for entry in rounds_of(history):
        told = [f"LOST ({entry['lost_for']})"] if entry["lost"] else []
        told += flags(entry)
        lines.append(
            [
                str(entry["round"]),
                _counted(entry),
                _figure(entry["means"], "train_loss", 3),
                _figure(entry["means"], "auroc_severe", 2),
                f"{entry['seconds']:.0f}",
                f"{entry['bytes_up'] / 1e6:.1f} / {entry['bytes_down'] / 1e6:.1f}",
                "\n".join(told),
            ]
        )
    return lines


def _counted(entry: Mapping[str, Any]) -> str:
    asked = asked_in(entry)
    if len(asked) > MANY:
        return f"{len(entry['sites'])} of {len(asked)}"
    return ", ".join(entry["sites"]) or "none"


def final_table(results: Results) -> tuple[list[str], list[list[str]]]:
    """The headlines of the federated model: columns are sites and the mean over them, which is a mean and no more.

    With many sites the columns are the lowest, the median and the highest of them, and how many told the figure.
    """
    figures = federated(results)
    if len(figures) > MANY:
        return ["figure", *SPREAD, "sites", MEAN], [_over_many(figures, name) for name in HEADLINES]
    lines = []
    for name in HEADLINES:
        cells = [_with_interval(figures[site], name) for site in figures]
        lines.append([name, *cells, _figure(mean_over_sites(figures), name, 2)])
    return ["figure", *figures, MEAN], lines


def _over_many(figures: Mapping[str, Mapping[str, float]], name: str) -> list[str]:
    told = [each[name] for each in figures.values() if name in each]
    cells = [f"{over(told):.2f}" if told else "" for over in SPREAD.values()]
    return [name, *cells, str(len(told)), _figure(mean_over_sites(figures), name, 2)]


def federated(results: Results) -> dict[str, dict[str, float]]:
    """The federated model's figures by site."""
    model = results.model(FEDERATED)
    return model.figures if model else {}


def mean_over_sites(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each figure's mean, weighted by the sites' test patients. A mean of AUROCs is not the AUROC of all patients."""
    from federation.protocol.pooled_figures import weighted_means

    return weighted_means(list(figures.values()))


def _figure(figures: Mapping[str, float], name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else ""


def _with_interval(figures: Mapping[str, float], name: str) -> str:
    low, high = (_figure(figures, f"{name}_{end}", 2) for end in ("low", "high"))
    interval = f" ({low}–{high})" if low and high else ""
    return _figure(figures, name, 2) + interval
