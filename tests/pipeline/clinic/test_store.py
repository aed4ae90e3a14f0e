"""Tests of the clinic's store: jobs are not lost or answered twice, and audit records stay. Patients are synthetic."""

import json
import signal
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from models.refusal import Refusal
from pipeline.clinic.database import FILE, FORMAT
from pipeline.clinic.queue import MOST_ATTEMPTS
from pipeline.clinic.records import Answer, Job, Patient, Pcr, PcrResult, Role
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.schema import MIGRATIONS
from pipeline.clinic.store import LEAST_AUDIT_DAYS, Store, new_id, now
from pipeline.pacs import reasons as pacs_reasons
from pipeline.preprocessing import reasons as preprocessing_reasons

PATIENT = Patient("SYNTHETIC-7", "WARD", "CANARY^SYNTHETIC", "F", 63.0)
SCORE = {
    "input": {"hu_sha256": "a" * 64},
    "probability": {"severe": 0.25, "pcr_positive": 0.5},
    "withheld": None,
    "interval": None,
    "level": {"severe": "low", "pcr_positive": None},
}
LATER = timedelta(days=400)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path) as opened:
        yield opened


def queued(store: Store, number: int = 1) -> list[Job]:
    return [store.jobs.add(new_id(), source="upload", asked_by="night desk") for _ in range(number)]


def taken(store: Store) -> Job:
    job = store.jobs.take()
    assert job
    return job


def answer_to(store: Store, job: Job, *, role: Role = "live", patient: Patient | None = PATIENT) -> Answer:
    answer_id = new_id()
    return Answer(
        id=answer_id,
        job_id=job.id,
        created_at=now(),
        study_uid="2.25.1",
        series_uid="2.25.2",
        accession="SYNTHETIC-ACC",
        acquired_at=datetime(2021, 3, 4, 10, 11, 12),
        score=SCORE,
        model_sha256="m" * 64,
        model_name="trial",
        role=role,
        folder=store.folder / "answers" / answer_id,
        patient=patient and store.keys.keyed(patient),
    )


def answered(store: Store, **options: object) -> Answer:
    queued(store)
    job = taken(store)
    answer = answer_to(store, job, **options)  # type: ignore[arg-type]
    store.answers.add(job, answer)
    return answer


def code_of(call: object, *arguments: object, **options: object) -> str:
    assert callable(call)
    with pytest.raises(Refusal) as caught:
        call(*arguments, **options)
    return caught.value.code


def actions(store: Store) -> list[str]:
    return [record.action for record in store.audit.records()]


# --- the queue --------------------------------------------------------------------------------------------


def test_jobs_are_taken_in_order(store: Store) -> None:
    first, second, third = queued(store, 3)
    assert [store.jobs.position(job) for job in (first, second, third)] == [1, 2, 3]
    assert [taken(store).id, taken(store).id] == [first.id, second.id]
    assert [store.jobs.position(store.jobs.get(job.id)) for job in (first, second, third)] == [None, None, 1]
    assert store.jobs.waiting() == 1
    assert [job.state for job in store.jobs.newest()] == ["waiting", "working", "working"]
    assert [job.id for job in store.jobs.newest("working")] == [second.id, first.id]
    assert [job.id for job in store.jobs.newest(before=third.id, limit=1)] == [second.id]


def test_queued_job_is_stored_unchanged(store: Store) -> None:
    began = datetime.now(UTC)
    job = store.jobs.add(
        new_id(), source="received", asked_by="PACS", study_uid="2.25.1", series_uid="2.25.2", patient=PATIENT
    )
    assert store.jobs.get(job.id) == job
    assert job.patient == replace(PATIENT, key=store.keys.patient_key("SYNTHETIC-7", "WARD"))
    assert (job.state, job.source, job.asked_by, job.attempts) == ("waiting", "received", "PACS", 0)
    assert (job.study_uid, job.series_uid, job.folder) == ("2.25.1", "2.25.2", store.folder / "scans" / job.id)
    assert began <= job.received_at <= datetime.now(UTC)
    said = job.to_json(store.jobs.position(job))
    assert said["position"] == 1
    assert said["patient"]["name"] == "CANARY^SYNTHETIC"
    assert code_of(store.jobs.get, "nowhere") == "E_NO_SUCH_JOB"


