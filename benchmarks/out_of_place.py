"""Synthetic scans that must get no score, and good scans that must get one: phantoms of all scanners, with faults.

All scans except the head are made from synthetic chests. Values are stored as by a scanner: 12 bits from -1024 HU on.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from scipy import ndimage

from pipeline.phantom.anatomy import AIR_HU, MUSCLE_HU, Build, Field, Grid, make_thorax
from pipeline.phantom.hospitals import HOSPITALS, Scanner
from pipeline.phantom.lesions import add_lesions
from pipeline.phantom.patients import Patient, draw_patient
from pipeline.phantom.scans import acquire, write_series

HEAD_GRID = Grid((50, 80, 80), (4.0, 3.2, 3.2))
METAL_HU = 8000
STORED_HU = (-1024, 3071)
# Air in the head: centre and radii in mm (z, y, x) of the sinuses, the nasal cavity and the pharynx.
CAVITIES_MM = (
    ((-30, -58, 22), (17, 14, 13)),
    ((-30, -58, -22), (17, 14, 13)),
    ((10, -75, 0), (12, 6, 25)),
    ((-20, -30, 0), (10, 12, 14)),
    ((-28, -45, 0), (22, 25, 7)),
    ((-75, -10, 0), (40, 9, 12)),
)


@dataclass(frozen=True)
class Chest:
    """A synthetic patient: the body before the scanner; slice 0 is the lowest, LPS axes (z, y, x)."""

    patient: Patient
    hu: Field
    lungs: NDArray[np.bool_]
    scanner: Scanner
    rng: Generator

    def seen(self) -> Field:
        return acquire(self.hu, self.scanner, self.rng)


def chest(seed: int) -> Chest:
    """Yield patients of the four synthetic hospitals in turn, with their case mix and lesions."""
    at = HOSPITALS[seed % len(HOSPITALS)]
    rng = np.random.default_rng([seed, 6])
    patient = draw_patient(f"SYNTHETIC-{seed}", f"SYNTHETIC^{seed}", at.mix, rng)
    thorax = make_thorax(at.scanner.grid, Build.draw(rng, female=patient.sex == "F"), rng)
    sick = add_lesions(
        thorax,
        at.scanner.grid,
        pattern=patient.pattern,
        load=patient.load,
        consolidated=patient.consolidated,
        rng=rng,
    )
    return Chest(patient, sick.hu, thorax.lungs, at.scanner, rng)


# --- another part of the body -----------------------------------------------------------------------------


def abdomen(c: Chest) -> Field:
    """Return the same body with solid tissue in place of lungs."""
    return acquire(_solid(c), c.scanner, c.rng)


def abdomen_with_gas(c: Chest) -> Field:
    """Add loops of bowel full of gas, up to two litres."""
    hu = _solid(c)
    z, y, x = c.scanner.grid.axes_mm()
    for _ in range(c.rng.integers(3, 9)):
        at = c.rng.uniform((-110, -70, -90), (110, 20, 90))
        radii = c.rng.uniform((25, 18, 25), (90, 38, 60))
        loop = ((z - at[0]) / radii[0]) ** 2 + ((y - at[1]) / radii[1]) ** 2 + ((x - at[2]) / radii[2]) ** 2 < 1
        hu[loop & (hu > -500)] = AIR_HU
    return acquire(hu, c.scanner, c.rng)


def abdomen_with_bases(c: Chest) -> Field:
    """Make an abdominal scan, with the bases of the lungs at its top."""
    low, high = _ends(c.lungs)
    shown = low + round((high - low) * c.rng.uniform(0.2, 0.45))
    below = np.repeat(_solid(c)[:1], 25, axis=0)
    return acquire(np.concatenate([below, c.hu[:shown]]), c.scanner, c.rng)


def head(c: Chest) -> Field:
    """Make a head: skull, brain, sinuses and pharynx, with a head rest below."""
    z, y, x = HEAD_GRID.axes_mm()
    rng = c.rng
    size = rng.uniform(0.9, 1.1, 3) * (88, 92, 74)
    radius = np.sqrt(((z - 5) / size[0]) ** 2 + (y / size[1]) ** 2 + (x / size[2]) ** 2)
    hu = np.full(radius.shape, AIR_HU, np.float32)
    hu[(np.hypot(x / 55, (y - 15) / 55) < 1) & (z < -30)] = MUSCLE_HU
    hu[radius < 1] = MUSCLE_HU
    hu[radius < 0.95] = 900
    hu[radius < 0.87] = 35
    for centre, radii in CAVITIES_MM:
        r = np.array(radii) * rng.uniform(0.7, 1.2)
        at = ((z - centre[0]) / r[0]) ** 2 + ((y - centre[1]) / r[1]) ** 2 + ((x - centre[2]) / r[2]) ** 2
        hu[at < 1] = AIR_HU
    hu[np.broadcast_to((np.abs(y - 105) < 5) & (np.abs(x) < 90), hu.shape)] = -200
    return acquire(hu, replace(c.scanner, grid=HEAD_GRID), rng)


def _solid(c: Chest) -> Field:
    hu = c.hu.copy()
    hu[ndimage.binary_dilation(c.lungs, iterations=2) & (hu < 0)] = MUSCLE_HU  # including the shadow of vessels
    return np.where(c.lungs, c.rng.normal(MUSCLE_HU, 20, hu.shape), hu).astype(np.float32)


def _ends(lungs: NDArray[np.bool_]) -> tuple[int, int]:
    heights = np.flatnonzero(lungs.any(axis=(1, 2)))
    return int(heights[0]), int(heights[-1]) + 1


# --- another modality, noise ------------------------------------------------------------------------------


def mr_as_ct(c: Chest) -> Field:
    """Make the signal of a T1-weighted image with coil shading, under the header of a CT."""
    at_hu = (-1000, -900, -500, -100, 45, 150, 300, 3000)
    signal = np.interp(c.hu, at_hu, (0, 90, 200, 900, 400, 500, 150, 0))
    z, y, x = c.scanner.grid.axes_mm()
    coil = 0.6 + 0.8 * np.exp(-((y + 90) ** 2 + x**2 + z**2) / (2 * c.rng.uniform(90, 200) ** 2))
    noise = c.rng.normal(0, c.rng.uniform(10, 40), (2, *c.hu.shape))
    seen = np.hypot(signal * coil + noise[0], noise[1]) * c.rng.uniform(0.5, 2.5)
    return (seen + c.rng.choice([0.0, -1000.0, -1024.0])).astype(np.float32)


def write_mr(c: Chest, folder: Path) -> None:
    """Write a series whose header says MR."""
    scanner = replace(c.scanner, transfer_syntax=ExplicitVRLittleEndian)
    for path in write_series(c.seen(), scanner, c.patient, folder):
        ds = dcmread(path)
        ds.Modality, ds.SOPClassUID = "MR", MRImageStorage
        ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.save_as(path)


def noise_alone(c: Chest) -> Field:
    """Make noise over the value range of a chest, white or spatially correlated."""
    sigma = c.rng.choice([0.0, 1.0, 3.0, 6.0])
    field = ndimage.gaussian_filter(c.rng.standard_normal(c.hu.shape), sigma)
    seen = c.rng.uniform(-700, 0) + c.rng.uniform(200, 600) * field / field.std()
    return seen.clip(*STORED_HU).astype(np.float32)


def drowned_in_noise(c: Chest) -> Field:
    """Make a chest scan with hardly any detected photons."""
    seen = c.seen()
    return (seen + c.rng.normal(0, c.rng.uniform(250, 800), seen.shape)).clip(*STORED_HU).astype(np.float32)


# --- turned over, cut off ---------------------------------------------------------------------------------


def head_at_the_feet(c: Chest) -> Field:
    return c.seen()[::-1]


def front_at_the_back(c: Chest) -> Field:
    return c.seen()[:, ::-1]


def left_for_right(c: Chest) -> Field:
    return c.seen()[:, :, ::-1]


def cut(share: float, *, top: bool) -> Callable[[Chest], Field]:
    """Cut off that share of the lungs' height."""

    def make(c: Chest) -> Field:
        low, high = _ends(c.lungs)
        gone = round((high - low) * share)
        return c.seen()[: high - gone] if top else c.seen()[low + gone :]

    return make


