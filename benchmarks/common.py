"""How everything here is measured: ours and the other in turn, several times, as a ratio of medians with spread."""

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
    """One line of the tables: the same thing done by us and by another, each measured several times."""

    name: str
    against: str
    unit: str
    ours: list[float]
    theirs: list[float]
    target: str = ""  # for the ratio

    @property
    def ratio(self) -> float:
        """Our median to the other's."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


@dataclass(frozen=True)
class Table:
    """What is no ratio of two things: a table in words and numbers as they shall be read."""

    title: str
    head: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Part:
    """What one module measured; `notes` say how, and what was left out and why. `values`: the raw numbers of tables."""

    notes: list[str]
    figures: list[Figure]
    tables: list[Table] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Least, median, most."""
    return min(values), statistics.median(values), max(values)


def processor_seconds(repeats: int, *works: Work) -> list[list[float]]:
    """Processor seconds of each work, all in turn, after one round to warm up."""
    return _seconds(time.process_time, repeats, works)


def wall_seconds(repeats: int, *works: Work) -> list[list[float]]:
    """As `processor_seconds`, by the clock: of work on several cores."""
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
    """Keep this process, and all that are started from it, to so many cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(frozen=True)
class Run:
    """What one fresh process needed, for its work and for its imports before it."""

    wall_s: float
    processor_s: float
    import_s: float
    peak_mb: float  # resident memory, libraries included

    @property
    def with_imports_s(self) -> float:
        return self.import_s + self.wall_s


def run_fresh(contender: str, folder: Path, *, is_warm: bool = False) -> Run:
    """Run one function of contenders.py on a folder, in a process of its own; if warm, that has done it once before."""
    command = [sys.executable, Path(__file__).with_name("fresh.py"), contender, folder, *(["warm"] if is_warm else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-2000:]}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def runs_in_turn(
    repeats: int, contenders: Sequence[str], folder: Path, *, is_warm: bool = False
) -> dict[str, list[Run]]:
    """Fresh runs of all contenders in turn; the files are in the page cache, for each has been read before."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    runs: dict[str, list[Run]] = {contender: [] for contender in contenders}
    for _ in range(repeats):
        for contender in contenders:
            runs[contender].append(run_fresh(contender, folder, is_warm=is_warm))
    return runs
