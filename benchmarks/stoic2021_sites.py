"""STOIC2021 as sites for stoic2021.py: import and ingest, each done once, and the patients of the tables."""

import csv
import json
import shutil
import time
import tomllib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from federation.cli.console import progress_bar
from federation.cli.new_study import init
from federation.client.site_tasks import load_examples
from federation.protocol.study_config import Study
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.cohort.ingest import ingest
from pipeline.datasets import reasons
from pipeline.datasets.common import check_layout, check_out
from pipeline.datasets.stoic2021 import import_stoic2021, is_synthetic
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site, Split
from pipeline.system.atomic_files import write_atomically

Say = Callable[[str], None]
Tables = dict[str, dict[str, Any]]
SplitRule = Literal["equal", "skewed"]
SPLIT_SEED = 1  # of `fedthorax import`, which is its default
NETWORK = "resnet18"
_COLUMNS = {"pcr_positive": "probCOVID", "severe": "probSevere"}
# [preprocessing] of a study. "default" is that of `study init`.
GRIDS: dict[str, dict[str, Any]] = {
    "default": {},
    "fine": {"shape": [80, 112, 112], "working_spacing_mm": 2.0},
    "finest": {"shape": [160, 224, 224], "working_spacing_mm": 1.0},
}


def study_of(folder: Path, sites: int, changes: Tables) -> Study:
    """Write the study that `fedthorax study init --sites N` writes into `folder`, and return it with some changes.

    Raises Refusal E_FEW_HOSPITALS below three sites, E_SETTINGS_KEY for a change that does not fit.
    """
    file = folder / "study.toml"
    file.unlink(missing_ok=True)
    with redirect_stderr(StringIO()):  # its advice is for who runs the study by hand
        init(file, sites=sites)
    content = tomllib.loads(file.read_text("utf-8"))
    for table, keys in changes.items():
        content[table] = content.get(table, {}) | keys
    file.write_text(_as_toml(content), "utf-8")
    return load_settings(file, Study)


def _as_toml(content: Tables) -> str:
    """Return tables of plain values as TOML, for which JSON's strings, numbers and lists are valid."""

    def value(of: Any) -> str:
        if isinstance(of, dict):
            return "{" + ", ".join(f"{key} = {value(each)}" for key, each in of.items()) + "}"
        return json.dumps(of)

    lines = [
        line
        for table, keys in content.items()
        for line in (f"[{table}]", *(f"{key} = {value(of)}" for key, of in keys.items()), "")
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class Brought:
    """The data set as sites.

    `labels`: rows of the label table, and those with each label; `sites`: patients of each site; `left_out`: count of
    each reason; `accepted`: patients of each site whose scan and labels can be used; `seconds`: wall time of all
    ingests; `megabytes`: of all cohorts.
    """

    synthetic: bool
    labels: dict[str, int]
    sites: dict[str, int]
    left_out: dict[str, int]
    accepted: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    megabytes: float = 0.0

    @classmethod
    def read(cls, note: Path) -> Self:
        return cls(**json.loads(note.read_bytes()))

    def write(self, note: Path) -> None:
        write_atomically(note, json.dumps(asdict(self), indent=1).encode())


def sites_folder(out: Path, sites: int, split: SplitRule, settings: Preprocessing) -> Path:
    return out / "sites" / f"{split}-{sites}-{settings_digest(settings)}"


def check_folders(data: Path, out: Path) -> None:
    """Check both folders before anything is written. Raises Refusal E_LAYOUT, E_IMPORT_OUT."""
    check_layout("STOIC2021", data, ("metadata/reference.csv", "data/mha"))
    check_out(out / "sites" / "new", data)


def bring(data: Path, folder: Path, *, sites: int, split: SplitRule, settings: Preprocessing, say: Say) -> Brought:
    """Make sites in `folder` and ingest them. What is finished is not done again.

    Raises Refusal: those of `import_stoic2021` and `ingest`, and E_IMPORT_OUT if `folder` was made from another folder.
    """
    note, source = folder / "brought.json", folder / "source"
    if not note.exists():
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted import: links and tables, no scan
        with progress_bar("sites") as progress:
            made = import_stoic2021(data, folder, sites=sites, split=split, seed=SPLIT_SEED, progress=progress)
        source.symlink_to(data.resolve(), target_is_directory=True)
        left_out = {reason.code: count for reason, count in made.counts}
        Brought(is_synthetic(data), _labels(data), made.sites, left_out).write(note)
    elif source.resolve() != data.resolve():
        raise Refusal(reasons.IMPORT_OUT, private=f"{folder} was made from {source.resolve()}")
    brought = Brought.read(note)
    for name in brought.sites:
        if name not in brought.accepted:
            brought = _ingested(folder / name, settings, brought)
            brought.write(note)
            say(f"{name}: {brought.accepted[name]} of {brought.sites[name]} patients")
    return brought


def _ingested(folder: Path, settings: Preprocessing, brought: Brought) -> Brought:
    began, site = time.perf_counter(), Site.open(folder)
    with progress_bar(folder.name) as progress:
        assessment = ingest(site, settings, progress)
    size = sum(file.stat().st_size for file in site.cohort_folder.rglob("*") if file.is_file())
    left_out = dict(brought.left_out)
    for reason, count in assessment.counts:
        if reason.refuses:
            left_out[reason.code] = left_out.get(reason.code, 0) + count
    return Brought(
        brought.synthetic,
        brought.labels,
        brought.sites,
        left_out,
        brought.accepted | {folder.name: len(assessment.patients)},
        brought.seconds + time.perf_counter() - began,
        brought.megabytes + size / 1e6,
    )


def _labels(data: Path) -> dict[str, int]:
    """Count the rows of the label table, which the import has checked, and those with each label."""
    with (data / "metadata" / "reference.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = {name: sum(row[column] == "1" for row in rows) for name, column in _COLUMNS.items()}
    return {"patients": len(rows), **counts}


@dataclass(frozen=True)
class Patients:
    """The test patients of all sites, one after the other.

    `targets`: shape (patients, labels), NaN where unknown; `site`: the index in `names` of each patient.
    """

    names: list[str]
    targets: NDArray[np.float32]
    site: NDArray[np.int64]


def test_patients(study: Study, folders: Sequence[Path]) -> Patients:
    found = [load_examples(Site.open(folder), study, "test").targets for folder in folders]
    site = np.repeat(np.arange(len(found)), [len(each) for each in found])
    return Patients([folder.name for folder in folders], np.concatenate(found), site)


def label_counts(study: Study, folders: Sequence[Path]) -> dict[str, int]:
    """Return how many patients were accepted, and how many have each label."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    targets = np.concatenate([load_examples(Site.open(folder), study, *splits).targets for folder in folders])
    positive, severe = ((targets[:, k] == 1).sum() for k in (0, 1))
    return {"patients": len(targets), "pcr_positive": int(positive), "severe": int(severe)}
