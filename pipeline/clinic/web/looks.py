"""The record of who looked at what: one for each opening, not for each figure and picture that belongs to it."""

import time
from collections.abc import Callable
from threading import Lock

from pipeline.clinic.store import Store
from pipeline.clinic.web.auth import Caller

SITTING_SECONDS = 900.0  # without a request, after which somebody who looks again opens it anew
_MOST = 10_000  # that are remembered; beyond, a sitting may be recorded twice


class Looks:
    """Of one process. `clock`: seconds, from any moment on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._last: dict[tuple[str, str | None], float] = {}  # when somebody last asked for something of this scan

    def note(self, store: Store, caller: Caller, job_id: str | None = None, answer_id: str | None = None) -> None:
        """Record that somebody opens an answer, or a scan without a score; without both: the list of answers.

        Raises Refusal E_CLINIC_FILE: what cannot be recorded is not shown.
        """
        key, at = (caller.name, job_id), self._clock()
        with self._lock:
            is_open = key in self._last and at - self._last[key] < SITTING_SECONDS
            if not is_open and len(self._last) >= _MOST:
                self._last.clear()
            self._last[key] = at
        if is_open:
            return
        try:
            store.audit_record(caller.name, "look" if job_id else "list", job_id=job_id, answer_id=answer_id)
        except BaseException:
            with self._lock:
                self._last.pop(key, None)
            raise
