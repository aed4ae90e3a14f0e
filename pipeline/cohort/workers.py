"""Examines series in worker processes: each series is read, preprocessed, cached and stored as soon as it is done."""

import errno
import gc
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Self

from models.refusal import Refusal
from pipeline.cohort import reasons
from pipeline.cohort.store import Cohort, Scan
from pipeline.cohort.tensor_files import save_scan
from pipeline.imaging.discovery import Series
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from pipeline.preprocessing.reasons import LUNGS_FLAT
from pipeline.scoring.reasons import LUNGS_UNSURE
from pipeline.system.malloc import keep_memory
from pipeline.system.threads import one_thread
from pipeline.system.worker_pool import WorkerPool, without_interrupt

if TYPE_CHECKING:
    from pipeline.imaging.lung_mask import LungMask
    from pipeline.preprocessing.preprocess import Prepared

# Version of `examine`. Raise it when `examine` refuses or accepts other scans than before: the next ingest examines
# known scans again. 1: refuses turned and mirrored bodies, and regularly missing slices.
EXAMINATION = 1
FAILURES = "failures.log"  # in the folder of logs
# Not faults of the scan: more memory or another release may examine it. A series with one of them is not in the cohort,
# and the next ingest examines it again, but does not fail because of it.
_AGAIN = {reasons.EXAMINE_FAILED.code, reasons.EXAMINE_MEMORY.code, reasons.EXAMINE_DIED.code}
_MOST_DEATHS = 3  # so many series in a row do not each end their worker: the machine has no memory left


def examine(series: Series, settings: Preprocessing, tensors: Path) -> Scan:
    """Read and preprocess one series, and cache its tensor, in a worker process; a refusal is a valid result.

    A scan that cannot be right is refused, as a score refuses it: slices are missing regularly, or the body is turned
    or mirrored. What a score refuses because a single scan is hard to read (noise, metal, cut lungs) may train.
    """
    import torch

    from pipeline.imaging.missing_slices import require_whole, stated
    from pipeline.imaging.readers import read_scan
    from pipeline.preprocessing.measures import flags
    from pipeline.preprocessing.measuring import is_flat, measure
    from pipeline.preprocessing.plausibility import require_upright
    from pipeline.preprocessing.preprocess import prepare
    from pipeline.preprocessing.preprocess_settings import EXTERNAL

    torch.set_num_threads(1)  # there is one process for each core; more threads would only compete
    digest, tensor, measures = None, None, None
    flagged: set[str] = set()
    refused: Refusal | None = None
    try:
        volume = read_scan(series)
        flagged.update(volume.flags)
        require_whole(stated(series), volume.spacing_mm[0])
        is_external = settings.method == EXTERNAL
        prepared = prepare(volume, settings, _mask(series) if is_external else None)
        digest = prepared.scan_digest
        measures = measure(series, volume, prepared)
        require_upright(prepared, measures.spine_behind_mm, measures.windpipe_above_mm2, measures.heart_left)
        flagged.update(flags(measures, settings))
        if is_flat(prepared):
            flagged.add(LUNGS_FLAT.code)
        if is_external and _is_unsure(prepared):
            flagged.add(LUNGS_UNSURE.code)
        # The name contains the settings, so that the current cohort keeps its tensors until `replace`.
        name = f"{series.fingerprint[:32]}-{settings_digest(settings)}.npy"
        save_scan(tensors, name, prepared.tensor)
        tensor = name
    except Refusal as error:
        refused = error
    except Exception as error:
        lacks_memory = _lacks_memory(error)
        if isinstance(error, OSError) and not lacks_memory:
            raise  # a full disk is not a fault of the scan
        refused = Refusal(reasons.EXAMINE_MEMORY if lacks_memory else reasons.EXAMINE_FAILED)
        _log_failure(tensors.parents[1] / "logs" / FAILURES, series)
    return Scan(
        fingerprint=series.fingerprint,
        settings=settings_digest(settings),
        code=refused.code if refused else None,
        says=refused.says if refused else None,
        flags=",".join(sorted(flagged)),
        scan_digest=digest,
        tensor=tensor,
        measures=measures,
    )


def _lacks_memory(error: Exception) -> bool:
    """Whether Python, the system or torch had no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_of_torch = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return is_of_torch or isinstance(error, MemoryError)


def _mask(series: Series) -> "LungMask | None":
    """Read the external lung mask of a series. Raises Refusal E_MASK_SEVERAL, and those of `read_lung_mask`."""
    from pipeline.imaging.mask_reader import read_lung_mask

    if len(series.lung_masks) > 1:
        raise Refusal(reasons.MASK_SEVERAL, masks=len(series.lung_masks))
    return read_lung_mask(series.lung_masks[0], series) if series.lung_masks else None


def _is_unsure(prepared: "Prepared") -> bool:
    """Whether the external mask differs from the lungs by threshold, as a mask of another scan would."""
    from pipeline.preprocessing.external_lungs import agreement_with_threshold
    from pipeline.scoring.quality_checks import LEAST_AGREEMENT

    return agreement_with_threshold(prepared.image_hu, prepared.lungs, prepared.spacing_mm) < LEAST_AGREEMENT


def _log_failure(path: Path, series: Series) -> None:
    """Log the full error at the site; it may name a file, so the study's code must not read it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        log.write(f"series {series.fingerprint[:12]}\n{traceback.format_exc()}\n")


def _workers() -> ForkServerContext:
    """Return a context in which workers are forks of a process that has imported only their modules."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["nibabel", "pipeline.cohort.workers", "pipeline.preprocessing.measuring", "pipeline.imaging.readers"]
    )
    return context


def expect_series() -> None:
    """Import the workers' modules in the background, while the search for series continues."""
    _workers()
    with without_interrupt():
        forkserver.ensure_running()


