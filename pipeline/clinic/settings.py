"""A clinic: one folder with its settings (clinic.toml) and all that the service keeps.

clinic.toml       what hospital IT edits; without it the defaults hold
clinic.sqlite     queue, answers, models, tokens, record (see `store.py`)
scans, received   what waits to be scored, and what the PACS is still sending
answers           one folder for each answer
models            verified releases
logs              what happened here, in full words
work              where the worker unpacks and writes; cleared whenever one starts
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.refusal import Refusal
from models.settings import load_settings
from pipeline.clinic.reasons import CLINIC_ADDRESS, CLINIC_EXISTS, NO_CLINIC
from pipeline.clinic.store import LEAST_AUDIT_DAYS, Store
from pipeline.site.folder import Site
from pipeline.site.pacs_settings import AE_TITLE, DicomWebTable, DimseTable, PacsTable, is_loopback

SETTINGS = "clinic.toml"
FOLDERS = ("scans", "answers", "models", "logs", "work")


class ServerTable(BaseModel, extra="forbid"):
    """[server]: where browsers find the page."""

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8765, ge=1, le=65535)
    names: list[str] = []  # by which browsers call it, besides localhost and `host`
    certificate: Path | None = None
    key: Path | None = None
    without_tls: bool = False  # beyond this machine: a proxy in front of it does TLS
    session_hours: float = Field(default=12, gt=0, le=168)

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
        if not (self.certificate or self.without_tls or is_loopback(self.host)):
            raise ValueError("a host beyond this machine takes certificate and key, or without_tls = true")
        return self


class LimitsTable(BaseModel, extra="forbid"):
    """[limits]: what one request, and all of them, may take."""

    upload_mb: int = Field(default=2000, ge=1)  # of one scan
    waiting_scans: int = Field(default=200, ge=1)
    requests_per_minute: int = Field(default=600, ge=1)  # of one token or address
    scoring_seconds: int = Field(default=300, ge=1)  # of one scan, after which its worker is ended
    worker_mb: int = Field(default=3000, ge=1000)  # of the worker's memory


class KeepTable(BaseModel, extra="forbid"):
    """[keep]: for how long."""

    answers_days: int = Field(default=0, ge=0)  # 0: for ever
    audit_days: int = Field(default=LEAST_AUDIT_DAYS, ge=LEAST_AUDIT_DAYS)
    uploads: bool = False  # scans after they were answered, as long as their answers


class NodeTable(BaseModel, extra="forbid"):
    """[node]: a node's site folder, whose [pacs] and [laboratory] the clinic uses too."""

    folder: Path


class ResultsTable(BaseModel, extra="forbid"):
    """[results]: what goes back to the PACS."""

    send: Literal["off", "on_request", "always"] = "off"
    by: Literal["stow", "c-store"] = "stow"
    url: str = ""  # stow: what comes before /studies
    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    host: str = ""  # c-store
    port: int = Field(default=104, ge=1, le=65535)
    called_aet: str = Field(default="PACS", pattern=AE_TITLE)
    calling_aet: str = Field(default="FEDTHORAX", pattern=AE_TITLE)
    ca_certificate: Path | None = None  # stow: else the public ones; c-store: given, TLS
    certificate: Path | None = None  # ours, which the PACS may ask for
    key: Path | None = None
    sr: bool = True
    picture: bool = True
    timeout_seconds: float = Field(default=60, gt=0)
    retry_seconds: float = Field(default=30, gt=0)

    @model_validator(mode="after")
    def the_way_is_set_up(self) -> Self:
        if self.send != "off":
            _ = self.pacs
        return self

    @property
    def pacs(self) -> PacsTable:
        """The PACS to which results go. Raises pydantic's ValidationError where none is set up."""
        if self.by == "stow":
            return PacsTable(protocol="dicomweb", dicomweb=DicomWebTable.model_validate(self._given(DicomWebTable)))
        return PacsTable(protocol="dimse", dimse=DimseTable.model_validate(self._given(DimseTable)))

    def _given(self, table: type[BaseModel]) -> dict[str, Any]:
        return {name: value for name, value in self.model_dump().items() if name in table.model_fields}


class ReceiverTable(BaseModel, extra="forbid"):
    """[receiver]: a DICOM receiver (C-STORE) that scores what the PACS sends."""

    enabled: bool = False
    aet: str = Field(default="FEDTHORAX", pattern=AE_TITLE)  # ours
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=11112, ge=1, le=65535)
    pacs_aet: str = Field(default="PACS", pattern=AE_TITLE)  # who may send
    quiet_seconds: float = Field(default=10, gt=0)  # without a further image, after which a series counts as whole
    certificate: Path | None = None  # ours; given: TLS alone
    key: Path | None = None
    ca_certificate: Path | None = None  # the authority whose certificate the PACS must show
    without_tls: bool = False  # beyond this machine: images may come in the clear, from whoever names the PACS

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if len({bool(path) for path in (self.certificate, self.key, self.ca_certificate)}) > 1:
            raise ValueError("certificate, key and ca_certificate belong together")
        if self.enabled and not (self.certificate or self.without_tls or is_loopback(self.host)):
            raise ValueError(
                "a host beyond this machine takes certificate, key and ca_certificate, or without_tls = true"
            )
        return self


class ClinicSettings(BaseModel):
    """clinic.toml; configs/clinic.toml explains each line."""

    model_config = ConfigDict(extra="forbid")

    server: ServerTable = ServerTable()
    limits: LimitsTable = LimitsTable()
    keep: KeepTable = KeepTable()
    node: NodeTable | None = None
    pacs: PacsTable | None = None
    results: ResultsTable = ResultsTable()
    receiver: ReceiverTable = ReceiverTable()

    @model_validator(mode="after")
    def the_pacs_is_named_once(self) -> Self:
        if self.node and self.pacs:
            raise ValueError("give [node], whose [pacs] is used, or a [pacs] of the clinic's own")
        return self


@dataclass(frozen=True)
class Clinic:
    """An opened clinic's folder. Paths in its settings are read against the folder: `clinic.path(...)`."""

    folder: Path
    settings: ClinicSettings

    @classmethod
    def open(cls, folder: Path, *, host: str | None = None, port: int | None = None) -> "Clinic":
        """`host`, `port`: in place of those of clinic.toml.

        Raises Refusal E_NO_CLINIC, E_CLINIC_ADDRESS, and what `load_settings` raises.
        """
        folder = folder.resolve()
        if not folder.is_dir():
            raise Refusal(NO_CLINIC, private=str(folder))
        path = folder / SETTINGS
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
        """The clinic's store, to be opened anew by each thread and process. Raises Refusal E_CLINIC_FILE."""
        return Store(self.folder)

    def path(self, named: Path) -> Path:
        """A file that the settings name."""
        return self.folder / named

    @cached_property
    def node(self) -> Site | None:
        """The node whose PACS and laboratory are used. Raises what `Site.open` raises."""
        return Site.open(self.path(self.settings.node.folder)) if self.settings.node else None

    @property
    def pacs(self) -> tuple[PacsTable, Path] | None:
        """The PACS that scans are chosen from, and the folder against which its paths are read."""
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


def init_clinic(folder: Path) -> Clinic:
    """Make a clinic's folder, for its owner's eyes alone, with the template of clinic.toml.

    Raises Refusal E_CLINIC_EXISTS.
    """
    import configs

    if (folder / SETTINGS).exists():
        raise Refusal(CLINIC_EXISTS, private=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    template = Path(configs.__file__).with_name(SETTINGS)
    (folder / SETTINGS).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    clinic = Clinic.open(folder)
    clinic.store().close()
    return clinic
