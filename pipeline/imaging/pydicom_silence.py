"""Silences pydicom's warnings and log lines, because they quote header values and paths of patients."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_lock = threading.Lock()
_inside = 0
_restore = ExitStack()


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Silence pydicom in the whole process. If threads overlap, the last one that leaves restores its log."""
    global _inside, _restore  # noqa: PLW0603  # the log and the warnings are global to the process, too
    with _lock:
        _inside += 1
        if _inside == 1:
            _restore = _silence()
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore.close()


def _silence() -> ExitStack:
    """Silence pydicom; closing the returned stack restores it."""
    stack, log = ExitStack(), logging.getLogger("pydicom")
    stack.callback(setattr, log, "propagate", log.propagate)
    log.propagate = False
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    return stack