def begin_worker() -> None:
    """Initialise a worker."""
    gc.freeze()  # exclude imported objects: collecting them would copy their memory from the parent process
    one_thread()
    keep_memory()  # the next series needs about as much memory as the last one
    _end_with_parent()


def _end_with_parent() -> None:
    """End a worker when its parent process is killed; otherwise it would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def with_result(scans: Mapping[str, Scan]) -> frozenset[str]:
    """Return the fingerprints of the series that only a release which judges otherwise examines again."""
    return frozenset(each for each, scan in scans.items() if scan.code not in _AGAIN)


class Examination:
    """Examines series in worker processes, one for each core that this process may use; known series are skipped,
    unless their examination failed or was another version's.

    Each result is stored in the cohort as soon as it is done. `progress(done, total)` is called when a series is done
    and when all have been added; from then on its total is that of all series found. `is_first`: no series was known
    before. This is a context manager: if an exception leaves it, unfinished series are cancelled.

    If the system ends a worker, the series without a result are examined one by one. A series whose worker ends then
    too is refused with E_EXAMINE_DIED, so that one damaged file does not stop the ingest of all others.

    Raises Refusal E_WORKER_DIED on exit, if workers end before they begin, or for three new series in a row.
    """

    def __init__(self, cohort: Cohort, settings: Preprocessing, progress: Callable[[int, int], None]) -> None:
        self.settings = settings
        self._cohort, self._progress = cohort, progress
        scans = cohort.scans(settings_digest(settings))
        known = with_result(scans)
        self.is_first = not known
        self._before = known & cohort.examined(settings_digest(settings), EXAMINATION)
        self._died = frozenset(each for each, scan in scans.items() if scan.code == reasons.EXAMINE_DIED.code)
        self._known = set(self._before)
        self._left: dict[str, Series] = {}  # without a result
        self._finished: SimpleQueue[Future[Scan]] = SimpleQueue()
        self._given = self._done = self._submitted = 0
        self._is_broken = False
        self._found: int | None = None
        cores = len(os.sched_getaffinity(0))
        self._pool = WorkerPool(cores, _workers(), begin_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def add(self, series: Series) -> None:
        """Submit one series, while the search for others continues."""
        if series.fingerprint in self._known:
            return
        self._known.add(series.fingerprint)
        self._left[series.fingerprint] = series
        self._given += 1
        if not self._is_broken and series.fingerprint not in self._died:
            self._submit(series)
        self._take_finished()

    def is_new(self, series: Series) -> bool:
        """Whether a series was not known, or is examined again. One in two folders is examined twice, and is one."""
        return series.fingerprint not in self._before

    def finish(self, found: int) -> None:
        """Wait for all submitted series.

        `found`: the number of all series, of which those that need no examination count as done.
        """
        self._found = found
        self._report()
        self._wait()
        if self._left:
            self._examine_alone()

    def _submit(self, series: Series) -> None:
        try:
            job = self._pool.submit(examine, series, self.settings, self._cohort.tensors)
        except BrokenProcessPool:
            self._is_broken = True
            return
        self._submitted += 1
        job.add_done_callback(self._finished.put)

    def _wait(self) -> None:
        """Wait for the submitted series, or until a worker has died."""
        if self._submitted and not self._is_broken:
            try:
                self._pool.check()
            except BrokenProcessPool:
                self._is_broken = True
        while self._submitted and not self._is_broken:
            self._take(self._finished.get())
        self._take_finished()

    def _take_finished(self) -> None:
        while not self._finished.empty():
            self._take(self._finished.get())

    def _take(self, job: Future[Scan]) -> None:
        self._submitted -= 1
        try:
            scan = job.result()
        except BrokenProcessPool:
            self._is_broken = True
        else:
            self._remember(scan)

    def _examine_alone(self) -> None:
        """Examine the series that are left one by one; those whose worker died in an earlier ingest come last.

        Raises BrokenProcessPool if workers end before they begin, or for `_MOST_DEATHS` new series in a row.
        """
        self._begin_alone()
        deaths = 0
        for series in sorted(self._left.values(), key=lambda each: each.fingerprint in self._died):
            self._pool.submit(int).result()  # the worker has begun: if it dies now, it was because of this series
            try:
                job = self._pool.submit(examine, series, self.settings, self._cohort.tensors)
                self._pool.check()
                scan = job.result()
                deaths = 0
            except BrokenProcessPool:
                scan = self._dead(series)
                deaths += series.fingerprint not in self._died
                self._begin_alone()
            self._remember(scan)
            if deaths == _MOST_DEATHS:
                raise BrokenProcessPool

    def _begin_alone(self) -> None:
        self._pool.end()
        self._pool = WorkerPool(1, _workers(), begin_worker)

    def _dead(self, series: Series) -> Scan:
        reason = reasons.EXAMINE_DIED
        return Scan(
            fingerprint=series.fingerprint,
            settings=settings_digest(self.settings),
            code=reason.code,
            says=reason.says,
            flags="",
            scan_digest=None,
            tensor=None,
            measures=None,
        )

    def _remember(self, scan: Scan) -> None:
        self._cohort.add_scan(scan, EXAMINATION)
        self._left.pop(scan.fingerprint, None)
        self._done += 1
        self._report()

    def _report(self) -> None:
        if self._found is None:  # the search continues
            self._progress(self._done, self._given)
        else:
            self._progress(max(0, self._found - self._given + self._done), self._found)
