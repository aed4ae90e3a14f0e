"""Fixtures that all tests share."""

import fcntl
import gc
import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cohort.ingest import Assessment, ingest
from pipeline.phantom.generate import make_hospitals
from pipeline.preprocessing.preprocess import Preprocessing
from pipeline.site.folder import Site, init_site

torch.set_num_threads(1)  # the order in which threads add numbers up would change their last digits


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while modules are imported and tests are found: it takes half of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()  # what was imported stays until the end; later collections skip it


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real DICOM that stands beside the project; its README there says what each series is."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real DICOM is not here: ../shared/data is absent")
    return folder


@pytest.fixture(scope="session")
def small_hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a synthetic hospital: eight clean patients and every defect once. Leave it as it is.

    The workers of pytest-xdist share it: the first one that needs it writes it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    written = shared / "small_hospital"
    with (shared / "small_hospital.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not written.exists():
            (folder,) = make_hospitals(tmp_path_factory.mktemp("hospitals"), patients=[8], seed=1)
            written.write_text(str(folder))
    return Path(written.read_text())


@pytest.fixture(scope="session")
def make_site() -> Callable[[Path, Path], Site]:
    """Makes a site in a folder, on a synthetic hospital; the key is fixed, and so are pseudonyms and splits."""

    def make(folder: Path, hospital: Path) -> Site:
        text = (hospital / "site.toml").read_text().replace("[site]\n", f'[site]\nsource = "{hospital}"\n', 1)
        return init_site(folder, text, key=b"k" * 32)

    return make


@pytest.fixture(scope="session")
def small_ingest(
    small_hospital: Path, make_site: Callable[[Path, Path], Site], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Site, Assessment]:
    """The small hospital as a site, and what its first ingest said."""
    site = make_site(tmp_path_factory.mktemp("sites") / "small", small_hospital)
    return site, ingest(site, Preprocessing(), lambda done, total: None)


@pytest.fixture(scope="session")
def small_site(small_ingest: tuple[Site, Assessment]) -> Site:
    """The small hospital as a site with its cohort, prepared with the default settings. Leave it as it is."""
    return small_ingest[0]


class OneThread(ThreadPoolExecutor):
    """Stands in for a pool of processes where a test shall start none."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(max_workers=1)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hospitals be written and scans be examined in this process, one after the other."""
    monkeypatch.setattr("pipeline.cohort.workers.ProcessPoolExecutor", OneThread)
    monkeypatch.setattr("pipeline.cohort.workers.forkserver.ensure_running", lambda: None)
    monkeypatch.setattr("pipeline.phantom.generate.ProcessPoolExecutor", OneThread)
