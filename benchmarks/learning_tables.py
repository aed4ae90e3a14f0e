"""The finished cells of learning.py as tables and a figure. Each row says how many seeds it has."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import Part, Table
from learning_methods import ALONE, NAIVE, NAIVE_EPOCHS, OURS, POOLED
from learning_sites import FOREIGN, KINDS, UNSEEN, Form
from scipy import stats

from models.network_settings import LABELS

if TYPE_CHECKING:
    from learning import Cell

FIGURE = Path(__file__).with_name("results") / "learning.png"
SEVERE, PCR = "severe", "pcr_positive"
BEST = "best hospital alone"
ROWS = (POOLED, OURS, NAIVE, BEST)
LEAST_GAIN = 0.02
DRAWS = 400  # of the bootstrap over patients

Statistic = Callable[[dict[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its 95 % interval by Student's t; no interval with less than two seeds.

    `patients_se`: standard error of the mean through patients that all seeds share, which the seeds cannot show.
    """

    value: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float], patients_se: float = 0.0) -> "Mean":
        known = np.asarray(values, dtype=np.float64)
        count, mean = len(known), float(known.mean()) if len(known) else float("nan")
        if count < 2:
            return cls(mean, float("nan"), float("nan"), count)
        half = float(stats.t.ppf(0.975, count - 1) * np.hypot(known.std(ddof=1) / np.sqrt(count), patients_se))
        return cls(mean, mean - half, mean + half, count)

    def __str__(self) -> str:
        return self._text("{:.3f}")

    def signed(self) -> str:
        return self._text("{:+.3f}")

    def _text(self, form: str) -> str:
        if not self.count:
            return "–"
        value, low, high = (form.format(each) for each in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})" if self.count > 1 else f"{value} (one seed)"


class Found:
    """Lookup of finished cells by kind, seed and row."""

    def __init__(self, cells: "Iterable[Cell]") -> None:
        self.cells = {cell.key: cell for cell in cells}
        self.kinds = [kind for kind in KINDS if any(key[0] == kind for key in self.cells)]

    def row(self, kind: str, name: str, label: str) -> "dict[int, Cell]":
        """Return a row's cell of each seed. The best hospital is that of each seed, known only afterwards."""
        if name != BEST:
            return {
                seed: cell for (of, seed, method), cell in sorted(self.cells.items()) if (of, method) == (kind, name)
            }
        of = KINDS[kind].locals_of or kind
        wanted = [hospital + ALONE for hospital in KINDS[of].names]
        seeds = {seed for at, seed, _ in self.cells if at == of}
        alone = {seed: [self.cells.get((of, seed, method)) for method in wanted] for seed in sorted(seeds)}
        return {
            seed: max((cell for cell in cells if cell), key=lambda cell: cell.areas[UNSEEN][label])
            for seed, cells in alone.items()
            if all(cells)
        }

    def mean(self, kind: str, name: str, label: str, at: str = UNSEEN) -> Mean:
        """Return the mean AUROC of a row at a test hospital."""
        return self._over(kind, (name,), label, at, lambda area: area[name])

    def ratio(self, kind: str, name: str, label: str, at: str = UNSEEN) -> Mean:
        """Return the mean of a row's AUROC divided by that of pooled training of the same seed."""
        return self._over(kind, (name, POOLED), label, at, lambda area: area[name] / area[POOLED])

    def gain(self, kind: str, name: str, other: str, label: str, at: str = UNSEEN) -> Mean:
        """Return the mean difference of two rows' AUROC of the same seed."""
        return self._over(kind, (name, other), label, at, lambda area: area[name] - area[other])

    def _over(self, kind: str, names: Sequence[str], label: str, at: str, of: Statistic) -> Mean:
        """Return the mean of a statistic over the seeds that have all these rows."""
        rows = {name: self.row(kind, name, label) for name in names}
        seeds = sorted(set.intersection(*(set(row) for row in rows.values())))
        values = [float(of({n: np.array(rows[n][s].areas[at][label]) for n in names})) for s in seeds]
        if at != FOREIGN or len(seeds) < 2:
            return Mean.of(values)
        drawn = [of({n: _resampled(rows[n][s], at, label) for n in names}) for s in seeds]
        return Mean.of(values, float(np.mean(drawn, axis=0).std(ddof=1)))


