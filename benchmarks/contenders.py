"""Alternative ways from a folder with one CT series to training data or to an answer: ours and others'.

Each function imports what it needs and returns a function that does the work, so that imports and work are timed
separately. Each library uses its default number of threads; ours uses one.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.preprocessing.preprocess_settings import Preprocessing

LARGE = "large-gpu"
Work = Callable[[Path], None]


def ours() -> Work:
    """Our ingestion of a series: find, check, HU, digest, lungs, crop, window, tensor on disk."""
    return _ours("")


def ours_large() -> Work:
    """The same for the largest preset, `large-gpu`: 160 x 224 x 224 voxels, from a grid of 1.5 mm."""
    return _ours(LARGE)


def _ours(size: str) -> Work:
    import nibabel  # noqa: F401  # this and the next ones are otherwise imported on first use

    from models.lung_segmenter import load_segmenter
    from pipeline.cohort.workers import examine
    from pipeline.imaging import readers  # noqa: F401
    from pipeline.imaging.discovery import find_series
    from pipeline.system.malloc import keep_memory

    keep_memory()
    load_segmenter()
    settings = _preprocessing(size)

    def work(folder: Path) -> None:
        (series,), _ = find_series(folder)
        with tempfile.TemporaryDirectory() as tensors:
            assert examine(series, settings, Path(tensors)).code is None

    return work


def preparing_large() -> Work:
    """Prepare a series that is read once, as `large-gpu` does."""
    from pipeline.imaging.volume import Volume
    from pipeline.preprocessing.preprocess import prepare
    from pipeline.scoring.single_scan import read_one
    from pipeline.system.malloc import keep_memory

    keep_memory()
    settings = _preprocessing(LARGE)

    @cache
    def volume(folder: Path) -> Volume:
        return read_one(folder).volume

    return lambda folder: prepare(volume(folder), settings) and None


def _preprocessing(size: str) -> "Preprocessing":
    """Return the preprocessing of a preset; of the default study if `size` is empty."""
    from federation.approval.presets import presets
    from pipeline.preprocessing.preprocess_settings import Preprocessing

    return presets()[size].preprocessing if size else Preprocessing()


def ours_all() -> Work:
    """Our ingestion of all series of a folder, with one process for each core, including storage of the results."""
    from pipeline.cohort.store import Cohort
    from pipeline.cohort.workers import Examination, expect_series
    from pipeline.imaging.discovery import find_series
    from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
    from pipeline.site.folder import init_site, site_settings

    def work(folder: Path) -> None:
        expect_series()
        with tempfile.TemporaryDirectory() as home:
            site = init_site(Path(home, "site"), site_settings(None, name="bench"))
            with Cohort(site) as cohort, Examination(cohort, Preprocessing(), lambda done, total: None) as examination:
                series, _ = find_series(folder, examination.add)
                for each in series:
                    examination.add(each)
                examination.finish(len(series))
                readers = cohort.scans(settings_digest(Preprocessing()))
        assert [scan.code for scan in readers.values()] == [None] * len(series)

    return work


def bytes_alone() -> Work:
    """The minimum for everybody: read each file from the page cache."""

    def work(folder: Path) -> None:
        for path in sorted(folder.rglob("*.dcm")):
            assert path.read_bytes()

    return work


def bare_decoding() -> Work:
    """Decode the pixels of each file, unchecked, unsorted, and without keeping them."""
    from pydicom import dcmread

    def work(folder: Path) -> None:
        for path in sorted(folder.rglob("*.dcm")):
            assert dcmread(path).pixel_array.ndim == 2

    return work


def _monai(reader: str) -> Work:
    """MONAI's usual transforms: a resampled volume in memory; no checks, no lungs, nothing written."""
    import itk  # noqa: F401
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

    chain = Compose(
        [
            LoadImaged("image", reader=reader),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(4.0, 4.0, 4.0)),
        ]
    )

    def work(folder: Path) -> None:
        assert chain({"image": folder})["image"].ndim == 4

    return work


def monai_itk() -> Work:
    return _monai("ITKReader")


def monai_pydicom() -> Work:
    return _monai("PydicomReader")