def test_full_queue_refuses_further_jobs(store: Store) -> None:
    queued(store, 2)
    assert code_of(store.jobs.add, new_id(), source="upload", asked_by="x", at_most=2) == "E_QUEUE_FULL"
    taken(store)
    store.jobs.add(new_id(), source="upload", asked_by="x", at_most=2)


def test_job_is_not_taken_before_its_scan_has_arrived(store: Store) -> None:
    coming = store.jobs.add(new_id(), source="pacs", asked_by="x", is_whole=False)
    (here,) = queued(store)
    assert [job.id for job in store.jobs.arriving()] == [coming.id]
    assert taken(store).id == here.id
    assert store.jobs.take() is None
    store.jobs.mark_arrived(coming)
    assert store.jobs.arriving() == []
    assert taken(store).id == coming.id


def test_scan_that_does_not_arrive_ends_without_a_score(store: Store) -> None:
    coming = store.jobs.add(new_id(), source="pacs", asked_by="x", is_whole=False)
    store.jobs.refuse(coming, Refusal(pacs_reasons.PACS_SILENT))
    assert store.jobs.get(coming.id).code == "E_PACS_SILENT"
    assert (store.jobs.arriving(), store.jobs.take()) == ([], None)


def test_concurrent_workers_take_each_job_once(store: Store) -> None:
    def work(_: int) -> list[str]:
        with Store(store.folder) as own:
            mine = []
            while job := own.jobs.take():
                mine.append(job.id)
                own.answers.add(job, answer_to(own, job))
            return mine

    jobs = queued(store, 60)
    with ThreadPoolExecutor(6) as pool:
        shares = list(pool.map(work, range(6)))
    assert Counter(job_id for share in shares for job_id in share) == Counter(job.id for job in jobs)
    answers = store.answers.newest(limit=1000)
    assert len(answers) == len({answer.job_id for answer in answers}) == 60


def test_concurrent_adds_never_exceed_the_queue_limit(store: Store) -> None:
    def add(_: int) -> bool:
        with Store(store.folder) as own:
            try:
                own.jobs.add(new_id(), source="upload", asked_by="x", at_most=10)
            except Refusal as refusal:
                assert refusal.code == "E_QUEUE_FULL"
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(add, range(30))) == 10
    assert store.jobs.waiting() == 10


# --- dead workers -----------------------------------------------------------------------------------------


def test_job_of_a_dead_worker_is_requeued_behind_the_others(store: Store) -> None:
    deadly, harmless = queued(store, 2)
    taken(store)
    assert [job.id for job in store.jobs.recover()] == [deadly.id]
    assert [store.jobs.position(store.jobs.get(job.id)) for job in (deadly, harmless)] == [2, 1]
    assert [taken(store).id, taken(store).id] == [harmless.id, deadly.id]


def test_job_ends_without_a_score_after_three_worker_deaths(store: Store) -> None:
    (job,) = queued(store)
    for attempt in range(MOST_ATTEMPTS):
        assert store.jobs.get(job.id).state == "waiting"
        assert taken(store).attempts == attempt + 1
        store.jobs.recover()
    ended = store.jobs.get(job.id)
    assert (ended.state, ended.code) == ("no_score", "E_SCORING_DIED")
    assert ended.says and "3 times" in ended.says and ended.remedy
    assert store.jobs.take() is None
    (record,) = store.audit.records()
    assert (record.action, record.who, record.code, record.job_id) == ("no_score", "night desk", ended.code, job.id)


def test_intentional_worker_stop_does_not_count_as_an_attempt(store: Store) -> None:
    (job,) = queued(store)
    for _ in range(2 * MOST_ATTEMPTS):
        taken(store)
        store.jobs.recover(is_our_doing=True)
    assert (store.jobs.get(job.id).state, store.jobs.get(job.id).attempts) == ("waiting", 0)


def test_worker_considered_dead_can_no_longer_answer(store: Store) -> None:
    queued(store)
    late = taken(store)
    store.jobs.recover()
    assert code_of(store.answers.add, late, answer_to(store, late)) == "E_ALREADY_ANSWERED"
    again = taken(store)
    assert code_of(store.answers.add, late, answer_to(store, late)) == "E_ALREADY_ANSWERED"
    assert code_of(store.jobs.refuse, late, Refusal(preprocessing_reasons.NO_LUNGS)) == "E_ALREADY_ANSWERED"
    assert store.jobs.get(late.id).state == "working"
    store.answers.add(again, answer_to(store, again))
    assert len(store.answers.newest()) == len(store.audit.records()) == 1


