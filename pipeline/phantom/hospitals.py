"""The dialects of the synthetic hospitals: scanner, grid, noise, transfer syntax, laboratory file, case mix."""

from dataclasses import dataclass
from typing import Literal

from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from pipeline.phantom.anatomy import Grid
from pipeline.phantom.patients import CaseMix

Anatomy = Literal["template", "random"]  # a simple body that varies little; bodies of `phantom.body`
Noise = Literal["soft", "lung"]


@dataclass(frozen=True)
class Scanner:
    """The CT scanner of one hospital."""

    manufacturer: str
    model: str
    kernel: str
    grid: Grid
    blur_mm: float  # Gaussian sigma of the kernel's point spread function
    noise_hu: float
    offset_hu: float  # calibration error
    transfer_syntax: UID
    head_first_order: bool  # InstanceNumber grows towards the feet
    rotated: bool  # rows and columns are reversed, as after a manually turned prone acquisition
    private_creator: str
    contrast: float = 0.0  # share of patients with contrast agent; for random bodies
    noise: Noise | None = None  # kernel of the measured noise; None: neighbouring pixels are correlated
    slice_blur_mm: float = 0.0  # Gaussian sigma along the body: slices thicker than their distance


@dataclass(frozen=True)
class LaboratoryDialect:
    """The export format of one hospital's laboratory."""

    encoding: str
    separator: str
    date_format: str
    columns: tuple[str, str, str]  # patient, collection time, result
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    indeterminate: tuple[str, ...]


@dataclass(frozen=True)
class Hospital:
    """One synthetic hospital."""

    name: str
    scanner: Scanner
    laboratory: LaboratoryDialect
    mix: CaseMix


ENGLISH = LaboratoryDialect(
    encoding="utf-8",
    separator=",",
    date_format="%Y-%m-%dT%H:%M",
    columns=("patient_id", "collected", "result"),
    positive=("POSITIVE", "Detected"),
    negative=("NEGATIVE", "Not detected"),
    indeterminate=("INDETERMINATE",),
)
FRENCH = LaboratoryDialect(
    encoding="latin-1",
    separator=";",
    date_format="%d/%m/%Y %H:%M",
    columns=("IPP", "Prélevé le", "Résultat"),
    positive=("Positif", "Détecté"),
    negative=("Négatif", "Non détecté"),
    indeterminate=("Indéterminé",),
)
GERMAN = LaboratoryDialect(
    encoding="utf-8-sig",
    separator="\t",
    date_format="%d.%m.%Y %H:%M",
    columns=("PatID", "Abnahme", "Befund"),
    positive=("positiv", "nachgewiesen"),
    negative=("negativ", "nicht nachgewiesen"),
    indeterminate=("grenzwertig",),
)

HOSPITALS = (
    Hospital(
        "north",
        Scanner(
            manufacturer="SYNTHETIC ALPHA",
            model="Phantom 16",
            kernel="B30f",
            grid=Grid((57, 96, 96), (5.0, 3.9, 3.9)),
            blur_mm=2.2,
            noise_hu=18,
            offset_hu=0,
            transfer_syntax=ExplicitVRLittleEndian,
            head_first_order=True,
            rotated=False,
            private_creator="SYNTHETIC ALPHA CT",
            contrast=0.1,
        ),
        ENGLISH,
        CaseMix(pcr_prevalence=0.6, mean_age_years=62, median_load=0.14),
    ),
    Hospital(
        "south",
        Scanner(
            manufacturer="SYNTHETIC BETA",
            model="Helix 64",
            kernel="LUNG",
            grid=Grid((68, 80, 80), (4.2, 4.7, 4.7)),
            blur_mm=1.6,
            noise_hu=45,
            offset_hu=12,
            transfer_syntax=RLELossless,
            head_first_order=False,
            rotated=False,
            private_creator="SYNTHETIC BETA 1.0",
            contrast=0.5,
        ),
        FRENCH,
        CaseMix(pcr_prevalence=0.5, mean_age_years=57, median_load=0.13),
    ),
    Hospital(
        "west",
        Scanner(
            manufacturer="SYNTHETIC GAMMA",
            model="Spiral 128",
            kernel="YC",
            grid=Grid((60, 104, 104), (4.8, 3.6, 3.6)),
            blur_mm=3.2,
            noise_hu=28,
            offset_hu=-10,
            transfer_syntax=JPEG2000Lossless,
            head_first_order=True,
            rotated=True,
            private_creator="SYNTHETIC GAMMA",
        ),
        GERMAN,
        CaseMix(pcr_prevalence=0.7, mean_age_years=66, median_load=0.18),
    ),
    Hospital(
        "east",
        Scanner(
            manufacturer="SYNTHETIC DELTA",
            model="Volume 32",
            kernel="FC08",
            grid=Grid((62, 88, 88), (4.6, 4.3, 4.3)),
            blur_mm=2.6,
            noise_hu=36,
            offset_hu=8,
            transfer_syntax=JPEGLSLossless,
            head_first_order=False,
            rotated=False,
            private_creator="SYNTHETIC DELTA X",
            contrast=0.25,
        ),
        ENGLISH,
        CaseMix(pcr_prevalence=0.55, mean_age_years=60, median_load=0.13),
    ),
)


def hospital(index: int) -> Hospital:
    """Return the hospital of that number; after the four named ones the dialects repeat."""
    known = HOSPITALS[index % len(HOSPITALS)]
    if index < len(HOSPITALS):
        return known
    return Hospital(f"{known.name}-{index // len(HOSPITALS) + 1}", known.scanner, known.laboratory, known.mix)
