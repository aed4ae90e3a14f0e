"""How scans of a hospital look: its scanner's own appearance, or another one for each patient.

With another appearance for each patient (domain randomisation), a network cannot rely on the scanner (Tobin et al.,
IROS 2017; Billot et al., Medical Image Analysis 2023). Tags stay those of the hospital's scanner, except the pixels'
size.
"""

from dataclasses import replace

from numpy.random import Generator

from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import Anatomy, Noise, Scanner

SHARP_KERNELS = frozenset({"LUNG", "YC"})
BLUR_MM, SLICE_BLUR_MM = (1.2, 4.0), (0.5, 3.5)
NOISE_HU = (6.0, 50.0)
# HU of water may differ from 0 by 4 HU by acceptance tests, in a body by more: beam hardening, size, kV.
LARGEST_OFFSET_HU = 15.0
FIELD_OF_VIEW = (0.93, 1.12)  # relative to the hospital's, which holds the lungs of large adults with a margin


def scanner_for_patient(scanner: Scanner, anatomy: Anatomy, rng: Generator, *, randomise: bool) -> Scanner:
    """Return the scanner that scans one patient; without `randomise` nothing is drawn."""
    if anatomy == "random":
        kernel: Noise = "lung" if scanner.kernel in SHARP_KERNELS else "soft"
        scanner = replace(scanner, noise=kernel)
    return _randomised(scanner, rng) if randomise else scanner


def _randomised(scanner: Scanner, rng: Generator) -> Scanner:
    """Draw blur, noise, offset, slice thickness, field of view and chance of contrast agent."""
    up, back, left = scanner.grid.spacing_mm
    zoom = rng.uniform(*FIELD_OF_VIEW)
    low, high = NOISE_HU
    return replace(
        scanner,
        grid=Grid(scanner.grid.shape, (up, round(back * zoom, 3), round(left * zoom, 3))),
        blur_mm=rng.uniform(*BLUR_MM),
        slice_blur_mm=rng.uniform(*SLICE_BLUR_MM) if rng.random() < 0.5 else 0.0,
        noise_hu=float(low * (high / low) ** rng.random()),
        offset_hu=float(rng.uniform(-LARGEST_OFFSET_HU, LARGEST_OFFSET_HU)),
        noise=None if scanner.noise is None else ("soft" if rng.random() < 0.5 else "lung"),
        contrast=0.5,
    )
