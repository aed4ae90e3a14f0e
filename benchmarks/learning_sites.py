"""The synthetic hospitals of learning.py: three that train and one that does not, for each kind of difference.

The grids are coarse, so that a patient takes some 70 ms. Parameters that a kind does not name differ only by chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from models.network import LABELS
from pipeline.cohort.store import Cohort
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.patients import CaseMix
from pipeline.preprocessing.preprocess import Preprocessing

PREPROCESSING = Preprocessing(method=1, shape=(24, 32, 32), working_spacing_mm=5.0)
PATIENTS = 450  # patients of the three training hospitals together; three in five are training patients
UNSEEN_PATIENTS = 600
LEAST = 5  # minimum number of patients for a metric: the smallest hospital has no more for validation

_MIX = CaseMix(pcr_prevalence=0.6, mean_age_years=61, median_load=0.14)
_SCANNER = replace(HOSPITALS[0].scanner, grid=Grid((42, 56, 56), (6.8, 6.8, 6.8)), blur_mm=2.4, noise_hu=25)
_USUAL = replace(HOSPITALS[0], scanner=_SCANNER, mix=_MIX)


def _named(name: str, at: Hospital = _USUAL, **scanner: object) -> Hospital:
    return replace(at, name=name, scanner=replace(at.scanner, **scanner))


def _with_mix(name: str, **mix: float) -> Hospital:
    return replace(_USUAL, name=name, mix=replace(_MIX, **mix))


@dataclass(frozen=True)
class Kind:
    """One kind of difference between three hospitals; `shares`: their shares of the patients."""

    says: str
    hospitals: tuple[Hospital, Hospital, Hospital]
    shares: tuple[int, int, int] = (1, 1, 1)

    def sizes(self) -> list[int]:
        return [round(PATIENTS * share / sum(self.shares)) for share in self.shares]


KINDS = {
    "label shift": Kind(
        "PCR-positive: 35, 60 and 85 % of the patients; severe among them: about 12, 25 and 45 %.",
        (
            _with_mix("north", pcr_prevalence=0.35, severe_intercept=-5.6),
            _with_mix("south", pcr_prevalence=0.6),
            _with_mix("west", pcr_prevalence=0.85, severe_intercept=-3.0),
        ),
    ),
    "scanner shift": Kind(
        "Noise of 12, 60 and 25 HU, blur of 4.0, 1.2 and 2.4 mm, offsets of -30, +30 and 0 HU, slices of 8.0, 5.5 and "
        "6.8 mm.",
        (
            _named("north", noise_hu=12, blur_mm=4.0, offset_hu=-30, grid=Grid((36, 56, 56), (8.0, 6.8, 6.8))),
            _named("south", noise_hu=60, blur_mm=1.2, offset_hu=30, grid=Grid((52, 62, 62), (5.5, 6.2, 6.2))),
            _named("west"),
        ),
    ),
    "size skew": Kind("Patients as 8 : 3 : 1.", (_named("north"), _named("south"), _named("west")), (8, 3, 1)),
}
UNSEEN = _named("unseen", noise_hu=40, blur_mm=3.0, offset_hu=15, grid=Grid((45, 60, 60), (6.4, 6.4, 6.4)))


@dataclass(frozen=True)
class Order:
    """A cohort to write."""

    folder: Path
    at: Hospital
    patients: int
    seed: int


def orders(root: Path, kind: str, seed: int) -> list[Order]:
    """Return the cohorts of a setting's three hospitals."""
    described = KINDS[kind]
    return [
        Order(root / f"{kind} {seed}" / at.name, at, patients, seed)
        for at, patients in zip(described.hospitals, described.sizes(), strict=True)
    ]


def unseen_order(root: Path, seed: int) -> Order:
    return Order(root / "unseen" / str(seed), UNSEEN, UNSEEN_PATIENTS, seed)


def write(order: Order) -> float:
    """Write one cohort; return the AUROC of `severe` for a reader who knows the formula and the true lesion load."""
    tables = "[training]\nthreads = 1"
    site = synthetic_site(order.folder, order.at.name, seed=order.seed, min_patients=LEAST, tables=tables)
    truths = write_cohort(
        site, order.at, patients=order.patients, seed=order.seed, settings=PREPROCESSING, anatomy="template"
    )
    chances = {site.pseudonym(truth.patient_id): truth.p_severe for truth in truths}
    with Cohort.read(site) as cohort:
        known = [row for row in cohort.patients() if row.pcr_positive and row.severe is not None]
    return area([chances[row.pseudonym] for row in known], [bool(row.severe) for row in known])


def area(scores: Sequence[float], labels: Sequence[float]) -> float:
    """AUROC over patients with a known label (not NaN); NaN if all labels are equal."""
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(y)
    return float(roc_auc_score(y[known], x[known])) if len(set(y[known])) == 2 else float("nan")


def areas(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Return the AUROC of each label; `scores` and `targets` have shape (patients, labels)."""
    return {label: area(scores[:, k], targets[:, k]) for k, label in enumerate(LABELS)}
