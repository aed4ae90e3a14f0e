"""Shared fixtures of all tests."""

import gc
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from pipeline.cohort.ingest import Assessment, ingest
from pipeline.phantom.generate import make_hospitals
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.site.folder import Site, init_site
from tests.helpers.shared_folder import shared_folder

torch.set_num_threads(1)  # several threads sum in varying order, which changes the last digits
# An example may take any time: a busy machine stands still for seconds.
hypothesis.settings.register_profile("any time", deadline=None)
hypothesis.settings.load_profile("any time")
# A shell starts a background job with Ctrl-C (SIGINT) ignored, and so would be all that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Disable garbage collection while modules are imported and tests collected: it takes half of that time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()  # imported objects live until the end: later collections skip them


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without an end-to-end test where only these are run: importing all files takes 20 s."""
    only_e2e = config.option.markexpr.startswith("e2e")
    is_file_of_tests = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    return True if only_e2e and is_file_of_tests and "mark.e2e" not in collection_path.read_text() else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: a long file at the end would leave all cores but one idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


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
    """Folder of a synthetic hospital: eight clean patients and each defect once. Do not modify it."""
    made = shared_folder(
        tmp_path_factory,
        "small_hospital",
        lambda folder: make_hospitals(folder, patients=[8], seed=1, anatomy="template"),
    )
    return next(made.iterdir())


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

    def check(self) -> None:
        """No worker dies."""


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate hospitals and examine scans in this process, sequentially."""
    monkeypatch.setattr("pipeline.cohort.workers.WorkerPool", OneThread)
    monkeypatch.setattr("pipeline.cohort.workers.forkserver.ensure_running", lambda: None)
    monkeypatch.setattr("pipeline.phantom.generate.WorkerPool", OneThread)
