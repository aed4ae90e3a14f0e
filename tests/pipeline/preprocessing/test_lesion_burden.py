"""Tests of the dense share of each lung against planted lesions. All scans but one are synthetic."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.lung_segmenter import Region, Tissue
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.lesions import add_lesions
from pipeline.preprocessing.area_resample import area_means
from pipeline.preprocessing.lesion_burden import PARTS, SIDES, burden, median_density, unsure_share
from pipeline.preprocessing.lung_labels import DENSITY_BITS
from pipeline.preprocessing.lung_regions import find_regions
from pipeline.preprocessing.opacity import Opacity
from pipeline.preprocessing.preprocess import Prepared, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers import phantoms
from tests.helpers.lungs import burden_of, regions_of
from tests.pipeline.scoring.test_html_report import prepared

GRID = Grid((70, 90, 90), (4.0, 4.0, 4.0))
HEALTHY = 0.06  # upper bound of the share of vessels in a healthy lung


def measured(hu: NDArray[np.float32]) -> dict[str, dict[str, float | None]]:
    """Shares by side and part; ground glass and consolidation together.

    The template has sharp lungs, which the threshold finds exactly: the shares, not the mask, are tested here.
    """
    regions = burden_of(prepare(phantoms.volume(hu, GRID), Preprocessing(method=1))).regions
    return {
        side: {part: region.ground_glass + region.consolidation for part, region in parts.items()}  # type: ignore[operator]
        for side, parts in regions.items()
    }


def test_hu_bands_and_regions_are_counted_exactly() -> None:
    """The lungs are 40 and 30 voxels high; the lower thirds are slices 10 to 22 (right) and 15 to 24 (left)."""
    scan = prepared()
    scan.image_hu[10:23, 10:40, 10:32] = -500  # ground glass in the whole right lower third
    scan.image_hu[35:45, 15:35, 38:60] = 0  # consolidation in the whole left upper third
    regions = burden_of(scan).regions
    right, left = regions["right"], regions["left"]
    assert (right["lower"].ground_glass, right["lower"].consolidation) == (1.0, 0.0)
    assert (left["upper"].ground_glass, left["upper"].consolidation) == (0.0, 1.0)
    for side, part in (("right", "middle"), ("right", "upper"), ("left", "lower"), ("left", "middle")):
        assert (regions[side][part].ground_glass, regions[side][part].consolidation) == (0.0, 0.0)
    # The outermost voxels do not count: 12 of the remaining 38 slices.
    assert right["whole"].ground_glass == pytest.approx(12 / 38, abs=1e-4)
    assert sum(right[part].ml for part in PARTS[1:]) == pytest.approx(right["whole"].ml, abs=0.2)
    assert right["whole"].ml + left["whole"].ml == pytest.approx(regions["both"]["whole"].ml, abs=0.2)


def test_bands_apply_to_the_unshifted_scan() -> None:
    """The HU shift of the model's input does not move a voxel from one band to another."""
    scan = prepared()
    scan.image_hu[scan.lungs] = -690
    assert burden_of(scan).regions["both"]["whole"].ground_glass == 1.0
    assert burden_of(replace(scan, shift_hu=-20.0)).regions["both"]["whole"].ground_glass == 1.0


@pytest.mark.parametrize("tissue", [Tissue.VESSEL, Tissue.AIRWAY])
def test_vessels_and_bronchi_do_not_count(tissue: Tissue) -> None:
    scan = prepared()
    tube = np.s_[12:48, 20:24, 15:19]
    scan.image_hu[tube] = -200
    found = regions_of(scan)
    assert burden(scan.image_hu, found, 4.0).regions["right"]["whole"].consolidation > 0.01  # type: ignore[operator]
    found.tissues[tube] = tissue
    assert burden(scan.image_hu, found, 4.0).regions["right"]["whole"].consolidation == 0.0


def test_subpleural_disease_counts_but_the_lung_edge_does_not() -> None:
    scan = prepared()
    band = np.s_[20:30, 10:12, 10:32]  # 8 mm thick, half of it in the outermost layer
    scan.image_hu[band] = -500
    found = regions_of(scan)
    assert burden(scan.image_hu, found, 4.0).regions["right"]["whole"].ground_glass == 0.0
    found.tissues[band] = Tissue.GROUND_GLASS
    seen = burden(scan.image_hu, found, 4.0)
    assert seen.regions["right"]["whole"].ground_glass > 0.005  # type: ignore[operator]
    assert np.array_equal(np.argwhere(seen.opacities), np.argwhere(found.tissues))