# --- answers ----------------------------------------------------------------------------------------------


def test_answer_ends_its_job_and_is_audited(store: Store) -> None:
    answer = answered(store)
    assert store.answers.get(answer.id) == answer
    job = store.jobs.get(answer.job_id)
    assert (job.state, job.answer_id, job.patient) == ("answered", answer.id, answer.patient)
    assert job.ended_at and job.started_at and job.received_at <= job.started_at <= job.ended_at
    (record,) = store.audit.records()
    assert (record.who, record.action, record.job_id, record.answer_id) == ("night desk", "answer", job.id, answer.id)
    assert (record.input_sha256, record.model_sha256, record.code) == ("a" * 64, "m" * 64, None)
    assert record.output == {key: SCORE[key] for key in ("probability", "interval", "level")}
    assert record.version
    assert "SYNTHETIC" not in str(record.to_json())


def test_job_is_never_answered_twice(store: Store) -> None:
    queued(store)
    job = taken(store)
    first = answer_to(store, job)
    store.answers.add(job, first)
    assert code_of(store.answers.add, job, answer_to(store, job)) == "E_ALREADY_ANSWERED"
    assert code_of(store.jobs.refuse, job, Refusal(preprocessing_reasons.NO_LUNGS)) == "E_ALREADY_ANSWERED"
    assert [answer.id for answer in store.answers.newest()] == [first.id]
    assert store.jobs.get(job.id).state == "answered"
    assert store.jobs.recover() == []


def test_answer_is_stored_completely_or_not_at_all(store: Store) -> None:
    """An answer that cannot be audited is not stored, and its job stays open."""
    queued(store)
    job = taken(store)
    broken = replace(answer_to(store, job), score={**SCORE, "input": {"hu_sha256": ["no", "hash"]}})
    assert code_of(store.answers.add, job, broken, deliver=("pacs",)) == "E_CLINIC_FILE"
    assert (store.answers.newest(), store.audit.records(), store.deliveries.in_state()) == ([], [], [])
    store.answers.add(job, answer_to(store, job))


def test_shadow_answer_is_stored_but_not_listed(store: Store) -> None:
    live = answered(store)
    job = store.jobs.get(live.job_id)
    shadow = answer_to(store, job, role="shadow")
    store.answers.add(job, shadow)
    assert code_of(store.answers.add, job, answer_to(store, job, role="shadow")) == "E_ALREADY_ANSWERED"
    assert [answer.id for answer in store.answers.newest()] == [live.id]
    assert [answer.id for answer in store.answers.newest(role=None)] == [shadow.id, live.id]
    assert [answer.id for answer in store.answers.history(store.keys.patient_key("SYNTHETIC-7", "WARD"))] == [live.id]
    assert store.jobs.get(job.id).answer_id == live.id
    assert actions(store) == ["answer", "shadow_answer"]


def test_refused_scan_has_a_reason(store: Store) -> None:
    queued(store)
    job = taken(store)
    store.jobs.refuse(
        job, Refusal(preprocessing_reasons.NO_LUNGS, private="/a/secret/place"), input_sha256="b" * 64, model_sha256="m"
    )
    said = store.jobs.get(job.id).to_json()
    assert (said["state"], said["code"], said["answer_id"]) == ("no_score", "E_NO_LUNGS", None)
    assert said["says"] == preprocessing_reasons.NO_LUNGS.says
    assert said["remedy"] == preprocessing_reasons.NO_LUNGS.remedy
    (record,) = store.audit.records()
    assert (record.code, record.input_sha256, record.model_sha256) == ("E_NO_LUNGS", "b" * 64, "m")
    assert "secret" not in str([said, record])


def test_history_contains_one_patient_only(store: Store) -> None:
    mine = [answered(store), answered(store)]
    answered(store, patient=replace(PATIENT, issuer="OTHER"))
    answered(store, patient=Patient(""))
    answered(store, patient=None)
    key = store.keys.patient_key(PATIENT.id, PATIENT.issuer)
    assert [answer.id for answer in store.answers.history(key)] == [answer.id for answer in mine[::-1]]
    assert store.answers.history("") == []
    assert len(store.answers.newest()) == 5
    assert [answer.id for answer in store.answers.newest(before=mine[1].id)] == [mine[0].id]


