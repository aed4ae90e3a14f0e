"""Count a site's patients by split, label and group, and decide which figures they are enough for."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from federation.protocol.grids import Threes
from federation.protocol.metric_allowlist import ANY, LABELS, SPLITS, Figure
from pipeline.cohort.store import Cohort
from pipeline.evaluation.ladder import counted_classes
from pipeline.evaluation.subgroups import GROUPS, groups_of, groups_to_report, sexes_are_large
from pipeline.site.folder import Site

# Severity is evaluated among patients who are not known to be PCR-negative, as in pipeline/cohort/dataset.py.
_QUERY = """
SELECT split, age_years, sex, json_extract(measures, '$.manufacturer'),
       pcr_positive, CASE WHEN pcr_positive = 0 THEN NULL ELSE severe END
FROM patients LEFT JOIN (SELECT tensor, measures FROM scans WHERE tensor IS NOT NULL) USING (tensor)
"""


@dataclass(frozen=True)
class Patients:
    """Counts of patients: by split; by (split, label, its value); and by group.

    `in_group`: by (split, label, its value, group). `are_labelled`: False of the patients of a pretraining, which
    knows no label; they are all in the split `train`.
    """

    of_split: Mapping[str, int] = field(default_factory=dict)
    with_value: Mapping[tuple[str, str, bool], int] = field(default_factory=dict)
    in_group: Mapping[tuple[str, str, bool, str], int] = field(default_factory=dict)
    are_labelled: bool = True

    def may_leave(self, figure: Figure, *, min_patients: int) -> bool:
        """Whether enough patients are behind a figure: `min_patients`, and as many of each class of its label.

        A figure over several splits covers only those in which both classes are large enough, at least one. A figure of
        a score that was fitted to age and sex needs both classes among the train patients, and of each sex, too. A loss
        over ANY label needs both classes of each label that some patients have; in a pretraining it needs only
        `min_patients`. `pipeline.evaluation.figures` and `shortcuts` compute by the same rule.
        """
        splits = SPLITS[figure.split]
        if not figure.label or (figure.label == ANY and not self.are_labelled):
            return sum(self.of_split.get(split, 0) for split in splits) >= min_patients
        if figure.label == ANY:
            classes = [self._classes(label, split) for label in LABELS for split in splits]
            known = [each for each in classes if any(each)]
            return bool(known) and all(min(each) >= min_patients for each in known)
        if figure.fitted and min(self._classes(figure.label, "train")) < min_patients:
            return False
        return any(self._has_enough(figure, split, min_patients) for split in splits)

    def _has_enough(self, figure: Figure, split: str, min_patients: int) -> bool:
        classes = self._classes(figure.label, split)
        if min(classes) < min_patients:
            return False
        groups = {group: self._classes(figure.label, split, group) for group in GROUPS}
        if figure.fitted and not sexes_are_large(classes, groups, min_patients=min_patients):
            return False
        return not figure.group or figure.group in groups_to_report(classes, groups, min_patients=min_patients)

    def _classes(self, label: str, split: str, group: str = "") -> tuple[int, int]:
        """Return the patients of a split, or of one group of it, whose label is false and true."""
        if group:
            return self.in_group.get((split, label, False, group), 0), self.in_group.get((split, label, True, group), 0)
        return self.with_value.get((split, label, False), 0), self.with_value.get((split, label, True), 0)

    def among(self, figure: Figure, of: Literal["all", "true", "false"]) -> int:
        """Return how many patients a share covers: those with the figure's label, or with one value of it.

        Without a label: all patients of its splits.
        """
        splits = SPLITS[figure.split]
        if not figure.label:
            return sum(self.of_split.get(split, 0) for split in splits)
        classes = [self._classes(figure.label, split, figure.group) for split in splits]
        return sum({"all": sum(each), "true": each[True], "false": each[False]}[of] for each in classes)

    def prevalence(self, figure: Figure) -> float:
        """Return the share with a true label among the patients with the figure's label; 0 if there are none."""
        return self.among(figure, "true") / max(1, self.among(figure, "all"))

    def own(self, figure: Figure) -> float:
        """Return the value of a figure that reveals the classes: the size of one of them, or the prevalence."""
        if isinstance(figure.grid, Threes):
            sizes = counted_classes(self.among(figure, "true"), self.among(figure, "false"))
            return float(sizes[figure.grid.of == "false"])
        return self.prevalence(figure)


@dataclass(frozen=True)
class TrainingPatients:
    """The training patients of a site at one moment; equal only if they did not change in between, not even there and
    back.

    `digests`: short ones of each patient and the scan, "PATIENT-SCAN". `revision`: of the cohort's store; "" if it was
    last written by a version without revisions. They never leave the site.
    """

    digests: frozenset[str] = frozenset()
    revision: str = ""


def training_patients(site: Site) -> TrainingPatients:
    """Return the training patients of the site's present cohort, to recognise the same cohort."""
    path = site.cohort_folder / "cohort.sqlite"
    if not path.is_file():
        return TrainingPatients()
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as database:
        database.execute("BEGIN")  # patients and revision of one moment
        rows = database.execute("SELECT pseudonym, tensor FROM patients WHERE split = 'train'").fetchall()
        has_revision = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'revision'").fetchone()
        revision = database.execute("SELECT training FROM revision").fetchone() if has_revision else None
    digests = frozenset("-".join(hashlib.sha256(each.encode()).hexdigest()[:16] for each in row) for row in rows)
    return TrainingPatients(digests, revision[0] if revision else "")


def count_patients(site: Site, *, pretrains: bool = False) -> Patients:
    """Return the counts of the site's present cohort; empty if there is no cohort.

    `pretrains`: count what a pretraining uses, which knows no label. Raises Refusal E_COHORT_FILE then.
    """
    path = site.cohort_folder / "cohort.sqlite"
    if not path.is_file():
        return Patients(are_labelled=not pretrains)
    if pretrains:
        with Cohort.read(site) as cohort:
            scans = len(cohort.to_pretrain(site.settings.site))
        return Patients({"train": scans}, are_labelled=False)
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        rows = database.execute(_QUERY).fetchall()
    finally:
        database.close()
    of_split: Counter[str] = Counter()
    with_value: Counter[tuple[str, str, bool]] = Counter()
    in_group: Counter[tuple[str, str, bool, str]] = Counter()
    for split, age_years, sex, manufacturer, *values in rows:
        of_split[split] += 1
        known = [(split, label, bool(value)) for label, value in zip(LABELS, values, strict=True) if value is not None]
        with_value.update(known)
        in_group.update((*each, group) for each in known for group in groups_of(age_years, sex, manufacturer or ""))
    return Patients(of_split, with_value, in_group)
