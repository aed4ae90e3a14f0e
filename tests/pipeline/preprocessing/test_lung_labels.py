"""Tests of the labels of the lungs: the table follows from them as from the scan and the segmenter."""

import subprocess
import sys

import numpy as np
import pytest

from models.lung_segmenter import Region as Organ
from models.lung_segmenter import Tissue
from pipeline.preprocessing.lesion_burden import burden
from pipeline.preprocessing.lung_labels import (
    KNOWN,
    LEFT,
    RIGHT,
    Counting,
    bands,
    count,
    make_labels,
    measure,
    sides_of,
)
from pipeline.preprocessing.lung_regions import LungRegions
from pipeline.preprocessing.opacity import Opacity

SHAPE = (12, 10, 20)
SPACING_MM = 4.0


def found() -> tuple[np.ndarray, LungRegions]:
    """Two lungs with every tissue, and HU in and between all bands."""
    random = np.random.default_rng(5)
    hu = random.uniform(-950, 250, SHAPE).astype(np.float32)
    regions = np.zeros(SHAPE, np.uint8)
    regions[1:11, 1:9, 1:9], regions[2:9, 2:8, 11:19] = Organ.RIGHT_LUNG, Organ.LEFT_LUNG
    tissues = np.where(regions > 0, random.integers(0, len(Tissue), SHAPE), 0).astype(np.uint8)
    return hu, LungRegions.of_labels(regions, tissues)


def test_table_follows_from_the_labels_alone() -> None:
    hu, regions = found()
    made = burden(hu, regions, SPACING_MM)
    opacities, measured = count(made.labels)
    assert measure(made.labels, opacities, measured, SPACING_MM**3 / 1000) == made.regions
    assert np.array_equal(opacities, made.opacities)
    assert np.array_equal(sides_of(made.labels) > 0, regions.lungs)
    assert set(np.unique(made.labels & 15).tolist()) == KNOWN


@pytest.mark.parametrize(
    ("hu", "counting", "at_edge", "inside"),
    [
        (-500, Counting.BY_DENSITY, Opacity.NONE, Opacity.GROUND_GLASS),
        (-500, Counting.ALSO_AT_EDGE, Opacity.GROUND_GLASS, Opacity.GROUND_GLASS),
        (-500, Counting.NEVER, Opacity.NONE, Opacity.NONE),
        (-300, Counting.ALSO_AT_EDGE, Opacity.CONSOLIDATION, Opacity.CONSOLIDATION),
        (-701, Counting.ALSO_AT_EDGE, Opacity.NONE, Opacity.NONE),
        (100, Counting.ALSO_AT_EDGE, Opacity.NONE, Opacity.NONE),
    ],
)
def test_density_decides_as_what_a_voxel_counts(hu: int, counting: Counting, at_edge: int, inside: int) -> None:
    sides = np.zeros((5, 5, 5), np.uint8)
    sides[1:4, 1:4, 1:4] = RIGHT
    density = bands(lambda least: np.full(sides.shape, hu >= least))
    labels = make_labels(density, sides, np.full(sides.shape, counting, np.uint8))
    opacities, _ = count(labels)
    assert (opacities[1, 1, 1], opacities[2, 2, 2], opacities[0, 0, 0]) == (at_edge, inside, Opacity.NONE)


def test_side_without_a_voxel_has_no_share() -> None:
    labels = make_labels(*(np.full((3, 3, 3), value, np.uint8) for value in (Opacity.CONSOLIDATION, LEFT, 0)))
    table = measure(labels, *count(labels), 1.0)
    assert (table["right"]["whole"].ml, table["right"]["whole"].ground_glass) == (0.0, None)
    assert table["left"]["whole"].ml == 27.0


def test_labels_are_measured_without_torch() -> None:
    program = "import pipeline.clinic.corrected_mask, sys; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
