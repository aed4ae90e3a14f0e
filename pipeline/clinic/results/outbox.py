"""Send an answer's results to the PACS, with retries until it succeeds.

The queue is in the clinic's store, written with the answer in one transaction; the files are in the answer's folder. A
kill or a power cut therefore loses nothing. Files that were sent but not yet marked as sent are sent again: their UIDs
never change (`identity.uid`), so the PACS stores them once.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event

from models.refusal import Refusal
from pipeline.clinic.database import now
from pipeline.clinic.reasons import NO_RESULTS, NOT_FOR_PATIENTS
from pipeline.clinic.records import Answer, Delivery
from pipeline.clinic.results.write import RESULTS, why_no_results
from pipeline.clinic.settings import Clinic
from pipeline.pacs.pacs import connect
from pipeline.pacs.reasons import PACS_SERVICE, PACS_STORE
from pipeline.pacs.store_status import not_stored
from pipeline.scoring.verdict import withheld

LONGEST_PAUSE = timedelta(hours=1)
_LOOK_EVERY_SECONDS = 1.0
_FOR_GOOD = (PACS_STORE, PACS_SERVICE, NO_RESULTS, NOT_FOR_PATIENTS)


class Outbox:
    """The outbox of one clinic; each call opens its own store, so any thread may use it."""

    def __init__(self, clinic: Clinic) -> None:
        self._clinic = clinic
        self._is_on = clinic.settings.results.send != "off"
        self._first_pause = timedelta(seconds=clinic.settings.results.retry_seconds)

    def put(self, answer: Answer) -> None:
        """Queue the answer's results for sending, also if they failed permanently or were sent before.

        Raises Refusal E_NOT_FOR_PATIENTS, E_CLINIC_FILE; if there are no results, E_RESULT_IDENTITY, E_RESULT_NO_DICOM
        or E_RESULT_WRITE where the cause is known, else E_NO_RESULTS.
        """
        if withheld(answer.score):
            raise Refusal(NOT_FOR_PATIENTS)
        if not self._is_on or answer.role != "live":
            raise Refusal(NO_RESULTS)
        if not _files(answer):
            raise Refusal(why_no_results(answer.folder) or NO_RESULTS)
        with self._clinic.store() as store:
            store.deliveries.set(Delivery(answer.id, "waiting", due_at=now()))

    def run(self, stop: Event) -> None:
        """Send what is due until `stop` is set, in its own thread. Raises Refusal E_CLINIC_FILE."""
        if not self._is_on:
            stop.wait()
        while not stop.is_set():
            with self._clinic.store() as store:
                due = store.deliveries.in_state("waiting", due=now())
            for delivery in due:
                if stop.is_set():
                    return
                self.attempt(delivery)
            stop.wait(_LOOK_EVERY_SECONDS)

    def attempt(self, delivery: Delivery) -> Delivery:
        """Try once to send, and store the outcome. Raises Refusal E_CLINIC_FILE."""
        with self._clinic.store() as store:
            answer = store.answers.get(delivery.answer_id)
        tried = replace(delivery, attempts=delivery.attempts + 1)
        try:
            if withheld(answer.score):  # queued by an earlier version
                raise Refusal(NOT_FOR_PATIENTS)
            self._send(_files(answer))
            outcome = replace(tried, state="sent", code=None, due_at=None, sent_at=now())
        except Refusal as refusal:
            if refusal.reason in _FOR_GOOD:
                outcome = replace(tried, state="failed", code=refusal.code, due_at=None)
            else:
                outcome = replace(tried, code=refusal.code, due_at=now() + self._pause(tried.attempts))
        with self._clinic.store() as store:
            if outcome.state != "waiting":
                store.audit.add("outbox", outcome.state, job_id=answer.job_id, answer_id=answer.id, code=outcome.code)
            store.deliveries.set(outcome)
        return outcome

    def _send(self, files: Sequence[Path]) -> None:
        """Send the files. Raises Refusal; a permanent one takes precedence, because retries cannot help then."""
        if not files:
            raise Refusal(NO_RESULTS)
        with connect(self._clinic.settings.results.pacs, self._clinic.folder) as pacs:
            refusals = [refusal for status in pacs.store(files) if (refusal := not_stored(status))]
        for refusal in sorted(refusals, key=lambda each: each.reason not in _FOR_GOOD):
            raise refusal

    def _pause(self, attempts: int) -> timedelta:
        """Return the pause before the next attempt, which doubles each time."""
        return min(self._first_pause * 2 ** min(attempts - 1, 20), LONGEST_PAUSE)


def _files(answer: Answer) -> list[Path]:
    return [path for name in RESULTS if (path := answer.folder / name).is_file()]
