"""Worker processes of a command. If the system ends one of them, mostly for memory, the command ends with a code."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children
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
    leaves it, tasks that have not begun are cancelled.

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
        """Return the results of a function in order. Raises BrokenProcessPool if a worker has died."""
        results = super().map(fn, *iterables, timeout=timeout, chunksize=chunksize)
        self.check()
        return results

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
