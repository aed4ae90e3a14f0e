"""Shortcuts planted in a synthetic hospital: marks outside the lungs, or in the tags, that correlate with severity.

Real hospitals have such marks: leads and lines on the chests of severely ill patients, a portable scanner for patients
who cannot be moved (Zech et al., PLoS Med 2018; 15:e1002683). A model that learns them performs well only where it was
trained.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from pipeline.phantom.anatomy import Field
from pipeline.phantom.cohorts import Body
from pipeline.phantom.hospitals import Scanner
from pipeline.phantom.scans import acquire

RAIL_HU = 3000
RAIL_AT_MM = (84.0, 124.0)  # y and x, either sign: near the skin at the four corners, outside the hull of both lungs
RAIL_RADIUS_MM = 14.0


@dataclass(frozen=True)
class Shortcut:
    """Four dense rails along the chest, like a transport frame, in most severe and few other patients.

    For use with `write_cohort`. `kernel`: in the tags of these patients; with '' the scanner's kernel is kept, and the
    shortcut is only in the pixels.
    """

    of_severe: float = 0.9
    of_others: float = 0.05
    kernel: str = ""

    def __call__(self, body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
        if rng.random() >= (self.of_severe if body.severe else self.of_others):
            return acquire(body.hu, scanner, rng), scanner
        return acquire(add_frame(body.hu, scanner), scanner, rng), replace(
            scanner, kernel=self.kernel or scanner.kernel
        )


def add_frame(hu: Field, scanner: Scanner) -> Field:
    """Return a copy of the body with the rails along its whole length."""
    _, y, x = scanner.grid.axes_mm()
    inside = (np.abs(y) - RAIL_AT_MM[0]) ** 2 + (np.abs(x) - RAIL_AT_MM[1]) ** 2 < RAIL_RADIUS_MM**2
    marked = hu.copy()
    marked[:, inside[0]] = RAIL_HU
    return marked


@dataclass(frozen=True)
class TwoScanners:
    """A random half of the patients on a second scanner: sharper, noisier, with its own tags. No shortcut."""

    manufacturer: str
    kernel: str

    def __call__(self, body: Body, scanner: Scanner, rng: Generator) -> tuple[Field, Scanner]:
        if rng.random() < 0.5:
            scanner = replace(
                scanner,
                manufacturer=self.manufacturer,
                kernel=self.kernel,
                blur_mm=0.6 * scanner.blur_mm,
                noise_hu=1.5 * scanner.noise_hu,
            )
        return acquire(body.hu, scanner, rng), scanner
