"""Count a site's patients by split, label and group: the upper bound of the patients that a figure covers."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from federation.protocol.grids import Threes
from federation.protocol.metric_allowlist import ANY, LABELS, SPLITS, Figure
from pipeline.evaluation.ladder import counted_classes
from pipeline.evaluation.subgroups import groups_of
from pipeline.site.folder import Site

# Severity is evaluated among patients who are not known to be PCR-negative, as in pipeline/cohort/dataset.py.
_QUERY = """
SELECT split, age_years, sex, json_extract(measures, '$.manufacturer'),
       pcr_positive, CASE WHEN pcr_positive = 0 THEN NULL ELSE severe END
FROM patients LEFT JOIN (SELECT tensor, measures FROM scans WHERE tensor IS NOT NULL) USING (tensor)
"""


@dataclass(frozen=True)
class Patients:
    """Counts of patients: by split; with any label, by split; by (split, label, its value); and by group.

    `in_group`: by (split, label, its value, group).
    """

    of_split: Mapping[str, int] = field(default_factory=dict)
    labelled: Mapping[str, int] = field(default_factory=dict)
    with_value: Mapping[tuple[str, str, bool], int] = field(default_factory=dict)
    in_group: Mapping[tuple[str, str, bool, str], int] = field(default_factory=dict)

    def behind(self, figure: Figure) -> int:
        """Return the smallest number of patients that this figure covers here; 0 if it is not defined."""
        splits = SPLITS[figure.split]
        if figure.label in ("", ANY):
            of = self.labelled if figure.label else self.of_split
            return sum(of.get(split, 0) for split in splits)
        classes = [sum(self._of(figure, split, value) for split in splits) for value in (False, True)]
        if figure.both and not all(classes):
            return 0
        numbers = [sum(classes)]
        if figure.reveals_classes:
            numbers += classes
        if figure.fitted:
            numbers.append(sum(self.with_value.get(("train", figure.label, value), 0) for value in (False, True)))
        return min(numbers)

    def among(self, figure: Figure, of: Literal["all", "true", "false"]) -> int:
        """Return how many patients a share covers: those with the figure's label, or with one value of it.

        Without a label: all patients of its splits.
        """
        splits = SPLITS[figure.split]
        if not figure.label:
            return sum(self.of_split.get(split, 0) for split in splits)
        values = {"all": (False, True), "true": (True,), "false": (False,)}[of]
        return sum(self._of(figure, split, value) for split in splits for value in values)

    def prevalence(self, figure: Figure) -> float:
        """Return the share with a true label among the patients with the figure's label; 0 if there are none."""
        return self.among(figure, "true") / max(1, self.among(figure, "all"))

    def own(self, figure: Figure) -> float:
        """Return the value of a figure that reveals the classes: the size of one of them, or the prevalence."""
        if isinstance(figure.grid, Threes):
            sizes = counted_classes(self.among(figure, "true"), self.among(figure, "false"))
            return float(sizes[figure.grid.of == "false"])
        return self.prevalence(figure)

    def _of(self, figure: Figure, split: str, value: bool) -> int:
        if figure.group:
            return self.in_group.get((split, figure.label, value, figure.group), 0)
        return self.with_value.get((split, figure.label, value), 0)


def training_patients(site: Site) -> frozenset[str]:
    """Return short digests of the training patients, to recognise the same cohort; they never leave the site."""
    path = site.cohort_folder / "cohort.sqlite"
    if not path.is_file():
        return frozenset()
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as database:
        rows = database.execute("SELECT pseudonym, tensor FROM patients WHERE split = 'train'").fetchall()
    return frozenset(hashlib.sha256("|".join(row).encode()).hexdigest()[:16] for row in rows)


def count_patients(site: Site) -> Patients:
    """Return the counts of the site's present cohort; empty if there is no cohort."""
    path = site.cohort_folder / "cohort.sqlite"
    if not path.is_file():
        return Patients()
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        rows = database.execute(_QUERY).fetchall()
    finally:
        database.close()
    of_split: Counter[str] = Counter()
    labelled: Counter[str] = Counter()
    with_value: Counter[tuple[str, str, bool]] = Counter()
    in_group: Counter[tuple[str, str, bool, str]] = Counter()
    for split, age_years, sex, manufacturer, *values in rows:
        of_split[split] += 1
        labelled[split] += any(value is not None for value in values)
        known = [(split, label, bool(value)) for label, value in zip(LABELS, values, strict=True) if value is not None]
        with_value.update(known)
        in_group.update((*each, group) for each in known for group in groups_of(age_years, sex, manufacturer or ""))
    return Patients(of_split, labelled, with_value, in_group)
