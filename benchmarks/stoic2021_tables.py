"""The page and the JSON of stoic2021.py: our figures, beside those that the challenge published."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from run import circumstances, markdown
from stoic2021_baseline import EQUAL, OTHER, Recipe
from stoic2021_figures import Figure, area, calibration, ratio
from stoic2021_models import FEDERATED, PORT, Answers
from stoic2021_sites import Brought, Patients

from federation.protocol.study_config import Study
from models.network_settings import LABELS
from pipeline.evaluation.combining import LEAST_REPEATS
from pipeline.system.atomic_files import write_atomically

PAGE, NUMBERS = "stoic2021.md", "stoic2021.json"
PUBLISHED_COUNTS = {"patients": 2000, "pcr_positive": 1205, "severe": 301}  # of the public label table
SOURCE = "Boulogne et al., Medical Image Analysis 2024, arXiv:2306.10484"
# What the challenge published. Only figures that were read at their source are here.
PUBLISHED = (
    {
        "who": "winner of the final phase",
        "severe": 0.815,
        "trained_on": "9,724 patients",
        "source": SOURCE,
    },
)
NOT_THE_SAME = (
    "These figures cannot be compared with those above: they are not of the same test patients. The challenge judged "
    "on some 1,000 patients that were never published. Our test patients are a quarter of the 2,000 public ones."
)
TITLES = {"severe": "severe among PCR-positive", "pcr_positive": "PCR"}


@dataclass(frozen=True)
class Made:
    """All that the tables are about. `answers`: by row and seed; `counts`: accepted patients and their labels."""

    study: Study
    split: str
    brought: Brought
    patients: Patients
    counts: dict[str, int]
    answers: Mapping[str, Mapping[int, Answers]]
    recipe: Recipe

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for by_seed in self.answers.values() for seed in by_seed})

    @property
    def is_published_set(self) -> bool:
        """Whether the label table is that of the public set, by its counts; all patients have a scan; no phantoms."""
        has_all = sum(self.brought.sites.values()) == PUBLISHED_COUNTS["patients"]
        return not self.brought.synthetic and has_all and self.brought.labels == PUBLISHED_COUNTS

    def scores(self, row: str, label: int) -> np.ndarray:
        """Logits of one label, shape (seeds, patients)."""
        return np.stack([self.answers[row][seed].logits[:, label] for seed in sorted(self.answers[row])])

    def area(self, row: str, label: str, site: int | None = None) -> Figure:
        """The AUROC of a row for the test patients of all sites, or of one."""
        k = LABELS.index(label)
        chosen = np.ones(len(self.patients.site), bool) if site is None else self.patients.site == site
        return area(self.scores(row, k)[:, chosen], self.patients.targets[chosen, k])

    def ratio(self, row: str, other: str, label: str) -> Figure:
        k = LABELS.index(label)
        common = sorted(self.answers[row].keys() & self.answers[other].keys())
        one, two = (np.stack([self.answers[each][seed].logits[:, k] for seed in common]) for each in (row, other))
        return ratio(one, two, self.patients.targets[:, k])

    def calibration(self, row: str, label: str) -> Any:
        k = LABELS.index(label)
        found = [self.answers[row][seed] for seed in sorted(self.answers[row])]
        return calibration(
            [each.logits[:, k] for each in found], [each.platt[k] for each in found], self.patients.targets[:, k]
        )


def numbers(made: Made) -> dict[str, Any]:
    """Return everything as JSON."""
    order = ("severe", "pcr_positive")
    rows = {
        row: {
            label: {
                "auroc": made.area(row, label).to_json(),
                "auroc_by_site": {
                    name: made.area(row, label, place).to_json() for place, name in enumerate(made.patients.names)
                },
                "calibration": made.calibration(row, label).to_json(),
            }
            for label in order
        }
        | {"seeds": sorted(made.answers[row]), "median_seconds": _seconds(made, row)}
        for row in made.answers
    }
    return {
        **circumstances(),
        "synthetic": made.brought.synthetic,
        "published_set": made.is_published_set,
        "split": made.split,
        "study": made.study.model_dump(mode="json"),
        "data": asdict(made.brought) | {"labels": made.counts},
        "test_patients": len(made.patients.site),
        "rows": rows,
        "ratios": {
            f"{FEDERATED} / {other}": {label: made.ratio(FEDERATED, other, label).to_json() for label in order}
            for other in _compared(made)
        },
        "port": {
            "recipe": asdict(made.recipe),
            "as_published": made.recipe.is_published,
            "equal": EQUAL,
            "other": OTHER,
        }
        if PORT in made.answers
        else None,
        "published": {"figures": list(PUBLISHED), "why_not_comparable": NOT_THE_SAME},
    }


def _seconds(made: Made, row: str) -> float:
    return float(np.median([each.seconds for each in made.answers[row].values()]))


def _compared(made: Made) -> list[str]:
    return [row for row in made.answers if row not in (FEDERATED, PORT)]


def page(made: Made, about: Mapping[str, Any]) -> str:
    """Return the tables as Markdown."""
    names = made.patients.names
    order = ("severe", "pcr_positive")
    lines = ["# STOIC2021, federated", "", *_warnings(made), *_about(made, about)]
    head = ["model", *(f"AUROC of {TITLES[label]}" for label in order)]
    head += [*(f"{TITLES[label]}: slope / intercept / ECE" for label in order), "seeds", "minutes"]
    table = [
        [
            row,
            *(str(made.area(row, label)) for label in order),
            *(str(made.calibration(row, label)) for label in order),
            str(len(made.answers[row])),
            f"{_seconds(made, row) / 60:.1f}",
        ]
        for row in made.answers
    ]
    lines += ["## All test patients", "", *markdown(head, table)]
    ratios = [
        [f"{FEDERATED} / {other}", *(str(made.ratio(FEDERATED, other, label)) for label in order)]
        for other in _compared(made)
    ]
    lines += ["## Ratios of AUROCs, same patients and seeds", "", *markdown(["", *head[1:3]], ratios)]
    for label in order:
        rows = [[row, *(str(made.area(row, label, place)) for place in range(len(names)))] for row in made.answers]
        lines += [f"## AUROC of {TITLES[label]}, by site", "", *markdown(["model", *names], rows)]
    if PORT in made.answers:
        lines += [f"## {PORT[0].upper()}{PORT[1:]}", "", *_port(made)]
    published = [[each["who"], f"{each['severe']:.3f}", each["trained_on"], each["source"]] for each in PUBLISHED]
    head = ["published by the challenge", f"AUROC of {TITLES['severe']}", "trained on", "source"]
    lines += ["## Published figures", "", NOT_THE_SAME, "", *markdown(head, published)]
    return "\n".join([*lines, ""])


def _warnings(made: Made) -> list[str]:
    if made.brought.synthetic:
        return [
            "**Synthetic patients.** The folder holds phantoms in the layout of STOIC2021. These figures say that the "
            "command works, and nothing about STOIC2021.",
            "",
        ]
    if not made.is_published_set:
        scans, found = sum(made.brought.sites.values()), made.brought.labels
        return [
            f"**Not the whole public set.** Its label table has {_counted(PUBLISHED_COUNTS)}, and each has a scan. "
            f"This folder's table has {_counted(found)}, and {scans} have a scan.",
            "",
        ]
    return []


def _counted(labels: Mapping[str, int]) -> str:
    return f"{labels['patients']} patients, {labels['pcr_positive']} PCR-positive, {labels['severe']} severe"


def _about(made: Made, about: Mapping[str, Any]) -> list[str]:
    study, counts, brought = made.study, made.counts, made.brought
    kind = "synthetic " if brought.synthetic else ""
    left = ", ".join(f"{code} {count}" for code, count in sorted(brought.left_out.items())) or "none"
    accepted = max(sum(brought.accepted.values()), 1)
    test = {label: made.area(next(iter(made.answers)), label) for label in LABELS}
    return [
        f"{about['date']}; {about['machine']}. {counts['patients']} {kind}patients at {len(made.patients.names)} "
        f"sites, split: {made.split}; {counts['pcr_positive']} PCR-positive, {counts['severe']} of them severe. Test: "
        f"{len(made.patients.site)} patients, {test['severe'].positives} severe among {test['severe'].patients} "
        f"PCR-positive. Left out: {left}.",
        "",
        f"Network {study.network.architecture}, grid {' x '.join(map(str, study.preprocessing.shape))}, strategy "
        f"{study.strategy.name}, rounds: {study.study.rounds}, local epochs: {study.study.local_epochs}. Seeds: "
        f"{', '.join(map(str, made.seeds))}. Intervals are 95 %, over patients"
        + (" and seeds." if len(made.seeds) >= LEAST_REPEATS else " only: they need three seeds to cover other seeds.")
        + f" Ingest took {brought.seconds / accepted:.2f} s and {brought.megabytes / accepted:.2f} MB a patient.",
        "",
        "The sites are made by a rule: the data set names no hospitals. A model alone at one site is tested on the "
        "patients of all sites.",
        "",
    ]


def _port(made: Made) -> list[str]:
    lines = [f"Equal: {EQUAL}.", "", f"Not equal: {OTHER}.", ""]
    if not made.recipe.is_published:
        lines += [f"**Not the published size**: {made.recipe}.", ""]
    return lines


def write(made: Made, out: Path) -> tuple[Path, str]:
    """Write both files; return the page's path and text."""
    found = numbers(made)
    text = page(made, found)
    write_atomically(out / NUMBERS, (json.dumps(_finite(found), indent=1) + "\n").encode())
    write_atomically(out / PAGE, text.encode())
    return out / PAGE, text


def _finite(content: Any) -> Any:
    """Replace numbers that JSON does not have by None."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