@pytest.mark.parametrize(("spacing_mm", "voxels"), [(4.0, 2), (2.0, 4)])
def test_what_is_thinner_than_8_mm_does_not_count_and_keeps_its_density(spacing_mm: float, voxels: int) -> None:
    scan = prepared()
    scan.image_hu[12:48, 20 : 20 + voxels - 1, 15:19] = -500  # a plate
    scan.image_hu[30 : 30 + voxels, 30 : 30 + voxels, 20 : 20 + voxels] = 20  # a nodule
    seen = burden(scan.image_hu, regions_of(scan), spacing_mm)
    assert np.count_nonzero(seen.opacities == Opacity.GROUND_GLASS) == 0
    assert np.count_nonzero(seen.opacities == Opacity.CONSOLIDATION) == voxels**3
    densities = seen.labels[12:48, 20 : 20 + voxels - 1, 15:19] & DENSITY_BITS
    assert (densities == Opacity.GROUND_GLASS << 4).all(), "a reader can still count it"


def fine_scan() -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """A scan of voxels of 1 mm, all lung but its border, and the part of it that is ground glass.

    Vessels with contrast agent, 2 mm wide, cross all of it, and a cube of 31 mm is consolidated.
    """
    hu = np.random.default_rng(3).normal(-850, 40, (80, 80, 80))
    ill = np.zeros(hu.shape, bool)
    ill[8:32, 8:32, 8:32] = True
    hu[ill] += 300
    hu[:, 1::8, 1::8] = hu[:, 2::8, 1::8] = hu[:, 1::8, 2::8] = hu[:, 2::8, 2::8] = 250
    hu[42:73, 42:73, 42:73] = 30
    return hu.astype(np.int16), ill


def test_thin_vessels_and_the_rim_of_a_consolidation_are_no_ground_glass() -> None:
    """Both raise the mean of a voxel of 4 mm into the band of ground glass, but not its median."""
    hu, ill = fine_scan()
    shape = (20, 20, 20)
    glass, solid = (median_density(hu, shape) == band for band in (Opacity.GROUND_GLASS, Opacity.CONSOLIDATION))
    assert np.array_equal(glass, ill[2::4, 2::4, 2::4])
    assert abs(int(solid.sum()) * 64 - 31**3) < 0.2 * 31**3
    means = area_means(hu, shape).numpy()
    assert np.count_nonzero((means >= -700) & (means < -300) & ~glass & ~solid) > 1000, "the means would count them"


@pytest.mark.parametrize("shape", [(20, 20, 20), (13, 17, 11), (25, 30, 41)])
def test_density_of_equal_voxels_is_their_own_on_any_grid(shape: tuple[int, int, int]) -> None:
    for hu, expected in ((-701, 0), (-700, 1), (-301, 1), (-300, 2), (99, 2), (100, 0)):
        assert (median_density(np.full((20, 20, 20), hu, np.int16), shape) == expected).all()


def test_marked_voxels_are_the_counted_ones() -> None:
    scan = prepared()
    scan.image_hu[12:20, 15:25, 12:20] = -500
    scan.image_hu[30:34, 15:25, 12:20] = 20
    seen = burden_of(scan)
    assert np.count_nonzero(seen.opacities == Opacity.GROUND_GLASS) == 8 * 10 * 8
    assert np.count_nonzero(seen.opacities == Opacity.CONSOLIDATION) == 4 * 10 * 8
    assert set(np.unique(seen.found.regions[seen.opacities > 0])) == {Region.RIGHT_LUNG}