# --- metal, wrong densities -------------------------------------------------------------------------------


def spinal_rods(c: Chest) -> Field:
    """Add two rods with screws along the spine."""
    grid = c.scanner.grid
    z, y, x = grid.axes_mm()
    rods = (np.abs(np.abs(x) - 16) < 4) & (np.abs(y - c.rng.uniform(85, 95)) < 4) & (np.abs(z) < c.rng.uniform(80, 130))
    screws = (np.abs(np.abs(x) - 14) < 4) & (np.abs(y - 70) < 22) & (np.abs((z + 150) % 30 - 15) < 4)
    return _with_metal(c, rods | (screws & (np.abs(z) < 80)))


def heart_pump(c: Chest) -> Field:
    """Add the body of a ventricular assist device at the apex of the heart."""
    z, y, x = c.scanner.grid.axes_mm()
    at = c.rng.uniform((-80, -45, 40), (-50, -25, 60))
    return _with_metal(c, ((z - at[0]) / 22) ** 2 + ((y - at[1]) / 26) ** 2 + ((x - at[2]) / 26) ** 2 < 1)


def _with_metal(c: Chest, metal: NDArray[np.bool_]) -> Field:
    """Add metal and its streaks, as beam hardening and photon starvation cause in filtered back projection."""
    metal = np.broadcast_to(metal, c.hu.shape)
    hu = acquire(np.where(metal, METAL_HU, c.hu).astype(np.float32), c.scanner, c.rng)
    streaks, last = np.zeros_like(hu[0]), np.zeros(hu.shape[1:], bool)
    for index in np.flatnonzero(metal.any(axis=(1, 2))):
        if not np.array_equal(metal[index], last):
            last = metal[index]
            streaks = _streaks(last, c.rng)
        hu[index] += streaks
    return hu.clip(*STORED_HU)


