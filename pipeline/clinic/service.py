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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from models.refusal import Refusal
from pipeline.clinic.background import GRACE_SECONDS, Task, log_to, running
from pipeline.clinic.reasons import CLINIC_ADDRESS, CLINIC_BUSY, CLINIC_TLS
from pipeline.clinic.retention import clear_work, forget_old, tidy
from pipeline.clinic.settings import LOCK, Clinic
from pipeline.system.child_logs import cut, put_aside
from pipeline.system.folder_format import stamp_folder
from pipeline.system.locks import alone

if TYPE_CHECKING:
    import uvicorn

SERVICE_LOG, WORKER_LOG = "service.log", "worker.log"
TIDY_SECONDS = 3600.0
_LOOK_SECONDS = 0.1

log = logging.getLogger("fedthorax.clinic")


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
    with alone(clinic.folder / LOCK, CLINIC_BUSY), log_to(clinic.logs / SERVICE_LOG), _ending():
        stamp_folder(clinic.folder, "clinic")
        with clinic.store() as store:
            store.jobs.recover()
            forget_old(clinic, store)
            tidy(clinic, store, at_start=True)
        server = _server(clinic)
        with _listening(clinic) as listening, running(background_tasks(clinic)):
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
    path = put_aside(clinic.logs / WORKER_LOG)
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


def keep_tidy(clinic: Clinic, stop: threading.Event) -> None:
    """Every hour, remove what has expired and limit the worker's log. Raises Refusal E_CLINIC_FILE."""
    while not stop.wait(TIDY_SECONDS):
        with clinic.store() as store:
            forget_old(clinic, store)
            tidy(clinic, store)
        cut([clinic.logs / WORKER_LOG])  # a worker may run for months


def background_tasks(clinic: Clinic) -> dict[str, Task]:
    """Return the background tasks by name; each runs in its own thread until it is stopped.

    Raises Refusal E_PACS_FILE.
    """
    from pipeline.clinic.results.outbox import Outbox

    tasks: dict[str, Task] = {
        "worker": partial(run_worker, clinic),
        "tidying": partial(keep_tidy, clinic),
    }
    outbox = Outbox(clinic)
    for target in outbox.receivers:
        tasks[f"outbox {target}"] = partial(outbox.run, target)
    if clinic.pacs:
        from pipeline.clinic.pacs_source import PacsSource

        tasks["fetching"] = PacsSource(clinic.folder, *clinic.pacs).run
    if clinic.settings.receiver.enabled:
        from pipeline.clinic.cstore_receiver import Reception

        tasks["receiver"] = Reception(clinic).run
    return tasks


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
        timeout_graceful_shutdown=round(GRACE_SECONDS),
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
