"""Near duplicates: one body is recognised despite other noise, kernel or grid; different bodies are not matched."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.doctor.duplicates import near_duplicates
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from pipeline.phantom.anatomy import Build, Grid, make_thorax
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.phantoms import volume

GRID = Grid((57, 96, 96), (5.0, 3.9, 3.9))


def tensor(scan: Volume) -> NDArray[np.float16]:
    return prepare(scan, Preprocessing()).tensor


def saved(folder: Path, *tensors: NDArray[np.float16]) -> list[Path]:
    paths = [folder / f"{i}.npy" for i in range(len(tensors))]
    for path, each in zip(paths, tensors, strict=True):
        np.save(path, each)
    return paths


def body(seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return make_thorax(GRID, Build.draw(rng, female=seed % 2 == 0), rng).hu


def seen(hu: NDArray[np.float32], *, noise_hu: float, blur: float) -> NDArray[np.float16]:
    noise = np.random.default_rng(1).normal(0, noise_hu, hu.shape)
    return tensor(volume(ndimage.gaussian_filter(hu, (0, blur, blur)) + noise, GRID))


def test_second_scan_of_one_body_is_found_among_others(tmp_path: Path) -> None:
    bodies = [body(seed) for seed in range(6)]
    scans = [seen(hu, noise_hu=20, blur=0.6) for hu in bodies]
    found = list(near_duplicates(saved(tmp_path, *scans, seen(bodies[2], noise_hu=50, blur=0.1))))
    assert [(i, j) for i, j, _ in found] == [(2, 6)]


def test_no_or_one_scan_has_no_duplicates(tmp_path: Path) -> None:
    assert list(near_duplicates([])) == []
    assert list(near_duplicates(saved(tmp_path, seen(body(1), noise_hu=20, blur=0.6)))) == []


def test_empty_tensors_are_not_duplicates(tmp_path: Path) -> None:
    empty = np.zeros((2, *Preprocessing().shape), np.float16)
    assert list(near_duplicates(saved(tmp_path, empty, empty))) == []


def test_scans_are_compared_across_blocks(tmp_path: Path) -> None:
    one, two = (seen(body(seed), noise_hu=20, blur=0.6) for seed in (1, 2))
    found = list(near_duplicates(saved(tmp_path, one, two, one, two, two), block_size=2))
    assert [(i, j) for i, j, _ in found] == [(0, 2), (1, 3), (1, 4), (3, 4)]


def test_real_thorax_is_recognised_after_noise_smoothing_and_resampling(real_data: Path, tmp_path: Path) -> None:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    scan = read_series(series)
    rng = np.random.default_rng(3)
    noisy = Volume((scan.hu + rng.normal(0, 60, scan.hu.shape)).astype(np.int16), scan.affine)
    soft = Volume(ndimage.gaussian_filter(scan.hu, (0, 0.8, 0.8)), scan.affine)
    every_other = scan.affine.copy()
    every_other[:3, 0] *= 2
    thin = Volume(scan.hu[::2].copy(), every_other)
    others = [seen(body(seed), noise_hu=20, blur=0.6) for seed in range(4)]
    found = list(near_duplicates(saved(tmp_path, *map(tensor, (scan, noisy, soft, thin)), *others)))
    assert {(i, j) for i, j, _ in found} == {(i, j) for i in range(4) for j in range(i + 1, 4)}
