"""A clinic: one folder with its settings (clinic.toml) and all data of the service.

clinic.toml       settings, edited by hospital IT; without it, the defaults apply
clinic.sqlite     queue, answers, models, tokens, audit records (see `store.py`)
scans, received   scans that wait to be scored, and series that the PACS is still sending
answers           one folder for each answer
models            verified releases
logs              log files
work              temporary files of the worker; emptied when a worker starts
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.compute_settings import DEVICE
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.clinic.database import FILE
from pipeline.clinic.folder_reasons import CLINIC_EXISTS, CLINIC_FOLDER, CLINIC_IS_MODEL, NO_CLINIC
from pipeline.clinic.reasons import CLINIC_ADDRESS
from pipeline.clinic.store import LEAST_AUDIT_DAYS, Store
from pipeline.identity.oidc_settings import OidcTable
from pipeline.site.fhir_settings import FhirTable
from pipeline.site.folder import Site
from pipeline.site.pacs_settings import AE_TITLE, DicomWebTable, DimseTable, PacsTable
from pipeline.system.addresses import is_loopback
from pipeline.system.folder_format import FILE as FORMAT
from pipeline.system.folder_format import check_folder, stamp_folder

SETTINGS = "clinic.toml"
VIEWER_SCHEMES = ("https://", "http://localhost", "http://127.0.0.1", "weasis://")
VIEWER_FIELDS = {"study_uid", "series_uid", "accession", "patient_id"}
Sends = Literal["off", "on_request", "accepted", "always"]
ResourceIds = Literal["client", "server"]  # who gives FHIR resources their ids
FOLDERS = ("scans", "answers", "models", "logs", "work")
_OF_OTHERS = ("site.toml", "server.toml")  # the settings of a hospital's or a server's folder
LOCK = "service.lock"  # held by the running service
# What a clinic without settings and store may hold: what an interrupted first start leaves, and what a new disk has.
_BEFORE_STORE = {*FOLDERS, "received", FORMAT, LOCK, "lost+found"}


class ServerTable(BaseModel, extra="forbid"):
    """[server]: the address of the page."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8765, ge=1, le=65535)
    names: list[str] = []  # further host names of the page, besides localhost and `host`
    certificate: Path | None = None
    key: Path | None = None
    without_tls: bool = False  # for other machines: a proxy in front of the service does TLS
    session_hours: float = Field(default=12, gt=0, le=168)
    viewer_url: str = ""  # of the hospital's viewer, with {study_uid} and, if it needs them, the other VIEWER_FIELDS

    @field_validator("viewer_url")
    @classmethod
    def is_an_address_with_a_study(cls, template: str) -> str:
        names = set(re.findall(r"{([^{}]*)}", template))
        if template and not (template.startswith(VIEWER_SCHEMES) and "study_uid" in names <= VIEWER_FIELDS):
            raise ValueError(
                f"must begin with {', '.join(VIEWER_SCHEMES)}, contain {{study_uid}}, and no name in braces but"
                f" {', '.join(sorted(VIEWER_FIELDS))}"
            )
        return template

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
        if not (self.certificate or self.without_tls or is_loopback(self.host)):
            raise ValueError("a host other than this machine needs certificate and key, or without_tls = true")
        return self


class LimitsTable(BaseModel, extra="forbid"):
    """[limits]: limits of requests and of the worker."""

    upload_mb: int = Field(default=2000, ge=1)  # of one scan
    waiting_scans: int = Field(default=200, ge=1)
    requests_per_minute: int = Field(default=600, ge=1)  # from one token or address
    scoring_seconds: int = Field(default=300, ge=1)  # for one scan, then its worker is ended
    worker_mb: int = Field(default=3000, ge=1000)  # of the worker's memory


class ComputeTable(BaseModel, extra="forbid"):
    """[compute]: the processor that scores; always in float32."""

    device: str = Field(default="cpu", pattern=DEVICE)


class KeepTable(BaseModel, extra="forbid"):
    """[keep]: how long data is kept."""

    answers_days: int = Field(default=0, ge=0)  # 0: forever
    audit_days: int = Field(default=LEAST_AUDIT_DAYS, ge=LEAST_AUDIT_DAYS)
    uploads: bool = False  # keep the files of answered scans as long as their answers


class NodeTable(BaseModel, extra="forbid"):
    """[node]: the site folder of a node; the clinic also uses its [pacs] and [laboratory]."""

    folder: Path


