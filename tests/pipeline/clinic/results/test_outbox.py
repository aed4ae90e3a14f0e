"""Tests of the outbox: deliveries are queued, sent, retried or marked as failed. The PACS is a fake."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.refusal import Reason, Refusal
from pipeline.clinic import reasons as clinic_reasons
from pipeline.clinic.database import now
from pipeline.clinic.records import Answer, Delivery, Verdict
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.results.write import keep_why_not
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.settings import Clinic, ClinicSettings
from pipeline.clinic.store import new_id
from pipeline.pacs import reasons as pacs_reasons
from pipeline.site import reasons as site_reasons
from tests.helpers.scored_answers import ANSWERED_AT, MODEL_SHA256

SETTINGS = {"send": "always", "by": "stow", "url": "http://127.0.0.1:1/dicom-web", "retry_seconds": 30}


class Pacs:
    """A fake PACS. `says` sets a status for each file, or a refusal of all files."""

    def __init__(self) -> None:
        self.says: list[int] | Reason = [0, 0]
        self.received: list[list[str]] = []

    @contextmanager
    def connect(self, *_: object) -> Iterator["Pacs"]:
        yield self

    def store(self, files: list[Path]) -> list[int]:
        self.received.append([path.name for path in files])
        if isinstance(self.says, Reason):
            raise Refusal(self.says, service="", status="400")
        return self.says[: len(files)]


@pytest.fixture
def pacs(monkeypatch: pytest.MonkeyPatch) -> Pacs:
    made = Pacs()
    monkeypatch.setattr("pipeline.clinic.results.outbox.connect", made.connect)
    return made


@pytest.fixture
def clinic(tmp_path: Path) -> Clinic:
    return clinic_at(tmp_path)


def clinic_at(folder: Path, **settings: Any) -> Clinic:
    return Clinic(folder, ClinicSettings.model_validate({"results": SETTINGS | settings}))


def answered(
    clinic: Clinic,
    *,
    deliver: bool = False,
    files: tuple[str, ...] = ("sr.dcm", "picture.dcm"),
    score: dict[str, Any] | None = None,
) -> Answer:
    """Put an answer with files into the clinic's store."""
    with clinic.store() as store:
        store.jobs.add(new_id(), source="upload", asked_by="test")
        job = store.jobs.take()
        assert job is not None
        answer_id = new_id()
        answer = Answer(
            id=answer_id,
            job_id=job.id,
            created_at=ANSWERED_AT,
            study_uid="1.2",
            series_uid="1.2.3",
            accession="",
            acquired_at=None,
            score=score or {"input": {"hu_sha256": "f" * 64}, "probability": {"severe": 0.5}},
            model_sha256=MODEL_SHA256,
            model_name="trial",
            role="live",
            folder=clinic.folder / "answers" / answer_id,
        )
        answer.folder.mkdir(parents=True)
        for name in files:
            (answer.folder / name).write_bytes(b"synthetic")
        store.answers.add(job, answer, deliver=("pacs",) if deliver else ())
    return answer


def delivery(clinic: Clinic, answer: Answer) -> Delivery | None:
    with clinic.store() as store:
        return store.answers.get(answer.id).pacs


def attempt(clinic: Clinic) -> Delivery:
    """Send the waiting delivery, due or not."""
    with clinic.store() as store:
        (waiting,) = store.deliveries.in_state("waiting")
    return Outbox(clinic).attempt(waiting)


def test_queued_answer_is_sent_once(clinic: Clinic, pacs: Pacs) -> None:
    answer = answered(clinic)
    assert delivery(clinic, answer) is None
    Outbox(clinic).put(answer)
    waiting = delivery(clinic, answer)
    assert waiting is not None
    assert (waiting.state, waiting.attempts, waiting.code) == ("waiting", 0, None)
    assert attempt(clinic) == delivery(clinic, answer)
    sent = delivery(clinic, answer)
    assert sent is not None
    assert (sent.state, sent.attempts, sent.code, sent.due_at) == ("sent", 1, None, None)
    assert sent.sent_at is not None
    assert pacs.received == [["sr.dcm", "picture.dcm"]]
    with clinic.store() as store:
        assert store.deliveries.in_state("waiting") == []


