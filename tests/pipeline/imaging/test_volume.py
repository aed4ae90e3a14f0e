"""Tests of a volume's geometry."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.imaging.volume import Volume

VOLUME = Volume(np.zeros((4, 5, 6), np.int16), np.diag([4.0, 0.7, 0.7, 1.0]))


def test_geometry_is_told_by_places_and_flags_not_by_hu() -> None:
    same = Volume(VOLUME.hu + np.int16(7), VOLUME.affine + 1e-7)
    assert same.geometry_sha256 == VOLUME.geometry_sha256
    assert replace(VOLUME, affine=VOLUME.affine * -0.0 + VOLUME.affine).geometry_sha256 == VOLUME.geometry_sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"affine": np.diag([2.0, 0.7, 0.7, 1.0])},
        {"affine": np.diag([-4.0, 0.7, 0.7, 1.0])},
        {"hu": np.zeros((5, 4, 6), np.int16)},
        {"flags": ("W_POSITIONS",)},
    ],
    ids=["positions", "direction", "shape", "flags"],
)
def test_another_geometry_has_another_digest(changes) -> None:
    assert replace(VOLUME, **changes).geometry_sha256 != VOLUME.geometry_sha256
