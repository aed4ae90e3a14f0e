"""Opens a site: one hospital's folder, its settings (site.toml), its keys and its pseudonyms.

SITE_DIR/site.toml            settings that hospital IT edits
SITE_DIR/keys/                pseudonym.key, node key; never leave the site, are never shown
SITE_DIR/cohort/              cohort.sqlite, tensors, refusals.csv
SITE_DIR/logs/                logs with full detail
"""

import hashlib
import hmac
import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from configs import preset_files
from models.compute_settings import ComputeSettings
from models.refusal import Refusal
from models.settings import load_settings, parse_settings, read_settings, with_value
from pipeline.records.join import JoinRules
from pipeline.records.labels import LabelsFile
from pipeline.records.laboratory import FhirLaboratory, Hl7Laboratory, Laboratory
from pipeline.records.outcomes import FhirOutcomes, OmopOutcomes, Outcomes
from pipeline.site.fhir_settings import FhirTable
from pipeline.site.omop_settings import OmopTable
from pipeline.site.pacs_settings import PacsTable
from pipeline.site.reasons import NO_SITE, SITE_EXISTS, SITE_KEY, SITE_NOT_MADE
from pipeline.system.folder_format import FILE as FORMAT_FILE
from pipeline.system.folder_format import check_folder, stamp_folder

Split = Literal["train", "validation", "test"]
# Shares of patients for testing and for validation (calibration), by keyed hash; the others are for training.
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15
KEY_BYTES = 32
NAME = r"^[a-z0-9][a-z0-9-]{0,39}$"
ADDRESS = r"^$|^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$"  # of the study's server; empty if it is not known yet
UNNAMED = "my-hospital"  # the name of a new site, until hospital IT changes it


class SiteTable(BaseModel, extra="forbid"):
    """[site]: the site's name and rules for its data."""

    name: str = Field(pattern=NAME)
    source: Path = Path()  # folder to which the paths below are relative; the site's folder if empty
    min_patients: int = Field(default=10, ge=2)  # figures over fewer patients do not leave the site
    unlabelled_patients: bool = False  # keep patients with a CT and no label. See `has_labels`
    issuer: str = ""  # authority of the patient identifiers; empty if all files use only one
    time_zone: str = ""  # IANA name; needed if records or scans have times with a zone

    @field_validator("time_zone")
    @classmethod
    def time_zone_is_known(cls, name: str) -> str:
        if name and name not in available_timezones():
            raise ValueError("no time zone has this name; an example is Europe/Paris")
        return name


class CtTable(BaseModel, extra="forbid"):
    """[ct]: where the CT series are, and the hospital's own lung masks of them."""

    folder: Path = Path("ct")
    lung_masks: Path | None = None

    @model_validator(mode="after")
    def masks_are_apart(self) -> Self:
        scans, masks = os.path.normpath(self.folder), self.lung_masks
        if masks is not None and Path(os.path.normpath(masks)).is_relative_to(scans):
            raise ValueError("lung_masks must be outside of `folder`, whose volume files count as scans")
        return self


class ServerTable(BaseModel, extra="forbid"):
    """[server]: address of the study's server; empty until the node has joined one."""

    address: str = Field(default="", pattern=ADDRESS)
    ca_certificate: Path = Path("keys/ca.crt")
    proxy: str = Field(default="", pattern=r"^$|^http://[^\s/@]+/?$")  # HTTP proxy; empty: HTTPS_PROXY decides


class TrainingTable(BaseModel, extra="forbid"):
    """[training]: resources for training."""

    threads: int = Field(default=0, ge=0)  # processor cores that a study may use; 0 means all


MONTH_SECONDS = 31 * 24 * 3600.0  # of the limits "in a month"


