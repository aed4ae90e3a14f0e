"""Scans of random bodies, with noise as measured in patients' scans.

The noise power spectrum of a kernel is modelled as P(f) ~ f^rise * exp(-(f / corner)^fall), f in 1/mm, and was fitted
to images of patients, of which nothing else is kept here:

- "soft": kernel Br38f, 3 mm slices, pixels of 0.98 mm. 122 squares of 32 pixels in the liver, in differences of slices
  4 mm apart, divided by the square root of 2. Standard deviation 10.1 HU, of means over 4 x 4 pixels 3.5 HU. The
  fit's error is 6 % of each value (root mean square).
- "lung": a 1 mm slice of a sharp kernel that its header does not name, pixels of 0.63 mm. 101 squares of 32 pixels in
  fat, without their quadratic trend. Standard deviation 26 HU there, 38 HU in the heart, 14 HU in air; fit within 4 %.

In a whole thorax on voxels of 4.2 x 4.2 x 4.0 mm, soft tissue had 2.7 to 3.5 HU in its quietest tenth.

`Scanner.noise_hu` is the noise of a pixel of the scanner's own size in the middle of the body. The grids of synthetic
hospitals are coarser: a voxel is a mean over such pixels, and keeps the low frequencies alone.
"""

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.phantom.anatomy import AIR_HU, Field
from pipeline.phantom.hospitals import Noise, Scanner

BODY_BLUR_MM = 4.0 / np.sqrt(3)  # of random bodies: standard deviation of a cubic B-spline with knots 4 mm apart
# rise, corner in 1/mm, fall, and the size of the pixels in which they were measured.
SPECTRA: dict[Noise, tuple[float, float, float, float]] = {
    "soft": (1.00, 0.1365, 1.05, 0.9766),
    "lung": (1.78, 0.0986, 1.24, 0.625),
}
# Relative noise far outside the body and in its middle: 14 and 38 HU in the slice above.
IN_AIR, REACH_MM = 0.36, 30.0
EDGES: dict[Noise, float] = {"soft": 0.0, "lung": 0.5}  # how much a kernel exaggerates edges
# Along the shoulders and arms few photons arrive, and noise becomes horizontal streaks.
WATER_PER_MM, ENOUGH_MM, MOST_STREAKS = 0.019, 330.0, 6.0


def acquire(hu: Field, scanner: Scanner, rng: Generator) -> Field:
    """Simulate the scanner: blur beyond the body's own, edges, noise, streaks, calibration offset."""
    spacing = scanner.grid.spacing_mm
    more_mm = np.sqrt(max(0.0, scanner.blur_mm**2 - BODY_BLUR_MM**2))
    sigma = (scanner.slice_blur_mm / spacing[0], more_mm / spacing[1], more_mm / spacing[2])
    seen = ndimage.gaussian_filter(hu, sigma, truncate=3) if any(sigma) else hu
    kernel = scanner.noise or "soft"
    if EDGES[kernel]:
        seen = seen + EDGES[kernel] * (seen - ndimage.gaussian_filter(seen, (0, 0.8, 0.8), truncate=3))
    noise = _correlated(hu.shape, kernel, spacing[1:], rng) * _level(hu, spacing)
    noise += _streaks(hu, spacing[2], rng)
    noise *= scanner.noise_hu * kept_share(kernel, spacing[1])
    return np.maximum(seen + noise + scanner.offset_hu, AIR_HU - 24).astype(np.float32)


def power(kernel: Noise, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the relative noise power at frequencies in 1/mm."""
    rise, corner, fall, _ = SPECTRA[kernel]
    return np.asarray(frequency**rise * np.exp(-((frequency / corner) ** fall)))


@lru_cache
def kept_share(kernel: Noise, spacing_mm: float) -> float:
    """Return the share of the standard deviation that means over pixels of `spacing_mm` keep."""
    own_mm = SPECTRA[kernel][3]
    line = np.linspace(-0.5 / own_mm, 0.5 / own_mm, 401)
    spectrum = power(kernel, np.hypot(line[:, None], line[None]))
    mean = (np.sinc(line * spacing_mm)[:, None] * np.sinc(line * spacing_mm)[None]) ** 2
    return min(1.0, float(np.sqrt((spectrum * mean).sum() / spectrum.sum())))


def _correlated(shape: tuple[int, ...], kernel: Noise, spacing_mm: tuple[float, ...], rng: Generator) -> Field:
    """Return noise of unit variance with the spectrum of a kernel; slices are independent."""
    white = rng.standard_normal(shape, dtype=np.float32)
    rows = np.fft.fftfreq(shape[1], spacing_mm[0])[:, None]
    columns = np.fft.rfftfreq(shape[2], spacing_mm[1])[None]
    gain = np.sqrt(power(kernel, np.hypot(rows, columns)))
    noise = np.fft.irfft2(np.fft.rfft2(white) * gain, s=shape[1:])
    return np.asarray(noise / noise.std(), np.float32)


def _level(hu: Field, spacing_mm: tuple[float, ...]) -> Field:
    """Return the relative noise: least in air, most in the middle of the body."""
    tissue = hu > -300
    inside = np.ones(hu.shape, bool)
    for axis in (1, 2):
        inside &= np.logical_or.accumulate(tissue, axis=axis)
        inside &= np.flip(np.logical_or.accumulate(np.flip(tissue, axis), axis=axis), axis)
    sigma = (0, REACH_MM / spacing_mm[1], REACH_MM / spacing_mm[2])
    deep = ndimage.gaussian_filter(inside.astype(np.float32), sigma, truncate=2)
    return np.asarray(IN_AIR + (1 - IN_AIR) * deep, np.float32)


def _streaks(hu: Field, column_mm: float, rng: Generator) -> Field:
    """Return noise that is smooth along rows, where X-rays cross more than ENOUGH_MM of water from side to side."""
    water_mm = (np.clip(hu + 1000, 0, None).sum(axis=2) / 1000 * column_mm).astype(np.float32)
    excess = np.exp(WATER_PER_MM / 2 * np.clip(water_mm - ENOUGH_MM, 0, None)) - 1
    white = rng.standard_normal(hu.shape, dtype=np.float32)
    streaks = ndimage.gaussian_filter1d(white, 25.0 / column_mm, axis=2, truncate=2)
    return np.asarray(np.clip(excess, 0, MOST_STREAKS)[:, :, None] * streaks / streaks.std(), np.float32)