def simpleitk() -> Work:
    """Only read: an array in memory."""
    import SimpleITK as sitk  # noqa: N813

    def work(folder: Path) -> None:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        assert sitk.GetArrayFromImage(reader.Execute()).ndim == 3

    return work


def simpleitk_alone() -> Work:
    """Only read the folder `series`."""
    read = simpleitk()
    return lambda folder: read(folder / "series")


def scoring() -> Work:
    """From the folder `series` to an answer with map, by the release in `model` (loaded once); one thread."""
    return _scoring("model", has_map=True)


def scoring_low() -> Work:
    """The same by the release in `low`, which calls every probability low, so that there is no map."""
    return _scoring("low", has_map=False)


def _scoring(model: str, *, has_map: bool) -> Work:
    import torch

    from models.release import load_release
    from pipeline.scoring.score import score

    torch.set_num_threads(1)
    load = cache(load_release)

    def work(folder: Path) -> None:
        assert (score(folder / "series", load(folder / model)).saliency is not None) is has_map

    return work


def an_epoch() -> Work:
    """One epoch of training, augmented, over the tensors in a folder, in batches of 8; one thread."""
    import torch

    from models.network import build_network
    from models.network_settings import NetworkSettings
    from pipeline.cohort.dataset import Example, Examples
    from pipeline.system.malloc import keep_memory
    from pipeline.training.train import train
    from pipeline.training.train_settings import Schedule, TrainSettings

    torch.set_num_threads(1)
    keep_memory()
    network = build_network(NetworkSettings(), seed=1)

    def work(folder: Path) -> None:
        made = [Example(path, 60.0, "F", True, n % 2 == 0) for n, path in enumerate(sorted(folder.glob("*.npy")))]
        train(network, Examples(made), TrainSettings(), Schedule(0, 1, 1), seed=1)

    return work


def decoding_and_forward() -> Work:
    """The minimum for an answer: pydicom decodes every file, and network and lung segmenter evaluate ready tensors."""
    import numpy as np
    import torch
    from chest import GRID
    from pydicom import dcmread

    from models.lung_segmenter import MULTIPLE, SPACING_MM, load_segmenter
    from models.release import load_release
    from pipeline.preprocessing.preprocess_settings import Preprocessing

    torch.set_num_threads(1)
    load = cache(load_release)
    scan, known = torch.zeros((1, 2, *Preprocessing().shape)), torch.zeros((1, 4))
    coarse = [n * step / SPACING_MM for n, step in zip(GRID.shape, GRID.spacing_mm, strict=True)]
    body = torch.full((1, *(ceil(n / MULTIPLE) * MULTIPLE for n in coarse)), -800.0)

    @torch.inference_mode()
    def work(folder: Path) -> None:
        for path in sorted((folder / "series").rglob("*.dcm")):
            assert np.asarray(dcmread(path).pixel_array).ndim == 2
        assert load(folder / "model").network.eval()(scan, known).shape == (1, 2)
        assert load_segmenter()(body)[0].ndim == 5

    return work


def reading_alone() -> Work:
    """The first step of scoring: find the series, check and read it."""
    from pipeline.imaging.discovery import find_series
    from pipeline.imaging.series_reader import read_series

    def work(folder: Path) -> None:
        (series,), _ = find_series(folder / "series")
        assert read_series(series).hu.ndim == 3

    return work


def monai_densenet() -> Work:
    """The steps of MONAI's tutorials for a scan: resample, window, resize, a 3D DenseNet121 with random weights."""
    import itk  # noqa: F401
    import torch
    from monai.networks.nets import DenseNet121
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        Resized,
        ScaleIntensityRanged,
        Spacingd,
    )

    chain = Compose(
        [
            LoadImaged("image", reader="ITKReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.5, 1.5, 1.5)),
            ScaleIntensityRanged("image", a_min=-1000, a_max=200, b_min=0, b_max=1, clip=True),
            Resized("image", spatial_size=(96, 96, 96)),
        ]
    )
    network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()

    @torch.inference_mode()
    def work(folder: Path) -> None:
        assert network(chain({"image": folder / "series"})["image"][None]).shape == (1, 2)

    return work