class GatewayTable(BaseModel, extra="forbid"):
    """[gateway]: what a study may request from this site, and how far a round may change its weights."""

    own_app: bool = True  # the app of the installed release may run; other apps need `node approve`
    studies: tuple[str, ...] = ()  # studies of the release that may run; other studies need `node approve-study`
    max_local_epochs: int = Field(default=10, ge=1)
    max_batch_size: int = Field(default=64, ge=1)
    min_batch_size: int = Field(default=4, ge=2)  # least number of patients in a training step
    min_local_steps: int = Field(default=4, ge=1)  # least number of training steps in a round
    require_augmentation: bool = True  # training must change scans at random
    max_rounds_a_day: int = Field(default=500, ge=1)
    max_rounds_a_month: int = Field(default=2000, ge=1)  # in 31 days
    max_pretraining_rounds_a_month: int = Field(default=0, ge=0)  # in 31 days, on patients without labels too; 0: none
    max_missed_rounds: int = Field(default=5, ge=0)  # rounds that this site may miss and still accept the next model
    max_questions_a_month: int = Field(default=100, ge=0)  # answers about models in 31 days, over all runs
    max_update: float = Field(default=2.0, gt=0, allow_inf_nan=False)  # norm of an update over that of the weights
    histograms: bool = False  # counts of test patients by score may leave the site, but none under min_patients
    embedding_statistics: bool = True  # means and variances of the network's features may leave the site
    require_secure_aggregation: bool = False  # no update leaves the site unless the study sums masked updates
    min_peers: int = Field(default=3, ge=3)  # least number of approved hospitals in a masked round
    max_sum_changes: int = Field(default=6, ge=0)  # how often the hospitals in the sum may change in a study

    @field_validator("studies")
    @classmethod
    def studies_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(names) - set(preset_files()):
            raise ValueError(
                f"this release has no study named {', '.join(sorted(unknown))}; its studies are "
                f"{', '.join(preset_files())}"
            )
        return names

    @model_validator(mode="after")
    def some_batch_is_allowed(self) -> Self:
        if self.min_batch_size > self.max_batch_size:
            raise ValueError("min_batch_size is larger than max_batch_size: every study would be refused")
        return self


class SandboxTable(BaseModel, extra="forbid"):
    """[sandbox]: how the study's code is isolated from the network and from other files of the site."""

    kind: Literal["bwrap", "systemd", "container", "none"] = "bwrap"
    accepted_by: str = ""  # with "none": who accepted to run without a sandbox, and why

    @model_validator(mode="after")
    def none_is_accepted(self) -> Self:
        if self.kind == "none" and not self.accepted_by.strip():
            raise ValueError('kind = "none" needs accepted_by: who accepted it, and why')
        return self


class PrivacyTable(BaseModel, extra="forbid"):
    """[privacy]: total privacy budget of all studies at this site (differential privacy)."""

    required: bool = False  # only studies with a table [privacy] may run
    max_epsilon: float = Field(default=8.0, gt=0, le=100)  # over all studies, at delta = max_delta
    max_delta: float = Field(default=1e-4, gt=0, le=1e-3)  # near 1 / patients it protects nobody


class MonitoringTable(BaseModel, extra="forbid"):
    """[monitoring]: health and metrics of the running node, on this machine only."""

    port: int = Field(default=0, ge=0, le=65535)  # 0: none are served


class SiteSettings(BaseModel):
    """The settings in site.toml; configs/site.toml explains each line."""

    model_config = ConfigDict(extra="forbid")

    site: SiteTable
    ct: CtTable = CtTable()
    pacs: PacsTable | None = None
    fhir: FhirTable | None = None
    omop: OmopTable | None = None
    laboratory: Laboratory | None = None
    outcomes: Outcomes | None = None
    labels: LabelsFile | None = None
    join: JoinRules = JoinRules()
    server: ServerTable = ServerTable()
    training: TrainingTable = TrainingTable()
    compute: ComputeSettings = ComputeSettings()
    gateway: GatewayTable = GatewayTable()
    sandbox: SandboxTable = SandboxTable()
    privacy: PrivacyTable = PrivacyTable()
    monitoring: MonitoringTable = MonitoringTable()

    @property
    def has_labels(self) -> bool:
        """Whether the site gives labels at all: False for a hospital with chest CT only."""
        return self.laboratory is not None or self.labels is not None

    @model_validator(mode="after")
    def tables_fit_together(self) -> Self:
        records = (self.laboratory is not None, self.outcomes is not None)
        if any(records) and (not all(records) or self.labels is not None):
            raise ValueError("give either [laboratory] and [outcomes], or [labels]")
        if not self.has_labels and not self.site.unlabelled_patients:
            raise ValueError(
                "give [laboratory] and [outcomes], or [labels]; a hospital with chest CT only instead sets "
                "unlabelled_patients = true in [site]"
            )
        if not self.has_labels and (self.fhir or self.omop):
            raise ValueError("[fhir] and [omop] need [laboratory] and [outcomes]")
        fetches_results = isinstance(self.laboratory, FhirLaboratory) and self.laboratory.file is None
        fetches_events = isinstance(self.outcomes, FhirOutcomes) and self.outcomes.file is None
        if (fetches_results or fetches_events) and self.fhir is None:
            raise ValueError('format = "fhir" in [laboratory] or [outcomes] needs `file`, or the table [fhir]')
        if fetches_events and not fetches_results and self.fhir and self.fhir.method == "search":
            raise ValueError('a search for outcomes needs the laboratory\'s results from [fhir], or method = "export"')
        if isinstance(self.outcomes, OmopOutcomes) and (self.omop is None or self.outcomes.file is not None):
            raise ValueError('format = "omop" in [outcomes] needs the table [omop], and no `file`')
        if self.pacs is not None and self.ct.lung_masks is not None:
            raise ValueError("lung_masks in [ct] cannot be used with [pacs], which replaces the UIDs of the series")
        if self.outcomes is not None and "icu" in self.join.severe_events and not self.outcomes.names_icu:
            raise ValueError("severe_events in [join] contains icu, but [outcomes] names no column or codes for it")
        return self


