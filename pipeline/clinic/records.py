"""The data classes of the clinic's store: queued scans, answers, models, and audit records.

Times with a time zone are UTC. `to_json` returns the JSON of the API (v1); its keys are stable.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from models.reason_tables import reasons_in, tables
from models.refusal import Reason

JobState = Literal["waiting", "working", "answered", "no_score"]
Source = Literal["upload", "pacs", "received"]
Role = Literal["live", "shadow"]
PcrResult = Literal["positive", "negative", "indeterminate"]
PcrSource = Literal["entered", "laboratory"]
WorkerState = Literal["starting", "ready", "no_model"]
DeliveryState = Literal["waiting", "sent", "failed", "dropped"]
Target = Literal["pacs", "fhir", "hl7"]
Verdict = Literal["accepted", "corrected", "rejected"]
WhyNot = Literal[
    "level", "lungs", "missed", "overcalled", "other_disease", "image_quality", "wrong_scan", "clinical", "other"
]

JOB_STATES: tuple[JobState, ...] = get_args(JobState)


@dataclass(frozen=True)
class Patient:
    """The patient according to the scan's headers.

    `key` replaces (id, issuer) in URLs; the store fills it in. '' if there is no id (`header_patient.py`).
    """

    id: str
    issuer: str = ""
    name: str = ""
    sex: str | None = None
    age_years: float | None = None
    key: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ScanReader:
    """The reader who has a scan. `by`: name of their token; `person`: their DICOM name; `at`: since when."""

    by: str
    person: str
    at: datetime

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "at": moment(self.at)}


@dataclass(frozen=True)
class Job:
    """One scan in the queue.

    `folder`: its files, until it is answered. `pictures`: the viewable scan, if it was read but got no score.
    `study_uid`, `series_uid`: the series to score, None if not given. `attempts`: how often a worker took it.
    `is_whole`: whether all of its files are present. `code`, `says`, `remedy`: why there is no score.
    `reader`: who has it. `answer_revision`: another text after each decision about its answer and each PCR result.
    """

    id: str
    state: JobState
    source: Source
    asked_by: str
    received_at: datetime
    folder: Path
    pictures: Path
    started_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: int = 0
    is_whole: bool = True
    study_uid: str | None = None
    series_uid: str | None = None
    patient: Patient | None = None
    code: str | None = None
    says: str | None = None
    remedy: str | None = None
    answer_id: str | None = None
    answer_revision: str | None = None
    reader: ScanReader | None = None

    @property
    def has_pictures(self) -> bool:
        return self.state == "no_score" and self.pictures.is_dir()

    def to_json(self, position: int | None = None) -> dict[str, Any]:
        """Return the JSON of the API. `position`: the place among the waiting jobs, from 1 (`Jobs.position`)."""
        return {
            "id": self.id,
            "state": self.state,
            "position": position,
            "source": self.source,
            "asked_by": self.asked_by,
            "received_at": moment(self.received_at),
            "ended_at": moment(self.ended_at),
            "code": self.code,
            "says": self.says,
            "remedy": self.remedy,
            "has_pictures": self.has_pictures,
            "answer_id": self.answer_id,
            "answer_revision": self.answer_revision,
            "patient": self.patient and self.patient.to_json(),
            "reader": self.reader and self.reader.to_json(),
        }


@dataclass(frozen=True)
class Pcr:
    """The PCR result of an answer. `by`: who entered it."""

    result: PcrResult
    collected_on: date | None
    source: PcrSource
    by: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "collected_on": self.collected_on and self.collected_on.isoformat()}


@dataclass(frozen=True)
class Delivery:
    """The delivery of an answer to another system.

    `decision_id`: of the decision that is sent; '' for what the model said, unverified. `state`: "dropped" if it was
    not sent because a newer decision holds, or because there was nothing to take back. `code`: why the last attempt
    failed. `due_at`: time of the next one.
    """

    number: int
    answer_id: str
    target: Target
    decision_id: str
    state: DeliveryState
    attempts: int = 0
    code: str | None = None
    due_at: datetime | None = None
    sent_at: datetime | None = None

    @property
    def remedy(self) -> str | None:
        """What to do about `code`."""
        return _reasons()[self.code].remedy if self.code in _reasons() else None

    def to_json(self) -> dict[str, Any]:
        return {
            "target": self.target,
            "state": self.state,
            "attempts": self.attempts,
            "code": self.code,
            "remedy": self.remedy,
            "sent_at": moment(self.sent_at),
            "decision_id": self.decision_id or None,
        }


@dataclass(frozen=True)
class Correction:
    """What a reader corrected. `levels`: by label. `shares`: by side, part (a third) and density; 0 to 1.

    `lungs_usable`: False if the outline of the lungs, and so the table and the masks, must not be used. `mask`: of a
    mask corrected by hand, SHA-256 of its labels, number of changed voxels, and the table that follows from it
    (`corrected_mask.py` keeps the mask itself).
    """

    levels: dict[str, str] = field(default_factory=dict)
    shares: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    lungs_usable: bool = True
    mask: dict[str, Any] | None = None

    @property
    def is_empty(self) -> bool:
        return not self.levels and not self.shares and self.lungs_usable and self.mask is None


@dataclass(frozen=True)
class Decision:
    """What a person decided about an answer. `by`: name of their token; `person`: their DICOM name.

    `revision`: the answer that they saw (`Answer.revision`). `before`: what was said until then (`review.said`).
    """

    id: str
    answer_id: str
    at: datetime
    by: str
    person: str
    verdict: Verdict
    reason: WhyNot | None
    comment: str
    correction: Correction
    revision: str
    before: dict[str, Any]

    @property
    def is_valid(self) -> bool:
        """Whether the result may be used, as it is or corrected."""
        return self.verdict != "rejected"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "at": moment(self.at)}


@dataclass(frozen=True)
class Answer:
    """The model's answer for one scan.

    `score`: `Score.to_json()`. `decision`: the newest one. `deliveries`: the newest one to each other system.
    `acquired_at`: local time of the scan, without time zone, or with the offset from UTC that its headers state if the
    clinic does not know the site's time zone; midnight if its headers give only the day, and then `has_clock` is false.
    `role`: the model's role at that time; answers of a shadow model are for comparison only, and no clinician sees
    them. `folder`: its files.
    """

    id: str
    job_id: str
    created_at: datetime
    study_uid: str
    series_uid: str
    accession: str
    acquired_at: datetime | None
    score: dict[str, Any]
    model_sha256: str
    model_name: str
    role: Role
    folder: Path
    patient: Patient | None = None
    pcr: Pcr | None = None
    deliveries: tuple[Delivery, ...] = ()
    has_clock: bool = True
    decision: Decision | None = None

    @property
    def pacs(self) -> Delivery | None:
        """The newest delivery to the PACS."""
        return next((each for each in self.deliveries if each.target == "pacs"), None)

    @property
    def acquired(self) -> str | None:
        """The time of the scan as ISO 8601, only the day where its headers give no time."""
        if self.acquired_at is None or self.has_clock:
            return moment(self.acquired_at)
        return self.acquired_at.date().isoformat()

    @property
    def revision(self) -> str:
        """Identify what a reader sees of this answer: the score, the PCR result, and the newest decision."""
        shown = [self.score, self.pcr and self.pcr.to_json(), self.decision and self.decision.id]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:32]

    def to_json(self) -> dict[str, Any]:
        files = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        return {
            "id": self.id,
            "job_id": self.job_id,
            "created_at": moment(self.created_at),
            "patient": self.patient and self.patient.to_json(),
            "study": {
                "study_uid": self.study_uid,
                "series_uid": self.series_uid,
                "accession": self.accession,
                "acquired_at": self.acquired,
            },
            "score": self.score,
            "model": {"sha256": self.model_sha256, "name": self.model_name, "role": self.role},
            "pcr": self.pcr and self.pcr.to_json(),
            "pacs": self.pacs and self.pacs.to_json(),
            "deliveries": [each.to_json() for each in self.deliveries],
            "decision": self.decision and self.decision.to_json(),
            "revision": self.revision,
            "files": files,
        }


@dataclass(frozen=True)
class Model:
    """A verified release in CLINIC/models/SHA256. `role`: None if it is stored but not in use."""

    sha256: str
    name: str
    signed_by: str | None
    added_at: datetime
    added_by: str
    role: Role | None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "added_at": moment(self.added_at)}


@dataclass(frozen=True)
class AuditRecord:
    """One audit record; it names no patient.

    `action`: "answer", "repeat", "no_score", "pcr", "send", "promote", "sign_in", "decide", "take", "release", a view
    ("look", "job", "worklist", "list", "history", "search"), ... `input_sha256`: SHA-256 of the volume in HU. `output`:
    the model's output, what was shown, or other details. `code`: why there is no score. `version`: of fedthorax.
    """

    number: int
    at: datetime
    who: str
    action: str
    job_id: str | None
    answer_id: str | None
    input_sha256: str | None
    model_sha256: str | None
    output: dict[str, Any] | None
    code: str | None
    version: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "at": moment(self.at)}


@cache
def _reasons() -> dict[str, Reason]:
    return {reason.code: reason for reason in reasons_in(*tables("pipeline").values())}


def moment(at: datetime | None) -> str | None:
    """Format a time as ISO 8601 in seconds, with its time zone if known."""
    return at.isoformat(timespec="seconds") if at else None
