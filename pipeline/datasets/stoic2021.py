"""STOIC2021: 2000 patients of French hospitals (Revel et al., Radiology 2021, doi 10.1148/radiol.2021210384).

    DIR/data/mha/<PatientID>.mha      one CT each, with tags PatientAge (decades, 035Y to 085Y) and PatientSex
    DIR/metadata/reference.csv        PatientID, probCOVID, probSevere: 0 or 1

Licence of the data: CC BY-NC 4.0. The hospital of a scan is not published, so sites are created by a rule.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from models.refusal import Refusal
from pipeline.datasets import reasons
from pipeline.datasets.common import (
    LABEL_COLUMNS,
    Imported,
    Progress,
    check_layout,
    check_out,
    labels_table,
    make_site,
    matched,
    published_key,
    read_labels_table,
    write_table,
)
from pipeline.imaging.dates_and_ages import age_in_years
from pipeline.imaging.nifti_header import read_meta_header
from pipeline.records.csv_tables import CsvTable

SPLITS = {
    "equal": "Patients were ordered by the SHA-256 of the seed and their PatientID and dealt out in turn: every site "
    "has the same kind of patients.",
    "skewed": "Patients were ordered by the sum of two ranks, of age and of slice spacing (ties share a rank; an "
    "unknown value counts as the median; equal sums are ordered as for an equal split), and cut into blocks of equal "
    "size: the first site has the young and the thin slices, the last one the old and the thick slices.",
}
SYNTHETIC = "SYNTHETIC.txt"  # beside data/ and metadata/: a folder of this layout with phantoms, not the data set
_SOURCE = "STOIC2021 (CC BY-NC 4.0), which names no hospitals"
SEVERE_MEANS = "intubated or dead within a month (STOIC2021; known for PCR-positive patients alone)"


def is_synthetic(folder: Path) -> bool:
    """Return whether a folder of this layout says that it holds phantoms instead of the data set."""
    return (folder / SYNTHETIC).exists()


def import_stoic2021(
    folder: Path, out: Path, *, sites: int, split: Literal["equal", "skewed"], seed: int, progress: Progress
) -> Imported:
    """Make site folders of the public data set STOIC2021; each patient belongs to one of them.

    `severe` is used only for PCR-positive patients: the published table has no severe patient among the 795 negative
    ones, who were not followed up for it. With the same seed every import gives the same sites, pseudonyms, and
    training and test patients: the pseudonym keys are no secret (`published_key`).

    Parameters
    ----------
    folder : Path
        The unpacked data set, with data/mha and metadata/reference.csv.
    out : Path
        Folder for the sites; new or empty, and outside `folder`.
    sites : int
        Number of sites.
    split : {"equal", "skewed"}
        The rule in SPLITS: patients dealt out in turn, or sorted by age and slice spacing.
    seed : int
        Seed of the split.
    progress : callable
        Called with the number of sites that are done and their total.

    Returns
    -------
    Imported
        Number of patients by site, and the findings E_NO_SCAN, E_NO_LABEL, E_ROW, E_NO_IDENTIFIER.

    Raises
    ------
    Refusal
        E_LAYOUT, E_IMPORT_OUT, E_IMPORT_SITES, E_IMPORT_TABLE, E_IMPORT_DUPLICATE, E_IMPORT_LABEL,
        E_FILE_CUT.
    """
    check_layout("STOIC2021", folder, ("metadata/reference.csv", "data/mha"))
    check_out(out, folder)
    table = CsvTable(file=folder / "metadata" / "reference.csv", patient_id="PatientID")
    labels, findings = read_labels_table(table, ("PatientID", "probCOVID", "probSevere"), ("0", "1"))
    scans = {path.stem: path for path in sorted((folder / "data" / "mha").glob("*.mha"))}
    patients = matched("STOIC2021", labels, scans, findings)
    if sites > len(patients):
        raise Refusal(reasons.IMPORT_SITES, patients=len(patients), sites=sites)

    shares = _equal(patients, sites, seed) if split == "equal" else _skewed(patients, scans, sites, seed)
    made = {}
    source = "synthetic patients in the layout of STOIC2021" if is_synthetic(folder) else _SOURCE
    for number, share in enumerate(shares, start=1):
        progress(number - 1, sites)
        site = out / f"stoic2021-{number}"
        about = f"Site {number} of {sites}, made from {source}."
        about += f" Split: {split}, seed {seed}. {SPLITS[split]}"
        linked = {scans[p].name: scans[p] for p in share}
        make_site(site, about, labels_table(SEVERE_MEANS), linked, key=published_key(site.name))
        rows = [(p, covid, severe if covid == "1" else "") for p in sorted(share) for covid, severe in [labels[p]]]
        write_table(site / "labels.csv", LABEL_COLUMNS, rows)
        made[site.name] = len(share)
    progress(sites, sites)
    return Imported(made, findings)


def _shuffled(patients: Sequence[str], seed: int) -> list[str]:
    return sorted(patients, key=lambda patient_id: hashlib.sha256(f"{seed}|{patient_id}".encode()).hexdigest())


def _equal(patients: Sequence[str], sites: int, seed: int) -> list[list[str]]:
    shuffled = _shuffled(patients, seed)
    return [shuffled[number::sites] for number in range(sites)]


def _skewed(patients: Sequence[str], scans: dict[str, Path], sites: int, seed: int) -> list[list[str]]:
    from scipy.stats import rankdata

    shuffled = _shuffled(patients, seed)
    known = [_age_and_spacing(scans[patient_id]) for patient_id in shuffled]
    ranks = np.zeros(len(shuffled))
    for values in zip(*known, strict=True):
        middle = median([value for value in values if value is not None] or [0.0])
        ranks += rankdata([middle if value is None else value for value in values])
    order = np.argsort(ranks, kind="stable")
    return [[shuffled[index] for index in block] for block in np.array_split(order, sites)]


def _age_and_spacing(scan: Path) -> tuple[float | None, float | None]:
    """Return age in years and slice spacing in mm, None if unreadable; ingestion reports problems."""
    try:
        header, _ = read_meta_header(scan)
        spacing_mm = float(header["ElementSpacing"].split()[2])
    except (Refusal, OSError, KeyError, IndexError, ValueError):
        return None, None
    return age_in_years(header.get("PatientAge", "")), spacing_mm if np.isfinite(spacing_mm) else None