@pytest.mark.parametrize(
    ("says", "state", "code"),
    [
        ([0x0000, 0xB000], "sent", None),
        ([0x0111, 0x0111], "sent", None),
        ([0x0000, 0xA700], "waiting", "E_PACS_SILENT"),
        ([0x0000, 0xC000], "failed", "E_PACS_STORE"),
        ([0xA700, 0xA900], "failed", "E_PACS_STORE"),
        (pacs_reasons.PACS_SILENT, "waiting", "E_PACS_SILENT"),
        (pacs_reasons.PACS_AUTH, "waiting", "E_PACS_AUTH"),
        (pacs_reasons.PACS_UNTRUSTED, "waiting", "E_PACS_UNTRUSTED"),
        (site_reasons.PACS_FILE, "waiting", "E_PACS_FILE"),
        (pacs_reasons.PACS_ANSWER, "waiting", "E_PACS_ANSWER"),
        (pacs_reasons.PACS_STORE, "failed", "E_PACS_STORE"),
        (pacs_reasons.PACS_SERVICE, "failed", "E_PACS_SERVICE"),
    ],
    ids=str,
)
def test_pacs_status_decides_between_sent_waiting_and_failed(
    says: list[int] | Reason, state: str, code: str | None, clinic: Clinic, pacs: Pacs
) -> None:
    answer = answered(clinic, deliver=True)
    pacs.says = says
    outcome = attempt(clinic)
    assert (outcome.state, outcome.attempts, outcome.code) == (state, 1, code)
    assert delivery(clinic, answer) == outcome
    with clinic.store() as store:
        records = [(each.who, each.action, each.code) for each in store.audit.records() if each.action != "answer"]
    assert records == ([] if state == "waiting" else [("outbox", state, code)])
    assert (outcome.due_at is not None) == (state == "waiting")


