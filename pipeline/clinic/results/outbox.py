"""Send an answer's results to the PACS, with retries until it succeeds.

What a named person accepted is sent as verified; with `send = "always"` the model's own results are sent before,
marked as unverified. A rejection of what was sent is sent too. What a newer decision replaced is not sent any more.

The queue is in the clinic's store, written with the answer or decision in one transaction; the files are in the
answer's folder. A kill or a power cut therefore loses nothing. What was sent but not yet marked as sent is sent again,
byte for byte: UIDs (`identity.uid`), ids of FHIR resources and control ids of HL7 messages never change, so the other
system stores it once.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import get_args

from models.refusal import Reason, Refusal
from pipeline.clinic.database import now
from pipeline.clinic.reasons import (
    INTERNAL,
    NO_RESULTS,
    NOT_ACCEPTED,
    NOT_FOR_PATIENTS,
    RESULT_NO_DICOM,
    RESULT_WRITE,
)
from pipeline.clinic.records import Answer, Decision, Delivery, Target, Verdict
from pipeline.clinic.results.verified import rejection_files, verified_files, withdrawal_files
from pipeline.clinic.results.write import RESULTS, why_no_results
from pipeline.clinic.settings import Clinic, FhirResultsTable, Hl7ResultsTable, Sends
from pipeline.feeds.reasons import FHIR_REFUSED, HL7_REFUSED
from pipeline.pacs.pacs import connect
from pipeline.pacs.reasons import PACS_SERVICE, PACS_STORE
from pipeline.pacs.store_status import not_stored
from pipeline.scoring.verdict import withheld
from pipeline.site.tls import as_client

LONGEST_PAUSE = timedelta(hours=1)
_LOOK_EVERY_SECONDS = 1.0
_MESSAGES: tuple[Target, ...] = ("fhir", "hl7")  # targets that get texts, and no files
_FOR_GOOD = (
    *(PACS_STORE, PACS_SERVICE, NO_RESULTS, NOT_FOR_PATIENTS, RESULT_NO_DICOM, RESULT_WRITE),
    *(FHIR_REFUSED, HL7_REFUSED),
)

log = logging.getLogger("fedthorax.clinic")


class Outbox:
    """The outbox of one clinic; each call opens its own store, so any thread may use it."""

    def __init__(self, clinic: Clinic) -> None:
        self._clinic = clinic
        self._sends = clinic.settings.results.send
        self._is_on = self._sends != "off"
        self._first_pause = timedelta(seconds=clinic.settings.results.retry_seconds)

    @property
    def receivers(self) -> tuple[Target, ...]:
        """The systems that get results, as clinic.toml says."""
        return tuple(target for target in get_args(Target) if self._sends_to(target) != "off")

    def put(self, answer: Answer, target: Target = "pacs") -> None:
        """Queue what a person accepted for sending, also if it failed permanently or was sent before.

        A rejection is queued again if it could not be sent. Raises Refusal E_NOT_FOR_PATIENTS, E_CLINIC_FILE;
        E_NOT_ACCEPTED if nobody accepted it, unless all results are sent; if there are no results, E_RESULT_IDENTITY,
        E_RESULT_NO_DICOM or E_RESULT_WRITE where the cause is known, else E_NO_RESULTS.
        """
        if withheld(answer.score):
            raise Refusal(NOT_FOR_PATIENTS)
        sends = self._sends_to(target)
        if sends == "off" or answer.role != "live" or (target != "pacs" and not _is_of_a_patient(answer)):
            raise Refusal(NO_RESULTS)
        if target == "pacs" and not _has_results(answer):
            raise Refusal(why_no_results(answer.folder) or NO_RESULTS)
        decision = answer.decision
        decision_id = decision.id if decision else ""
        with self._clinic.store() as store:
            tried = [each for each in store.deliveries.of(answer.id) if each.target == target and each.code]
            is_accepted = decision.is_valid if decision else sends == "always"
            if not is_accepted and not (decision and any(each.decision_id == decision_id for each in tried)):
                raise Refusal(NOT_ACCEPTED)
            store.deliveries.queue(answer.id, target, decision_id)

    def put_failed(self, target: Target | None = None, *, by: str) -> int:
        """Queue everything again that failed, or that waits after a failed attempt; return how many deliveries.

        `target`: only to this system. What must not be sent any more is left as it is. Raises Refusal E_CLINIC_FILE.
        """
        queued = 0
        with self._clinic.store() as store:
            for each in store.deliveries.problems():
                answer = store.answers.get(each.answer_id)
                if target in (None, each.target) and _is_current(each, answer):
                    try:
                        self.put(answer, each.target)
                    except Refusal as refusal:
                        log.info("a delivery was not queued again: %s", refusal.code)
                        continue
                    again = {"target": each.target}
                    store.audit.add(by, "send", job_id=answer.job_id, answer_id=answer.id, output=again)
                    queued += 1
        return queued

    def targets(self, answer: Answer, verdict: Verdict) -> tuple[Target, ...]:
        """Return the systems to which a decision about the answer is sent without a request.

        A rejection goes wherever the result may have gone before.
        """
        is_always = verdict == "rejected"
        found: list[Target] = []
        if self._is_on and _has_results(answer) and (is_always or self._sends in ("accepted", "always")):
            found.append("pacs")
        return (*found, *(target for target in _MESSAGES if self._table(target) and _is_of_a_patient(answer)))

    def _sends_to(self, target: Target) -> Sends:
        """Return which results are sent to a system."""
        table = self._table(target)
        return self._sends if target == "pacs" else table.send if table else "off"

    def _table(self, target: Target) -> FhirResultsTable | Hl7ResultsTable | None:
        results = self._clinic.settings.results
        return {"fhir": results.fhir, "hl7": results.hl7}.get(target)

    def targets_of_new(self, answer: Answer) -> tuple[Target, ...]:
        """Return the systems to which an answer is sent before anybody read it. Never what is withheld."""
        if withheld(answer.score) or answer.role != "live":
            return ()
        pacs: tuple[Target, ...] = ("pacs",) if self._sends == "always" and _has_results(answer) else ()
        tables = {target: self._table(target) for target in _MESSAGES}
        always = [target for target, table in tables.items() if table and table.send == "always"]
        return (*pacs, *(always if _is_of_a_patient(answer) else ()))

    def run(self, target: Target, stop: Event) -> None:
        """Send to one system what is due, until `stop` is set, in its own thread: a silent system delays no other.

        Raises Refusal E_CLINIC_FILE.
        """
        if self._sends_to(target) == "off":
            stop.wait()
        while not stop.is_set():
            with self._clinic.store() as store:
                due = store.deliveries.in_state("waiting", due=now())
            for delivery in due:
                if stop.is_set():
                    return
                if delivery.target == target:
                    self.attempt(delivery)
            stop.wait(_LOOK_EVERY_SECONDS)

    def attempt(self, delivery: Delivery) -> Delivery:
        """Try once to send, and store the outcome. Raises Refusal E_CLINIC_FILE."""
        with self._clinic.store() as store:
            answer = store.answers.get(delivery.answer_id)
            tried_before = store.deliveries.perhaps_sent(answer.id, delivery.target)
            earlier = [each for each in tried_before if each.decision_id != delivery.decision_id]
            if not _is_current(delivery, answer) or _has_nothing_to_take_back(delivery, answer, earlier):
                outcome = replace(delivery, state="dropped", due_at=None)
                store.deliveries.set(outcome)
                return outcome
            tried = store.deliveries.begin(delivery)
            decisions = store.decisions.of(answer.id)
        try:
            if withheld(answer.score):  # queued by an earlier version
                raise Refusal(NOT_FOR_PATIENTS)
            if delivery.target == "pacs":
                self._send(self._files(answer, decisions, earlier))
            else:
                self._tell(delivery.target, answer, _as_sent(answer, decisions, earlier))
            outcome = replace(tried, state="sent", code=None, due_at=None, sent_at=now())
        except Refusal as refusal:
            outcome = self._not_sent(tried, refusal.reason)
        except Exception as error:  # the others must not wait behind it; its text could name a patient
            log.error("a delivery ended because of an error in this program: %s", type(error).__name__)
            outcome = self._not_sent(tried, INTERNAL)
        with self._clinic.store() as store:
            if outcome.state != "waiting":
                store.audit.add("outbox", outcome.state, job_id=answer.job_id, answer_id=answer.id, code=outcome.code)
            store.deliveries.set(outcome)
        return outcome

    def _not_sent(self, tried: Delivery, reason: Reason) -> Delivery:
        if reason in _FOR_GOOD:
            return replace(tried, state="failed", code=reason.code, due_at=None)
        return replace(tried, code=reason.code, due_at=now() + self._pause(tried.attempts))

    def _tell(self, target: Target, answer: Answer, earlier: Sequence[Answer]) -> None:
        """Send what holds as FHIR or HL7 v2. `earlier`: the answer as it was sent before. Raises Refusal."""
        from pipeline.clinic.results import fhir_report, oru_message
        from pipeline.feeds.fhir_client import FhirClient
        from pipeline.feeds.mllp_sender import send_message

        table, folder = self._table(target), self._clinic.folder
        if isinstance(table, FhirResultsTable):
            with FhirClient(table.server, folder) as server:
                server.transaction(fhir_report.diagnostic_report(answer, earlier=earlier, ids=table.ids))
        elif isinstance(table, Hl7ResultsTable):
            tls = None
            if table.ca_certificate:
                tls = as_client(folder, authority=table.ca_certificate, certificate=table.certificate, key=table.key)
            message = oru_message.oru_message(answer, earlier=earlier)
            control_id = oru_message.control_id_of(answer)
            send_message(message, control_id, table.host, table.port, tls=tls, timeout_seconds=table.timeout_seconds)

    def _files(self, answer: Answer, decisions: Sequence[Decision], earlier: Sequence[Delivery]) -> list[Path]:
        """Return the files of what holds: the model's results, those of a decision, or a note that rejects them.

        With the files of a decision that the lungs' outline is not usable, a note rejects segmentations that were sent.
        """
        if answer.decision is None:
            return _files_in(answer.folder)
        sent = [path for each in earlier for path in _files_in(answer.folder / each.decision_id)]
        if answer.decision.is_valid:
            return [*verified_files(self._clinic, answer, decisions), *withdrawal_files(answer, sent)]
        return rejection_files(answer, sent)

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


def _is_current(delivery: Delivery, answer: Answer) -> bool:
    """Whether the delivery is of what holds now."""
    return delivery.decision_id == (answer.decision.id if answer.decision else "")


def _as_sent(answer: Answer, decisions: Sequence[Decision], earlier: Sequence[Delivery]) -> list[Answer]:
    """Return the answer as each earlier delivery said it; without a decision, as the model did."""
    by_id = {each.id: each for each in decisions}
    return [replace(answer, decision=by_id.get(each.decision_id)) for each in earlier]


def _has_nothing_to_take_back(delivery: Delivery, answer: Answer, earlier: Sequence[Delivery]) -> bool:
    """Whether a person rejected what no other system can have. Notes of earlier rejections do not count."""
    if answer.decision is None or answer.decision.is_valid:
        return False
    if delivery.target != "pacs":
        return not earlier
    return not any(_files_in(answer.folder / each.decision_id) for each in earlier)


def _is_of_a_patient(answer: Answer) -> bool:
    return answer.patient is not None and bool(answer.patient.id.strip())


def _has_results(answer: Answer) -> bool:
    return bool(_files_in(answer.folder))


def _files_in(folder: Path) -> list[Path]:
    return [path for name in RESULTS if (path := folder / name).is_file()]
