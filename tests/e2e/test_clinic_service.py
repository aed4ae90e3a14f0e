"""The clinic service as real processes: killed during its work, and under load.

All scans are synthetic, and the model's weights are random.
"""

import itertools
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from federation.system.process import free_port
from federation.system.reaper import descendants, read_parents
from models.network import build_network
from models.network_settings import NetworkSettings
from models.release import save_release
from pipeline.clinic import model_registry
from pipeline.clinic.records import Job
from pipeline.clinic.settings import SETTINGS, Clinic
from pipeline.clinic.store import Store, new_id
from pipeline.clinic.web.auth import Tokens
from tests.e2e.conftest import Command
from tests.helpers.descriptions import description
from tests.helpers.dicom_files import of_other_patient, write_series
from tests.pipeline.scoring.test_score import SPACING_MM, chest

pytestmark = pytest.mark.e2e

SECONDS = 400  # timeout of every wait
SCANS, TORN = 12, 88  # sent in parallel: some can be scored, many are unreadable
_numbers = itertools.count(1)  # of patients
PARENT_MB = 300  # PyTorch alone takes more


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic chest as a zip of DICOM files."""
    folder = tmp_path_factory.mktemp("scan")
    write_series(folder / "series", chest(), spacing_mm=SPACING_MM)
    return Path(shutil.make_archive(str(folder / "scan"), "zip", folder / "series"))


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Clinic:
    """A clinic with a live model."""
    folder = tmp_path_factory.mktemp("clinic")
    (folder / SETTINGS).write_text(f"[server]\nport = {free_port()}\n[results]\nsr = false\npicture = false\n")
    clinic = Clinic.open(folder)
    release = tmp_path_factory.mktemp("release")
    save_release(release, build_network(NetworkSettings(), seed=0), description())
    model = model_registry.add(clinic, release, by="test")
    with clinic.store() as store:
        store.models.set_live(model.sha256, by="test")
    return clinic


@pytest.fixture
def store(clinic: Clinic) -> Iterator[Store]:
    with clinic.store() as opened:
        yield opened


@pytest.fixture
def serve(clinic: Clinic, tmp_path: Path) -> Iterator[Callable[[], Command]]:
    """Start the service and wait until it is ready. All started processes end after the test."""
    started: list[Command] = []

    def begin() -> Command:
        command = Command(tmp_path / f"{len(started)}.log", "serve", clinic.folder)
        started.append(command)
        wait_for(lambda: _is_ready(clinic), command)
        return command

    yield begin
    for command in started:
        command.kill()


def _is_ready(clinic: Clinic) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{address(clinic)}/health/ready").status_code == 200
    return False


def address(clinic: Clinic) -> str:
    return f"http://127.0.0.1:{clinic.settings.server.port}"


def wait_for(what: Callable[[], object], command: Command, *, every: float = 0.1) -> None:
    deadline = time.monotonic() + SECONDS
    while not what():
        assert command.process.poll() is None, command.text()
        assert time.monotonic() < deadline, command.text()
        time.sleep(every)


def queue(clinic: Clinic, store: Store, scan: Path) -> Job:
    job_id = new_id()
    (clinic.scans / job_id).mkdir()
    (clinic.scans / job_id / "1.zip").write_bytes(of_other_patient(scan, next(_numbers)))
    return store.jobs.add(job_id, source="upload", asked_by="test")


def worker_of(command: Command) -> int:
    (worker,) = descendants(command.process.pid, read_parents())
    return worker


def hold_in_the_middle(command: Command, store: Store) -> tuple[int, Job]:
    """Stop the worker (SIGSTOP) while it works on a scan. Return its process id and the job."""
    while True:
        wait_for(lambda: store.jobs.count("working"), command, every=0.005)
        worker = worker_of(command)
        os.kill(worker, signal.SIGSTOP)
        if working := store.jobs.newest("working"):
            return worker, working[0]
        os.kill(worker, signal.SIGCONT)  # that job has just ended


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def ended_by(store: Store, action: str) -> Counter[str | None]:
    """Return how often the audit log contains the action, per job."""
    return Counter(record.job_id for record in store.audit.records(limit=10_000) if record.action == action)


def test_every_scan_is_answered_exactly_once_despite_kill_9(
    clinic: Clinic,
    store: Store,
    scan: Path,
    serve: Callable[[], Command],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "shared").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "shared"))
    deadly, *others = [queue(clinic, store, scan) for _ in range(4)]
    service = serve()
    worker, held = hold_in_the_middle(service, store)
    assert held.id == deadly.id
    end(service.process.pid)  # kill the service: its worker ends with it, although stopped
    service.wait(seconds=SECONDS)
    wait_until_gone(worker)
    assert store.jobs.get(deadly.id).state == "working"

    service = serve()
    for _ in range(2):  # jobs that never killed a worker come first
        wait_for(lambda: store.jobs.get(deadly.id).state == "working", service, every=0.005)
        assert store.jobs.count("answered") == len(others)
        worker, held = hold_in_the_middle(service, store)
        assert held.id == deadly.id
        end(worker)  # kill only the worker
        wait_until_gone(worker)
        wait_for(lambda: store.jobs.get(deadly.id).state != "working", service)

    refused = store.jobs.get(deadly.id)
    assert (refused.code, refused.attempts) == ("E_SCORING_DIED", 3)
    assert ended_by(store, "answer") == Counter(job.id for job in others)
    assert ended_by(store, "no_score") == Counter([deadly.id])
    assert {answer.job_id for answer in store.answers.newest(role=None)} == {job.id for job in others}
    assert list((tmp_path / "shared").iterdir()) == []  # scans are not unpacked in the shared temporary folder


def test_100_parallel_scans_are_answered_once_and_sigterm_ends_all(
    clinic: Clinic, store: Store, scan: Path, serve: Callable[[], Command]
) -> None:
    whole = scan.read_bytes()
    wholes = [of_other_patient(scan, next(_numbers)) for _ in range(SCANS)]
    torn = whole[: len(whole) // 2] + bytes(1_000_000)
    token = Tokens(clinic.folder).make("night desk", "score", by="test")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/zip"}
    service = serve()

    def send(content: bytes) -> str:
        answered = httpx.post(f"{address(clinic)}/api/v1/scans", content=content, headers=headers, timeout=SECONDS)
        assert answered.status_code == 202, answered.text
        job_id: str = answered.json()["id"]
        return job_id

    contents = wholes + [torn] * TORN
    with ThreadPoolExecutor(len(contents)) as pool:
        jobs = list(pool.map(send, contents))
    assert len(set(jobs)) == len(contents)
    wait_for(lambda: store.jobs.count("waiting") + store.jobs.count("working") == 0, service)

    states = Counter(store.jobs.get(job_id).state for job_id in jobs)
    assert states == {"answered": SCANS, "no_score": TORN}
    answers, refusals = ended_by(store, "answer"), ended_by(store, "no_score")
    for job_id in jobs:
        assert answers[job_id] + refusals[job_id] == 1
    wait_for(lambda: not list(clinic.scans.iterdir()), service)
    peak_kb = int(Path(f"/proc/{service.process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])
    assert peak_kb < PARENT_MB * 1000

    # SIGTERM during work: no process remains, and the job is waiting as before.
    last = queue(clinic, store, scan)
    worker, held = hold_in_the_middle(service, store)
    assert held.id == last.id
    service.process.send_signal(signal.SIGTERM)
    assert service.wait(seconds=SECONDS) == 0
    assert is_gone(worker)
    assert (store.jobs.get(last.id).state, store.jobs.get(last.id).attempts) == ("waiting", 0)
    assert {path.name for path in clinic.scans.iterdir()} == {last.id}
