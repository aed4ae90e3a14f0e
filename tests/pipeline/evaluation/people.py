"""Synthetic patients, each with one small tensor as scan, for the tests of evaluation figures."""

from pathlib import Path

import numpy as np

from pipeline.cohort.dataset import Example, Examples
from tests.helpers.scan_list import measures

MANUFACTURERS = ("SIEMENS", "GE", "PHILIPS", "CANON", "HITACHI", "")
WINDOW_HU = (-1000.0, 200.0)


def as_window(hu: float) -> float:
    low, high = WINDOW_HU
    return (hu - low) / (high - low) * 2 - 1


def tensor(load: float) -> np.ndarray:
    """Lungs of 1000 voxels in soft tissue, with a share `load` of them at -200 HU. Shape (2, 10, 12, 12)."""
    lungs = np.zeros((10, 12, 12), dtype=bool)
    lungs[:, 1:11, 1:11] = True
    hu = np.where(lungs, -870.0, 40.0)
    where = np.argwhere(lungs)[: round(load * lungs.sum())]
    hu[tuple(where.T)] = -200.0
    return np.stack([as_window(hu), lungs]).astype(np.float16)


def people(folder: Path, patients: int, *, seed: int = 1, loads: tuple[float, ...] = (0.1,)) -> Examples:
    """Patients of both sexes, all ages and all scanners. Severity rises with age; all have a PCR result.

    The lesion loads cycle through `loads`.
    """
    rng = np.random.default_rng(seed)
    files = []
    for number, load in enumerate(loads):
        files.append(folder / f"{number}.npy")
        np.save(files[-1], tensor(load))
    made = []
    for number in range(patients):
        age = float(rng.uniform(20, 95))
        made.append(
            Example(
                files[number % len(files)],
                age,
                str(rng.choice(["F", "M"])),
                bool(rng.random() < 0.6),
                bool(rng.random() < age / 120),
                measures(manufacturer=str(rng.choice(MANUFACTURERS))),
            )
        )
    return Examples(made)
