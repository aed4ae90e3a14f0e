"""Write synthetic cohorts directly into a site's folder: the phantoms of `generate` without DICOM files.

This is for benchmarks and tests that need many patients in a short time. A scan is rounded to whole HU as in storage,
prepared by the site's own preprocessing and measured for the data contract. A study therefore finds the same as after
an ingest of these scans: tensors, rows, splits, and the findings of scans. There are no source files, so an ingest
would empty the cohort.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import Generator

from models.refusal import Refusal
from pipeline.cohort.store import Cohort, FindingRow, PatientRow, Scan
from pipeline.cohort.tensor_files import save_tensor
from pipeline.imaging.discovery import Series
from pipeline.imaging.volume import Volume
from pipeline.phantom.anatomy import Field, Grid
from pipeline.phantom.appearance import scanner_for_patient
from pipeline.phantom.generate import Truth, make_body
from pipeline.phantom.hospitals import Anatomy, Hospital, Scanner
from pipeline.phantom.patients import Patient, draw_patient
from pipeline.phantom.records import LOST_TO_FOLLOW_UP
from pipeline.phantom.scans import STORED_INTERCEPT_HU, acquire
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import SYNTHETIC_STUDIES, Site, init_site
from pipeline.system.codes import BY_CODE
from pipeline.system.threads import one_thread
from pipeline.system.worker_pool import WorkerPool

STORED_MAXIMUM = 4095  # 12 bits, as `write_series` stores


@dataclass(frozen=True)
class Body:
    """A patient before the scan: `hu` of the body itself, slice 0 lowest, LPS axes (z, y, x)."""

    patient: Patient
    severe: bool
    hu: Field


# The acquisition of a body: returns the HU that the scanner writes, and the scanner for the tags (on the same grid). An
# acquisition that depends on `severe` plants a shortcut.
Acquisition = Callable[[Body, Scanner, Generator], tuple[Field, Scanner]]


def plain(body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
    """Scan every body with the hospital's scanner."""
    return acquire(body.hu, scanner, rng), scanner


def synthetic_site(folder: Path, name: str, *, seed: int, min_patients: int = 10, tables: str = "") -> Site:
    """Make the folder of a synthetic site, whose key and splits follow from `name` and `seed`.

    Parameters
    ----------
    folder : Path
        The site's folder, which is made.
    name : str
        The site's name.
    seed : int
        Seed of the key.
    min_patients : int
        Figures over fewer patients do not leave the site.
    tables : str
        More of site.toml, such as "[training]\\nthreads = 1".

    Returns
    -------
    Site
        The opened site, without a cohort yet.

    Raises
    ------
    Refusal
        E_SITE_EXISTS, or what `load_settings` raises.
    """
    key = hashlib.sha256(f"synthetic {name} {seed}".encode()).digest()
    text = f"""# A synthetic hospital.
[site]
name = "{name}"
min_patients = {min_patients}

[labels]
file = "labels.csv"

{tables}
{"" if "[gateway]" in tables else SYNTHETIC_STUDIES}"""
    return init_site(folder, text, key=key)


def write_cohort(
    site: Site,
    at: Hospital,
    *,
    patients: int,
    seed: int,
    settings: Preprocessing | None = None,
    acquisition: Acquisition = plain,
    anatomy: Anatomy = "random",
    randomise: bool = False,
    workers: int = 1,
) -> list[Truth]:
    """Fill the cohort of a site with synthetic patients, in place of what it held.

    The same site name, hospital, seed and settings write the same tensors and rows, whatever the number of workers.

    Parameters
    ----------
    site : Site
        The site, such as `synthetic_site` makes it.
    at : Hospital
        Scanner and case mix, one of `HOSPITALS`; `dataclasses.replace` makes others of those.
    patients : int
        Number of patients.
    seed : int
        Seed of the patients and their scans.
    settings : Preprocessing or None
        The settings with which scans are prepared; the default where None.
    acquisition : callable
        What the scanner makes of a body; with several workers, a module's function.
    anatomy : "random" or "template"
        Random bodies, or a simple one that varies little and takes a tenth of the time.
    randomise : bool
        Whether each scan looks as from another scanner.
    workers : int
        Number of processes; each takes seconds to start.

    Returns
    -------
    list of Truth
        The truth of each patient, those included whose scan was refused.
    """
    settings = settings or Preprocessing()
    with Cohort(site) as cohort, cohort.alone():
        make = partial(write_patient, site, at, seed, settings, acquisition, cohort.tensors, anatomy, randomise)
        numbers = range(1, patients + 1)
        if workers == 1:
            made = [make(number) for number in numbers]
        else:
            with WorkerPool(workers, get_context("spawn"), begin_worker) as pool:
                made = list(pool.map(make, numbers, chunksize=8))
        scans = [scan for _, scan, _ in made]
        for scan in scans:
            cohort.add_scan(scan)
        rows = [row for *_, row in made if row is not None]
        cohort.replace(rows, _findings(made), {scan.fingerprint for scan in scans})
        cohort.sweep()
    return [truth for truth, *_ in made]


