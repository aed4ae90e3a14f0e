"""Answers: the models' output, and the matching PCR results."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from models.refusal import Refusal
from pipeline.clinic.assignments import share_reader
from pipeline.clinic.audit import write_record
from pipeline.clinic.database import Database, stamp
from pipeline.clinic.decisions import DECISION_COLUMNS, decision_of
from pipeline.clinic.deliveries import DELIVERY_COLUMNS, delivery_of, queue_in
from pipeline.clinic.patient_keys import PatientKeys
from pipeline.clinic.queue import end_job, patient_of
from pipeline.clinic.reasons import ALREADY_ANSWERED, NO_SUCH_ANSWER
from pipeline.clinic.records import Answer, Job, Patient, Pcr, PcrResult, PcrSource, Role, Target
from pipeline.scoring.verdict import redecided
from pipeline.system.days import check_day

if TYPE_CHECKING:
    from pipeline.scoring.single_scan import OneScan

_DELIVERY = ", ".join(f"'{name}', {name}" for name in DELIVERY_COLUMNS)
_SELECT = f"""
    SELECT answers.*, result, collected_on, pcr.source, pcr.by,
        (SELECT json_group_array(json_object({_DELIVERY})) FROM (SELECT * FROM deliveries WHERE number IN
            (SELECT max(number) FROM deliveries WHERE answer_id = answers.id GROUP BY target) ORDER BY target))
            AS deliveries,
        {", ".join(f"decisions.{name} AS decision_{name}" for name in DECISION_COLUMNS)}
    FROM answers
    LEFT JOIN pcr ON pcr.answer_id = answers.id
    LEFT JOIN decisions ON decisions.number = (SELECT max(number) FROM decisions WHERE answer_id = answers.id)
