"""Shared fixtures of all tests."""

import fcntl
import gc
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cohort.ingest import Assessment, ingest
from pipeline.phantom.generate import make_hospitals
from pipeline.preprocessing.preprocess import Preprocessing
from pipeline.site.folder import Site, init_site

torch.set_num_threads(1)  # several threads sum in varying order, which changes the last digits


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Disable garbage collection while modules are imported and tests collected: it takes half of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()  # imported objects live until the end: later collections skip them


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Return to one thread after each test: a training may take all cores, whose threads then wait for each other."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real DICOM files next to the project. The README in it describes each series."""
    folder = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real DICOM is not here: ../shared/data is absent")
    return folder


@pytest.fixture(scope="session")
def small_hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a synthetic hospital: eight clean patients and each defect once. Do not modify it.

    The pytest-xdist workers share it. The first worker that needs it creates it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    written = shared / "small_hospital"
    with (shared / "small_hospital.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not written.exists():
            (folder,) = make_hospitals(tmp_path_factory.mktemp("hospitals"), patients=[8], seed=1, anatomy="template")
            written.write_text(str(folder))
    return Path(written.read_text())


@pytest.fixture(scope="session")
def make_site() -> Callable[[Path, Path], Site]:
    """Create a site in a folder, on a synthetic hospital. The fixed key gives fixed pseudonyms and splits."""

    def make(folder: Path, hospital: Path) -> Site:
        text = (hospital / "site.toml").read_text().replace("[site]\n", f'[site]\nsource = "{hospital}"\n', 1)
        return init_site(folder, text, key=b"k" * 32)

    return make


@pytest.fixture(scope="session")
def small_ingest(
    small_hospital: Path, make_site: Callable[[Path, Path], Site], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Site, Assessment]:
    """The small hospital as a site, and the report of its first ingest."""
    site = make_site(tmp_path_factory.mktemp("sites") / "small", small_hospital)
    return site, ingest(site, Preprocessing(), lambda done, total: None)


@pytest.fixture(scope="session")
def small_site(small_ingest: tuple[Site, Assessment]) -> Site:
    """The small hospital as a site with its cohort, preprocessed with the default settings. Do not modify it."""
    return small_ingest[0]


class OneThread(ThreadPoolExecutor):
    """Replaces a process pool in tests that must not start processes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(max_workers=1)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate hospitals and examine scans in this process, sequentially."""
    monkeypatch.setattr("pipeline.cohort.workers.ProcessPoolExecutor", OneThread)
    monkeypatch.setattr("pipeline.cohort.workers.forkserver.ensure_running", lambda: None)
    monkeypatch.setattr("pipeline.phantom.generate.ProcessPoolExecutor", OneThread)
