"""What runs behind the page: tasks in threads that are restarted when they fail, and the log file."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from models.refusal import Refusal

LOG_BYTES = 16_000_000  # size of a log file before it is rotated
GRACE_SECONDS = 5.0  # for requests and threads to end when the service stops
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 60.0  # before an ended task is restarted
_STEADY_SECONDS = 60.0  # a task that ran this long did not fail at its start

log = logging.getLogger("fedthorax.clinic")

Task = Callable[[threading.Event], None]


@contextmanager
def running(tasks: Mapping[str, Task]) -> Iterator[None]:
    """Run each task in a thread of its own until the block ends."""
    stop = threading.Event()
    # Daemon threads: one that waits for a PACS does not delay the end.
    threads = [
        threading.Thread(target=keep_running, args=(*task, stop), name=task[0], daemon=True) for task in tasks.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        until = time.monotonic() + GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def keep_running(name: str, task: Task, stop: threading.Event) -> None:
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


@contextmanager
def log_to(path: Path) -> Iterator[None]:
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
