"""How many patients the site has, by split and by label: over so many a figure can be, and no more."""

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from federation.allowed import LABELS, Figure
from pipeline.site import Site


@dataclass(frozen=True)
class Patients:
    """Counts of patients: in each split, in each split with any label, and by (split, label, its value)."""

    of_split: Mapping[str, int] = field(default_factory=dict)
    labelled: Mapping[str, int] = field(default_factory=dict)
    with_value: Mapping[tuple[str, str, bool], int] = field(default_factory=dict)

    def behind(self, figure: Figure) -> int:
        """Over how many patients such a figure is here; 0 where it is not defined."""
        if not figure.label:
            return self.labelled.get(figure.split, 0)
        false, true = (self.with_value.get((figure.split, figure.label, value), 0) for value in (False, True))
        return 0 if figure.both and not (false and true) else false + true


def count_patients(site: Site) -> Patients:
    """The counts of the site's cohort as it is now; none where there is no cohort."""
    path = site.cohort_folder / "cohort.sqlite"
    if not path.is_file():
        return Patients()
    database = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        # Severity is judged among those who are not known to be PCR-negative, as in pipeline/examples.py.
        rows = database.execute(
            "SELECT split, pcr_positive, CASE WHEN pcr_positive = 0 THEN NULL ELSE severe END FROM patients"
        ).fetchall()
    finally:
        database.close()
    of_split: Counter[str] = Counter()
    labelled: Counter[str] = Counter()
    with_value: Counter[tuple[str, str, bool]] = Counter()
    for split, *values in rows:
        of_split[split] += 1
        labelled[split] += any(value is not None for value in values)
        with_value.update(
            (split, label, bool(value)) for label, value in zip(LABELS, values, strict=True) if value is not None
        )
    return Patients(of_split, labelled, with_value)
