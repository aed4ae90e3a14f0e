"""The method of all benchmarks: ours and the other in turn, several times, as a ratio of medians with spread."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Work = Callable[[], object]


@dataclass(frozen=True)
class Figure:
    """One row of the tables: the same work done by us and by another, each measured several times."""

    name: str
    against: str
    unit: str
    ours: list[float]
    theirs: list[float]
    target: str = ""  # for the ratio

    @property
    def ratio(self) -> float:
        """Our median divided by the other's."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


@dataclass(frozen=True)
class Table:
    """A table of texts, for results that are not a ratio of two measurements."""

    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Part:
    """The results of one module. `notes`: method, and what was left out and why; `values`: raw numbers of tables."""

    notes: list[str]
    figures: list[Figure]
    tables: list[Table] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def processor_seconds(repeats: int, *works: Work) -> list[list[float]]:
    """Measure the processor seconds of each work, in turn, after one warm-up round."""
    return _seconds(time.process_time, repeats, works)


def wall_seconds(repeats: int, *works: Work) -> list[list[float]]:
    """Measure wall seconds like `processor_seconds`, for work on several cores."""
    return _seconds(time.perf_counter, repeats, works)


def _seconds(clock: Callable[[], float], repeats: int, works: Sequence[Work]) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for own, work in zip(times, works, strict=True):
            began = clock()
            work()
            if repeat:
                own.append(clock() - began)
    return times


@contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Restrict this process and its children to this number of cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True)
class Run:
    """The cost of one fresh process: its work, and its imports before."""

    wall_s: float
    processor_s: float
    import_s: float
    peak_mb: float  # resident memory, including libraries

    @property
    def with_imports_s(self) -> float:
        return self.import_s + self.wall_s


def run_fresh(contender: str, folder: Path, *, is_warm: bool = False) -> Run:
    """Run one function of contenders.py on a folder in a new process; if warm, after one run before in it."""
    command = [sys.executable, Path(__file__).with_name("fresh.py"), contender, folder, *(["warm"] if is_warm else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def runs_in_turn(
    repeats: int, contenders: Sequence[str], folder: Path, *, is_warm: bool = False
) -> dict[str, list[Run]]:
    """Run all contenders in turn in fresh processes. The files are in the page cache, because all were read before."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    runs: dict[str, list[Run]] = {contender: [] for contender in contenders}
    for _ in range(repeats):
        for contender in contenders:
            runs[contender].append(run_fresh(contender, folder, is_warm=is_warm))
    return runs
