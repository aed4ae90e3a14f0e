"""The data types of the administrator's API (v1); as in `schemas.py`, keys may be added, but are never removed."""

from datetime import date
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.clinic.connections import Name
from pipeline.clinic.records import DeliveryState
from pipeline.clinic.web.auth import Access
from pipeline.clinic.web.schemas import AuditRecord


class Account(BaseModel):
    """A token, or an account of the hospital's provider, without its secret. `once`: for a single first sign-in.

    `used_at`: newest sign-in of a browser. `is_emergency`: the token that works while the provider is down. `is_own`:
    the caller's own, which they cannot change.
    """

    name: str
    kind: Literal["token", "account"]
    role: Access
    person: str
    once: bool
    made_at: str
    ends_at: str | None
    revoked_at: str | None
    used_at: str | None
    open_sessions: int
    is_emergency: bool
    is_own: bool


class Accounts(BaseModel):
    """Tokens and accounts by name; disabled ones last."""

    accounts: list[Account]


class NewToken(BaseModel):
    """A token to create. `days`: until it expires, null: never. `person`: DICOM name of its owner, FAMILY^GIVEN."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=60)
    role: Access
    person: str = Field(default="", max_length=64)
    days: float | None = Field(default=None, ge=0.01, le=3650)


class AccountName(BaseModel):
    """The name of a token or account, as it is listed."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=120)


class AccountRole(AccountName):
    """A token's new role."""

    role: Access


class Secret(BaseModel):
    """A token's secret. It is shown once and not stored."""

    name: str
    token: str


class Said(BaseModel):
    """What a model said of one label. `level`: null if the release defines none."""

    probability: float
    level: str | None


class Disagreement(BaseModel):
    """A scan for which the shadow model and the live model had another level. `job_id`: of the scan."""

    job_id: str
    at: str
    label: str
    live: Said
    shadow: Said


class Disagreements(BaseModel):
    """Disagreements, newest first; at most 50."""

    disagreements: list[Disagreement]


class AuditPage(BaseModel):
    """Audit records, newest first. `next`: `before` of the next page; null on the last one.

    `actions`: all that occur; only on the first page.
    """

    records: list[AuditRecord]
    next: int | None
    actions: list[str]


class Due(BaseModel):
    """How much is deleted on a day (UTC)."""

    on: date
    count: int


class KeptRows(BaseModel):
    """How many are kept, since when, and what is deleted next, by day."""

    kept: int
    oldest: str | None
    due: list[Due]


class KeptCopy(BaseModel):
    """A copy of the database from before an upgrade. `format`: the older format's number."""

    format: int
    due_on: date


class RetentionPlan(BaseModel):
    """What is kept for how long, by clinic.toml, and what is deleted when. `answers_days`: 0 for ever.

    `held`: answers in the outbox, which are kept until they are sent or have failed. `uploads`: whether scans are kept
    as long as their answers.
    """

    answers_days: int
    audit_days: int
    uploads: bool
    answers: KeptRows
    records: KeptRows
    held: int
    copies: list[KeptCopy]


class Connection(BaseModel):
    """A system of the hospital. `kind`: '' if clinic.toml does not set it up. `deliveries`: their number by state."""

    name: Name
    kind: str
    address: str
    encrypted: bool
    deliveries: dict[DeliveryState, int]
    last_sent_at: str | None


class Connections(BaseModel):
    """search: the PACS in which scans are searched. receiver: our own. pacs, fhir, hl7: the receivers of results."""

    connections: list[Connection]


class Tried(BaseModel):
    """The outcome of a test. `code`, `says`, `remedy`: null if the system responded."""

    responds: bool
    code: str | None
    says: str | None
    remedy: str | None
