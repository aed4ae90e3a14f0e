"""Synthetic scans without lesions, as volumes and as DICOM, for tests of code that takes a chest CT."""

from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from pipeline.phantom.anatomy import Build, Grid, Thorax, make_thorax
from pipeline.phantom.hospitals import Hospital
from pipeline.phantom.patients import Patient
from pipeline.phantom.scans import acquire, write_series

TEMPLATE = Build(
    width=1.0,
    depth=1.0,
    lung_height=1.0,
    fat_mm=14.0,
    inflation_hu=-870.0,
    gravity_hu_per_mm=0.35,
    dependent_hu=0.0,
    dependent_mm=5.0,
)
SOMEBODY = Patient(
    patient_id="SYNTHETIC-1",
    name="SYNTHETIC^ONE",
    age_years=60,
    sex="F",
    pcr_positive=False,
    pattern="none",
    load=0.0,
    consolidated=0.0,
    scanned=datetime(2020, 3, 4, 5, 6, 7),
)


def thorax(grid: Grid) -> Thorax:
    return make_thorax(grid, TEMPLATE, np.random.default_rng(7))


def volume(hu: NDArray[np.float32], grid: Grid) -> Volume:
    """Convert HU on a phantom grid (slices up, rows to the back, columns to the left) to a volume in RAS."""
    x0, y0, z0 = grid.origin_mm
    up, back, left = grid.spacing_mm
    affine = np.array([[0, 0, -left, -x0], [0, -back, 0, -y0], [up, 0, 0, z0], [0, 0, 0, 1.0]])
    return Volume(hu=np.rint(hu).astype(np.int16), affine=affine)


def scan(hospital: Hospital, folder: Path) -> tuple[Volume, NDArray[np.float32]]:
    """Write and read a scan without lesions of one hospital. Return the volume and the written HU on its grid."""
    hu = acquire(thorax(hospital.scanner.grid).hu, hospital.scanner, np.random.default_rng(8))
    write_series(hu, hospital.scanner, SOMEBODY, folder)
    (series,), findings = find_series(folder)
    assert findings == []
    return read_series(series), hu
