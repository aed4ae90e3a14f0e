"""What the API (v1) takes and gives; the OpenAPI document is made of it. Keys are stable: new ones may come, none goes.

Times are ISO 8601. Texts that come from a scan's headers may hold anything a PACS lets through; see `inert_text.py`.
"""

from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipeline.clinic.records import DeliveryState, JobState, PcrResult, PcrSource, Role, Source
from pipeline.clinic.web.auth import Access
from pipeline.system.days import Day

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # of a release, its name
Uid = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]


class Patient(BaseModel):
    """Whose scan it is, as its headers say. `key` stands for (id, issuer) in addresses; '' if there is no id."""

    key: str
    id: str
    issuer: str
    name: str
    sex: str | None
    age_years: float | None


class Job(BaseModel):
    """A scan in the queue. `position`: its place among those that wait. `code` to `remedy`: why there is no score.

    `has_pictures`: whether a scan without a score can be seen all the same.
    """

    id: str
    state: JobState
    position: int | None
    source: Source
    asked_by: str
    received_at: str
    ended_at: str | None
    code: str | None
    says: str | None
    remedy: str | None
    has_pictures: bool
    answer_id: str | None
    patient: Patient | None


class Jobs(BaseModel):
    """The newest first."""

    jobs: list[Job]


class Study(BaseModel):
    """The scan in the PACS. `acquired_at`: local time, without a zone."""

    study_uid: str
    series_uid: str
    accession: str
    acquired_at: str | None


class UsedModel(BaseModel):
    """The release that gave the answer, and what it was then."""

    sha256: str
    name: str
    role: Role


class Pcr(BaseModel):
    """The PCR result that goes with a scan. `by`: who entered it."""

    result: PcrResult
    collected_on: date | None
    source: PcrSource
    by: str


class Delivery(BaseModel):
    """The answer's way to the PACS. `code`: why the last attempt failed."""

    state: DeliveryState
    attempts: int
    code: str | None
    sent_at: str | None


class Answer(BaseModel):
    """What the model said. `score`: as `fedthorax score --json` prints it. `files`: to be fetched one by one."""

    id: str
    job_id: str
    created_at: str
    patient: Patient | None
    study: Study
    score: dict[str, Any]
    model: UsedModel
    pcr: Pcr | None
    pacs: Delivery | None
    files: list[str]


class Answers(BaseModel):
    """The newest first."""

    answers: list[Answer]


class PcrEntry(BaseModel):
    """A PCR result, as it is entered. `collected_on`: the day the specimen was taken."""

    model_config = ConfigDict(extra="forbid")

    result: PcrResult
    collected_on: Day | None = None

    @field_validator("collected_on")
    @classmethod
    def has_been(cls, day: date | None) -> date | None:
        if day and day > date.today():
            raise ValueError("the day is still to come")
        return day


class PlaneSlices(BaseModel):
    """Slices of one plane. `letters`: at the left, right, top and bottom edge. `start`: the slice to begin with."""

    count: int
    spacing_mm: float
    rows: int
    columns: int
    letters: tuple[str, str, str, str]
    start: int


class Slices(BaseModel):
    """The slices that can be fetched as pictures, by plane."""

    axial: PlaneSlices
    coronal: PlaneSlices
    sagittal: PlaneSlices


class PacsSeries(BaseModel):
    """A CT series as the PACS describes it; '' or null where it does not say. `images`: their number."""

    patient_id: str
    issuer: str
    patient_name: str
    accession: str
    study_uid: str
    series_uid: str
    study_date: date | None
    body_part: str
    description: str
    images: int | None


class PacsListing(BaseModel):
    """The newest study first. `complete`: false where the PACS has more than are listed."""

    complete: bool
    series: list[PacsSeries]


class PacsChoice(BaseModel):
    """Which series of the PACS is to be scored."""

    model_config = ConfigDict(extra="forbid")

    study_uid: Uid
    series_uid: Uid


class Agreement(BaseModel):
    """A shadow beside the live model, over the scans that both answered.

    `agreement`: by label, the share of scans that both put on the same level (operating points where the release has
    them, else 0.5). `mean_difference`: by label, shadow less live probability.
    """

    scans: int
    agreement: dict[str, float]
    mean_difference: dict[str, float]


class KeptModel(BaseModel):
    """A verified release. `role`: null if it is kept, but not asked. `signed_by`: SHA-256 of the key, null: unchecked.

    `answers`: how many it gave, as the live model and in shadow. `beside_live`: null while no scan has both answers.
    """

    sha256: str
    name: str
    role: Role | None
    signed_by: str | None
    added_at: str
    added_by: str
    study: str
    rounds: int
    sites: int
    trained_on_synthetic_data: bool
    answers: int
    beside_live: Agreement | None


class KeptModels(BaseModel):
    """The oldest first."""

    models: list[KeptModel]


class AuditRecord(BaseModel):
    """Who did what, and when; no patient is named. `output`: what the model said, was shown, or what else was done."""

    number: int
    at: str
    who: str
    action: str
    job_id: str | None
    answer_id: str | None
    input_sha256: str | None
    model_sha256: str | None
    output: dict[str, Any] | None
    code: str | None
    version: str


class AuditRecords(BaseModel):
    """The oldest first."""

    records: list[AuditRecord]


class SignIn(BaseModel):
    """A token, with which a browser signs in."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(min_length=1, max_length=256)


class Session(BaseModel):
    """Who asks. `ends_at`: when what they showed ends; null: never."""

    name: str
    role: Access
    ends_at: str | None


class Readiness(BaseModel):
    """Whether scans are being scored now, and what stands in the way if not."""

    ready: bool
    worker: bool
    model: bool
    disk: bool