def test_share_with_an_uncertain_border_is_the_volume_expected_to_be_wrong() -> None:
    """Only dense voxels are uncertain here: half of ten for certain lung, and beside the lung a tenth of ten."""
    scan = prepared()
    inside, beside, aerated = np.s_[20:30, 20, 20], np.s_[20:30, 20, 5], np.s_[20:30, 25, 20]
    scan.image_hu[inside] = scan.image_hu[beside] = 20
    found = regions_of(scan)
    found.chances[0][inside], found.chances[0][beside], found.chances[0][aerated] = 0.5, 0.1, 0.5
    expected = (10 * 0.5 + 10 * 0.1) / np.count_nonzero(found.lungs)
    assert unsure_share(scan.image_hu, found) == pytest.approx(expected)


def test_certain_lungs_have_no_uncertain_border() -> None:
    scan = prepared()
    scan.image_hu[12:20, 15:25, 12:20] = 20
    assert unsure_share(scan.image_hu, regions_of(scan)) == 0.0


def test_missing_lung_has_no_shares() -> None:
    scan = prepared()
    scan.lungs[:, :, 35:] = False
    regions = burden_of(scan).regions
    assert {region.ground_glass for region in regions["left"].values()} == {None}
    assert regions["left"]["whole"].ml == 0
    assert regions["right"]["whole"].ground_glass == 0.0


@pytest.mark.parametrize(("side", "centre_x"), [("right", -72.0), ("left", 78.0)])
@pytest.mark.parametrize(("part", "centre_z"), [("upper", 75.0), ("lower", -55.0)])
def test_planted_lesion_is_found_at_its_location(side: str, centre_x: float, part: str, centre_z: float) -> None:
    """Its share of that third is correct within 25 %; the share of the other lung changes by less than 1 %."""
    body = phantoms.thorax(GRID)
    z, y, x = GRID.axes_mm()
    lesion = ((z - centre_z) ** 2 + (y - 20) ** 2 + (x - centre_x) ** 2 < 24**2) & body.lungs
    before, after = measured(body.hu), measured(np.where(lesion, -600.0, body.hu).astype(np.float32))
    own = body.lungs & (x * centre_x > 0)
    heights = np.flatnonzero(own.any(axis=(1, 2)))
    low, high = np.array_split(heights, 3)[0 if part == "lower" else 2][[0, -1]]
    planted = lesion[low : high + 1].sum() / own[low : high + 1].sum()
    gained = {s: {p: after[s][p] - before[s][p] for p in PARTS} for s in SIDES}  # type: ignore[operator]
    assert gained[side][part] == pytest.approx(planted, rel=0.25)
    other = "left" if side == "right" else "right"
    assert max(abs(value) for value in gained[other].values()) < 0.01


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [0.0, 0.1, 0.25])
def test_share_of_whole_lungs_follows_the_planted_load(load: float, seed: int) -> None:
    """Ground glass and consolidation together, minus the part of vessels, within 6 % of the lungs."""
    rng = np.random.default_rng(seed)
    body = phantoms.thorax(GRID)
    sick = add_lesions(body, GRID, pattern="covid", load=load, consolidated=0.2, rng=rng)
    found = measured(sick.hu)["both"]["whole"]
    assert found is not None
    assert -0.06 < found - sick.load < HEALTHY


def test_real_lung_without_lesions_has_a_low_burden(real_data: Path) -> None:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    scan = prepare(read_series(series), Preprocessing())
    regions = burden(scan.image_hu, find_regions(scan.image_hu, scan.spacing_mm), scan.spacing_mm).regions
    for side in SIDES:
        assert regions[side]["whole"].ground_glass < 0.043  # type: ignore[operator]
        assert regions[side]["whole"].consolidation < 0.01  # type: ignore[operator]


def test_border_of_healthy_real_lungs_is_certain(real_data: Path) -> None:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    scan = prepare(read_series(series), Preprocessing())
    assert unsure_share(scan.image_hu, find_regions(scan.image_hu, scan.spacing_mm)) < 0.005


def test_json_contains_plain_numbers() -> None:
    scan: Prepared = prepared()
    said = json.loads(json.dumps(burden_of(scan).to_json(), allow_nan=False))
    assert said["bands_hu"] == {"ground_glass": [-700.0, -300.0], "consolidation": [-300.0, 100.0]}
    assert tuple(said["regions"]) == SIDES
    assert all(tuple(parts) == PARTS for parts in said["regions"].values())
    assert said["regions"]["right"]["whole"] == {
        "ml": 1689.6,
        "ground_glass": 0,
        "consolidation": 0,
    }
