"""Tests of finding lungs with the segmenter: on synthetic bodies not used in training, and on one real thorax."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from models.lung_segmenter import Region, Tissue
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.phantom.body.sample import Sample, draw_sample
from pipeline.preprocessing.lung_regions import LungRegions, dice, find_regions
from pipeline.preprocessing.preprocess import prepare, resample
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring.label_maps import nearest_on
from tests.helpers.nrrd import read_nrrd

UNSEEN = range(20_000, 20_006)


@pytest.fixture(scope="module")
def bodies() -> list[tuple[Sample, LungRegions]]:
    samples = [draw_sample(np.random.default_rng(seed)) for seed in UNSEEN]
    return [(sample, find_regions(sample.hu, sample.step_mm)) for sample in samples]


@pytest.mark.slow
def test_each_lung_is_one_connected_region(bodies: list[tuple[Sample, LungRegions]]) -> None:
    for sample, found in bodies:
        assert found.regions.shape == found.tissues.shape == sample.hu.shape
        assert not found.tissues[~found.lungs].any()
        for side in (Region.RIGHT_LUNG, Region.LEFT_LUNG):
            assert ndimage.label(found.regions == side, np.ones((3, 3, 3)))[1] == 1


@pytest.mark.slow
def test_lungs_of_unseen_bodies_are_found(bodies: list[tuple[Sample, LungRegions]]) -> None:
    """The benchmark measures the quality; this test only detects breakage."""
    scores = [dice(found.lungs, np.isin(sample.regions, (1, 2))) for sample, found in bodies]
    assert np.median(scores) > 0.94


@pytest.mark.slow
def test_bowel_gas_is_not_lung(bodies: list[tuple[Sample, LungRegions]]) -> None:
    gas = [sample.regions == Region.BOWEL_GAS for sample, _ in bodies]
    taken = sum(int((found.lungs & gas_).sum()) for gas_, (_, found) in zip(gas, bodies, strict=True))
    assert taken < 0.05 * sum(int(each.sum()) for each in gas)


@pytest.mark.parametrize("finer", [1, 2])
def test_noise_in_the_air_around_the_patient_is_not_lung(finer: int) -> None:
    """A network could segment noise beside the patient as lung, as a region larger than the lung itself."""
    sample = draw_sample(np.random.default_rng(20_006))
    rng = np.random.default_rng(0)
    wide = np.pad(sample.hu, ((0, 0), (16, 16), (24, 24)), constant_values=-1000)
    air = np.ones(wide.shape, bool)
    air[:, 16:-16, 24:-24] = False
    noisy = np.where(air, wide + rng.normal(0, 90, wide.shape), wide).astype(np.float32)
    fine = resample(torch.from_numpy(noisy), tuple(finer * n for n in noisy.shape)).numpy()
    found = find_regions(fine, sample.step_mm / finer).lungs[::finer, ::finer, ::finer]
    assert not found[air].any()
    assert dice(found[:, 16:-16, 24:-24], np.isin(sample.regions, (1, 2))) > 0.9


def test_ill_lungs_that_a_small_field_of_view_cuts_keep_their_air() -> None:
    """Their air touches the side of the image, as the air around the patient does."""
    sample = draw_sample(np.random.default_rng(20_006))
    lungs = np.isin(sample.regions, (1, 2))
    rows = np.flatnonzero(lungs.any(axis=(0, 2)))
    dense = lungs & (np.arange(lungs.shape[1]) > rows.mean())[:, None]
    hu = np.where(dense, sample.hu + 600, sample.hu).astype(np.float32)
    kept = np.s_[:, rows[0] + 6 :]
    found = find_regions(np.ascontiguousarray(hu[kept]), sample.step_mm)
    assert lungs[kept][:, 0].any()
    assert dice(found.lungs, lungs[kept]) > 0.9


class Labels(torch.nn.Module):
    """In place of the segmenter: answers with labels of its own."""

    def __init__(self, regions: NDArray[np.uint8]) -> None:
        super().__init__()
        self.regions = torch.from_numpy(regions).long()

    def forward(self, hu: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert hu.shape[1:] == self.regions.shape
        sharp = 20.0 * torch.nn.functional.one_hot(self.regions, len(Region)).movedim(-1, 0)[None].float()
        return sharp, torch.zeros(1, len(Tissue), *hu.shape[1:])


def test_part_of_a_lung_that_looks_like_the_other_one_is_kept() -> None:
    """Seen in a patient whose shoulders were wider than 384 mm."""
    hu = np.full((32, 64, 96), 40.0, np.float32)
    wanted = np.zeros(hu.shape, np.uint8)
    wanted[4:28, 12:52, 10:40], wanted[4:28, 12:52, 54:84] = Region.RIGHT_LUNG, Region.LEFT_LUNG
    hu[wanted > 0] = -850
    answered = wanted.copy()
    answered[4:28, 12:52, 76:84] = Region.RIGHT_LUNG  # at the outside of the left lung
    answered[4:8, 55:58, 20:23] = Region.LEFT_LUNG  # touches neither lung
    found = find_regions(hu, 4.0, Labels(answered))  # type: ignore[arg-type]
    assert np.array_equal(found.regions, wanted)
    assert np.array_equal(found.lungs_on(hu.shape), wanted)


def test_scan_without_lungs_gives_no_lungs() -> None:
    for hu in (40, -1000):
        assert not find_regions(np.full((40, 60, 60), hu, np.float32), 4.0).lungs.any()


@pytest.mark.slow
def test_finer_grid_gives_the_same_lungs(bodies: list[tuple[Sample, LungRegions]]) -> None:
    sample, found = bodies[0]
    shape = tuple(2 * n for n in sample.hu.shape)
    fine = resample(torch.from_numpy(sample.hu), shape).numpy()
    again = find_regions(fine, sample.step_mm / 2)
    assert again.regions.shape == shape
    assert dice(again.lungs[::2, ::2, ::2], found.lungs) > 0.95


@pytest.fixture(scope="module")
def thorax(real_data: Path) -> tuple[NDArray[np.float32], LungRegions, NDArray[np.uint16]]:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    scan = prepare(read_series(series), Preprocessing())
    labels, _, _ = read_nrrd(real_data / "real-thorax-64" / "lm-64.nrrd")
    return scan.image_hu, find_regions(scan.image_hu, scan.spacing_mm), labels


def test_lungs_of_a_real_thorax_match_the_label_map(
    thorax: tuple[NDArray[np.float32], LungRegions, NDArray[np.uint16]],
) -> None:
    """Label map, lower eight bits: 9 to 11 are the left lung, 12 to 14 the right lung."""
    _, found, labels = thorax
    part = labels & 255
    lungs = found.lungs_on(part.shape)
    assert dice(lungs > 0, part > 0) > 0.97
    assert dice(lungs == 1, part >= 12) > 0.97
    assert dice(lungs == 2, (part > 0) & (part < 12)) > 0.965


def test_vessels_of_a_real_thorax_are_not_consolidation(
    thorax: tuple[NDArray[np.float32], LungRegions, NDArray[np.uint16]],
) -> None:
    _, found, labels = thorax
    vessels = nearest_on(labels.shape, (found.tissues == Tissue.VESSEL).astype(np.uint8)) > 0
    assert dice(vessels, labels >> 8 == 3) > 0.2  # the grid is as coarse as the vessels
    assert np.mean(found.tissues[found.lungs] == Tissue.CONSOLIDATION) < 0.01
