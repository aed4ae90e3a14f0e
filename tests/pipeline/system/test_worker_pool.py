"""A pool of worker processes of which the system ends one."""

import os
import signal
import time
from multiprocessing import active_children, get_context

import pytest

from models.refusal import Refusal
from pipeline.system.worker_pool import WorkerPool
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.slow


def die(number: int) -> int:
    """Let the system end this worker at the second task."""
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_worker_that_dies_ends_the_work_with_a_code() -> None:
    before = set(active_children())
    with pytest.raises(Refusal, match="E_WORKER_DIED"), WorkerPool(2, get_context("spawn")) as pool:
        list(pool.map(die, range(4)))
    assert eventually(lambda: set(active_children()) <= before)


def test_check_finds_a_worker_that_died_before() -> None:
    with pytest.raises(Refusal, match="E_WORKER_DIED"), WorkerPool(1, get_context("spawn")) as pool:
        assert eventually(pool.submit(die, 2).done)
        pool.check()


def test_results_and_other_errors_are_those_of_any_pool() -> None:
    with WorkerPool(2, get_context("spawn")) as pool:
        assert list(pool.map(abs, [-1, 2], chunksize=2)) == [1, 2]
    with pytest.raises(TypeError), WorkerPool(1, get_context("spawn")) as pool:
        pool.submit(abs, "one").result()


def test_error_does_not_wait_for_tasks_that_have_not_begun() -> None:
    with pytest.raises(KeyboardInterrupt), WorkerPool(1, get_context("spawn")) as pool:
        waiting = [pool.submit(time.sleep, 0.2) for _ in range(100)]
        raise KeyboardInterrupt
    assert eventually(waiting[-1].cancelled)
