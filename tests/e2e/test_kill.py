"""kill -9 during an ingest: the next run gives the same result as an undisturbed run."""

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

pytestmark = pytest.mark.e2e

KILLS, SITES = 20, 4  # the kills are divided equally between the sites


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten clean synthetic patients: about three seconds of work on two cores."""
    folders = tmp_path_factory.mktemp("hospitals")
    (folder,) = make_hospitals(folders, patients=[10], seed=3, defects=False, anatomy="template")
    return folder


MakeSite = Callable[[Path, Path], Site]


@pytest.fixture(scope="module")
def undisturbed(hospital: Path, make_site: MakeSite, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A site after one undisturbed ingest, and the seconds from the lock to the end."""
    site = make_site(tmp_path_factory.mktemp("sites") / "undisturbed", hospital)
    command = Command(tmp_path_factory.mktemp("log") / "log", "node", "ingest", site.folder)
    began = begun(site.folder, command)
    assert command.wait(seconds=300) == 0, command.text()
    return site.folder, time.monotonic() - began


def begun(site: Path, command: Command) -> float:
    """Wait until the command holds the cohort's lock (before that, it only imports). Return the time."""
    lock = site / "cohort" / "lock"
    before = lock.stat().st_mtime_ns if lock.exists() else 0
    deadline = time.monotonic() + 120
    while not (lock.exists() and lock.stat().st_mtime_ns > before):
        assert time.monotonic() < deadline, command.text()
        if command.process.poll() is not None:
            break
        time.sleep(0.01)
    return time.monotonic()


def contents(site: Path) -> dict[str, bytes]:
    """Return the files that an ingest writes, without the SQLite files and the lock."""
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
def test_run_after_kills_gives_the_same_files_as_an_undisturbed_run(
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
    assert contents(site) == contents(reference), "cohort.csv and all other files are equal, byte for byte"
    assert "cohort.csv" in contents(site)


def test_workers_end_when_their_parent_process_is_killed(hospital: Path, make_site: MakeSite, tmp_path: Path) -> None:
    """As when the system kills the parent process for lack of memory: it cannot end its workers."""
    site = make_site(tmp_path / "site", hospital).folder
    command = Command(tmp_path / "log", "node", "ingest", site)
    begun(site, command)
    family = _with_workers(command)
    command.process.kill()
    command.process.wait()
    deadline = time.monotonic() + 120
    while alive(family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(family) == []


def test_ingest_goes_on_if_a_worker_is_killed(
    hospital: Path, undisturbed: tuple[Path, float], make_site: MakeSite, tmp_path: Path
) -> None:
    site = make_site(tmp_path / "site", hospital).folder
    command = Command(tmp_path / "log", "node", "ingest", site)
    begun(site, command)
    _with_workers(command)
    os.kill(_workers(command)[0], signal.SIGKILL)
    assert command.wait(seconds=300) == 0, command.text()
    assert "E_EXAMINE_DIED" not in command.text()
    assert contents(site) == contents(undisturbed[0]), "no series is lost"


def _with_workers(command: Command) -> list[int]:
    """Wait until a worker (a child of a child) runs. Return the command and its descendants."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if _workers(command):
            return command.family()
        time.sleep(0.02)
    raise AssertionError(command.text())


def _workers(command: Command) -> list[int]:
    parents = read_parents()
    return [pid for pid in command.family() if parents.get(parents.get(pid, 0), 0) == command.process.pid]
