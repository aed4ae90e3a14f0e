"""A worker that the system kills, at the moments at which Python's pool of processes loses its count of workers."""

import errno
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, forkserver
from pathlib import Path
from typing import Any

import pytest

from models.refusal import Refusal
from pipeline.cohort.ingest import Assessment, ingest
from pipeline.cohort.store import Cohort, Scan
from pipeline.cohort.workers import Examination, examine
from pipeline.imaging.discovery import Series
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.site.folder import Site
from pipeline.site.site_data import read_series_list
from pipeline.system.worker_pool import WorkerPool
from tests.helpers.own import CLEAN, Own, quietly
from tests.helpers.waiting import eventually

SETTINGS = Preprocessing(shape=(16, 24, 24))


class WatchedPool(WorkerPool):
    """Keeps what it returned. `forgets`: it returns a future that nobody completes, as while it breaks."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.futures: list[Future[Any]] = []
        self.forgets = False

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future() if self.forgets else super().submit(*arguments, **named)
        self.futures.append(future)
        return future

    def has_broken(self) -> bool:
        try:
            super().submit(int)
        except BrokenProcessPool:
            return True
        return False


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[WatchedPool]:
    """The pools of workers that a test starts."""
    made: list[WatchedPool] = []

    def make(*arguments: Any, **named: Any) -> WatchedPool:
        made.append(WatchedPool(*arguments, **named))
        return made[-1]

    monkeypatch.setattr("pipeline.cohort.workers.WorkerPool", make)
    return made


@pytest.fixture
def site(small_hospital: Path, make_site: Callable[[Path, Path], Site], tmp_path: Path) -> Site:
    """Six patients suffice."""
    hospital = tmp_path / "hospital"
    others = shutil.ignore_patterns(*{each.name for each in small_hospital.glob("ct/*")} - set(CLEAN[:6]))
    shutil.copytree(small_hospital, hospital, ignore=others)
    return make_site(tmp_path / "site", hospital)


@pytest.fixture(autouse=True)
def two_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the ingest start two workers on any machine. Afterwards no worker and none of its threads may be left."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    threads, children = set(threading.enumerate()), set(active_children())
    yield
    assert eventually(lambda: set(active_children()) <= children)
    assert eventually(lambda: set(threading.enumerate()) <= threads), "the process would wait for it at its exit"


def kill_workers() -> None:
    for worker in active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)


def series_of(site: Site) -> list[Series]:
    series, _ = read_series_list(site)
    return series


def examine_or_die(series: Series, *arguments: Any, deadly: Collection[str]) -> Scan:
    """Examine a series, in a worker that the system kills at some of them, as a decoder's fault would."""
    if series.fingerprint in deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    return examine(series, *arguments)


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Collection[Series]], None]:
    """Let workers die at these series."""

    def prepare(series: Collection[Series]) -> None:
        deadly = frozenset(each.fingerprint for each in series)
        monkeypatch.setattr("pipeline.cohort.workers.examine", partial(examine_or_die, deadly=deadly))

    return prepare


def accepted(assessment: Assessment) -> set[str]:
    return {scan.fingerprint for scan in assessment.accepted}


def died(assessment: Assessment) -> int:
    return Counter(finding.reason.code for finding in assessment.findings)["E_EXAMINE_DIED"]


