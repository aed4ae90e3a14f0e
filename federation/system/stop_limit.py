"""A server or a node that was asked to end does so within a limited time, whatever it waits for."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from federation.system.reaper import descendants, read_parents, send

# A node's longest regular stop: two groups of processes one after the other, each killed after its grace period.
STOP_SECONDS = 45.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger("fedthorax")


@contextmanager
def ending_within(seconds: float) -> Iterator[None]:
    """Kill this process and its descendants if the block still runs `seconds` after SIGTERM or Ctrl-C.

    The handlers of these signals run as without it, and normally end the block. But a handler in Python waits until the
    main thread has left a call of a C library, such as a check of a whole database, and what it raises in a destructor
    is lost. The system writes each signal to a pipe in both cases (`signal.set_wakeup_fd`).

    Only for the main thread, and not around an asyncio loop with signal handlers: it uses the same mechanism.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    over = threading.Event()
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(heard, seconds, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(told)  # the watch reads the end of the pipe
        watch.join()
        os.close(heard)


def _watch(heard: int, seconds: float, over: threading.Event) -> None:
    number = 0
    while number not in SIGNALS:
        if not (read := os.read(heard, 1)):
            return
        number = read[0]
    if over.wait(seconds):
        return
    members = descendants(os.getpid(), read_parents())
    log.error("not ended %.0f s after signal %d, killed: processes %s", seconds, number, [os.getpid(), *members])
    send(signal.SIGKILL, set(members))
    os._exit(128 + number)