def test_patient_key_is_stable_and_differs_between_clinics(store: Store, tmp_path: Path) -> None:
    key = store.keys.patient_key("SYNTHETIC-7", "WARD")
    with Store(store.folder) as again:
        assert again.keys.patient_key("SYNTHETIC-7", "WARD") == key
    assert len({key, store.keys.patient_key("SYNTHETIC-7"), store.keys.patient_key("SYNTHETIC-7W", "ARD")}) == 3
    with Store(tmp_path / "another") as another:
        assert another.keys.patient_key("SYNTHETIC-7", "WARD") != key


def test_pcr_result_can_be_set_and_corrected(store: Store) -> None:
    answer = answered(store)
    store.answers.set_pcr(answer.id, "negative", date(2021, 3, 4), "entered", "day desk")
    changed = store.answers.set_pcr(answer.id, "positive", None, "entered", "night desk")
    assert changed.pcr
    assert changed.pcr.to_json() == {
        "result": "positive", "collected_on": None, "source": "entered", "by": "night desk",
    }  # fmt: skip
    assert actions(store) == ["answer", "pcr", "pcr"]
    assert code_of(store.answers.set_pcr, "nowhere", "positive", None, "entered", "x") == "E_NO_SUCH_ANSWER"


@pytest.mark.parametrize("patient", [Patient("\ufffd1", "WARD"), Patient("7", "W\ufffdRD")], ids=["id", "issuer"])
def test_identifier_that_was_not_decoded_makes_no_patient_key(store: Store, patient: Patient) -> None:
    answers = [answered(store, patient=patient) for _ in range(2)]
    assert [answer.patient and answer.patient.key for answer in answers] == ["", ""]
    assert store.answers.history(store.keys.patient_key(patient.id, patient.issuer)) == []
    assert store.answers.without_entered_pcr(answers[0].created_at) == []


def from_laboratory(result: PcrResult, day: int = 4) -> Pcr:
    return Pcr(result, date(2021, 3, day), "laboratory", "laboratory")


def test_laboratory_is_asked_again_about_each_result_that_nobody_entered(store: Store) -> None:
    missing, told, entered = answered(store), answered(store), answered(store)
    answered(store, patient=None)
    store.answers.follow_laboratory(told.id, from_laboratory("negative"))
    store.answers.set_pcr(entered.id, "negative", None, "entered", "night desk")
    assert [each.id for each in store.answers.without_entered_pcr(missing.created_at)] == [missing.id, told.id]
    assert store.answers.without_entered_pcr(entered.created_at + timedelta(seconds=1)) == []


def test_laboratory_replaces_and_takes_back_its_own_result(store: Store) -> None:
    answer = answered(store)
    said: list[Pcr | None] = [
        from_laboratory("negative"), from_laboratory("positive"), from_laboratory("positive", 5), None,
    ]  # fmt: skip
    for pcr in said:
        for _ in range(2):  # the second time nothing changes, so nothing is recorded
            store.answers.follow_laboratory(answer.id, pcr)
            assert store.answers.get(answer.id).pcr == pcr
    records = [record for record in store.audit.records() if record.action == "pcr"]
    assert [(record.who, record.answer_id) for record in records] == [("laboratory", answer.id)] * 4
    assert [record.output for record in records] == [
        {"result": pcr and pcr.result, "source": "laboratory"} for pcr in said
    ]


@pytest.mark.parametrize("pcr", [from_laboratory("positive"), None], ids=["positive", "none"])
def test_laboratory_does_not_replace_what_a_person_entered(store: Store, pcr: Pcr | None) -> None:
    answer = answered(store)
    store.answers.follow_laboratory(answer.id, from_laboratory("negative"))
    entered = store.answers.set_pcr(answer.id, "indeterminate", None, "entered", "night desk").pcr
    store.answers.follow_laboratory(answer.id, pcr)
    assert store.answers.get(answer.id).pcr == entered
    assert actions(store) == ["answer", "pcr", "pcr"]


def test_result_for_an_answer_that_was_deleted_meanwhile_is_dropped(store: Store) -> None:
    store.answers.follow_laboratory("nowhere", from_laboratory("positive"))
    assert actions(store) == []


