"""Prepares batches ahead, in one thread, while the network computes with earlier ones."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def ahead(tasks: Iterable[Callable[[], Made]], count: int) -> Iterator[Made]:
    """Yield the result of each task in turn, with up to `count` further tasks prepared or in preparation; 0: none.

    One thread runs the tasks one after another, so random numbers are drawn in the same order as without it. With
    several threads or processes, the augmentation of a scan would depend on their number.
    """
    if not count:
        yield from (task() for task in tasks)
        return
    worker = ThreadPoolExecutor(1)
    waiting: deque[Future[Made]] = deque()
    try:
        for task in tasks:
            waiting.append(worker.submit(task))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        worker.shutdown(cancel_futures=True)
