"""Ways from a folder with one CT series to something that can be learnt from: ours and others'.

Each function imports what it needs and returns the work itself, so that both can be timed apart. Numbers of threads
are left as each library sets them; ours uses one.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

Work = Callable[[Path], None]


def ours() -> Work:
    """What ingestion does with a series: find, check, HU, digest, lungs, crop, window, tensor on disk."""
    from pipeline import measures, scans  # noqa: F401  # which `examine` imports when it is called
    from pipeline.examine import examine
    from pipeline.preprocess import Preprocessing
    from pipeline.series import find_series

    def work(folder: Path) -> None:
        (series,), _ = find_series(folder)
        with tempfile.TemporaryDirectory() as tensors:
            assert examine(series, Preprocessing(), Path(tensors)).code is None

    return work


def _monai(spacing_mm: float) -> Work:
    """MONAI's usual chain, read with ITK: a resampled volume in memory; no checks, no lungs, nothing written."""
    import itk  # noqa: F401
    from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd

    chain = Compose(
        [
            LoadImaged("image", reader="ITKReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(spacing_mm,) * 3),
        ]
    )

    def work(folder: Path) -> None:
        assert chain({"image": folder})["image"].ndim == 4

    return work


def monai_4mm() -> Work:
    return _monai(4.0)


def monai_1_5mm() -> Work:
    return _monai(1.5)


def simpleitk() -> Work:
    """Reading alone: an array in memory."""
    import SimpleITK as sitk  # noqa: N813

    def work(folder: Path) -> None:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        assert sitk.GetArrayFromImage(reader.Execute()).ndim == 3

    return work


def _workers(count: int) -> Work:
    """Examine all series of a folder with this many worker processes, their start included."""
    from pipeline.cohort import Cohort
    from pipeline.examine import examine_new, expect_series
    from pipeline.preprocess import Preprocessing, settings_digest
    from pipeline.series import find_series
    from pipeline.site import init_site, site_settings

    os.cpu_count = lambda: count  # the node starts one worker a core

    def work(folder: Path) -> None:
        expect_series()
        series, _ = find_series(folder)
        with tempfile.TemporaryDirectory() as home:
            site = init_site(Path(home, "site"), site_settings(None, name="bench"))
            with Cohort(site) as cohort:
                examine_new(cohort, series, Preprocessing(), lambda done, total: None)
                scans = cohort.scans(settings_digest(Preprocessing()))
        assert [scan.code for scan in scans.values()] == [None] * len(series)

    return work


def one_worker() -> Work:
    return _workers(1)


def two_workers() -> Work:
    return _workers(2)
