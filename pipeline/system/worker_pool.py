"""Worker processes of a command. If the system ends one of them, mostly for memory, the command ends with a code."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, resource_tracker
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from models.refusal import Refusal
from pipeline.system.reasons import WORKER_DIED

P = ParamSpec("P")
T = TypeVar("T")


class WorkerPool(ProcessPoolExecutor):
    """A pool of processes that neither waits for a worker that died nor ends with a stack trace.

    Python 3.11's own pool can wait forever, for a worker that was just starting when another one died, or for a task
    that was submitted at that moment. Workers start when they are needed. This is a context manager: if an exception
    leaves it, tasks that have not begun are cancelled. Ctrl-C or SIGTERM ends all tasks at once. A terminal sends
    Ctrl-C to all processes, but workers never get it: each would write a stack trace, even while it still imports.

    Raises Refusal E_WORKER_DIED on exit, if the system ended a worker.
    """

    def __init__(
        self,
        workers: int | None,
        context: BaseContext,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        self._others = frozenset(active_children())
        super().__init__(workers, context, initializer, initargs)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Submit a task. Raises BrokenProcessPool if a worker has died."""
        try:
            with without_interrupt():  # workers start here
                return super().submit(fn, *args, **kwargs)
        except (ConnectionError, EOFError) as error:  # a worker was killed while it started
            raise BrokenProcessPool from error

    def check(self) -> None:
        """Raise BrokenProcessPool if a worker has died.

        A task that was submitted at that moment may have been forgotten: its result would never come. So call this
        after the last `submit`, and wait for results then.
        """
        self.submit(int)

    def map(
        self, fn: Callable[..., T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[T]:
        """Return the results of a function in order. Raises BrokenProcessPool if a worker has died.

        Python's own `map` cancels the other tasks after an error or Ctrl-C. If a worker dies before the pool has
        noticed that, its thread ends with a stack trace (InvalidStateError).
        """
        given = list(zip(*iterables, strict=False))
        chunks = [given[start : start + chunksize] for start in range(0, len(given), chunksize)]
        jobs = [self.submit(_call_each, fn, chunk) for chunk in chunks]
        self.check()
        return (result for job in jobs for result in job.result(timeout))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.end()
            return
        self.shutdown(wait=error is None, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            self._end_workers()
            raise Refusal(WORKER_DIED) from error

    def end(self) -> None:
        """End the pool at once, with its workers. Tasks without a result are lost."""
        self.shutdown(wait=False, cancel_futures=True)
        self._end_workers()

    def _end_workers(self) -> None:
        """End the workers that are left: one that Python's pool did not know yet would wait for work forever, and this
        process at its exit for that worker.
        """
        for worker in set(active_children()) - self._others:
            worker.kill()


def _call_each(function: Callable[..., T], arguments: list[tuple[Any, ...]]) -> list[T]:
    return [function(*each) for each in arguments]


@contextmanager
def without_interrupt() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block. Processes that start in the block never get it."""
    resource_tracker.ensure_running()  # its start would unblock the signal
    pressed: list[int] = []
    # The signal mask is for the new processes: another thread may still receive the signal for this one. Only the main
    # thread may set a handler, and only there the default one raises KeyboardInterrupt.
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)