def test_ingest_goes_on_if_a_worker_is_killed_while_another_starts(
    site: Site, pools: list[WatchedPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, started = forkserver.connect_to_new_process, 0

    def start(descriptors: list[int]) -> tuple[int, int]:
        nonlocal started
        started += 1
        ends = connect(descriptors)
        if started == 2:
            kill_workers()
            assert eventually(pools[0].futures[0].done), "the pool notices the death of the first"
        return ends

    monkeypatch.setattr(forkserver, "connect_to_new_process", start)
    result = ingest(site, SETTINGS, quietly)
    assert started == 3
    assert result.accepted
    assert died(result) == 0
    assert ingest(site, SETTINGS, quietly).examined_now == 0


def test_series_at_which_each_worker_dies_is_refused_and_the_others_are_read(
    site: Site, kill_at: Callable[[Collection[Series]], None]
) -> None:
    """One damaged file must not keep a hospital from all later scans. Each ingest tries it again, at the end."""
    first, second, *rest = series_of(site)
    progress: list[tuple[int, int]] = []
    kill_at([first, second])
    result = ingest(site, SETTINGS, lambda done, total: progress.append((done, total)))
    assert died(result) == 2
    assert accepted(result) and accepted(result) <= {each.fingerprint for each in rest}
    assert progress[-1][0] == progress[-1][1]
    kill_at([first])
    again = ingest(site, SETTINGS, quietly)
    assert (again.examined_now, died(again)) == (2, 1)
    kill_at([])
    mended = ingest(site, SETTINGS, quietly)
    assert (mended.examined_now, died(mended)) == (1, 0)
    assert ingest(site, SETTINGS, quietly).examined_now == 0


def test_ingest_ends_if_workers_die_at_three_series_in_a_row(
    site: Site, kill_at: Callable[[Collection[Series]], None]
) -> None:
    """Then the machine is short of memory, and each further series would only take time."""
    kill_at(series_of(site))
    with pytest.raises(Refusal, match="E_WORKER_DIED"):
        ingest(site, SETTINGS, quietly)
    with Cohort(site) as cohort:
        known = cohort.scans(settings_digest(SETTINGS)).values()
    assert [scan.code for scan in known] == ["E_EXAMINE_DIED"] * 3
    kill_at([each for each in series_of(site) if each.fingerprint in {scan.fingerprint for scan in known}])
    result = ingest(site, SETTINGS, quietly)
    assert died(result) == 3
    assert result.accepted, "series that killed a worker before come last, and do not end the ingest"


@pytest.mark.parametrize("error", [BrokenPipeError, EOFError, ConnectionResetError])
def test_worker_killed_before_it_has_started_is_reported(
    site: Site, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it dies before it has read what it has to do, or together with the process that starts workers."""

    def start(descriptors: list[int]) -> tuple[int, int]:
        raise error

    monkeypatch.setattr(forkserver, "connect_to_new_process", start)
    with pytest.raises(Refusal, match="E_WORKER_DIED"):
        ingest(site, SETTINGS, quietly)


def test_series_that_the_pool_has_forgotten_is_not_waited_for(site: Site, pools: list[WatchedPool]) -> None:
    """A pool that breaks while a series is submitted may return a future that nobody completes."""
    first, last, *_ = series_of(site)
    with Cohort(site) as cohort, Examination(cohort, SETTINGS, quietly) as examination:
        examination.add(first)
        pool = pools[0]
        assert eventually(pool.futures[0].done)
        kill_workers()
        assert eventually(pool.has_broken)
        pool.forgets = True
        examination.add(last)
        pool.forgets = False
        examination.finish(2)
        assert set(cohort.scans(settings_digest(SETTINGS))) == {first.fingerprint, last.fingerprint}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "E_EXAMINE_MEMORY"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "E_EXAMINE_MEMORY"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "E_EXAMINE_MEMORY"),
        (RuntimeError("a bug of this release"), "E_EXAMINE_FAILED"),
    ],
)
@pytest.mark.parametrize("step", ["pipeline.preprocessing.preprocess.prepare", "pipeline.cohort.workers.save_scan"])
def test_series_whose_examination_failed_is_examined_again_by_each_ingest(
    own: Own, error: Exception, code: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may need more memory, or another release. Until then it is left out, and no ingest fails because of it."""
    own.add(CLEAN[0])
    with monkeypatch.context() as failing:
        failing.setattr(step, raiser(error))
        failed = own.ingest(SETTINGS)
        again = own.ingest(SETTINGS)
    assert Counter(finding.reason.code for finding in failed.findings)[code] == 1
    assert failed.accepted == again.accepted == []
    mended = own.ingest(SETTINGS)
    assert again.examined_now == mended.examined_now == 1
    assert len(mended.accepted) == 1
    assert own.ingest(SETTINGS).examined_now == 0


def raiser(error: Exception) -> Callable[..., None]:
    def fail(*arguments: object, **named: object) -> None:
        raise error

    return fail
