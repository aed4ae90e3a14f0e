"""A pool of worker processes of which the system ends one."""

import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import active_children, get_context
from pathlib import Path

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
    with pytest.raises(LookupError), WorkerPool(1, get_context("spawn")) as pool:
        waiting = [pool.submit(time.sleep, 0.2) for _ in range(100)]
        raise LookupError
    assert eventually(waiting[-1].cancelled)


def test_worker_that_dies_after_an_error_causes_no_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[object] = []
    monkeypatch.setattr(threading, "excepthook", traces.append)
    children, threads = set(active_children()), set(threading.enumerate())
    with pytest.raises(Refusal, match="E_WORKER_DIED"), WorkerPool(1, get_context("spawn")) as pool:
        with pytest.raises(TypeError):
            list(pool.map(time.sleep, ["no number", *[3600] * 20]))
        for worker in set(active_children()) - children:
            worker.kill()
        eventually(pool.check)
    assert eventually(lambda: set(threading.enumerate()) <= threads)
    assert not traces


INTERRUPTED = """
import os, signal, sys, time
from multiprocessing import get_context, util
from pipeline.system.worker_pool import WorkerPool

def press():
    os.killpg(0, signal.SIGINT)  # as a terminal does

def press_after_launch(*arguments, launch=util.spawnv_passfds):
    worker = launch(*arguments)
    press()
    return worker

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with WorkerPool(2, get_context("spawn")) as pool:
            if sys.argv[1] != "import":
                pool.submit(int).result()
            if sys.argv[1] == "launch":
                util.spawnv_passfds = press_after_launch
            waits = pool.map(time.sleep, [3600] * 20)
            press()
            list(waits)
    except KeyboardInterrupt:
        sys.exit("interrupted")
"""


@pytest.mark.parametrize("workers", ["launch", "import", "work"])
def test_ctrl_c_ends_workers_at_once_without_stack_traces(workers: str, tmp_path: Path) -> None:
    """It comes while workers do this. A worker that is launched has no data yet; without them it shows an error."""
    (tmp_path / "run.py").write_text(INTERRUPTED)
    command = [sys.executable, tmp_path / "run.py", workers]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, start_new_session=True, check=False)
    assert ended.stderr == "interrupted\n"  # and no worker holds this pipe any longer
