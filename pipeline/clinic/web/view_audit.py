"""Audit of views: one record each time something is opened, not one for each of its values and pictures."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

from pipeline.clinic.store import Store
from pipeline.clinic.web.auth import Caller

SITTING_SECONDS = 900.0  # without a request; the next view after that is recorded again
_MOST = 10_000  # sittings, and entries of each; beyond this, a view may be recorded twice


@dataclass(frozen=True)
class View:
    """What a caller views. `action`: as it is recorded.

    look       an answer, or the pictures of a scan without a score
    job        one scan of the worklist
    worklist   the worklist
    list       the list of answers
    history    the answers for one patient

    `patient`: the key of the patient. `shown`: ids of the jobs or answers in a list; each is recorded once in a
    sitting.
    """

    action: Literal["look", "job", "worklist", "list", "history"]
    job_id: str | None = None
    answer_id: str | None = None
    patient: str | None = None
    shown: tuple[str, ...] | None = None

    def output(self, new: list[str]) -> dict[str, Any]:
        """Return the record's details besides the ids of job and answer."""
        patient = {"patient": self.patient} if self.patient else {}
        return {**patient, "shown": new} if self.shown is not None else {}


@dataclass
class _Sitting:
    """One caller's views of one thing without a long break. `shown`: ids that are already recorded."""

    lock: Lock = field(default_factory=Lock)
    last: float | None = None
    shown: set[str] = field(default_factory=set)


class ViewAudit:
    """The view audit of one process. `clock`: seconds since any fixed moment."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._sittings: dict[tuple[str, str, str | None], _Sitting] = {}

    def note(self, store: Store, caller: Caller, view: View) -> None:
        """Record a view, unless it is already recorded for this sitting.

        Raises Refusal E_CLINIC_FILE: a view that cannot be recorded is not shown.
        """
        sitting = self._sitting((caller.name, view.action, view.job_id or view.patient))
        with sitting.lock:  # a concurrent identical request waits until this one is recorded
            now = self._clock()
            is_open = sitting.last is not None and now - sitting.last < SITTING_SECONDS
            known = sitting.shown if is_open and len(sitting.shown) < _MOST else set()
            new = [each for each in view.shown or () if each not in known]
            if new or not is_open:
                store.audit.add(
                    caller.name,
                    view.action,
                    job_id=view.job_id,
                    answer_id=view.answer_id,
                    output=view.output(new),
                )
            sitting.last, sitting.shown = now, known | set(new)

    def _sitting(self, key: tuple[str, str, str | None]) -> _Sitting:
        with self._lock:
            if key not in self._sittings and len(self._sittings) >= _MOST:
                self._sittings.clear()
            return self._sittings.setdefault(key, _Sitting())
