"""The chest CT of one day at a university hospital, for clinic_day.py: when each arrives, and what is wrong with it.

All scans are phantoms. Most are whole. Some cannot be scored, and some are sent twice by the PACS.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom import dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless

from pipeline.phantom.anatomy import Build, Grid, Thorax, make_thorax
from pipeline.phantom.hospitals import hospital
from pipeline.phantom.patients import Patient
from pipeline.phantom.scans import acquire, write_series

Kind = Literal["whole", "sent twice", "slices missing", "no lungs", "image cut short", "empty images"]
KINDS: dict[Kind, float] = {  # share of each
    "whole": 0.84,
    "sent twice": 0.05,
    "slices missing": 0.04,
    "no lungs": 0.03,
    "image cut short": 0.02,
    "empty images": 0.02,
}
ANSWERED: tuple[Kind, ...] = ("whole", "sent twice")
DAY_H = 24
# Arrivals in each hour of the day, relative to each other: a night with emergencies, a morning and an afternoon peak.
BY_HOUR = (1, 1, 1, 1, 1, 1, 2, 4, 7, 9, 10, 10, 8, 7, 9, 9, 8, 6, 4, 3, 2, 2, 1, 1)
GRID = Grid(shape=(100, 192, 192), spacing_mm=(3.2, 2.1, 2.1))
BODIES = 8
DAY = datetime(2021, 3, 4)


@dataclass(frozen=True)
class Scan:
    """One scan of the day. `at_h`: hours after midnight at which its last image reaches the PACS."""

    number: int
    kind: Kind
    at_h: float

    @property
    def patient(self) -> Patient:
        return Patient(
            patient_id=f"SYNTHETIC-{self.number}",
            name=f"SYNTHETIC^{self.number}",
            age_years=30 + self.number % 60,
            sex="FM"[self.number % 2],
            pcr_positive=False,
            pattern="none",
            load=0.0,
            consolidated=0.0,
            scanned=DAY + timedelta(hours=self.at_h),
        )


def plan(count: int, seed: int) -> list[Scan]:
    """Return the scans of a day in the order of their arrival. Each kind has at least one scan."""
    draw = np.random.default_rng(seed)
    hours = np.repeat(np.arange(DAY_H), np.diff(np.rint(np.cumsum((0, *BY_HOUR)) / sum(BY_HOUR) * count)).astype(int))
    at_h = np.sort(hours + draw.uniform(size=count))
    kinds = list(KINDS)
    of_scans = draw.choice(len(kinds), count, p=list(KINDS.values()))
    of_scans[draw.choice(count, len(kinds), replace=False)] = np.arange(len(kinds))
    return [Scan(number, kinds[of], float(at)) for number, (of, at) in enumerate(zip(of_scans, at_h, strict=True))]


def busiest(scans: Sequence[Scan]) -> int:
    """Return the hour with the most scans."""
    return int(np.bincount([int(scan.at_h) for scan in scans]).argmax())


@cache
def _body(number: int) -> Thorax:
    draw = np.random.default_rng(number)
    build = Build(
        width=draw.uniform(0.94, 1.06),
        depth=draw.uniform(0.94, 1.06),
        lung_height=draw.uniform(0.95, 1.03),
        fat_mm=14.0,
        inflation_hu=draw.uniform(-880, -840),
        gravity_hu_per_mm=0.35,
        dependent_hu=0.0,
        dependent_mm=5.0,
    )
    return make_thorax(GRID, build, draw)


def write(scan: Scan, folder: Path) -> list[Path]:
    """Write the images of a scan, and return them in the order in which the PACS receives them."""
    scanner = replace(hospital(0).scanner, grid=GRID, rotated=False, transfer_syntax=RLELossless)
    body, draw = _body(scan.number % BODIES), np.random.default_rng(1000 + scan.number)
    hu = acquire(body.hu, scanner, draw)
    if scan.kind == "no lungs":
        hu[body.lungs] = 40.0
    elif scan.kind == "empty images":
        hu[:] = -1024.0
    files = write_series(hu, scanner, scan.patient, folder)
    if scan.kind == "slices missing":
        return [*files[:45], *files[51:]]
    if scan.kind == "image cut short":
        _cut_pixels_short(files[50])
    return files


def _cut_pixels_short(file: Path) -> None:
    """Remove the second half of the compressed pixels. The file itself is valid, so a PACS accepts it."""
    image = dcmread(file)
    (pixels,) = generate_frames(image.PixelData, number_of_frames=1)
    image.PixelData = encapsulate([pixels[: len(pixels) // 4 * 2]])
    image.save_as(file)
