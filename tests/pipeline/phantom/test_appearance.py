"""Tests of a patient's scanner: the hospital's own scanner, or a random appearance for each patient."""

import numpy as np

from pipeline.phantom.appearance import LARGEST_OFFSET_HU, scanner_for_patient
from pipeline.phantom.hospitals import HOSPITALS


def test_template_without_randomisation_uses_hospital_scanner_and_no_random_draw() -> None:
    rng = np.random.default_rng(1)
    for at in HOSPITALS:
        assert scanner_for_patient(at.scanner, "template", rng, randomise=False) == at.scanner
    assert rng.random() == np.random.default_rng(1).random()


def test_random_bodies_get_the_noise_of_the_hospital_kernel() -> None:
    rng = np.random.default_rng(1)
    kernels = [scanner_for_patient(at.scanner, "random", rng, randomise=False).noise for at in HOSPITALS]
    assert kernels == ["soft", "lung", "lung", "soft"]


def test_randomised_scanners_differ_and_keep_the_hospital_tags() -> None:
    rng = np.random.default_rng(2)
    own = HOSPITALS[1].scanner
    drawn = [scanner_for_patient(own, "random", rng, randomise=True) for _ in range(60)]
    for scanner in drawn:
        assert (scanner.manufacturer, scanner.kernel, scanner.grid.shape) == (
            own.manufacturer,
            own.kernel,
            own.grid.shape,
        )
        assert abs(scanner.offset_hu) <= LARGEST_OFFSET_HU
        assert 0.9 * own.grid.spacing_mm[1] < scanner.grid.spacing_mm[1] < 1.15 * own.grid.spacing_mm[1]
    for name in ("blur_mm", "noise_hu", "offset_hu", "grid"):
        assert len({getattr(scanner, name) for scanner in drawn}) > 50
    assert {scanner.noise for scanner in drawn} == {"soft", "lung"}
    assert 10 < sum(scanner.slice_blur_mm > 0 for scanner in drawn) < 50
