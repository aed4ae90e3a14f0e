"""Examines series: each is read, prepared and cached by a worker process, and remembered as soon as it is done."""

import gc
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import SimpleQueue
from typing import Self

from models.refusal import Refusal
from pipeline.cohort import reasons
from pipeline.cohort.store import Cohort, Scan, save_tensor
from pipeline.imaging.discovery import Series
from pipeline.preprocessing.preprocess import Preprocessing, settings_digest
from pipeline.system.malloc import keep_memory


def examine(series: Series, settings: Preprocessing, tensors: Path) -> Scan:
    """Read one series, prepare it and cache its tensor; a refusal is an answer too. Runs in a worker process."""
    import torch

    from pipeline.imaging.readers import read_scan
    from pipeline.preprocessing.measures import flags, measure
    from pipeline.preprocessing.preprocess import prepare

    torch.set_num_threads(1)  # one process a core; threads on top would only wait for each other
    digest, tensor, measures = None, None, None
    flagged: set[str] = set()
    refused: Refusal | None = None
    try:
        volume = read_scan(series)
        flagged.update(volume.flags)
        prepared = prepare(volume, settings)
        digest = prepared.scan_digest
        measures = measure(series, volume, prepared)
        flagged.update(flags(measures, settings))
        # Named after the settings too, so that the present cohort keeps its tensors until `replace`.
        tensor = f"{series.fingerprint[:32]}-{settings_digest(settings)}.npy"
        save_tensor(tensors, tensor, prepared.tensor)
    except Refusal as error:
        refused = error
    except OSError:
        raise  # a full disk says nothing about the scan
    except Exception:
        refused = Refusal(reasons.EXAMINE_FAILED)
        _log_failure(tensors.parents[1] / "logs" / "failures.log", series)
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


def _log_failure(path: Path, series: Series) -> None:
    """The error in full, for the site's own eyes: it may name a file, so a study's code must not see it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as log:
        log.write(f"series {series.fingerprint[:12]}\n{traceback.format_exc()}\n")


def _workers() -> ForkServerContext:
    """Worker processes begin as forks of one that has what they need imported already, and nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload(
        ["nibabel", "pipeline.cohort.workers", "pipeline.preprocessing.measures", "pipeline.imaging.readers"]
    )
    return context


def expect_series() -> None:
    """Let what the workers need be imported in the background, while their series are still being searched for."""
    _workers()
    forkserver.ensure_running()


def _begin() -> None:
    """What each worker does first."""
    gc.freeze()  # what is imported: to look through it for garbage would copy all of it from the process forked
    keep_memory()  # the next series has the size of the last one
    _end_with_parent()


def _end_with_parent() -> None:
    """Let a worker end when the process that feeds it is killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Examination:
    """Series given to worker processes, one on each core that this process may use; those already known are not.

    Each is remembered in the cohort as soon as it is done. `progress(done, total)` is called whenever one more is done,
    or all are given. `is_first`: no series was known. A context manager; what is not done when it is left by an
    exception is given up.

    Raises Refusal E_WORKER_DIED where it is left, if the system ended a worker.
    """

    def __init__(self, cohort: Cohort, settings: Preprocessing, progress: Callable[[int, int], None]) -> None:
        self.settings = settings
        self._cohort, self._progress = cohort, progress
        self._known = set(cohort.scans(settings_digest(settings)))
        self.is_first = not self._known
        self._finished: SimpleQueue[Future[Scan]] = SimpleQueue()
        self._given = self._done = 0
        cores = len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(cores, mp_context=_workers(), initializer=_begin)  # each starts when needed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise Refusal(reasons.WORKER_DIED) from error

    def add(self, series: Series) -> None:
        """Have one series examined while others are still searched for."""
        if series.fingerprint in self._known:
            return
        self._known.add(series.fingerprint)
        job = self._pool.submit(examine, series, self.settings, self._cohort.tensors)
        self._given += 1
        job.add_done_callback(self._finished.put)
        while not self._finished.empty():
            self._remember(self._finished.get())

    def finish(self) -> int:
        """Wait for all that were given; returns how many were examined."""
        self._progress(self._done, self._given)
        while self._done < self._given:
            self._remember(self._finished.get())
        return self._done

    def _remember(self, job: Future[Scan]) -> None:
        self._cohort.add_scan(job.result())
        self._done += 1
        self._progress(self._done, self._given)