def _resampled(cell: "Cell", at: str, label: str) -> np.ndarray:
    """Return a model's AUROC in bootstrap samples of the patients; the samples are the same for every model."""
    place = LABELS.index(label)  # type: ignore[arg-type]
    targets, scores = cell.targets[at][:, place], cell.logits[at][:, place]
    known = ~np.isnan(targets)
    scores, ill = scores[known], targets[known] == 1
    rng = np.random.default_rng(1)
    weights = np.zeros((DRAWS, len(scores)))
    for group in np.flatnonzero(ill), np.flatnonzero(~ill):
        weights[:, group] = rng.multinomial(len(group), np.full(len(group), 1 / len(group)), size=DRAWS)
    ordered = np.sort(scores)
    order = np.argsort(scores, kind="stable")
    healthy = np.concatenate([np.zeros((DRAWS, 1)), np.cumsum((weights * ~ill)[:, order], axis=1)], axis=1)
    left, right = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))  # type: ignore[call-overload]
    below = (healthy[:, left] + healthy[:, right]) / 2
    return np.asarray((weights * ill * below).sum(axis=1) / (ill.sum() * (~ill).sum()))


def report(cells: "Iterable[Cell]", form: Form, earlier: "Iterable[Cell]" = ()) -> Part:
    """Return the tables of the cells that are there; draw the figure if they have the full form.

    `earlier`: cells of earlier settings, if the tables are to be theirs. A last table then compares them with `cells`.
    """
    today, before = Found(cells), Found(earlier)
    found = before if before.cells else today
    if form.name == "default" and found.cells:
        draw(found)
    notes = _notes(found, form)
    tables = [goals(found), *(areas_table(found, label) for label in (SEVERE, PCR)), costs(found)]
    if before.cells:
        notes.append(f"All tables are of earlier settings. With today's, {len(today.cells)} models are finished.")
        tables += [changes(today, before)] if today.cells else []
    return Part(notes, [], tables, {"cells": [_plain(cell) for _, cell in sorted(found.cells.items())]})


def changes(today: Found, before: Found) -> Table:
    """Return the table of what a change of settings did to the AUROC at the unseen hospital, paired by seed."""
    rows = []
    for kind in before.kinds:
        for name in ROWS:
            means = []
            for label in (SEVERE, PCR):
                now, then = (found.row(kind, name, label) for found in (today, before))
                seeds = sorted(now.keys() & then.keys())
                pairs = [(now[seed].areas[UNSEEN][label], then[seed].areas[UNSEEN][label]) for seed in seeds]
                means.append(Mean.of([after - earlier for after, earlier in pairs]))
            if means[0].count:
                rows.append([kind, name, str(means[0].count), *(mean.signed() for mean in means)])
    head = ["difference", "trained", "seeds", f"`{SEVERE}`", f"`{PCR}`"]
    return Table("AUROC at the unseen hospital with today's settings less that with the earlier ones", head, rows)


def _plain(cell: "Cell") -> dict[str, Any]:
    areas = {
        at: {label: round(value, 4) if np.isfinite(value) else None for label, value in of.items()}
        for at, of in cell.areas.items()
    }
    return {"kind": cell.kind, "seed": cell.seed, "method": cell.method, **areas, "cost": asdict(cell.cost)}


def _notes(found: Found, form: Form) -> list[str]:
    what = form.settings(1, 3)
    table, network = what.study, what.network
    per_round = f"{table.local_steps} steps" if table.local_steps else f"{table.local_epochs} local epochs"
    minutes = sum(cell.cost.processor_s for cell in found.cells.values()) / 60
    return [
        f"Form '{form.name}': {network.architecture} of width {network.widen_factor:g}, scans of "
        f"{' x '.join(map(str, what.preprocessing.shape))}, {table.rounds} rounds of {per_round}, "
        f"{what.strategy.name}, peak rate {what.training.learning_rate:g}"
        + (": the study that `study init` writes." if form.name == "default" else ". Not the defaults of a study."),
        "Synthetic patients, lesions of half the usual density; three in five are for training. No model has seen the "
        f"two hospitals that test: '{UNSEEN}', {form.unseen_patients} patients for each seed with another scanner, "
        f"and '{FOREIGN}', {form.foreign_patients} patients with random bodies, which no setting was chosen on.",
        *(f"{kind.capitalize()}: {KINDS[kind].says}." for kind in found.kinds),
        f"Rows: {POOLED}, all patients in one place; {OURS}, the study; {NAIVE}, {NAIVE_EPOCHS} local epochs of plain "
        "SGD at a constant rate and the mean of all tensors, without a guard; the best hospital alone, chosen "
        "afterwards for each seed and label by its AUROC at the unseen hospital, which favours it.",
        "Each seed has other patients at every hospital but the foreign one, other first weights and another order. "
        "Intervals: 95 %, Student's t over the seeds, of figures that are paired by seed. At the foreign hospital, "
        f"whose patients all seeds share, they also cover the choice of its patients (bootstrap, {DRAWS} samples).",
        f"{minutes:.0f} processor minutes of training for {len(found.cells)} models, without cohorts.",
    ]