def _streaks(metal: NDArray[np.bool_], rng: Generator, angles: int = 90) -> Field:
    """Compute the streaks of one slice in HU: some hundred near the metal."""
    image = metal.astype(np.float32)
    ramp = np.abs(np.fft.fftfreq(image.shape[0]))
    total = np.zeros_like(image)
    for angle in np.arange(angles) * 180 / angles:
        path = ndimage.rotate(image, angle, reshape=False, order=1).sum(axis=0)
        error = -(path**2) * 0.5 + path * rng.normal(0, 1.0, len(path))
        filtered = np.real(np.fft.ifft(np.fft.fft(error) * ramp))
        total += ndimage.rotate(np.repeat(filtered[None], len(image), axis=0), -angle, reshape=False, order=1)
    near = total[ndimage.binary_dilation(metal, iterations=2) & ~metal]
    return (total * 800 / max(np.percentile(np.abs(near), 90), 1e-6)).astype(np.float32)


def slope_2_on_hu(c: Chest) -> Field:
    return c.seen() * 2


def slope_2_on_stored(c: Chest) -> Field:
    return (c.seen() + 1024) * 2 - 1024


def slope_half(c: Chest) -> Field:
    return c.seen() / 2


def offset(hu: float) -> Callable[[Chest], Field]:
    def make(c: Chest) -> Field:
        return c.seen() + hu

    return make


def unsigned_wrap(bits: int) -> Callable[[Chest], Field]:
    """Read negative values as large positive ones."""

    def make(c: Chest) -> Field:
        return np.mod(np.rint(c.seen()), 2.0**bits).astype(np.float32)

    return make


Maker = Callable[[Chest], Field]
KINDS: dict[str, dict[str, Maker]] = {
    "abdomen": {"solid": abdomen, "gas in the bowel": abdomen_with_gas, "lung bases at the top": abdomen_with_bases},
    "head": {"head": head},
    "MR": {"labelled CT": mr_as_ct},
    "noise": {"noise alone": noise_alone, "a chest drowned in it": drowned_in_noise},
    "flipped": {
        "head at the feet": head_at_the_feet,
        "front at the back": front_at_the_back,
        "left for right": left_for_right,
    },
    "truncated": {
        f"{round(share * 100)} % missing at the {end}": cut(share, top=end == "top")
        for share in (0.3, 0.5)
        for end in ("top", "bottom")
    },
    "metal": {"spinal rods": spinal_rods, "heart pump": heart_pump},
    "wrong HU": {
        "slope 2 on HU": slope_2_on_hu,
        "slope 2 on stored values": slope_2_on_stored,
        "slope 0.5": slope_half,
        "offset +1000": offset(1000),
        "offset -1024": offset(-1024),
        "unsigned, 16 bits": unsigned_wrap(16),
        "unsigned, 12 bits": unsigned_wrap(12),
    },
}
