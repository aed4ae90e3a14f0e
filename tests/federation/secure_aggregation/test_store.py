"""The gateway's memory of masked rounds, when several runs go on at the same time."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest

from federation.secure_aggregation.messages import NOTHING, hospitals_digest
from federation.secure_aggregation.store import FILE, FORMAT, Attempt, Store

RUNS, TIMES = ("north", "south", "west", "east"), 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "database", tmp_path / "witness")) as opened:
        yield opened


def at_once(*steps: Callable[[], object]) -> None:
    """Run functions in threads that begin together; raises what one of them raises."""
    together = Barrier(len(steps))

    def run(step: Callable[[], object]) -> None:
        together.wait(60)
        step()

    with ThreadPoolExecutor(len(steps)) as threads:
        list(threads.map(run, steps))


def test_sum_that_may_be_revealed_is_remembered_whatever_other_runs_do(store: Store) -> None:
    """One hospital takes part in several studies: their steps meet at one database."""
    for run in RUNS:
        store.begin(Attempt(run, 0, 1))
    for number in range(1, TIMES + 1):

        def step(run: str, number: int = number) -> None:
            store.advance(Attempt(run, number, 1, 5, {"x": 1}), revealed=(f"{run} {number}", "train"))

        at_once(*(lambda run=run: step(run) for run in RUNS))  # type: ignore[misc]
        assert all(store.was_revealed(f"{run} {number}", "train") for run in RUNS)


def test_runs_that_begin_at_the_same_time_keep_their_secrets(store: Store) -> None:
    for number in range(1, TIMES + 1):
        at_once(*(lambda run=run, number=number: store.begin(Attempt(run, number, 1, 0, {"x": 1})) for run in RUNS))  # type: ignore[misc]
        for run in RUNS:
            last = store.last(run)
            assert last is not None and last.secrets == {"x": 1}


def test_hospitals_that_an_earlier_format_knows_by_name_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "database"
    Store(folder, tmp_path / "witness").close()
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as database:
        database.execute("ALTER TABLE runs DROP COLUMN study")
        database.execute("""INSERT INTO summed VALUES ('list', 'evaluate.test', '["north", "south", "west"]')""")
        database.execute("""INSERT INTO runs VALUES ('signed', 1, 1, 4, x'', '["north", "south", "west"]', 2)""")
        database.execute("INSERT INTO runs VALUES ('begun', 1, 1, 1, x'', '[]', 0)")
        database.execute("PRAGMA user_version = 3")
    hospitals = hospitals_digest(["west", "north", "south"])
    for _ in range(2):
        with closing(Store(folder, tmp_path / "witness")) as store:
            assert store.summed_over("list", "evaluate.test") == hospitals
            assert store.summed_over("list", "evaluate.calibrate") == NOTHING
            signed, begun = store.last("signed"), store.last("begun")
        assert signed is not None and (signed.uploaded, signed.changes) == (hospitals, 2)
        assert begun is not None and begun.uploaded == ""
    with closing(sqlite3.connect(folder / FILE)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (FORMAT.version,)