class FhirResultsTable(BaseModel, extra="forbid"):
    """[results.fhir]: a FHIR R4 server that receives results; the keys are those of [fhir] in site.toml."""

    send: Literal["accepted", "always"] = "accepted"
    ids: ResourceIds = "client"
    url: str = Field(min_length=1)
    token_file: Path | None = None
    token_url: str = ""
    client_id: str = ""
    client_key: Path | None = None
    key_id: str = ""
    scope: str = "system/*.write"
    ca_certificate: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout_seconds: float = Field(default=60, gt=0)

    @model_validator(mode="after")
    def the_server_is_set_up(self) -> Self:
        _ = self.server
        return self

    @property
    def server(self) -> FhirTable:
        """How the server is reached. Raises pydantic's ValidationError."""
        return FhirTable.model_validate(self.model_dump(exclude={"send", "ids"}))


class Hl7ResultsTable(BaseModel, extra="forbid"):
    """[results.hl7]: a receiver of HL7 v2 messages (ORU^R01 over MLLP)."""

    send: Literal["accepted", "always"] = "accepted"
    host: str = Field(min_length=1)
    port: int = Field(default=2575, ge=1, le=65535)
    ca_certificate: Path | None = None  # if given, TLS is used
    certificate: Path | None = None
    key: Path | None = None
    without_tls: bool = False  # for other machines: names and results unencrypted on the network
    timeout_seconds: float = Field(default=30, gt=0)

    @model_validator(mode="after")
    def is_encrypted(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
        if not (self.ca_certificate or self.without_tls or is_loopback(self.host)):
            raise ValueError("a host other than this machine needs ca_certificate, or without_tls = true")
        return self


class ResultsTable(BaseModel, extra="forbid"):
    """[results]: what is sent to the PACS."""

    send: Sends = "off"
    organization: str = Field(default="", max_length=64)  # of the persons who verify results; in verified reports
    by: Literal["stow", "c-store"] = "stow"
    url: str = ""  # stow: the part of the URL before /studies
    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    host: str = ""  # c-store
    port: int = Field(default=104, ge=1, le=65535)
    called_aet: str = Field(default="PACS", pattern=AE_TITLE)
    calling_aet: str = Field(default="FEDTHORAX", pattern=AE_TITLE)
    ca_certificate: Path | None = None  # stow: default are the public authorities; c-store: if given, TLS is used
    certificate: Path | None = None  # client certificate, if the PACS requires one
    key: Path | None = None
    sr: bool = True
    picture: bool = True
    seg: bool = False  # lungs and counted opacities; off, because not every PACS accepts segmentations
    timeout_seconds: float = Field(default=60, gt=0)
    retry_seconds: float = Field(default=30, gt=0)
    fhir: FhirResultsTable | None = None
    hl7: Hl7ResultsTable | None = None

    @model_validator(mode="after")
    def the_way_is_set_up(self) -> Self:
        if self.send != "off":
            _ = self.pacs
        return self

    @property
    def pacs(self) -> PacsTable:
        """The PACS that receives the results. Raises pydantic's ValidationError if none is configured."""
        if self.by == "stow":
            return PacsTable(protocol="dicomweb", dicomweb=DicomWebTable.model_validate(self._given(DicomWebTable)))
        return PacsTable(protocol="dimse", dimse=DimseTable.model_validate(self._given(DimseTable)))

    def _given(self, table: type[BaseModel]) -> dict[str, Any]:
        return {name: value for name, value in self.model_dump().items() if name in table.model_fields}


class LabelsTable(BaseModel, extra="forbid"):
    """[labels]: whether PCR results, outcomes and decisions may be exported as labels for the node's next study."""

    export: bool = False


class ReceiverTable(BaseModel, extra="forbid"):
    """[receiver]: a DICOM receiver (C-STORE); what the PACS sends to it is scored."""

    enabled: bool = False
    aet: str = Field(default="FEDTHORAX", pattern=AE_TITLE)  # the receiver's title
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=11112, ge=1, le=65535)
    pacs_aet: str = Field(default="PACS", pattern=AE_TITLE)  # the only permitted sender
    quiet_seconds: float = Field(default=10, gt=0)  # a series without a new image for this time is complete
    certificate: Path | None = None  # of the receiver; if given, only TLS is accepted
    key: Path | None = None
    ca_certificate: Path | None = None  # the authority that must have signed the PACS's certificate
    without_tls: bool = False  # for other machines: any sender that uses the PACS's title, unencrypted

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if len({bool(path) for path in (self.certificate, self.key, self.ca_certificate)}) > 1:
            raise ValueError("certificate, key and ca_certificate belong together")
        if self.enabled and not (self.certificate or self.without_tls or is_loopback(self.host)):
            raise ValueError(
                "a host other than this machine needs certificate, key and ca_certificate, or without_tls = true"
            )
        return self


