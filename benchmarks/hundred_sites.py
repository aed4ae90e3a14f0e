"""One hundred different synthetic hospitals with few patients and small volumes, for hundred.py.

Each hospital has one of the four phantom dialects as its scanner, with other noise, blur, calibration and slice
distance. It has its own share of PCR-positive patients, their ages and lesions, and a number of patients from a skewed
distribution.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from pipeline.phantom.anatomy import Grid
from pipeline.phantom.cohorts import synthetic_site, write_cohort
from pipeline.phantom.hospitals import HOSPITALS, Hospital
from pipeline.phantom.patients import CaseMix
from pipeline.preprocessing.preprocess_settings import Preprocessing

PREPROCESSING = Preprocessing(method=1, shape=(16, 24, 24), working_spacing_mm=8.0)
MIN_PATIENTS = 5
_FEWEST, _MEDIAN, _MOST = 32, 48, 160  # patients


@dataclass(frozen=True)
class Order:
    """A cohort to write."""

    folder: Path
    at: Hospital
    patients: int
    seed: int


def orders(root: Path, sites: int, seed: int) -> list[Order]:
    """Return the hospitals h-001, h-002, ... of a seed. The first ones do not depend on the total number."""
    return [_order(root, number, seed) for number in range(1, sites + 1)]


def _order(root: Path, number: int, seed: int) -> Order:
    rng = np.random.default_rng([seed, number])
    dialect, name = HOSPITALS[rng.integers(len(HOSPITALS))], f"h-{number:03d}"
    slices = int(rng.integers(26, 37))  # over about the same length of 290 mm
    scanner = replace(
        dialect.scanner,
        grid=Grid((slices, 40, 40), (288 / slices, 9.5, 9.5)),
        blur_mm=float(rng.uniform(1.2, 4.0)),
        noise_hu=float(rng.uniform(10, 60)),
        offset_hu=float(rng.uniform(-30, 30)),
    )
    mix = CaseMix(
        pcr_prevalence=float(rng.uniform(0.4, 0.8)),
        mean_age_years=float(rng.uniform(52, 70)),
        median_load=float(rng.uniform(0.11, 0.2)),
    )
    patients = int(np.clip(_MEDIAN * rng.lognormal(sigma=0.45), _FEWEST, _MOST))
    return Order(root / name, Hospital(name, scanner, dialect.laboratory, mix), patients, seed)


def write_all(wanted: Sequence[Order], workers: int) -> int:
    """Write the hospitals with `workers` processes; return their total number of patients."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        return sum(pool.map(_write, wanted))


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _write(order: Order) -> int:
    name, tables = order.at.name, "[training]\nthreads = 1"
    site = synthetic_site(order.folder, name, seed=order.seed, min_patients=MIN_PATIENTS, tables=tables)
    return len(
        write_cohort(
            site, order.at, patients=order.patients, seed=order.seed, settings=PREPROCESSING, anatomy="template"
        )
    )
