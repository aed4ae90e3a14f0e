"""kill -9 in the middle of an ingest: the next run ends as if nothing had happened."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.system.reaper import read_parents
from pipeline.phantom.generate import make_hospitals
from pipeline.site.folder import Site
from tests.e2e.conftest import Command, run_command

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

KILLS, SITES = 20, 4  # as many kills on each site, one after the other, before it may finish


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clean synthetic patients: some three seconds of work for two cores."""
    (folder,) = make_hospitals(tmp_path_factory.mktemp("hospitals"), patients=[10], seed=3, defects=False)
    return folder


MakeSite = Callable[[Path, Path], Site]


@pytest.fixture(scope="module")
def undisturbed(hospital: Path, make_site: MakeSite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A site after one ingest, and the seconds from when it began to work to its end."""
    site = make_site(tmp_path_factory.mktemp("sites") / "undisturbed", hospital)
    command = Command(tmp_path_factory.mktemp("log") / "log", "node", "ingest", site.folder)
    began = begun(site.folder, command)
    assert command.wait(seconds=120) == 0, command.text()
    return site.folder, time.monotonic() - began


def begun(site: Path, command: Command) -> float:
    """Wait until the command has taken the cohort's lock: before, it only imports. Returns the moment."""
    lock = site / "cohort" / "lock"
    before = lock.stat().st_mtime_ns if lock.exists() else 0
    deadline = time.monotonic() + 60
    while not (lock.exists() and lock.stat().st_mtime_ns > before):
        assert time.monotonic() < deadline, command.text()
        if command.process.poll() is not None:
            break
        time.sleep(0.01)
    return time.monotonic()


def contents(site: Path) -> dict[str, bytes]:
    """What an ingest leaves, without SQLite's own files and the lock."""
    cohort = site / "cohort"
    return {
        str(path.relative_to(cohort)): path.read_bytes()
        for path in sorted(cohort.rglob("*"))
        if path.is_file() and not path.name.startswith("cohort.sqlite") and path.name != "lock"
    }


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if _state(pid) != "Z"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.parametrize("number", [0, *(pytest.param(n, marks=pytest.mark.chaos) for n in range(1, SITES))])
def test_the_next_run_ends_as_if_it_had_not_been_killed(
    hospital: Path, make_site: MakeSite, undisturbed: tuple[Path, float], tmp_path: Path, number: int
) -> None:
    reference, seconds = undisturbed
    site = make_site(tmp_path / "site", hospital).folder
    moments = random.Random(number)
    for kill in range(KILLS // SITES):
        command = Command(tmp_path / f"{kill}.log", "node", "ingest", site)
        begun(site, command)
        time.sleep(moments.uniform(0, seconds))
        command.kill()
    done = run_command("node", "ingest", site)
    assert done.returncode == 0, done.stderr
    assert contents(site) == contents(reference), "cohort.csv and all else, byte for byte"
    assert "cohort.csv" in contents(site)


def test_workers_end_with_the_process_that_feeds_them(hospital: Path, make_site: MakeSite, tmp_path: Path) -> None:
    """As when the system ends it for want of memory: nobody is left to end them."""
    site = make_site(tmp_path / "site", hospital).folder
    command = Command(tmp_path / "log", "node", "ingest", site)
    begun(site, command)
    family = _with_workers(command)
    command.process.kill()
    command.process.wait()
    deadline = time.monotonic() + 15
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(family) == []


def test_a_worker_that_the_system_ends_is_told_and_the_next_run_goes_on(
    hospital: Path, make_site: MakeSite, tmp_path: Path
) -> None:
    site = make_site(tmp_path / "site", hospital).folder
    command = Command(tmp_path / "log", "node", "ingest", site)
    begun(site, command)
    _with_workers(command)
    os.kill(_workers(command)[0], signal.SIGKILL)
    assert command.wait(seconds=60) == 1
    assert "E_WORKER_DIED" in command.text()
    assert "Traceback" not in command.text()
    assert run_command("node", "ingest", site).returncode == 0


def _with_workers(command: Command) -> list[int]:
    """The command and its descendants once a worker examines: a child's child."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if _workers(command):
            return command.family()
        time.sleep(0.02)
    raise AssertionError(command.text())


def _workers(command: Command) -> list[int]:
    parents = read_parents()
    return [pid for pid in command.family() if parents.get(parents.get(pid, 0), 0) == command.process.pid]
