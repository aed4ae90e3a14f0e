"""Tests of the ranges of ground glass and consolidation, on synthetic scans; the benchmark measures their coverage."""

from dataclasses import replace

import numpy as np
import pytest

from models.lung_segmenter import Region
from pipeline.preprocessing.lesion_burden import Burden, burden
from pipeline.preprocessing.lung_regions import LungRegions
from tests.helpers.lungs import burden_of, regions_of
from tests.pipeline.scoring.test_html_report import prepared


def with_chances(chance_outside: float) -> Burden:
    """Measure a phantom of soft tissue around two lungs, beside which 2000 voxels may be lung."""
    scan = prepared()
    found = regions_of(scan)
    chances = found.chances.copy()
    beside = np.argwhere(~found.lungs & (scan.image_hu >= -300) & (scan.image_hu < 100))[:2000]
    assert len(beside) == 2000
    chances[0][tuple(beside.T)] = chance_outside
    return burden(scan.image_hu, replace(found, chances=chances), 4.0)


def width(found: Burden, share: str) -> float:
    low, high = found.ranges[share]
    return high - low


def test_ranges_contain_the_share_and_stay_within_0_and_1() -> None:
    scan = prepared()
    scan.image_hu[12:40, 12:38, 12:30] = -500
    found = burden_of(scan)
    both = found.regions["both"]["whole"]
    for share, value in (("ground_glass", both.ground_glass), ("consolidation", both.consolidation)):
        low, high = found.ranges[share]
        assert value is not None and 0 <= low <= value <= high <= 1
    assert width(found, "ground_glass") > 0.1 > width(found, "consolidation")


def test_more_doubt_at_the_border_widens_the_range_of_consolidation() -> None:
    sure, little, much = (with_chances(chance) for chance in (0.0, 0.2, 0.45))
    assert width(sure, "consolidation") < width(little, "consolidation") < width(much, "consolidation")
    assert width(sure, "ground_glass") == width(much, "ground_glass")


def test_counted_voxels_that_may_be_no_lung_widen_it_too() -> None:
    scan = prepared()
    scan.image_hu[12:40, 12:38, 12:30] = 40
    found = regions_of(scan)
    doubted = replace(found, chances=found.chances * np.float32(0.7))
    widths = [width(burden(scan.image_hu, each, 4.0), "consolidation") for each in (found, doubted)]
    assert widths[1] > widths[0] + 0.01


def test_external_mask_is_certain_and_has_no_range() -> None:
    scan = prepared()
    mask = np.where(scan.lungs, np.uint8(Region.RIGHT_LUNG), np.uint8(0))
    assert burden(scan.image_hu, regions_of(scan), 4.0, mask).ranges == {}


def test_lungs_without_a_voxel_have_no_range() -> None:
    scan = prepared()
    nothing = np.zeros(scan.lungs.shape, np.uint8)
    assert burden(scan.image_hu, LungRegions.of_labels(nothing, nothing), 4.0).ranges == {}


@pytest.mark.parametrize("share", ["ground_glass", "consolidation"])
def test_range_is_written_with_the_table(share: str) -> None:
    found = burden_of(prepared())
    assert found.to_json()["ranges"][share] == list(found.ranges[share])