def test_deliveries_wait_until_they_are_due(store: Store) -> None:
    queued(store)
    job = taken(store)
    answer = answer_to(store, job)
    store.answers.add(job, answer, deliver=("pacs",))
    (waiting,) = store.deliveries.in_state("waiting", due=now())
    assert (waiting.answer_id, waiting.attempts) == (answer.id, 0)
    later = now() + timedelta(hours=1)
    store.deliveries.set(replace(waiting, attempts=1, code="E_PACS_SILENT", due_at=later))
    assert store.deliveries.in_state("waiting", due=now()) == []
    assert [each.due_at for each in store.deliveries.in_state("waiting")] == [later]
    sent = replace(waiting, state="sent", attempts=2, sent_at=later)
    store.deliveries.set(sent)
    assert store.answers.get(answer.id).pacs == sent
    assert store.deliveries.in_state("waiting") == []


# --- models -----------------------------------------------------------------------------------------------


def test_at_most_one_model_is_live_and_one_is_shadow(store: Store) -> None:
    assert store.models.with_role("live") is None
    for name in ("one", "two"):
        store.models.add(name * 8, name, signed_by=None, by="office")
    for signed_by in ("key", None, "another"):  # a checked signature is recorded once
        store.models.add("one" * 8, "another name", signed_by=signed_by, by="office")
    assert [(model.name, model.signed_by, model.role) for model in store.models.all()] == [
        ("one", "key", None),
        ("two", None, None),
    ]
    store.models.set_live("one" * 8, by="admin")
    store.models.set_shadow("two" * 8, by="admin")
    assert [model.role for model in store.models.all()] == ["live", "shadow"]
    store.models.set_live("two" * 8, by="admin")
    assert [model.role for model in store.models.all()] == [None, "live"]
    store.models.set_shadow("one" * 8, by="admin")
    store.models.set_shadow(None, by="admin")
    assert store.models.with_role("shadow") is None
    assert code_of(store.models.set_live, "three", by="admin") == "E_NO_SUCH_MODEL"
    live = store.models.with_role("live")
    assert live and live.name == "two"
    assert actions(store) == [*["add_model"] * 3, "promote", "shadow", "promote", "shadow", "shadow"]


# --- retention --------------------------------------------------------------------------------------------


def test_answers_are_deleted_with_their_jobs(store: Store) -> None:
    old = answered(store)
    store.answers.set_pcr(old.id, "positive", None, "entered", "x")
    (waiting,) = queued(store)
    assert store.forget(now() - LATER, None) == []
    assert store.forget(now(), None) == [old.id]
    assert store.answers.newest(role=None) == []
    assert [job.id for job in store.jobs.newest()] == [waiting.id]
    assert actions(store) == ["answer", "pcr"]  # audit records are kept
    assert b"CANARY" not in _bytes(store)


@pytest.mark.parametrize("verdict", ["accepted", "rejected"])
def test_scan_that_is_sent_again_hides_no_failed_delivery_of_a_decision(store: Store, verdict: Any) -> None:
    """What the reader decided is still to be sent; the answer as it was before is not sent any more."""
    answer = answered(store)
    reason = "other" if verdict == "rejected" else None
    proposal = Proposal(verdict, answer.revision, reason)
    decide(store, answer.id, proposal, by="x", person="A^B", targets=("pacs",))
    (waiting,) = store.deliveries.of(answer.id)
    store.deliveries.set(replace(store.deliveries.begin(waiting), state="failed", code="E_PACS_STORE", due_at=None))
    queued(store)
    store.answers.repeat(taken(store), answer, deliver=("pacs", "hl7"))
    (failed,) = store.deliveries.problems()
    assert (failed.decision_id, failed.state) == (waiting.decision_id, "failed")
    assert len(store.deliveries.of(answer.id)) == 1


def test_answer_waiting_to_be_sent_is_not_deleted(store: Store) -> None:
    answer = answered(store)
    store.deliveries.queue(answer.id, "pacs")
    (waiting,) = store.deliveries.of(answer.id)
    assert store.forget(now(), None) == []
    assert store.jobs.get(answer.job_id).answer_id == answer.id
    store.deliveries.set(replace(waiting, state="failed", code="E_PACS_STORE"))
    assert store.forget(now(), None) == [answer.id]
    assert store.deliveries.in_state("failed") == []


def test_deletion_is_all_or_nothing(store: Store) -> None:
    answer = answered(store)  # its audit record is too recent to be removed
    assert code_of(store.forget, now(), now()) == "E_CLINIC_FILE"
    assert store.answers.get(answer.id) == answer
    assert store.jobs.get(answer.job_id).answer_id == answer.id


