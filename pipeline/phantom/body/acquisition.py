"""What a scanner adds on the grid on which lungs are found: blur, thick slices, noise, streaks, offsets, borders."""

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from pipeline.phantom.body.frame import Field, Mask, smooth_field

LOWEST_HU, HIGHEST_HU = -1024, 3071


def acquire(hu: Field, step_mm: float, rng: Generator) -> Field:
    """Return the scan of a body: in HU, as averages over voxels of `step_mm`."""
    thick = rng.choice([0.35, rng.uniform(0.4, 1.1)], p=[0.6, 0.4])  # thick slices, in voxels
    in_plane = rng.uniform(0.3, 0.75)
    seen = ndimage.gaussian_filter(hu, (thick, in_plane, in_plane), truncate=2.5)
    if rng.random() < 0.3:  # a sharp kernel overshoots at edges
        seen = seen + rng.uniform(0.2, 0.9) * (seen - ndimage.gaussian_filter(seen, 0.8, truncate=2.5))
    if rng.random() < 0.2:
        seen = _moved(seen, rng)
    seen = seen * rng.normal(1, 0.01) + rng.normal(0, 8)
    seen = seen + _noise(hu.shape, rng)
    if rng.random() < 0.15:
        seen = _streaks(seen, rng)
    if rng.random() < 0.25:
        seen = seen + rng.uniform(3, 18) * smooth_field(hu.shape, 100 / step_mm, rng)
    return np.clip(seen, LOWEST_HU, HIGHEST_HU).astype(np.float32)


def _noise(shape: tuple[int, ...], rng: Generator) -> Field:
    white = rng.standard_normal(shape).astype(np.float32)
    size = rng.choice([0.0, rng.uniform(0.3, 0.9)])
    noise = ndimage.gaussian_filter(white, (0.3 * size, size, size), truncate=2) if size else white
    level = rng.uniform(2, 14) if rng.random() < 0.75 else rng.uniform(14, 45)
    return np.asarray(level * noise / noise.std(), np.float32)


def _moved(hu: Field, rng: Generator) -> Field:
    """Blend some slices with themselves moved: heart and breath during the scan."""
    shift = (0.0, *rng.uniform(-1.2, 1.2, 2))
    other = ndimage.shift(hu, shift, order=1, mode="nearest")
    low = int(rng.integers(0, len(hu)))
    high = min(len(hu), low + int(rng.integers(3, 30)))
    blended = hu.copy()
    blended[low:high] = 0.5 * (hu[low:high] + other[low:high])
    return blended


def _streaks(hu: Field, rng: Generator) -> Field:
    """Add dark and bright rays around a point: metal, or arms beside the body."""
    slices, rows, columns = hu.shape
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    centre = rng.uniform(0.15, 0.85, 2) * (rows, columns)
    angle = np.arctan2(y - centre[0], x - centre[1])
    away = np.hypot(y - centre[0], x - centre[1])
    rays = np.sin(angle * rng.integers(3, 12) + rng.uniform(0, 6)) * np.exp(-away / rng.uniform(6, 25))
    low = int(rng.integers(0, slices))
    high = min(slices, low + int(rng.integers(2, 12)))
    streaked = hu.copy()
    streaked[low:high] += rng.uniform(40, 350) * rays
    if rng.random() < 0.5:
        metal = away < rng.uniform(0.6, 2)
        streaked[low:high][:, metal] = HIGHEST_HU
    return streaked


def circle(shape: tuple[int, int, int], rng: Generator) -> Mask | None:
    """Return the voxels outside the scanner's round field of view, or None where none is cut."""
    if rng.random() < 0.6:
        return None
    rows, columns = shape[1:]
    y, x = np.ogrid[:rows, :columns]
    radius = rng.uniform(0.47, 0.56) * max(rows, columns)
    away = np.hypot(y - (rows - 1) / 2, x - (columns - 1) / 2)
    return np.broadcast_to(away > radius, shape)
