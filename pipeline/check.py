"""The doctor: what is wrong with a site's data, rule by rule, with remedies; and how well the doctor itself does.

It examines as an ingest would and changes nothing in the cohort. Where a synthetic hospital's truth is given, its
findings are held against the defects that were planted.
"""

import json
import platform
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.cohort import Cohort
from pipeline.ingest import Assessment, assess
from pipeline.preprocess import Preprocessing
from pipeline.site import Site

LIBRARIES = ("fedthorax", "torch", "monai", "flwr", "pydicom")
TENSOR_MB = 0.6  # a cached tensor of the default shape


@dataclass(frozen=True)
class Verdict:
    """How the findings compare with what was planted in a synthetic hospital."""

    planted: int
    found: int
    missed: list[str]
    unexpected: list[str]

    @property
    def precision(self) -> float:
        reported = self.found + len(self.unexpected)
        return self.found / reported if reported else 1.0

    @property
    def recall(self) -> float:
        return self.found / self.planted if self.planted else 1.0


@dataclass(frozen=True)
class Checkup:
    """The result of `check`, for the site's own eyes."""

    environment: dict[str, str]
    assessment: Assessment
    verdict: Verdict | None

    def to_json(self) -> dict[str, Any]:
        """Counts and remedies alone: no patient, file or date."""
        patients = self.assessment.patients
        return {
            "environment": self.environment,
            "series": self.assessment.series,
            "patients": len(patients),
            "pcr_positive": sum(p.pcr_positive for p in patients),
            "severe_known_among_positive": sum(p.pcr_positive and p.severe is not None for p in patients),
            "severe_among_positive": sum(bool(p.pcr_positive and p.severe) for p in patients),
            "findings": [
                {"code": r.code, "count": n, "remedy": r.remedy, "refuses": r.refuses}
                for r, n in self.assessment.counts
            ],
            "verdict": self.verdict
            and {
                "planted": self.verdict.planted,
                "found": self.verdict.found,
                "missed": self.verdict.missed,
                "unexpected": self.verdict.unexpected,
                "precision": self.verdict.precision,
                "recall": self.verdict.recall,
            },
        }


def environment(site: Site) -> dict[str, str]:
    """Versions and room on the disk."""
    free_gb = shutil.disk_usage(site.folder).free / 1e9
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "disk": f"{free_gb:.1f} GB free, room for {int(free_gb * 1000 / TENSOR_MB)} prepared scans",
    }


def judge(assessment: Assessment, truth: Path) -> Verdict:
    """Hold the findings against the truth of a synthetic hospital, code by code and patient by patient."""
    planted = Counter((d["code"], d["patient_id"]) for d in json.loads(truth.read_text())["defects"])
    reported = Counter((f.reason.code, f.patient_id) for f in assessment.findings)
    return Verdict(
        planted=planted.total(),
        found=(planted & reported).total(),
        missed=sorted(code for code, _ in (planted - reported).elements()),
        unexpected=sorted(code for code, _ in (reported - planted).elements()),
    )


def check(
    site: Site, settings: Preprocessing, progress: Callable[[int, int], None], *, truth: Path | None = None
) -> Checkup:
    """Examine the site's files and judge them. Raises Refusal where a whole file cannot be used."""
    with Cohort(site) as cohort:
        assessment = assess(site, cohort, settings, progress)
    return Checkup(environment(site), assessment, judge(assessment, truth) if truth else None)
