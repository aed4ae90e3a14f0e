"""Worker processes compute with one thread."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from threadpoolctl import threadpool_info

from pipeline.cohort import workers
from pipeline.phantom import cohorts, generate


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begin", "arguments"),
    [
        (generate.begin_worker, ("template",)),
        (generate.begin_worker, ("random",)),
        (cohorts.begin_worker, ()),
        (workers.begin_worker, ()),
    ],
    ids=["template", "random", "cohort", "examination"],
)
def test_worker_computes_with_one_thread(
    begin: Callable[..., None], arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # else the tests' own setting would hide a missing one
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begin, initargs=arguments) as pool:
        libraries = pool.submit(threadpool_info).result()
    assert libraries and {library["num_threads"] for library in libraries} == {1}
