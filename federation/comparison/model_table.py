"""Compare models on synthetic hospitals: a table and a figure of AUROC with 95 % intervals.

Rows are the models (local, pooled, federated) and the best possible reader, who knows the planted lesions. Columns are
hospitals: the test patients of the training hospitals, and all patients of the hospital that did not train. The first
column has all of them together, for few patients at one hospital cannot tell models apart; beside it stands the paired
difference from the federated model on the same patients, which is known better than either figure. Scores can be put
together only because the hospitals are synthetic.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from federation.client.site_tasks import load_examples
from federation.protocol.study_config import Study
from federation.runs.results import FEDERATED
from models.compute import Compute
from models.network_settings import LABELS
from models.release import Release
from pipeline.cohort.dataset import Examples
from pipeline.cohort.store import Cohort
from pipeline.evaluation.discrimination import Auroc, Estimate, auroc, auroc_difference
from pipeline.site.folder import Site, Split
from pipeline.training.train import predict

READER = "best possible reader"
TOGETHER = "all together"
MINUS = f"{FEDERATED} minus it"
MINUS_EXPLAINED = (
    f'"{MINUS}" is the difference of two AUROCs on the same patients, those of all hospitals together. '
    "An interval without 0 tells the two models apart."
)
ALL: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Cell:
    """The AUROC of one model at one hospital for one label."""

    model: str
    site: str
    label: str
    auroc: Auroc


@dataclass(frozen=True)
class Difference:
    """The AUROC of the federated model minus that of `model`, for one label, on the patients of all hospitals."""

    model: str
    label: str
    difference: Estimate


@dataclass(frozen=True)
class Comparison:
    """All models at all hospitals."""

    cells: list[Cell]
    differences: list[Difference]

    def names(self) -> tuple[list[str], list[str]]:
        """Return models and columns in the order of the comparison."""
        return list(dict.fromkeys(c.model for c in self.cells)), list(dict.fromkeys(c.site for c in self.cells))

    def auroc(self, model: str, site: str, label: str) -> Auroc:
        return next(c.auroc for c in self.cells if (c.model, c.site, c.label) == (model, site, label))

    def gain(self, model: str, label: str) -> str:
        """Format the federated model's difference from another model; empty in its own row."""
        found = [d.difference for d in self.differences if (d.model, d.label) == (model, label)]
        return signed(found[0]) if found else ""


@dataclass(frozen=True)
class Hospital:
    """A hospital of the comparison: its site, the selected patients, and the file of the planted truth."""

    site: Site
    splits: tuple[Split, ...]
    truth: Path

    @property
    def name(self) -> str:
        return self.site.name if self.splits != ALL else f"{self.site.name} (never trained)"


def reader_scores(hospital: Hospital) -> NDArray[np.float32]:
    """Return the best possible reader's answers: the planted probability of `severe`, and whether Covid was planted.

    Shape (patients, labels), in the order of the site's examples.
    """
    patients = json.loads(hospital.truth.read_text())["patients"]
    known = {hospital.site.pseudonym(p["patient_id"]): p for p in patients}
    with Cohort(hospital.site) as cohort:
        rows = [known[p.pseudonym] for p in cohort.patients() if p.split in hospital.splits]
    scores = [[{"covid": 1.0, "none": 0.0, "other": -1.0}[p["pattern"]], p["p_severe"]] for p in rows]
    return np.array(scores, dtype=np.float32)


def compare(models: Mapping[str, Release], hospitals: Sequence[Hospital], study: Study) -> Comparison:
    """Compute the AUROC of every model and of the best possible reader at every hospital, for both labels."""
    scores: dict[str, dict[str, NDArray[np.float32]]] = {}
    targets: dict[str, NDArray[np.float32]] = {}
    for hospital in hospitals:
        examples: Examples = load_examples(hospital.site, study, *hospital.splits)
        compute = Compute.open(hospital.site.settings.compute)
        scores[hospital.name] = {n: predict(model.network, examples, compute=compute) for n, model in models.items()}
        scores[hospital.name][READER] = reader_scores(hospital)
        targets[hospital.name] = examples.targets
    rows = (*models, READER)
    together = {name: np.concatenate([at[name] for at in scores.values()]) for name in rows}
    known = np.concatenate(list(targets.values()))
    scores, targets = {TOGETHER: together, **scores}, {TOGETHER: known, **targets}
    cells = [
        Cell(name, site, label, auroc(values[name][:, column], targets[site][:, column]))
        for site, values in scores.items()
        for name in rows
        for column, label in enumerate(LABELS)
    ]
    return Comparison(cells, _differences(together, known))


def _differences(scores: Mapping[str, NDArray[np.float32]], targets: NDArray[np.float32]) -> list[Difference]:
    """Compare the federated model with each other row, for both labels."""
    found = []
    for name in (row for row in scores if row != FEDERATED):
        for column, label in enumerate(LABELS):
            pair = scores[FEDERATED][:, column], scores[name][:, column]
            found.append(Difference(name, label, auroc_difference(*pair, targets[:, column])))
    return found


def signed(found: Estimate) -> str:
    """Format a difference with its interval, each with its sign."""
    if math.isnan(found.value):
        return str(found)
    return f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})".replace("-", "\N{MINUS SIGN}")


def markdown(found: Comparison, label: str) -> str:
    """Format the table of one label in Markdown."""
    models, sites = found.names()
    first, *others = sites
    head = [f"AUROC of `{label}` (95 % interval)", first, MINUS, *others]
    lines = [head, ["---"] * len(head)]
    for model in models:
        at = [str(found.auroc(model, site, label)) for site in sites]
        lines.append([model, at[0], found.gain(model, label), *at[1:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_results(found: Comparison, out: Path) -> None:
    """Write results.json, results.md and results.png to `out`."""
    (out / "results.json").write_text(json.dumps(asdict(found), indent=1))
    text = "Synthetic hospitals: these results say nothing about real patients.\n\n"
    text += MINUS_EXPLAINED + "\n\n"
    text += "\n\n".join(markdown(found, label) for label in reversed(LABELS))
    (out / "results.md").write_text(text + "\n", encoding="utf-8")
    draw(found, out / "results.png")


def draw(found: Comparison, path: Path) -> None:
    """Draw one panel for each hospital: the AUROC of `severe` of each model as a point with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models, sites = found.names()
    figure, axes = plt.subplots(1, len(sites), figsize=(3.1 * len(sites), 3.4), sharey=True, layout="constrained")
    rows = np.arange(len(models))[::-1]
    for axis, site in zip(np.atleast_1d(axes), sites, strict=True):
        for row, model in zip(rows, models, strict=True):
            at = found.auroc(model, site, "severe")
            colour = "#b3261e" if model == FEDERATED else "#8a8a8a" if model == READER else "#1f4e79"
            axis.plot([at.low, at.high], [row, row], color=colour, linewidth=2, alpha=0.6)
            axis.plot(at.value, row, "D" if model == READER else "o", color=colour)
        if all(math.isnan(found.auroc(model, site, "severe").value) for model in models):
            axis.text(0.66, rows.mean(), "no figure:\none outcome only", ha="center", va="center", color="#666666")
        axis.axvline(0.5, color="#cccccc", linewidth=1, linestyle=":")
        axis.set(xlim=(0.3, 1.02), title=site, xlabel="AUROC of severe")
        axis.set_yticks(rows, models)
        axis.grid(axis="x", color="#eeeeee")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Severe Covid-19 among PCR-positive patients, SYNTHETIC hospitals (95 % intervals)")
    figure.savefig(path, dpi=150)
    plt.close(figure)
