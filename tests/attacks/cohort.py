"""A hospital with known patients: rows and small tensors, in the format that ingest writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from federation.enrolment.certificates import create_node_key
from pipeline.cohort.store import Cohort, PatientRow, Scan
from pipeline.cohort.tensor_files import save_tensor
from pipeline.preprocessing.measures import Measures
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site, Split, init_site, site_settings

PREPROCESSING = Preprocessing(shape=(16, 16, 16))
PATIENTS: dict[Split, int] = {"train": 64, "validation": 24, "test": 40}
_MEASURES = Measures(
    slice_mm=5.0,
    pixel_mm=0.8,
    thickness_mm=5.0,
    slices=60,
    lungs_ml=4000,
    is_cut=False,
    air_hu=-1000.0,
    aerated_hu=-920,
    spine_behind_mm=40.0,
    windpipe_above_mm2=100.0,
    heart_left=0.2,
    position="HFS",
    manufacturer="SIEMENS",
    kernel="B30f",
    sharpness="soft",
)


@dataclass(frozen=True, eq=False)
class Patient:
    """The true data of one patient. `severe` as the network learns it: None if the patient is PCR-negative."""

    split: Split
    age: int
    sex: str
    pcr: bool
    severe: bool | None
    tensor: NDArray[np.float16]

    @property
    def row(self) -> tuple[int, str, bool]:
        return self.age, self.sex, self.pcr

    @property
    def whole_row(self) -> tuple[int, str, bool, bool | None]:
        return (*self.row, self.severe)


@dataclass(frozen=True)
class Hospital:
    """A site and the true data of its patients. Patients of a split are in the order in which the app reads them."""

    site: Site
    patients: Sequence[Patient]
    preprocessing: Preprocessing = PREPROCESSING

    def of(self, split: Split) -> list[Patient]:
        return [patient for patient in self.patients if patient.split == split]


def make_hospital(
    folder: Path,
    *,
    seed: int = 1,
    patients: dict[Split, int] | None = None,
    settings: Mapping[str, str] | None = None,
    drawn: Sequence[Patient] | None = None,
    preprocessing: Preprocessing = PREPROCESSING,
) -> Hospital:
    """Create a site with the settings of the template, but one thread. `settings`: lines to replace, and the
    replacements.

    `drawn`: its patients, whose scans were prepared by `preprocessing`. By default `patients` are drawn from `seed`.
    """
    text = site_settings(None, name="north", server="127.0.0.1:1", threads=1)
    for line, other in (settings or {}).items():
        assert line in text
        text = text.replace(line, other)
    site = init_site(folder, text)
    create_node_key(site.node_key)
    hospital = Hospital(site, drawn or draw_patients(seed, patients or PATIENTS), preprocessing)
    write_cohort(hospital)
    return hospital


def draw_patients(seed: int, numbers: dict[Split, int]) -> list[Patient]:
    """Draw patients: older patients are severe more often, and six of ten are PCR-positive."""
    rng = np.random.default_rng(seed)
    return [_draw(split, rng) for split, count in numbers.items() for _ in range(count)]


def _draw(split: Split, rng: np.random.Generator) -> Patient:
    age, sex, pcr = int(rng.integers(20, 96)), str(rng.choice(["F", "M"])), bool(rng.random() < 0.6)
    severe = bool(rng.random() < age / 120) if pcr else None
    return Patient(split, age, sex, pcr, severe, _scan(bool(severe), rng))


def _scan(is_severe: bool, rng: np.random.Generator) -> NDArray[np.float16]:
    """Return lung window and mask: an ellipsoid of lung in tissue, with more dense spots if the disease is severe."""
    shape = PREPROCESSING.shape
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    size = rng.uniform(0.6, 0.85, 3)
    mask = sum((axis / half) ** 2 for axis, half in zip(axes, size, strict=True)) < 1
    density = rng.normal(-0.8, 0.04) + rng.normal(0, 0.05, shape)
    spots = rng.random(shape) < (0.25 if is_severe else 0.05)
    lung = np.where(spots, rng.normal(0.1, 0.1, shape), density)
    window = np.where(mask, lung, rng.normal(0.7, 0.05, shape)).clip(-1, 1)
    return np.stack([window, mask]).astype(np.float16)


def write_cohort(hospital: Hospital) -> None:
    """Write the cohort of the hospital's site again; pseudonyms are in the order of the patients."""
    digest = settings_digest(hospital.preprocessing)
    with Cohort(hospital.site) as cohort:
        rows = []
        for number, patient in enumerate(hospital.patients):
            name = f"{number:05d}"
            save_tensor(cohort.tensors, f"{name}.npy", patient.tensor)
            cohort.add_scan(Scan(name, digest, None, None, "", name, f"{name}.npy", _MEASURES))
            rows.append(
                PatientRow(
                    pseudonym=name,
                    split=patient.split,
                    tensor=f"{name}.npy",
                    age_years=float(patient.age),
                    sex=patient.sex,
                    pcr_positive=patient.pcr,
                    severe=patient.severe,
                )
            )
        cohort.replace(rows, [], [row.pseudonym for row in rows])
        cohort.sweep()


def with_patient(hospital: Hospital, patient: Patient) -> Hospital:
    """Return the hospital with one more patient, after writing its cohort."""
    grown = replace(hospital, patients=[*hospital.patients, patient])
    write_cohort(grown)
    return grown
