"""The data types of the API (v1) and of its OpenAPI document. Keys may be added, but are never removed.

Times are ISO 8601. Texts from a scan's headers may contain anything that a PACS accepts; see `inert_text.py`.
"""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from pipeline.clinic.corrected_mask import MOST_CHARACTERS
from pipeline.clinic.records import DeliveryState, JobState, PcrResult, PcrSource, Role, Source, Target, Verdict, WhyNot
from pipeline.clinic.settings import Sends
from pipeline.clinic.web.auth import Access
from pipeline.clinic.web.single_sign_on import PLACE
from pipeline.scoring.verdict import Level
from pipeline.system.days import Day

Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]  # of a release: its name
Uid = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*$", max_length=64)]


class Patient(BaseModel):
    """The patient, according to the scan's headers. `key` replaces (id, issuer) in URLs; '' if there is no id."""

    key: str
    id: str
    issuer: str
    name: str
    sex: str | None
    age_years: float | None


class ScanReader(BaseModel):
    """The reader who has a scan. `by`: their token's name; `person`: their DICOM name; `at`: since when."""

    by: str
    person: str
    at: str


class Job(BaseModel):
    """A scan in the queue. `position`: its place among the waiting ones. `code` to `remedy`: why there is no score.

    `has_pictures`: whether a scan without a score has pictures. `reader`: null if nobody has taken it.
    `answer_revision`: another text after each decision about the answer and each PCR result; null without an answer.
    It is not the `revision` that a decision names.
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
    answer_revision: str | None
    patient: Patient | None
    reader: ScanReader | None


class Assignment(BaseModel):
    """Who has a scan; `reader`: null if nobody does."""

    reader: ScanReader | None


class Jobs(BaseModel):
    """Jobs, newest first."""

    jobs: list[Job]


class Study(BaseModel):
    """The scan in the PACS. `acquired_at`: local time, without time zone; a day if the scan's headers give no time.

    It has an offset from UTC only if the headers state one and the node's `time_zone` is not set, or there is no node.
    """

    study_uid: str
    series_uid: str
    accession: str
    acquired_at: str | None


class UsedModel(BaseModel):
    """The release that gave the answer. `role`: its role at that time."""

    sha256: str
    name: str
    role: Role


class Window(BaseModel):
    """Days from the CT, negative before it; both ends belong to it."""

    from_days: int
    to_days: int


class PcrTiming(BaseModel):
    """The specimen's day against the scan. `days_from_ct`: null if one of both days is unknown.

    `window`: in which the result counts for the scan, by the node's `[join]`. `is_outside`: it does not count.
    """

    days_from_ct: int | None
    window: Window
    is_outside: bool


class Pcr(BaseModel):
    """A PCR result of the patient. `by`: who entered it. `timing`: whether it counts for this scan."""

    result: PcrResult
    collected_on: date | None
    source: PcrSource
    by: str
    timing: PcrTiming


class Delivery(BaseModel):
    """A delivery of an answer to the PACS, to a FHIR server, or to a receiver of HL7 messages.

    `code`, `remedy`: why the last attempt failed, and what to do; "waiting" is tried again, "failed" is not. `sent_at`:
    of the last successful one.
    `decision_id`: of the decision that is sent; null: what the model said, unverified. `state`: "dropped" if it was not
    sent because a newer decision holds, or because there was nothing to take back.
    """

    target: Target
    state: DeliveryState
    attempts: int
    code: str | None
    remedy: str | None
    sent_at: str | None
    decision_id: str | None


class OpenDelivery(Delivery):
    """A delivery that failed, or that waits after a failed attempt. `due_at`: of the next attempt."""

    answer_id: Id
    job_id: Id
    due_at: str | None


class OpenDeliveries(BaseModel):
    """Open deliveries, oldest first."""

    deliveries: list[OpenDelivery]


Label = Literal["severe", "pcr_positive"]
Share = Annotated[float, Field(ge=0, le=1)]


class Shares(BaseModel):
    """Corrected shares of one third of a lung, 0 to 1."""

    model_config = ConfigDict(extra="forbid")

    ground_glass: Share
    consolidation: Share


class _Corrected(BaseModel):
    levels: dict[Label, Level] = {}
    shares: dict[Literal["right", "left"], dict[Literal["upper", "middle", "lower"], Shares]] = {}
    lungs_usable: bool = True


class Correction(_Corrected):
    """What the reader corrected.

    `levels`: by label. `shares`: by side and third; the shares of a whole lung and of both follow. `lungs_usable`:
    false if the outline of the lungs, and so the table and the masks, must not be used. `mask`: null, or of a mask
    corrected by hand its SHA-256, the number of changed voxels, and the regions that follow from it.
    """

    mask: dict[str, Any] | None = None


GridSize = Annotated[int, Field(ge=1, le=1024)]


class MaskEntry(BaseModel):
    """A mask corrected by hand, as changes of the answer's `labels.nii.gz`.

    `shape`: slices, rows, columns. `changes`: Base64 of a zlib stream with one byte for each voxel, the corrected label
    XOR the model's; slices from the feet, rows from the front, columns from the patient's right. A label is side (0
    none, 1 right, 2 left) + 4 x counting (0 by its density, but not in the outermost layer; 1 there too; 2 never) + 16
    x density, which cannot be changed.
    """

    model_config = ConfigDict(extra="forbid")

    shape: tuple[GridSize, GridSize, GridSize]
    changes: str = Field(max_length=MOST_CHARACTERS)


class CorrectionEntry(_Corrected):
    """A correction to store, as `Correction`. `mask`: instead of `shares`; the service computes the regions from it."""

    model_config = ConfigDict(extra="forbid")

    mask: MaskEntry | None = None


class DecisionEntry(BaseModel):
    """A decision to store. `revision`: of the answer that the person saw. `comment`: stays with the decision."""

    model_config = ConfigDict(extra="forbid")

    verdict: Verdict
    revision: Id
    reason: WhyNot | None = None
    comment: str = Field(default="", max_length=1000)
    correction: CorrectionEntry = CorrectionEntry()


class Decision(BaseModel):
    """What a person decided. `by`: their token's name; `person`: their DICOM name.

    `before`: what was said until then. `revision`: of the answer that the person saw.
    """

    id: str
    answer_id: str
    at: str
    by: str
    person: str
    verdict: Verdict
    reason: WhyNot | None
    comment: str
    correction: Correction
    revision: str
    before: dict[str, Any]


class Decisions(BaseModel):
    """All decisions about an answer, and all deliveries of it, both oldest first; the last decision holds."""

    decisions: list[Decision]
    deliveries: list[Delivery]


class Reviewed(BaseModel):
    """What holds after the newest decision: levels by label, and `lungs` as in a score, null if not usable."""

    level: dict[str, str | None]
    lungs: dict[str, Any] | None


class NoResults(BaseModel):
    """Why an answer has no results for the PACS."""

    code: str
    says: str
    remedy: str


class Answer(BaseModel):
    """The model's answer. `files`: names for download. `no_results`: null, or why there are none for the PACS.

    `deliveries`: the newest one to each other system; `pacs`: of these, the one to the PACS, or null.
    `decision`: the newest one of a person. `reviewed`: null without one, or if it rejects the result. `revision`: of
    this answer; a decision names it.

    `score`: as `fedthorax score --json` prints it.

    `score.level`: by label, low, intermediate or high; uncertain where the 95 % band of the calibration (`interval`)
    crosses a threshold, and `met` of that threshold is null; null without thresholds. Each threshold has its `evidence`
    and `says`; `score.missing_points` says why one is missing. `score.withheld`: null, or why
    the score is no verdict on this scan (a model trained on synthetic data, a scan that is no phantom): levels are
    null then, and there are no operating points and no results for other systems.
    """

    id: str
    job_id: str
    created_at: str
    patient: Patient | None
    study: Study
    score: dict[str, Any]
    model: UsedModel
    pcr: Pcr | None
    pacs: Delivery | None
    deliveries: list[Delivery]
    files: list[str]
    no_results: NoResults | None
    decision: Decision | None
    reviewed: Reviewed | None
    revision: str


class Answers(BaseModel):
    """Answers, newest first."""

    answers: list[Answer]


class PcrEntry(BaseModel):
    """A PCR result to enter. `collected_on`: the day on which the specimen was taken."""

    model_config = ConfigDict(extra="forbid")

    result: PcrResult
    collected_on: Day | None = None

    @field_validator("collected_on")
    @classmethod
    def has_been(cls, day: date | None) -> date | None:
        if day and day > date.today():
            raise ValueError("the day is in the future")
        return day


class PlaneSlices(BaseModel):
    """Slices of one plane. `letters`: at the left, right, top and bottom edge. `start`: the first slice to show."""

    count: int
    spacing_mm: float
    rows: int
    columns: int
    letters: tuple[str, str, str, str]
    start: int


class Slices(BaseModel):
    """The available slices by plane."""

    axial: PlaneSlices
    coronal: PlaneSlices
    sagittal: PlaneSlices


class LungsAlone(BaseModel):
    """What was measured in a scan without a score: as `lungs` and `quality` of a score, or null.

    `quality` is also null if an earlier version measured the lungs: it kept no checks.
    """

    lungs: dict[str, Any] | None
    quality: list[dict[str, Any]] | None


class PacsSeries(BaseModel):
    """A CT series as the PACS describes it; '' or null if a value is missing. `images`: their number."""

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
    """Series, newest study first. `complete`: false if the PACS has more than are listed."""

    complete: bool
    series: list[PacsSeries]


class PacsChoice(BaseModel):
    """The series of the PACS to score."""

    model_config = ConfigDict(extra="forbid")

    study_uid: Uid
    series_uid: Uid


class Agreement(BaseModel):
    """Comparison of a shadow model with the live one, over the scans that both answered.

    `agreement`: by label, the share of scans with the same level in both (by the release's operating points, else 0.5).
    `mean_difference`: by label, mean of shadow minus live probability.
    """

    scans: int
    agreement: dict[str, float]
    mean_difference: dict[str, float]


class KeptModel(BaseModel):
    """A verified release. `role`: null if not in use. `signed_by`: SHA-256 of the key; null: signature not checked.

    `answers`: number of its answers, live and in shadow. `beside_live`: null while no scan has both answers.
    `derived_from`: SHA-256 of the parent of a release that this hospital adapted.
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
    derived_from: str | None


class KeptModels(BaseModel):
    """Models, oldest first."""

    models: list[KeptModel]


class LevelPair(BaseModel):
    """How many answers had this level of the model, and this one of the reader."""

    model: str
    reader: str
    answers: int


class LevelAudit(BaseModel):
    """`agreement`: the share of levels that readers left as they were; null without any."""

    agreement: float | None
    pairs: list[LevelPair]


class DriftFigure(BaseModel):
    """`errors`: the difference in standard errors, null if there are too few answers; `alert`: if it is more than 3."""

    before: float | None
    now: float | None
    answers: int
    errors: float | None
    alert: bool


class Observed(BaseModel):
    """Patients, those with an event, and their share with its 95 % interval (`low`, `high`)."""

    patients: int
    events: int
    observed: float
    low: float
    high: float


class Compared(Observed):
    """`expected`: the mean probability."""

    expected: float


class CalibrationBin(Compared):
    """The patients whose probability is in a range."""

    from_: Annotated[float, Field(alias="from")]
    to: float


class LocalCalibration(Compared):
    """Probabilities against outcomes, one scan of each patient. `levels`: by `model` or `reader`, then by level."""

    bins: list[CalibrationBin]
    levels: dict[Literal["model", "reader"], dict[str, Observed]]


class LocalAudit(BaseModel):
    """How readers and outcomes agree with the live model, over the newest decision of each answer.

    `drift`: `familiarity` compares the newest 50 answers' mean distance (share of the limit) with all before; `pcr` and
    `severe` compare the mean probability (`before`) with the share of positive results, or severe courses (`now`).
    `calibration`: by label, where outcomes are known; `severe` only over patients with a positive PCR. `outcomes_code`:
    why the node's outcomes cannot be read, or null.
    """

    model_sha256: str
    answers: int
    undecided: int
    verdicts: dict[Verdict, int]
    reasons: dict[WhyNot, int]
    levels: dict[str, LevelAudit]
    drift: dict[str, DriftFigure]
    calibration: dict[str, LocalCalibration]
    outcomes_code: str | None


class AuditRecord(BaseModel):
    """Who did what and when, without patient names. `output`: the model's output, what was shown, or other details."""

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
    """Audit records, oldest first."""

    records: list[AuditRecord]


class SignIn(BaseModel):
    """The token with which a browser signs in."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(min_length=1, max_length=256)


class Session(BaseModel):
    """The caller. `ends_at`: when their token or session expires; null: never.

    `person`: the DICOM name of the person whom the token belongs to, else ''. Only a named person with the role score
    can decide about results. `searches_pacs`, `sends_to_pacs`: whether the clinic's settings name a PACS to search, and
    one to send results to. `sends`: which results are sent, as in clinic.toml.
    `viewer_url`: template of the hospital's viewer, as in clinic.toml; '' without one. `sign_out_url`: where a browser
    that has signed out here ends its session at the provider of identities as well; '' if there is no such address.
    """

    name: str
    role: Access
    person: str
    ends_at: str | None
    searches_pacs: bool
    sends_to_pacs: bool
    sends: Sends
    viewer_url: str
    sign_out_url: str


class SignInWays(BaseModel):
    """How browsers may sign in. `tokens`: false if only the emergency administrator's token is accepted."""

    provider: bool
    tokens: bool


class SignInStart(BaseModel):
    """A sign-in with the hospital's account. `to`: what the page shows afterwards."""

    model_config = ConfigDict(extra="forbid")

    to: Annotated[str, StringConstraints(pattern=PLACE)] = ""


class SignInAddress(BaseModel):
    """The address of the provider to which the browser goes next."""

    url: str


class SignInEnd(BaseModel):
    """What the provider added to the page's address (RFC 6749, 4.1.2; RFC 9207). `error`: it refused the sign-in."""

    model_config = ConfigDict(extra="forbid")

    state: str = Field(min_length=1, max_length=256)
    code: str = Field(default="", max_length=4096)
    iss: str = Field(default="", max_length=1024)
    error: str = Field(default="", max_length=256)


class SignedIn(Session):
    """The caller, and what the page shows now (`to` of the request that started the sign-in)."""

    to: str


class Readiness(BaseModel):
    """Whether the service scores scans now, and which parts are ready."""

    ready: bool
    worker: bool
    model: bool
    disk: bool