"""  # noqa: S608
_DAY_CHARACTERS = len("2021-03-04")


class Answers:
    """The answers of one clinic."""

    def __init__(self, database: Database, keys: PatientKeys) -> None:
        self._database, self._keys = database, keys

    def add(self, job: Job, answer: Answer, *, deliver: Iterable[Target] = ()) -> None:
        """Store an answer, end its job and write an audit record, in one transaction.

        The answer's files must already be in its folder. An answer of a shadow model comes after the live one and does
        not end the job. `deliver`: also queue the answer for these systems. Raises Refusal E_ALREADY_ANSWERED if
        another worker was faster.
        """
        with self._database.transaction() as db:
            if answer.role == "live":
                end_job(db, job, "answered", answer_id=answer.id, patient=self._keys.patient_text(answer.patient))
            elif db.execute("SELECT 1 FROM answers WHERE job_id = ? AND role = 'shadow'", (job.id,)).fetchone():
                raise Refusal(ALREADY_ANSWERED)
            self._insert(db, job, answer)
            for target in deliver:
                queue_in(db, answer.id, target)
            write_record(
                db,
                job.asked_by,
                "answer" if answer.role == "live" else "shadow_answer",
                job_id=job.id,
                answer_id=answer.id,
                input_sha256=answer.score["input"]["hu_sha256"],
                model_sha256=answer.model_sha256,
                output={key: answer.score.get(key) for key in ("probability", "interval", "level")},
            )

    def get(self, answer_id: str) -> Answer:
        """Raises Refusal E_NO_SUCH_ANSWER."""
        found = self._answers("answers.id = ?", answer_id)
        if not found:
            raise Refusal(NO_SUCH_ANSWER)
        return found[0]

    def newest(
        self,
        limit: int = 100,
        before: str | None = None,
        role: Role | None = "live",
        ids: Sequence[str] | None = None,
    ) -> list[Answer]:
        """Return answers, newest first. `before`: the id of an answer; only older ones. `ids`: only these."""
        return self._answers(
            "(?1 IS NULL OR role = ?1) AND (?2 IS NULL OR answers.number < (SELECT number FROM answers WHERE id = ?2))"
            " AND (?4 IS NULL OR answers.id IN (SELECT value FROM json_each(?4)))"
            " ORDER BY answers.number DESC LIMIT ?3",
            *(role, before, limit, None if ids is None else json.dumps(ids)),
        )

    def of_model(self, model_sha256: str, most: int) -> list[Answer]:
        """Return the newest live answers of a model, oldest first."""
        where = "role = 'live' AND model_sha256 = ? ORDER BY answers.number DESC LIMIT ?"
        return self._answers(where, model_sha256, most)[::-1]

    def history(self, patient_key: str) -> list[Answer]:
        """Return all live answers for one patient, newest first."""
        if not patient_key:
            return []
        return self._answers("patient_key = ? AND role = 'live' ORDER BY answers.number DESC", patient_key)

    def of_same_scan(
        self, scan: "OneScan", patient: Patient | None, hu_sha256: str, model_sha256: str
    ) -> Answer | None:
        """Return the newest live answer to the same scan by the same model and version; None if there is none.

        Its geometry and the headers that the answer depends on must be equal too: a corrected scan gets an answer of
        its own.
        """
        series = scan.series
        found = self._answers(
            "role = 'live' AND series_uid = ? AND model_sha256 = ? AND answers.id IN"
            " (SELECT answer_id FROM audit WHERE action = 'answer' AND version = ?) ORDER BY answers.number DESC",
            *(series.series_uid, model_sha256, version("fedthorax")),
        )
        headers = (series.is_phantom, series.study_uid, series.acquired, series.has_clock)
        ours = (hu_sha256, scan.volume.geometry_sha256, *headers)
        whose = self._keys.patient_text(patient)
        for each in found:
            known = each.score["input"]
            theirs = (
                known["hu_sha256"],
                known.get("geometry_sha256"),
                known.get("is_phantom", False),
                each.study_uid,
                each.acquired_at,
                each.has_clock,
            )
            if theirs == ours and self._keys.patient_text(each.patient) == whose:
                return each
        return None

    def repeat(self, job: Job, answer: Answer, *, deliver: Iterable[Target] = ()) -> None:
        """End a job with the answer that the same scan has already, and write an audit record.

        `deliver`: also queue the answer for these systems, if it never was, unless a reader decided about it: then only
        what the reader decided is sent. Raises Refusal E_ALREADY_ANSWERED.
        """
        with self._database.transaction() as db:
            is_decided = db.execute("SELECT 1 FROM decisions WHERE answer_id = ?", (answer.id,)).fetchone() is not None
            for target in () if is_decided else deliver:
                queue_in(db, answer.id, target)
            end_job(db, job, "answered", answer_id=answer.id, patient=self._keys.patient_text(answer.patient))
            share_reader(db, job.id)
            known = {"input_sha256": answer.score["input"]["hu_sha256"], "model_sha256": answer.model_sha256}
            write_record(db, job.asked_by, "repeat", job_id=job.id, answer_id=answer.id, **known)

    def set_pcr(
        self, answer_id: str, result: PcrResult, collected_on: date | None, source: PcrSource, by: str
    ) -> Answer:
        """Set the PCR result of an answer, replacing any earlier one.

        Raises Refusal E_NO_SUCH_ANSWER; TypeError if `collected_on` is not a day.
        """
        answer = self.get(answer_id)
        pcr = Pcr(result, check_day(collected_on), source, by)
        with self._database.transaction() as db:
            _write_pcr(db, answer, pcr)
        return self.get(answer_id)

    def follow_laboratory(self, answer_id: str, pcr: Pcr | None) -> None:
        """Store what the laboratory says now, and an audit record, if it said something else before.

        None: it has no decisive result (any more). A result that a person entered stays. Nothing happens if the answer
        has been deleted.
        """
        with self._database.transaction() as db:  # nobody can enter a result between the check and the change
            answer = next(iter(self._answers("answers.id = ?", answer_id)), None)
            if answer and answer.pcr != pcr and not (answer.pcr and answer.pcr.source == "entered"):
                _write_pcr(db, answer, pcr)

    def without_entered_pcr(self, since: datetime) -> list[Answer]:
        """Return live answers of known patients whose PCR result no person entered, oldest first."""
        return self._answers(
            "created_at >= ? AND role = 'live' AND patient_key <> '' AND ifnull(pcr.source, '') <> 'entered'"
            " ORDER BY answers.number",
            stamp(since),
        )

    def _insert(self, db: sqlite3.Connection, job: Job, answer: Answer) -> None:
        patient = answer.patient and self._keys.keyed(answer.patient)
        named = self._keys.patient_text(patient)
        db.execute(
            "INSERT INTO answers (id, job_id, created_at, patient_key, patient, study_uid, series_uid, accession,"
            " acquired_at, score, model_sha256, model_name, role) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(answer.id, job.id, stamp(answer.created_at), patient and patient.key, named),
                *(answer.study_uid, answer.series_uid, answer.accession, answer.acquired),
                *(json.dumps(answer.score, allow_nan=False), answer.model_sha256, answer.model_name, answer.role),
            ),
        )

    def _answers(self, where: str, *values: Any) -> list[Answer]:
        found = self._database.rows(f"{_SELECT} WHERE {where}", *values)
        return [self._answer(row) for row in found]

    def _answer(self, row: sqlite3.Row) -> Answer:
        at = row["acquired_at"]
        return Answer(
            id=row["id"],
            job_id=row["job_id"],
            created_at=datetime.fromisoformat(row["created_at"]),
            study_uid=row["study_uid"],
            series_uid=row["series_uid"],
            accession=row["accession"],
            acquired_at=at and datetime.fromisoformat(at),
            has_clock=at is None or len(at) > _DAY_CHARACTERS,
            score=redecided(json.loads(row["score"])),
            model_sha256=row["model_sha256"],
            model_name=row["model_name"],
            role=row["role"],
            folder=self._database.folder / "answers" / row["id"],
            patient=patient_of(row),
            pcr=_pcr(row) if row["result"] else None,
            deliveries=tuple(delivery_of(each) for each in json.loads(row["deliveries"])),
            decision=decision_of(row, "decision_") if row["decision_id"] else None,
        )


def _write_pcr(db: sqlite3.Connection, answer: Answer, pcr: Pcr | None) -> None:
    """Replace an answer's PCR result, and write an audit record. None: the result that it has is taken back."""
    said = pcr or answer.pcr
    assert said is not None
    db.execute("DELETE FROM pcr WHERE answer_id = ?", (answer.id,))
    if pcr:
        day = pcr.collected_on and pcr.collected_on.isoformat()
        db.execute("INSERT INTO pcr VALUES (?, ?, ?, ?, ?)", (answer.id, pcr.result, day, pcr.source, pcr.by))
    told = {"result": pcr and pcr.result, "source": said.source}
    write_record(db, said.by, "pcr", job_id=answer.job_id, answer_id=answer.id, output=told)


def _pcr(row: sqlite3.Row) -> Pcr:
    day = row["collected_on"]
    return Pcr(row["result"], day and date.fromisoformat(day), row["source"], row["by"])