@dataclass(frozen=True)
class Site:
    """An opened site folder; open one with `Site.open(folder)`.

    Parameters
    ----------
    folder : Path
        The folder that holds site.toml, keys and the cohort.
    settings : SiteSettings
        The content of site.toml.
    """

    folder: Path
    settings: SiteSettings

    @classmethod
    def open(cls, folder: Path) -> "Site":
        """Open a site folder and read its settings.

        Parameters
        ----------
        folder : Path
            The folder that holds site.toml.

        Returns
        -------
        Site
            The opened site.

        Raises
        ------
        Refusal
            E_NO_SITE, E_FORMAT_NEWER, or what `load_settings` raises.
        """
        folder = folder.resolve()
        if not (folder / "site.toml").is_file():
            raise Refusal(NO_SITE, private=str(folder))
        check_folder(folder, "site")
        settings = load_settings(folder / "site.toml", SiteSettings)
        source = folder / settings.site.source
        # Resolve all paths of site.toml against the source folder here, once.
        settings.ct.folder = source / settings.ct.folder
        if settings.ct.lung_masks is not None:
            settings.ct.lung_masks = source / settings.ct.lung_masks
        for table in (settings.laboratory, settings.outcomes, settings.labels):
            if table is not None and table.file is not None:
                table.file = source / table.file
        if isinstance(settings.laboratory, Hl7Laboratory) and settings.laboratory.listener is not None:
            settings.laboratory.listener.queue = folder / settings.laboratory.listener.queue
        site = cls(folder, settings)
        if isinstance(settings.laboratory, FhirLaboratory) and settings.laboratory.file is None:
            settings.laboratory.file = site.fhir_store
        if isinstance(settings.outcomes, FhirOutcomes) and settings.outcomes.file is None:
            settings.outcomes.file = site.fhir_store
        if isinstance(settings.outcomes, OmopOutcomes):
            settings.outcomes.file = site.omop_events
        return site

    @property
    def name(self) -> str:
        return self.settings.site.name

    @property
    def cohort_folder(self) -> Path:
        return self.folder / "cohort"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def node_key(self) -> Path:
        return self.folder / "keys" / "node"

    @property
    def ca_certificate(self) -> Path:
        return self.folder / self.settings.server.ca_certificate

    def require_made(self) -> None:
        """Refuse a folder of a hospital's files that was mistaken for its site. Raises Refusal E_SITE_NOT_MADE."""
        if not any(os.path.lexists(self.folder / name) for name in ("keys", FORMAT_FILE, "cohort")):
            raise Refusal(SITE_NOT_MADE, private=str(self.folder))

    @cached_property
    def _key(self) -> bytes:
        """The pseudonym key. Raises Refusal E_SITE_KEY, because with an empty key anyone could compute pseudonyms."""
        self.require_made()
        path = self.folder / "keys" / "pseudonym.key"
        try:
            key = path.read_bytes()
        except OSError as error:
            raise Refusal(SITE_KEY, private=str(error)) from error
        if len(key) != KEY_BYTES:
            raise Refusal(SITE_KEY, private=str(path))
        return key

    def keyed(self, purpose: str, text: str) -> str:
        """Return 64 hex digits that represent a text for one purpose; only this site can compute them (HMAC-SHA-256).

        Raises Refusal E_SITE_KEY.
        """
        return hmac.new(self._key, f"{purpose}|{text}".encode(), hashlib.sha256).hexdigest()

    @property
    def ct_folder(self) -> Path:
        """Folder of the series: fetched from the PACS, or exported by the hospital."""
        return self.folder / "pacs" if self.settings.pacs else self.settings.ct.folder

    @property
    def fhir_store(self) -> Path:
        """File of the resources that were fetched from the FHIR server."""
        return self.folder / "fhir" / "resources.sqlite"

    @property
    def omop_events(self) -> Path:
        """File of the events that were fetched from the OMOP database."""
        return self.folder / "omop" / "events.ndjson"

    def pseudonym(self, patient_id: str) -> str:
        """Return the 16 hex digits that represent the patient in all output; only this site can compute them.

        Raises Refusal E_SITE_KEY, as `split` does.
        """
        return self.keyed("pseudonym", patient_id)[:16]

    def split(self, pseudonym: str) -> Split:
        """Return the split of the patient, which the keyed hash determines permanently."""
        place = int(self.keyed("split", pseudonym)[:8], 16) / 2**32
        if place < TEST_SHARE:
            return "test"
        return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def init_site(folder: Path, settings_text: str, *, key: bytes | None = None) -> Site:
    """Make a site folder with its settings and a new pseudonym key, which only its owner may read.

    Only synthetic hospitals and public data sets give `key`, so that their splits can be repeated.
    Raises Refusal: E_SITE_EXISTS, E_SETTINGS_SYNTAX, E_SETTINGS_KEY, and then writes nothing.
    """
    if (folder / "site.toml").exists():
        raise Refusal(SITE_EXISTS, private=str(folder))
    parse_settings(settings_text, SiteSettings, file="site.toml")
    (folder / "keys").mkdir(parents=True, exist_ok=True)
    for private in (folder, folder / "keys"):
        private.chmod(0o700)
    (folder / "logs").mkdir(exist_ok=True)
    with suppress(FileExistsError):  # keep an existing key: a new one would rename every patient
        descriptor = os.open(folder / "keys" / "pseudonym.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key or secrets.token_bytes(KEY_BYTES))
    (folder / "site.toml").write_text(settings_text, encoding="utf-8")
    stamp_folder(folder, "site")
    return Site.open(folder)


# The table [gateway] of a synthetic hospital's site.toml.
SYNTHETIC_STUDIES = f"""[gateway]
studies = {json.dumps(list(preset_files()))}
"""


def site_settings(source: Path | None, *, name: str, server: str = "", threads: int = 0, ct_only: bool = False) -> str:
    """Make the text of a new site.toml. `ct_only`: for a hospital without laboratory results and outcomes.

    If the folder `source` with the hospital's files contains a site.toml, as in synthetic hospitals, that file is used,
    and only `server` and `threads`, if given, are set in it. Otherwise it is the template, for hospital IT to edit.

    Raises Refusal: E_SETTINGS_SYNTAX, E_SETTINGS_KEY, E_SETTINGS_FORM.
    """
    import configs

    template = source / "site.toml" if source and (source / "site.toml").is_file() else None
    text = read_settings(template or Path(configs.__file__).with_name("site.toml"))
    if template is None:
        text = _without_labels(text) if ct_only else text
        text = text.replace('name = "my-hospital"', f'name = "{name}"')
        text = text.replace('address = ""', f'address = "{server}"').replace("threads = 0", f"threads = {threads}")
        return text if source is None else _with_source(text, source)
    assert source is not None
    kept = parse_settings(text, SiteSettings, file="site.toml")  # as written, so that errors name its own lines
    if server:
        text = with_value(text, "server", "address", json.dumps(server))
    if threads:
        text = with_value(text, "training", "threads", str(threads))
    return _with_source(text, source / kept.site.source)


def _without_labels(text: str) -> str:
    """Return the template with its tables of labels as comments, and with patients without labels kept."""
    before, tables = text.split("[laboratory]\n", 1)
    labels, after = tables.split("[join]\n", 1)
    lines = "".join(f"# {line}" if line.strip() else line for line in f"[laboratory]\n{labels}".splitlines(True))
    kept = before.replace("unlabelled_patients = false", "unlabelled_patients = true")
    return f"{kept}{lines}[join]\n{after}"


def _with_source(text: str, source: Path) -> str:
    return with_value(text, "site", "source", json.dumps(str(source.resolve()), ensure_ascii=False))
