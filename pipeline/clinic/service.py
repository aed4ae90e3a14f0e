"""The service of one clinic: the page and its API in this process, the scoring worker in a child process.

This process never imports torch. Threads send results, receive and fetch scans, and remove old files; one thread keeps
the worker running. They share state only through the store, so each may end at any moment: unfinished work is queued
again, nothing is lost and nothing is answered twice.
"""

import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from models.refusal import Refusal
from pipeline.clinic.reasons import CLINIC_ADDRESS, CLINIC_BUSY, CLINIC_TLS
from pipeline.clinic.retention import clear_work, forget_old, tidy
from pipeline.clinic.settings import Clinic
from pipeline.system.locks import alone

if TYPE_CHECKING:
    import uvicorn

TIDY_SECONDS = 3600.0
LOG_BYTES = 16_000_000  # size of a log file before it is rotated
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0  # before an ended task is restarted
_STEADY_SECONDS = 60.0  # a task that ran this long did not fail at its start
_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 5.0  # for requests and threads to end when the service stops

log = logging.getLogger("fedthorax.clinic")

Task = Callable[[threading.Event], None]


def run_service(
    clinic_folder: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    on_start: Callable[[Clinic], None] = lambda clinic: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C. `on_start` is called when requests are accepted.

    Raises Refusal E_CLINIC_BUSY if another service uses the folder, E_CLINIC_ADDRESS, E_CLINIC_TLS, E_CLINIC_FILE,
    E_PACS_FILE if the receiver's certificates cannot be used, and what `Clinic.open` raises.
    """
    clinic = Clinic.open(clinic_folder, host=host, port=port)
    with alone(clinic.folder / "service.lock", CLINIC_BUSY), _logging(clinic.logs / "service.log"), _ending():
        with clinic.store() as store:
            store.jobs.recover()
            forget_old(clinic, store)
            tidy(clinic, store, at_start=True)
        server = _server(clinic)
        with _listening(clinic) as listening, _running(_tasks(clinic)):
            on_start(clinic)
            server.run(sockets=[listening])


def run_worker(clinic: Clinic, stop: threading.Event) -> None:
    """Run one worker until it ends or `stop`; then requeue the scan that it was scoring.

    Raises Refusal E_CLINIC_FILE.
    """
    clear_work(clinic)
    with clinic.store() as store:
        store.worker.set("starting")
        with _started(clinic) as worker:
            while worker.poll() is None and not stop.wait(_LOOK_SECONDS):
                pass
            died = worker.poll()
        left = store.jobs.recover(is_our_doing=died is None)
        tidy(clinic, store)
        if died is not None:
            store.worker.set("starting")
            log.error("the worker %s; scans in progress: %d; see worker.log", _how_it_ended(died), len(left))


@contextmanager
def _started(clinic: Clinic) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker and kill it at the end, which is safe at any moment. It also ends with this process."""
    path = clinic.logs / "worker.log"
    if path.exists() and path.stat().st_size > LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    path.touch(mode=0o600)
    with path.open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.clinic.worker", str(clinic.folder)],
            stdin=subprocess.PIPE,  # the worker ends when this pipe closes
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches only this process
        )
    try:
        yield worker
    finally:
        worker.kill()
        worker.communicate()


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGALRM:
        return "took more than scoring_seconds"
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _tidy_up(clinic: Clinic, stop: threading.Event) -> None:
    while not stop.wait(TIDY_SECONDS):
        with clinic.store() as store:
            forget_old(clinic, store)
            tidy(clinic, store)


def _tasks(clinic: Clinic) -> dict[str, Task]:
    """Return the background tasks by name; each runs in its own thread until it is stopped.

    Raises Refusal E_PACS_FILE.
    """
    from pipeline.clinic.results.outbox import Outbox

    tasks: dict[str, Task] = {
        "worker": partial(run_worker, clinic),
        "tidying": partial(_tidy_up, clinic),
        "outbox": Outbox(clinic).run,
    }
    if clinic.pacs:
        from pipeline.clinic.pacs_source import PacsSource

        tasks["fetching"] = PacsSource(clinic.folder, *clinic.pacs).run
    if clinic.settings.receiver.enabled:
        from pipeline.clinic.cstore_receiver import Reception

        tasks["receiver"] = Reception(clinic).run
    return tasks


@contextmanager
def _running(tasks: Mapping[str, Task]) -> Iterator[None]:
    stop = threading.Event()
    # Daemon threads: one that waits for a PACS does not delay the end.
    threads = [threading.Thread(target=_again, args=(*task, stop), name=task[0], daemon=True) for task in tasks.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        until = time.monotonic() + _GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def _again(name: str, task: Task, stop: threading.Event) -> None:
    """Run a task until it is stopped. If it ends earlier, restart it after a pause that doubles each time."""
    pause = _FIRST_PAUSE_SECONDS
    while not stop.is_set():
        began = time.monotonic()
        try:
            task(stop)
        except Refusal as refusal:
            log.error("%s: %s", name, refusal)
        except Exception:
            log.exception("%s failed", name)
        is_steady = time.monotonic() - began > _STEADY_SECONDS
        pause = _FIRST_PAUSE_SECONDS if is_steady else min(2 * pause, _LONGEST_PAUSE_SECONDS)
        stop.wait(pause)


# --- the page ---------------------------------------------------------------------------------------------


def _server(clinic: Clinic) -> "uvicorn.Server":
    """Create the HTTP server. Raises Refusal E_CLINIC_TLS, and what `make_app` raises."""
    import uvicorn

    from pipeline.clinic.web.app import make_app
    from pipeline.clinic.web.header_timeout import Punctual

    table = clinic.settings.server
    config = uvicorn.Config(
        make_app(clinic),
        http=Punctual,
        ws="none",
        log_config=None,
        access_log=False,  # URLs contain patients' keys; the audit records say who did what
        proxy_headers=False,  # X-Forwarded-For is not trusted
        server_header=False,
        timeout_graceful_shutdown=round(_GRACE_SECONDS),
        ssl_certfile=table.certificate and clinic.path(table.certificate),
        ssl_keyfile=table.key and clinic.path(table.key),
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise Refusal(CLINIC_TLS, private=str(error)) from error
    return uvicorn.Server(config)


@contextmanager
def _listening(clinic: Clinic) -> Iterator[socket.socket]:
    """Open the listening socket. Raises Refusal E_CLINIC_ADDRESS."""
    host, port = clinic.settings.server.host, clinic.settings.server.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise Refusal(CLINIC_ADDRESS, private=f"{host}:{port}: {error}") from error
    with listening:
        yield listening


# --- this process -----------------------------------------------------------------------------------------


@contextmanager
def _ending() -> Iterator[None]:
    """End the block in order on SIGTERM and Ctrl-C, without an exception."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _logging(path: Path) -> Iterator[None]:
    """Write log lines to a file that only its owner can read."""
    path.touch(mode=0o600)
    handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("fedthorax")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
        handler.close()