def test_audit_records_are_kept_six_months_and_cannot_be_changed(store: Store) -> None:
    answered(store)
    for days in (LEAST_AUDIT_DAYS - 1, LEAST_AUDIT_DAYS + 1):
        with store.database.transaction() as db:
            db.execute(
                "INSERT INTO audit (at, who, action, version) VALUES (?, 'x', ?, '1')",
                ((now() - timedelta(days=days)).isoformat(timespec="microseconds"), f"{days} days ago"),
            )
    store.forget(None, now() - timedelta(days=LEAST_AUDIT_DAYS))
    assert actions(store) == ["answer", "182 days ago"]
    assert code_of(store.forget, None, now()) == "E_CLINIC_FILE"
    with pytest.raises(Refusal), store.database.transaction() as db:
        db.execute("UPDATE audit SET who = 'nobody'")
    assert len(store.audit.records()) == 2
    assert [record.action for record in store.audit.records(since=now() - timedelta(days=1))] == ["answer"]
    assert [record.action for record in store.audit.records(limit=1)] == ["182 days ago"]


# --- the file ---------------------------------------------------------------------------------------------


def test_database_is_accessible_to_its_owner_only_and_written_synchronously(store: Store) -> None:
    queued(store)
    for path in store.folder.glob(f"{FILE}*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (mode,), (synchronous,) = store.database.rows("PRAGMA journal_mode"), store.database.rows("PRAGMA synchronous")
    assert (mode[0], synchronous[0]) == ("wal", 2)


def test_answers_persist_after_reopening(store: Store) -> None:
    answer = answered(store)
    with Store(store.folder) as again:
        assert again.answers.get(answer.id) == answer


def test_score_of_an_earlier_version_counts_as_a_patient_scan(store: Store) -> None:
    answer = answered(store)
    earlier = {**SCORE, "trained_on_synthetic_data": True, "operating_points": {"severe": {}}}
    del earlier["withheld"]
    with closing(sqlite3.connect(store.folder / FILE)) as db:
        db.execute("UPDATE answers SET score = ?", (json.dumps(earlier),))
        db.commit()
    score = store.answers.get(answer.id).score
    assert score["withheld"]
    assert score["level"] == {"severe": None, "pcr_positive": None}
    assert score["operating_points"] == {}


def test_file_of_another_version_or_broken_file_is_refused_unchanged(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA user_version = 99")
    assert code_of(Store, tmp_path) == "E_FORMAT_NEWER"
    broken = b"no database at all " * 100
    (tmp_path / FILE).write_bytes(broken)
    assert code_of(Store, tmp_path) == "E_CLINIC_FILE"
    assert (tmp_path / FILE).read_bytes() == broken


# The tables of version 1 that later versions changed.
VERSION_1 = """
DROP INDEX jobs_by_answer;
ALTER TABLE jobs DROP COLUMN reader_by;
ALTER TABLE jobs DROP COLUMN reader_person;
ALTER TABLE jobs DROP COLUMN reader_at;
DROP TABLE decisions; DROP TABLE deliveries;
ALTER TABLE tokens DROP COLUMN person;
CREATE TABLE deliveries (
    answer_id TEXT PRIMARY KEY REFERENCES answers (id) ON DELETE CASCADE,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'failed')),
    attempts INTEGER NOT NULL, code TEXT, due_at TEXT, sent_at TEXT
);
CREATE INDEX deliveries_by_state ON deliveries (state, due_at);
INSERT INTO tokens VALUES ('ward', 'x', 'score', '2026-01-01', NULL, NULL, 0, NULL);
PRAGMA user_version = 1;
"""


def version_1(folder: Path) -> str:
    """Make a database of version 1 with an answer that was sent to the PACS; return the answer's id."""
    with Store(folder) as store:
        answer = answered(store)
    with closing(sqlite3.connect(folder / FILE)) as db:
        db.executescript(VERSION_1)
        db.execute(
            "INSERT INTO deliveries VALUES (?, 'sent', 3, NULL, NULL, '2026-05-04T03:02:01+00:00')", (answer.id,)
        )
        db.commit()
    return answer.id


def test_database_of_an_earlier_version_is_brought_to_this_one(tmp_path: Path) -> None:
    answer_id = version_1(tmp_path)
    with Store(tmp_path) as store:
        answer = store.answers.get(answer_id)
        assert answer.pacs is not None and answer.decision is None
        assert (answer.pacs.target, answer.pacs.decision_id) == ("pacs", "")
        assert (answer.pacs.state, answer.pacs.attempts) == ("sent", 3)
        accepted = decide(store, answer_id, Proposal("accepted", answer.revision), by="x", person="A^B")
        assert accepted.decision
        store.assignments.take(answer.job_id, by="x", person="A^B")
        (token,) = store.database.rows("SELECT * FROM tokens")
        assert (token["name"], token["person"]) == ("ward", "")
        tables = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
        migrated = [tuple(row) for row in store.database.rows(tables)]
    with Store(tmp_path / "new") as new:
        assert [tuple(row) for row in new.database.rows(tables)] == migrated


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    answer_id = version_1(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: Store(tmp_path), range(4)))
    assert [len(store.deliveries.of(answer_id)) for store in stores] == [1] * 4
    for store in stores:
        store.close()


def test_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_1(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        before = list(db.iterdump())
    steps = {**MIGRATIONS, 1: (*MIGRATIONS[1], "SELECT no_such_function()")}
    monkeypatch.setattr("pipeline.clinic.database.FORMAT", replace(FORMAT, steps=steps))
    assert code_of(Store, tmp_path) == "E_CLINIC_FILE"
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        assert list(db.iterdump()) == before
        assert db.execute("PRAGMA user_version").fetchone() == (1,)


# --- decisions --------------------------------------------------------------------------------------------

DECIDE = """
import os, signal, sys
from pathlib import Path
from pipeline.clinic import decisions
from pipeline.clinic.review import Proposal, decide
from pipeline.clinic.store import Store
store, answer_id = Store(Path(sys.argv[1])), sys.argv[2]
if sys.argv[3] == "before":
    decisions.write_record = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
seen = store.answers.get(answer_id)
decide(store, answer_id, Proposal("accepted", seen.revision), by="x", person="A^B", targets=("pacs",))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("when", "number"), [("before", 0), ("after", 1)])
def test_decision_is_stored_completely_or_not_at_all_when_the_service_is_killed(
    when: str, number: int, store: Store
) -> None:
    answer = answered(store)
    command = [sys.executable, "-c", DECIDE, str(store.folder), answer.id, when]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(store.decisions.of(answer.id)) == len(store.deliveries.of(answer.id)) == number
    assert actions(store).count("decide") == number
    again = decide(store, answer.id, Proposal("accepted", answer.revision), by="x", person="A^B", targets=("pacs",))
    assert again.decision and len(store.decisions.of(answer.id)) == 1  # the person tries again


def test_decision_cannot_be_changed_and_goes_with_its_answer(store: Store) -> None:
    answer = answered(store)
    decide(store, answer.id, Proposal("rejected", answer.revision, "other", "secret remark"), by="x", person="A^B")
    for statement in ("UPDATE decisions SET verdict = 'accepted'", "DELETE FROM decisions"):
        with pytest.raises(Refusal, match="E_CLINIC_FILE"), store.database.transaction() as db:
            db.execute(statement)
    assert store.forget(now(), None) == [answer.id]
    assert store.decisions.of(answer.id) == []
    assert b"secret remark" not in _bytes(store)
    assert "decide" in actions(store)  # the record stays, without the remark


def test_new_database_can_be_opened_concurrently(tmp_path: Path) -> None:
    """Page, worker and receiver start together. SQLite alone would refuse the second process."""
    (tmp_path / FILE).touch()
    with ThreadPoolExecutor(1) as other, closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as first:
        first.execute("BEGIN IMMEDIATE")
        second = other.submit(Store, tmp_path)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.1)  # the second process waits
        first.execute("COMMIT")
        with second.result(timeout=60) as opened:
            assert len(queued(opened)) == 1


def test_failed_transaction_is_rolled_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.database.transaction() as db:
        db.execute("INSERT INTO secret VALUES ('x', x'00')")
        _ = 1 / 0
    assert store.database.row("SELECT 1 FROM secret WHERE name = 'x'") is None
    queued(store)  # the store still works


def test_worker_state_is_stored(store: Store) -> None:
    assert store.worker.get() == ("starting", None)
    store.worker.set("no_model", "E_NO_MODEL")
    store.worker.set("ready")
    assert store.worker.get() == ("ready", None)


def _bytes(store: Store) -> bytes:
    store.database.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    return (store.folder / FILE).read_bytes()