_Made = tuple[Truth, Scan, PatientRow | None]


def begin_worker() -> None:
    """Initialise a worker."""
    import torch

    torch.set_num_threads(1)
    one_thread()


def write_patient(
    site: Site,
    at: Hospital,
    seed: int,
    settings: Preprocessing,
    acquisition: Acquisition,
    tensors: Path,
    anatomy: Anatomy,
    randomise: bool,
    number: int,
) -> _Made:
    """Draw, scan, prepare and save one patient."""
    own = int(hashlib.sha256(site.name.encode()).hexdigest()[:8], 16)  # sites of one seed have different patients
    rng = np.random.default_rng([seed, own, number])
    patient = draw_patient(f"{site.name.upper()}-{number:06d}", f"SYNTHETIC^{number:06d}", at.mix, rng)
    at = replace(at, scanner=scanner_for_patient(at.scanner, anatomy, rng, randomise=randomise))
    lesions, chance = make_body(patient, at, rng, anatomy)
    severe = bool(rng.random() < chance)
    lost = not severe and bool(rng.random() < LOST_TO_FOLLOW_UP)
    hu, scanner = acquisition(Body(patient, severe, lesions.hu), at.scanner, rng)
    scan = _examine(site.pseudonym(patient.patient_id), patient, hu, scanner, settings, tensors)
    truth = Truth.of(patient, lesions, p_severe=chance, severe=severe)
    return truth, scan, _row(site, patient, None if lost else severe, scan)


def _row(site: Site, patient: Patient, severe: bool | None, scan: Scan) -> PatientRow | None:
    if scan.tensor is None:
        return None
    pseudonym = site.pseudonym(patient.patient_id)
    return PatientRow(
        pseudonym=pseudonym,
        split=site.split(pseudonym),
        tensor=scan.tensor,
        age_years=float(patient.age_years),
        sex=patient.sex,
        pcr_positive=patient.pcr_positive,
        severe=severe,
    )


def volume_of(hu: Field, grid: Grid) -> Volume:
    """Return a phantom's scan like a reader does: whole HU within the stored range, and the grid in RAS mm."""
    stored = np.rint(hu - STORED_INTERCEPT_HU).clip(0, STORED_MAXIMUM)
    x0, y0, z0 = grid.origin_mm
    up, back, left = grid.spacing_mm
    affine = np.array([[0, 0, -left, -x0], [0, -back, 0, -y0], [up, 0, 0, z0], [0, 0, 0, 1.0]])
    return Volume(hu=(stored + STORED_INTERCEPT_HU).astype(np.int16), affine=affine)


def _examine(
    pseudonym: str, patient: Patient, hu: Field, scanner: Scanner, settings: Preprocessing, tensors: Path
) -> Scan:
    """Prepare and measure a scan as `pipeline.cohort.workers` does after reading a series."""
    from pipeline.preprocessing.measures import flags
    from pipeline.preprocessing.measuring import measure
    from pipeline.preprocessing.preprocess import prepare

    volume = volume_of(hu, scanner.grid)
    series = _series(pseudonym, patient, scanner, hashlib.sha256(volume.hu.data).hexdigest())
    scan = Scan(series.fingerprint, settings_digest(settings), None, None, "", None, None, None)
    try:
        prepared = prepare(volume, settings)
    except Refusal as refusal:
        return replace(scan, code=refusal.code, says=refusal.says)
    measures = replace(
        measure(series, volume, prepared), position="HFS", thickness_mm=round(scanner.grid.spacing_mm[0], 2)
    )
    tensor = f"{series.fingerprint[:32]}-{scan.settings}.npy"
    save_tensor(tensors, tensor, prepared.tensor)
    flagged = ",".join(sorted(flags(measures, settings)))
    return replace(scan, flags=flagged, scan_digest=prepared.scan_digest, tensor=tensor, measures=measures)


def _series(pseudonym: str, patient: Patient, scanner: Scanner, hu_digest: str) -> Series:
    """Return the series as from a header. There is no file; the file name only gives a format."""
    return Series(
        files=(Path("synthetic.nii.gz"),),
        patient_id=pseudonym,
        issuer="",
        study_uid="",
        series_uid="",
        modality="CT",
        age_years=float(patient.age_years),
        sex=patient.sex,
        acquired=patient.scanned,
        manufacturer=scanner.manufacturer,
        kernel=scanner.kernel,
        fingerprint=hashlib.sha256(f"{pseudonym}|{hu_digest}".encode()).hexdigest(),
    )


def _findings(made: list[_Made]) -> list[FindingRow]:
    """Return the findings of the scans. A refused scan has no pseudonym, because its patient has no row."""
    found = []
    for _, scan, row in made:
        codes = [scan.code] if scan.code else [flag for flag in scan.flags.split(",") if flag]
        pseudonym = row.pseudonym if row else ""
        found += [FindingRow(c, pseudonym, scan.fingerprint[:12], BY_CODE[c].says) for c in codes]
    return found
