"""Write complete synthetic hospitals: scans, laboratory and outcome files, and the truth.

    OUT/<hospital>/ct/<patient>/*.dcm    scans, as from the PACS
    OUT/<hospital>/laboratory.csv        PCR results in the hospital's dialect; or .hl7, .ndjson (FHIR)
    OUT/<hospital>/outcomes.csv          intubation, death, follow-up
    OUT/<hospital>/site.toml             settings with which a node reads them
    OUT/<hospital>/truth.json            the planted findings; no node reads it

The same seed writes the same bytes.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import Generator

from models.refusal import Refusal
from pipeline.phantom.anatomy import Build, make_thorax
from pipeline.phantom.appearance import scanner_for_patient
from pipeline.phantom.defects import DEFECTS, Case, reported
from pipeline.phantom.feeds import TIME_ZONE, LaboratoryFormat, laboratory_table, write_feed
from pipeline.phantom.hospitals import Anatomy, Hospital, hospital
from pipeline.phantom.lesions import Lesions, add_lesions
from pipeline.phantom.patients import Patient, draw_patient, probability_severe
from pipeline.phantom.reasons import PHANTOM_FOLDER
from pipeline.phantom.records import (
    OutcomeRow,
    PcrRow,
    outcome_row,
    pcr_rows,
    write_outcomes,
)
from pipeline.phantom.scans import acquire, write_series
from pipeline.site.folder import SYNTHETIC_STUDIES
from pipeline.system.threads import one_thread
from pipeline.system.worker_pool import WorkerPool

MIN_PATIENTS = 3  # min_patients in the site.toml of a hospital


@dataclass(frozen=True)
class Truth:
    """The truth of one patient; `p_severe` is the prediction of the best possible reader."""

    patient_id: str
    age_years: int
    sex: str
    pcr_positive: bool
    pattern: str
    load: float
    consolidation: float
    p_severe: float
    severe: bool
    defect: str | None

    @classmethod
    def of(
        cls, patient: Patient, lesions: Lesions, *, p_severe: float, severe: bool, defect: str | None = None
    ) -> "Truth":
        return cls(
            patient_id=patient.patient_id,
            age_years=patient.age_years,
            sex=patient.sex,
            pcr_positive=patient.pcr_positive,
            pattern=patient.pattern,
            load=round(lesions.load, 5),
            consolidation=round(lesions.consolidation, 5),
            p_severe=round(p_severe, 5),
            severe=severe,
            defect=defect,
        )


@dataclass(frozen=True)
class Order:
    """The order for one patient, sent to a worker process."""

    folder: Path
    hospital_index: int
    number: int
    seed: int
    defect: str | None
    anatomy: Anatomy = "random"
    randomise: bool = False


def make_body(patient: Patient, at: Hospital, rng: Generator, anatomy: Anatomy = "random") -> tuple[Lesions, float]:
    """Create a patient's thorax with lesions on the grid of the hospital's scanner; return P(severe) too."""
    if anatomy == "random":
        # Imported here because it imports torch, which the template does not need.
        from pipeline.phantom.random_body import draw_body

        has_contrast = bool(rng.random() < at.scanner.contrast)
        density = at.mix.lesion_density
        lesions = draw_body(patient, at.scanner.grid, rng, has_contrast=has_contrast, density=density).planted
    else:
        lesions = _template_body(patient, at, rng)
    return lesions, probability_severe(lesions, patient.age_years, at.mix.severe_intercept)


def _template_body(patient: Patient, at: Hospital, rng: Generator) -> Lesions:
    grid = at.scanner.grid
    thorax = make_thorax(grid, Build.draw(rng, female=patient.sex == "F"), rng)
    return add_lesions(
        thorax,
        grid,
        pattern=patient.pattern,
        load=patient.load,
        consolidated=patient.consolidated,
        rng=rng,
        density=at.mix.lesion_density,
    )


def drawn_patient(hospital_index: int, number: int, seed: int) -> tuple[Patient, Generator]:
    """Return a patient without a body yet, and the generator that draws the rest of it."""
    at = hospital(hospital_index)
    rng = np.random.default_rng([seed, hospital_index, number])
    name = f"SYNTHETIC^{at.name.upper()}{number:04d}"
    return draw_patient(_patient_id(hospital_index, number), name, at.mix, rng), rng


def _patient_id(hospital_index: int, number: int) -> str:
    return f"{hospital(hospital_index).name[0].upper()}{hospital_index}-{number:06d}"


def make_patient(order: Order) -> tuple[Truth, list[PcrRow], list[OutcomeRow]]:
    """Draw, scan and write one patient, and plant the ordered defect."""
    at = hospital(order.hospital_index)
    patient, rng = drawn_patient(order.hospital_index, order.number, order.seed)
    patient_id = patient.patient_id
    at = replace(at, scanner=scanner_for_patient(at.scanner, order.anatomy, rng, randomise=order.randomise))
    lesions, chance = make_body(patient, at, rng, order.anatomy)
    severe = bool(rng.random() < chance)
    hu = acquire(lesions.hu, at.scanner, rng)
    case = Case(
        hospital=at,
        patient=patient,
        hu=hu,
        files=write_series(hu, at.scanner, patient, order.folder / "ct" / patient_id),
        pcr=pcr_rows(patient, at.laboratory, rng),
        outcomes=[outcome_row(patient, severe, rng)],
        rng=rng,
    )
    if order.defect is not None:
        DEFECTS[order.defect](case)
    truth = Truth.of(patient, lesions, p_severe=chance, severe=severe, defect=order.defect)
    return truth, case.pcr, case.outcomes


def make_hospitals(
    out: Path,
    *,
    patients: list[int],
    seed: int,
    defects: bool = True,
    laboratory: LaboratoryFormat = "csv",
    anatomy: Anatomy = "random",
    randomise: bool = False,
    replaces: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Write one hospital for each number in `patients`; with `defects`, one additional patient for each defect.

    `anatomy`: random bodies, or a simple template. `randomise`: each scan looks as from another scanner.
    `replaces`: `out` may hold files already, those of an earlier call. They are written again, and the scans of its
    patients are deleted first: it may have had more of them, and other defects.

    Returns the hospitals' folders. `progress(done, total)` counts the patients written.
    Raises Refusal: E_PHANTOM_FOLDER, E_WORKER_DIED.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:  # a file, or below one
        raise Refusal(PHANTOM_FOLDER, private=str(error)) from error
    if not replaces and any(out.iterdir()):
        raise Refusal(PHANTOM_FOLDER, private=str(out))
    spoilt = list(DEFECTS) if defects else []
    folders: list[Path] = []
    done, total = 0, sum(patients) + len(patients) * len(spoilt)
    progress(done, total)  # the first patients take long, because workers start
    with WorkerPool(os.cpu_count(), get_context("spawn"), begin_worker, (anatomy,)) as pool:
        for index, count in enumerate(patients):
            at = hospital(index)
            folder = out / at.name
            folder.mkdir(parents=True, exist_ok=True)
            for scan in (folder / "ct").glob(f"{_patient_id(index, 0)[:-6]}*"):
                shutil.rmtree(scan)
            kinds = [None] * count + spoilt
            orders = [Order(folder, index, n, seed, kind, anatomy, randomise) for n, kind in enumerate(kinds, start=1)]
            made = []
            for result in pool.map(make_patient, orders, chunksize=4):
                made.append(result)
                done += 1
                progress(done, total)
            _write_records(folder, at, made, laboratory, {"anatomy": anatomy, "randomised": randomise})
            folders.append(folder)
    return folders


def begin_worker(anatomy: Anatomy) -> None:
    """Initialise a worker."""
    if anatomy == "random":
        import torch

        torch.set_num_threads(1)
    one_thread()


def _write_records(
    folder: Path,
    at: Hospital,
    made: list[tuple[Truth, list[PcrRow], list[OutcomeRow]]],
    laboratory: LaboratoryFormat,
    how: dict[str, str | bool],
) -> None:
    write_feed(folder, [row for _, rows, _ in made for row in rows], at.laboratory, laboratory)
    write_outcomes(folder / "outcomes.csv", [row for _, _, rows in made for row in rows])
    planted = [
        {"code": code, "patient_id": patient_id}
        for truth, _, _ in made
        if truth.defect is not None
        for code, patient_id in reported(truth.defect, truth.patient_id, pcr_positive=truth.pcr_positive)
    ]
    truth = {"synthetic": True, **how, "defects": planted, "patients": [asdict(t) for t, _, _ in made]}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1))
    (folder / "site.toml").write_text(_site_toml(at, laboratory))


def _site_toml(at: Hospital, laboratory: LaboratoryFormat) -> str:
    """Return the site.toml with which a node reads this hospital's files."""
    zone = f'time_zone = "{TIME_ZONE}"\n' if laboratory == "fhir" else ""
    return f"""# How to read the files of the synthetic hospital "{at.name}". `fedthorax node init` copies this file.

[site]
name = "{at.name}"
# A real hospital keeps the default, 10. No patient is behind these figures, and a small trial would have hardly any.
min_patients = {MIN_PATIENTS}
{zone}
[ct]
folder = "ct"

{laboratory_table(at.laboratory, laboratory)}
[outcomes]
file = "outcomes.csv"

{SYNTHETIC_STUDIES}"""