def _verdict(mean: Mean, least: float, lowest: float) -> str:
    if mean.count < 2:
        return "too few seeds"
    if mean.value < least:
        return "**missed**"
    return "met" if mean.low >= lowest else "met by the mean; its interval extends too low"


def goals(found: Found) -> Table:
    """Return the table of the goals at the unseen hospital."""
    rows = []
    for kind in found.kinds:
        least, lowest = KINDS[kind].goal
        for label in (SEVERE, PCR):
            ratio = found.ratio(kind, OURS, label)
            gain, naive = (found.gain(kind, OURS, other, label) for other in (BEST, NAIVE))
            goal = f"{least} ({lowest})"
            gained = _verdict(gain, LEAST_GAIN, LEAST_GAIN) if KINDS[kind].is_small else ""
            cells = [str(ratio), goal, _verdict(ratio, least, lowest), gain.signed(), gained, naive.signed()]
            rows.append([kind, label, str(ratio.count), *cells])
    return Table(
        "Goals at the unseen hospital: the ratio to pooled training is at least the goal, and its lower end at least "
        f"the figure in brackets. Small hospitals should gain {LEAST_GAIN} over the best one alone",
        [
            "difference",
            "label",
            "seeds",
            "ours / pooled",
            "goal",
            "goal met",
            "ours - best alone",
            f"gain of {LEAST_GAIN}",
            "ours - naive FedAvg",
        ],
        rows,
    )


def areas_table(found: Found, label: str) -> Table:
    """Return the table of a label's AUROC at both test hospitals."""
    rows = []
    for kind in found.kinds:
        for name in ROWS:
            cells = []
            for at in (UNSEEN, FOREIGN):
                ratio = "" if name == POOLED else str(found.ratio(kind, name, label, at))
                cells += [str(found.mean(kind, name, label, at)), ratio]
            rows.append([kind, name, str(len(found.row(kind, name, label))), *cells])
    head = ["difference", "trained", "seeds", "AUROC, unseen", "ratio to pooled", "AUROC, foreign", "ratio to pooled"]
    return Table(f"`{label}`", head, rows)


def costs(found: Found) -> Table:
    """Return the table of what a training takes, as means over the seeds."""
    rows = []
    for kind in found.kinds:
        for name in ROWS:
            cost = [cell.cost for cell in found.row(kind, name, SEVERE).values()]
            if cost:
                mean = {key: np.mean([asdict(each)[key] for each in cost]) for key in asdict(cost[0])}
                bytes_mb = [f"{mean[key] / 1e6:.0f}" for key in ("bytes_up", "bytes_down")]
                passes, minutes = f"{mean['passes']:.0f}", f"{mean['processor_s'] / 60:.1f}"
                rows.append([kind, name, f"{mean['rounds']:.0f}", passes, minutes, *bytes_mb])
    head = ["difference", "trained", "rounds", "passes over a patient", "processor minutes, all hospitals"]
    return Table("Cost of a training", [*head, "MB from each hospital", "MB to each hospital"], rows)


def draw(found: Found) -> None:
    """Draw the AUROC of `severe` at the unseen hospital: every seed as a dot, the mean with its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(found.kinds) + 1, 4), layout="constrained")
    axes: Any = figure.subplots(1, len(found.kinds), sharey=True, squeeze=False)[0]
    colours = {OURS: "tab:orange", POOLED: "tab:blue"}
    for panel, kind in zip(axes, found.kinds, strict=True):
        shown = [name for name in (BEST, NAIVE, OURS, POOLED) if found.row(kind, name, SEVERE)]
        for place, name in enumerate(shown):
            values = [cell.areas[UNSEEN][SEVERE] for cell in found.row(kind, name, SEVERE).values()]
            mean, colour = Mean.of(values), colours.get(name, "0.45")
            panel.plot([place] * len(values), values, "o", color=colour, alpha=0.35, markersize=4)
            if mean.count > 1:
                panel.errorbar(
                    place, mean.value, mean.high - mean.value, fmt="_", color=colour, capsize=4, markersize=14
                )
        panel.set_xticks(range(len(shown)), shown, rotation=45, ha="right")
        panel.set_title(kind)
        panel.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("AUROC of severe, unseen hospital")
    figure.suptitle("Synthetic hospitals: each seed,\nand the mean with its 95 % interval", fontsize=10)
    figure.savefig(FIGURE, dpi=110)
