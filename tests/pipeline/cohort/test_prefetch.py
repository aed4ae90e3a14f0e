"""Batches are prepared ahead in order, by one thread."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pipeline.cohort.prefetch import ahead


@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_random_numbers_are_drawn_in_the_same_order(count: int) -> None:
    draws = np.random.default_rng(1)
    found = list(ahead((draws.random for _ in range(20)), count))
    assert found == list(np.random.default_rng(1).random(20))


def test_the_next_tasks_run_while_a_result_is_used() -> None:
    second, third = threading.Event(), threading.Event()
    tasks: list[Callable[[], object]] = [int, second.set, third.set, int]
    results = ahead(tasks, 1)
    next(results)
    assert second.wait(60)
    assert not third.wait(0.05), "no more are prepared than asked for"
    assert len(list(results)) == 3


def test_an_error_arrives_with_its_batch() -> None:
    def tasks() -> Iterator[Callable[[], int]]:
        yield int
        yield lambda: 1 // 0
        yield int

    results = ahead(tasks(), 2)
    assert next(results) == 0
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_unfinished_tasks_end_with_their_user() -> None:
    before = threading.active_count()
    results = ahead((int for _ in range(10)), 3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
