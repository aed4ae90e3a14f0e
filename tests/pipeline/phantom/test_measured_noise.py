"""Tests of scans of random bodies: noise has the measured spectrum, and the level that a coarse grid keeps."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.phantom.anatomy import Field, Grid
from pipeline.phantom.hospitals import HOSPITALS, Noise, Scanner
from pipeline.phantom.measured_noise import kept_share
from pipeline.phantom.scans import acquire

SCANNER = replace(HOSPITALS[0].scanner, grid=Grid((24, 96, 96), (5.0, 1.0, 1.0)), blur_mm=0.0, offset_hu=0.0)


def water(scanner: Scanner = SCANNER) -> Field:
    """A water cylinder along the body axis, surrounded by air."""
    _, y, x = scanner.grid.axes_mm()
    inside = np.hypot(y, x) < 0.42 * scanner.grid.shape[1] * scanner.grid.spacing_mm[1]
    return np.broadcast_to(np.where(inside, 40, -1000), scanner.grid.shape).astype(np.float32)


def middle(hu: Field) -> Field:
    return hu[:, 32:64, 32:64] - hu[:, 32:64, 32:64].mean(axis=0)


def test_noise_has_the_level_of_the_coarse_grid_and_is_lowest_in_air() -> None:
    scanner = replace(SCANNER, noise="soft", noise_hu=20, grid=Grid((24, 96, 96), (5.0, 3.0, 3.0)))
    hu = acquire(water(scanner), scanner, np.random.default_rng(1))
    assert middle(hu).std() == pytest.approx(20 * kept_share("soft", 3.0), rel=0.1)
    assert hu[:, :6, :6].std() < 0.5 * middle(hu).std()


def test_measured_mean_over_four_pixels_is_reproduced() -> None:
    """In the liver, 10.1 HU became 3.5 HU."""
    assert kept_share("soft", 4 * 0.9766) == pytest.approx(3.5 / 10.1, abs=0.03)


@pytest.mark.parametrize(("kernel", "peak"), [("soft", 0.12), ("lung", 0.14)])
def test_spectrum_rises_to_its_peak_and_falls(kernel: Noise, peak: float) -> None:
    hu = acquire(water(), replace(SCANNER, noise=kernel, noise_hu=20), np.random.default_rng(2))
    powers = (np.abs(np.fft.fft2(middle(hu))) ** 2).mean(axis=0)
    frequency = np.fft.fftfreq(32, 1.0)
    radius = np.hypot(frequency[:, None], frequency[None])
    low, top, high = (powers[np.abs(radius - f) < 0.03].mean() for f in (0.04, peak, 0.42))
    assert top > low > 0
    assert top > 2 * high


def test_shoulders_cause_horizontal_streaks() -> None:
    scanner = replace(SCANNER, noise="soft", grid=Grid((8, 96, 96), (5.0, 5.0, 5.0)))
    wide = np.full(scanner.grid.shape, 40, np.float32)
    hu = acquire(wide, scanner, np.random.default_rng(3))
    steps = {axis: np.diff(hu, axis=axis).std() for axis in (1, 2)}
    assert steps[2] < 0.7 * steps[1], "smoother along rows"


def test_scanner_without_measured_noise_has_uniform_noise() -> None:
    plain = acquire(water(), SCANNER, np.random.default_rng(4))
    measured = acquire(water(), replace(SCANNER, noise="soft"), np.random.default_rng(4))
    assert not np.array_equal(plain, measured)
    assert plain[:, :6, :6].std() == pytest.approx(middle(plain).std(), rel=0.35)