def test_retry_delay_grows_to_one_hour_and_retries_never_stop(
    clinic: Clinic, pacs: Pacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = datetime(2026, 5, 4, tzinfo=now().tzinfo)
    monkeypatch.setattr("pipeline.clinic.results.outbox.now", lambda: at)
    answered(clinic, deliver=True)
    pacs.says = pacs_reasons.PACS_SILENT
    outcomes = [attempt(clinic) for _ in range(40)]
    pauses = [(outcome.due_at or at) - at for outcome in outcomes]
    assert pauses[:4] == [timedelta(seconds=seconds) for seconds in (30, 60, 120, 240)]
    assert set(pauses[8:]) == {timedelta(hours=1)}
    assert [outcome.attempts for outcome in outcomes] == list(range(1, 41))
    pacs.says = [0, 0]
    assert attempt(clinic).state == "sent"


def test_failed_delivery_is_kept_until_it_is_queued_again(clinic: Clinic, pacs: Pacs) -> None:
    answer = answered(clinic, deliver=True)
    pacs.says = [0, 0xC000]
    attempt(clinic)
    with clinic.store() as store:
        assert store.deliveries.in_state("waiting") == []
    assert (answer.folder / "sr.dcm").exists()
    Outbox(clinic).put(answer)
    pacs.says = [0, 0]
    assert attempt(clinic).state == "sent"


@pytest.mark.parametrize("why", ["shadow", "no files", "off"])
def test_answer_that_cannot_be_sent_is_not_queued(why: str, clinic: Clinic, pacs: Pacs, tmp_path: Path) -> None:
    answer = answered(clinic, files=() if why == "no files" else ("sr.dcm",))
    if why == "shadow":
        answer = replace(answer, role="shadow")
    outbox = Outbox(clinic_at(tmp_path, send="off") if why == "off" else clinic)
    with pytest.raises(Refusal, match="E_NO_RESULTS"):
        outbox.put(answer)
    assert delivery(clinic, answer) is None


@pytest.mark.parametrize(
    "reason", [clinic_reasons.RESULT_IDENTITY, clinic_reasons.RESULT_NO_DICOM, clinic_reasons.RESULT_WRITE]
)
def test_answer_without_results_is_refused_with_the_cause(reason: Reason, clinic: Clinic, pacs: Pacs) -> None:
    answer = answered(clinic, files=())
    answer.folder.mkdir(exist_ok=True)
    keep_why_not(Refusal(reason), answer.folder)
    with pytest.raises(Refusal, match=reason.code):
        Outbox(clinic).put(answer)
    assert delivery(clinic, answer) is None


SYNTHETIC: dict[str, Any] = {"trained_on_synthetic_data": True, "input": {"hu_sha256": "f" * 64}}


def test_phantom_model_answer_of_a_patient_is_not_queued(clinic: Clinic, pacs: Pacs) -> None:
    answer = replace(answered(clinic), score=SYNTHETIC)
    with pytest.raises(Refusal, match="E_NOT_FOR_PATIENTS"):
        Outbox(clinic).put(answer)
    assert delivery(clinic, answer) is None
    phantom = {**SYNTHETIC, "input": {**SYNTHETIC["input"], "is_phantom": True}}
    Outbox(clinic).put(replace(answer, score=phantom))
    assert attempt(clinic).state == "sent"


def test_phantom_model_answer_queued_by_an_earlier_version_is_not_sent(clinic: Clinic, pacs: Pacs) -> None:
    answered(clinic, deliver=True, score=SYNTHETIC)
    failed = attempt(clinic)
    assert (failed.state, failed.code, pacs.received) == ("failed", "E_NOT_FOR_PATIENTS", [])


# --- decisions: what was accepted is sent ---


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The decisions whose files were made: verdict, and number of files that a note rejects."""
    made: list[tuple[str, int]] = []

    def files(answer: Answer, name: str, rejected: int) -> list[Path]:
        assert answer.decision is not None
        made.append((answer.decision.verdict, rejected))
        folder = answer.folder / answer.decision.id
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"synthetic")
        return [folder / name]

    outbox = "pipeline.clinic.results.outbox"
    monkeypatch.setattr(f"{outbox}.verified_files", lambda _clinic, answer, _all: files(answer, "sr.dcm", 0))
    monkeypatch.setattr(f"{outbox}.rejection_files", lambda answer, sent: files(answer, "rejected.dcm", len(sent)))
    return made


def decided(clinic: Clinic, answer: Answer, verdict: Verdict) -> Answer:
    """Let a person decide, as the API does."""
    with clinic.store() as store:
        seen = store.answers.get(answer.id)
        proposal = Proposal(verdict, seen.revision, None if verdict == "accepted" else "other")
        targets = Outbox(clinic).targets(seen, verdict)
        return decide(store, answer.id, proposal, by="reader", person="Leser^Anna", targets=targets)


def work_off(clinic: Clinic) -> list[str]:
    """Attempt everything that waits; return the states of all deliveries, oldest first."""
    with clinic.store() as store:
        waiting = store.deliveries.in_state("waiting")
    for each in waiting:
        Outbox(clinic).attempt(each)
    with clinic.store() as store:
        return [each.state for answer in store.answers.newest() for each in store.deliveries.of(answer.id)]


@pytest.mark.parametrize(
    ("send", "before", "after_acceptance"),
    [("off", [], []), ("on_request", [], []), ("accepted", [], ["sent"]), ("always", ["sent"], ["sent", "sent"])],
)
def test_setting_decides_what_is_sent_without_a_request(
    send: str, before: list[str], after_acceptance: list[str], tmp_path: Path, pacs: Pacs, written: list[Any]
) -> None:
    clinic = clinic_at(tmp_path, send=send)
    answer = answered(clinic, deliver=send == "always")
    assert work_off(clinic) == before
    decided(clinic, answer, "accepted")
    assert work_off(clinic) == after_acceptance
    assert written == ([("accepted", 0)] if "sent" in after_acceptance else [])


def test_only_an_accepted_result_is_sent_on_request(tmp_path: Path, pacs: Pacs, written: list[Any]) -> None:
    clinic = clinic_at(tmp_path, send="on_request")
    answer = answered(clinic)
    with pytest.raises(Refusal, match="E_NOT_ACCEPTED"):
        Outbox(clinic).put(answer)
    with pytest.raises(Refusal, match="E_NOT_ACCEPTED"):
        Outbox(clinic).put(decided(clinic, answer, "rejected"))
    assert work_off(clinic) == ["dropped"]  # the PACS has nothing that could be taken back
    Outbox(clinic).put(decided(clinic, answer, "accepted"))
    assert work_off(clinic) == ["dropped", "sent"]
    assert (written, pacs.received) == ([("accepted", 0)], [["sr.dcm"]])


def test_rejected_result_is_not_sent_even_if_all_are(clinic: Clinic, pacs: Pacs, written: list[Any]) -> None:
    answer = answered(clinic, deliver=True)
    rejected = decided(clinic, answer, "rejected")  # before the outbox came to it
    with pytest.raises(Refusal, match="E_NOT_ACCEPTED"):
        Outbox(clinic).put(rejected)
    assert work_off(clinic) == ["dropped", "dropped"]
    assert pacs.received == []


def test_rejection_of_a_sent_result_is_sent_too(clinic: Clinic, pacs: Pacs, written: list[Any]) -> None:
    answer = answered(clinic, deliver=True)
    work_off(clinic)
    decided(clinic, answer, "rejected")
    assert work_off(clinic) == ["sent", "sent"]
    assert (written, pacs.received[-1]) == ([("rejected", 2)], ["rejected.dcm"])
    decided(clinic, answer, "accepted")  # the person changed their mind
    assert work_off(clinic) == ["sent", "sent", "sent"]


def test_note_that_rejects_segmentations_goes_with_the_files_of_a_decision(
    clinic: Clinic, pacs: Pacs, written: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def withdrawn(answer: Answer, sent: list[Path]) -> list[Path]:
        asked.append([path.name for path in sent])
        (answer.folder / "rejected.dcm").write_bytes(b"synthetic")
        return [answer.folder / "rejected.dcm"]

    monkeypatch.setattr("pipeline.clinic.results.outbox.withdrawal_files", withdrawn)
    pacs.says = [0, 0, 0]
    answer = answered(clinic, deliver=True, files=("sr.dcm", "picture.dcm", "seg.dcm"))
    work_off(clinic)
    decided(clinic, answer, "accepted")
    assert work_off(clinic) == ["sent", "sent"]
    assert asked == [["sr.dcm", "picture.dcm", "seg.dcm"]]
    assert pacs.received[-1] == ["sr.dcm", "rejected.dcm"]


def test_rejection_reaches_a_result_whose_delivery_was_killed(clinic: Clinic, pacs: Pacs, written: list[Any]) -> None:
    """The PACS has it, but the outbox was killed before it recorded that."""
    answer = answered(clinic, deliver=True)
    with clinic.store() as store:
        (waiting,) = store.deliveries.in_state("waiting")
        store.deliveries.begin(waiting)
    decided(clinic, answer, "rejected")
    assert work_off(clinic) == ["dropped", "sent"]
    assert written == [("rejected", 2)]


def test_decision_during_a_delivery_is_not_lost(clinic: Clinic, pacs: Pacs, written: list[Any]) -> None:
    answer = answered(clinic, deliver=True)
    usual = pacs.store

    def decide_meanwhile(files: list[Path]) -> list[int]:
        pacs.store = usual  # type: ignore[method-assign]
        decided(clinic, answer, "accepted")
        return usual(files)

    pacs.store = decide_meanwhile  # type: ignore[method-assign]
    assert work_off(clinic) == ["sent", "waiting"]
    assert work_off(clinic) == ["sent", "sent"]
    assert pacs.received == [["sr.dcm", "picture.dcm"], ["sr.dcm"]]


def test_answer_of_a_phantom_model_cannot_reach_the_pacs_by_a_decision(clinic: Clinic, pacs: Pacs) -> None:
    answer = answered(clinic, score=SYNTHETIC)
    with pytest.raises(Refusal, match="E_NOT_FOR_PATIENTS"):
        decided(clinic, answer, "accepted")
    with clinic.store() as store:  # as if a faulty program had stored one
        store.deliveries.queue(answer.id, "pacs")
    assert work_off(clinic) == ["failed"]
    assert pacs.received == []


def test_delivery_with_missing_files_fails_permanently(clinic: Clinic, pacs: Pacs) -> None:
    answer = answered(clinic, deliver=True)
    for path in answer.folder.iterdir():
        path.unlink()
    assert (attempt(clinic).state, pacs.received) == ("failed", [])


@contextmanager
def running(outbox: Outbox) -> Iterator[threading.Thread]:
    """Run the outbox in a thread."""
    stop = threading.Event()
    thread = threading.Thread(target=outbox.run, args=("pacs", stop), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive()


def test_thread_sends_only_deliveries_that_are_due(clinic: Clinic, pacs: Pacs) -> None:
    due, later = answered(clinic, deliver=True), answered(clinic)
    with clinic.store() as store:
        store.deliveries.queue(later.id, "pacs")
        (queued,) = store.deliveries.of(later.id)
        store.deliveries.set(replace(queued, attempts=3, due_at=now() + timedelta(hours=1)))
    arrived = threading.Event()
    usual = pacs.store

    def store_and_tell(files: list[Path]) -> list[int]:
        arrived.set()
        return usual(files)

    pacs.store = store_and_tell  # type: ignore[method-assign]
    with running(Outbox(clinic)):
        assert arrived.wait(60)
    states = [(delivery(clinic, answer) or pytest.fail()).state for answer in (due, later)]
    assert states == ["sent", "waiting"]
    assert len(pacs.received) == 1


def test_nothing_is_sent_if_sending_is_off(clinic: Clinic, pacs: Pacs, tmp_path: Path) -> None:
    answer = answered(clinic, deliver=True)
    with running(Outbox(clinic_at(tmp_path, send="off"))) as thread:
        thread.join(0.1)
        assert thread.is_alive()
    assert pacs.received == []
    assert (delivery(clinic, answer) or pytest.fail()).state == "waiting"