class ClinicSettings(BaseModel):
    """clinic.toml; configs/clinic.toml explains each line."""

    model_config = ConfigDict(extra="forbid")

    server: ServerTable = ServerTable()
    oidc: OidcTable | None = None
    limits: LimitsTable = LimitsTable()
    compute: ComputeTable = ComputeTable()
    keep: KeepTable = KeepTable()
    node: NodeTable | None = None
    pacs: PacsTable | None = None
    results: ResultsTable = ResultsTable()
    labels: LabelsTable = LabelsTable()
    receiver: ReceiverTable = ReceiverTable()

    @model_validator(mode="after")
    def the_pacs_is_named_once(self) -> Self:
        if self.node and self.pacs:
            raise ValueError("give either [node], whose [pacs] is used, or the clinic's own [pacs]")
        return self


@dataclass(frozen=True)
class Clinic:
    """An opened clinic. Paths in its settings are relative to its folder: `clinic.path(...)`."""

    folder: Path
    settings: ClinicSettings

    @classmethod
    def open(cls, folder: Path, *, host: str | None = None, port: int | None = None) -> "Clinic":
        """Open a clinic's folder. `host`, `port`: replace those of clinic.toml.

        An empty folder is a clinic with the default settings, and one with other files is none.

        Raises Refusal E_NO_CLINIC, E_CLINIC_FOLDER, E_CLINIC_IS_MODEL, E_FORMAT_NEWER, E_CLINIC_ADDRESS, and what
        `load_settings` raises.
        """
        folder = folder.resolve()
        path = folder / SETTINGS
        is_another = any((folder / name).exists() for name in _OF_OTHERS) and not path.exists()
        if not folder.is_dir() or is_another:
            raise Refusal(NO_CLINIC, private=str(folder))
        if not (path.exists() or (folder / FILE).exists()):
            _require_free(folder)
        check_folder(folder, "clinic")
        settings = load_settings(path, ClinicSettings) if path.exists() else ClinicSettings()
        given = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
        try:
            settings.server = ServerTable.model_validate({**settings.server.model_dump(), **given})
        except ValidationError as error:
            raise Refusal(CLINIC_ADDRESS) from error
        for name in FOLDERS:
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        return cls(folder, settings)

    def store(self) -> Store:
        """Open the clinic's store, once in each thread and process. Raises Refusal E_CLINIC_FILE."""
        return Store(self.folder)

    def path(self, named: Path) -> Path:
        """Return the path of a file that the settings name."""
        return self.folder / named

    @cached_property
    def node(self) -> Site | None:
        """The node whose PACS and laboratory the clinic uses. Raises what `Site.open` raises."""
        return Site.open(self.path(self.settings.node.folder)) if self.settings.node else None

    @property
    def pacs(self) -> tuple[PacsTable, Path] | None:
        """The PACS in which scans are searched, and the base folder of its relative paths."""
        if self.node:
            table = self.node.settings.pacs
            return (table, self.node.folder) if table else None
        return (self.settings.pacs, self.folder) if self.settings.pacs else None

    @property
    def scans(self) -> Path:
        return self.folder / "scans"

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def work(self) -> Path:
        return self.folder / "work"


def _require_free(folder: Path) -> None:
    """Check that a folder without a clinic's files can become a clinic: other files would be mixed with its own.

    In the folder of a signed model a single new file makes the signature invalid.
    """
    from models.release import DESCRIPTION
    from models.signature import SIGNATURE

    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    if names & {DESCRIPTION, SIGNATURE}:
        raise Refusal(CLINIC_IS_MODEL, private=str(folder))
    if names - _BEFORE_STORE:
        raise Refusal(CLINIC_FOLDER, private=str(folder))


def init_clinic(folder: Path) -> Clinic:
    """Create a clinic's folder, readable by its owner only, with the template of clinic.toml.

    Raises Refusal E_CLINIC_EXISTS, E_CLINIC_FOLDER, E_CLINIC_IS_MODEL.
    """
    import configs

    if (folder / SETTINGS).exists():
        raise Refusal(CLINIC_EXISTS, private=str(folder))
    if folder.is_dir() and not (folder / FILE).exists():
        _require_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    template = Path(configs.__file__).with_name(SETTINGS)
    (folder / SETTINGS).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    clinic = Clinic.open(folder)
    clinic.store().close()
    stamp_folder(folder, "clinic")
    return clinic
