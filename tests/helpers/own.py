"""A separate hospital per test, with a few patients copied from the small hospital."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cohort.ingest import Assessment, ingest
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site

SETTINGS = Preprocessing()
CLEAN = [f"N0-{number:06d}" for number in range(1, 9)]


def quietly(done: int, total: int) -> None:
    """Report no progress."""


def truth_of(hospital: Path) -> dict[str, Any]:
    return json.loads((hospital / "truth.json").read_text())


@dataclass
class Own:
    """A separate hospital of one test, with a few patients copied from the small hospital."""

    small: Path
    folder: Path
    site: Site

    def add(self, *patients: str) -> None:
        for patient in patients:
            shutil.copytree(self.small / "ct" / patient, self.folder / "ct" / patient)

    def laboratory(self, text: str) -> None:
        (self.folder / "laboratory.csv").write_text(text, encoding="utf-8")

    def ingest(self, settings: Preprocessing = SETTINGS, progress: Callable[[int, int], None] = quietly) -> Assessment:
        return ingest(self.site, settings, progress)
