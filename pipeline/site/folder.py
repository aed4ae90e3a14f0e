"""A site: one hospital's folder, its settings (site.toml), its keys and its pseudonyms.

SITE_DIR/site.toml            what hospital IT edits
SITE_DIR/keys/                pseudonym.key, node key; never leaves, never shown
SITE_DIR/cohort/              cohort.sqlite, tensors, refusals.csv
SITE_DIR/logs/                what happened here, in full words
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
from models.refusal import Refusal
from models.settings import load_settings
from pipeline.records.join import JoinRules
from pipeline.records.labels import LabelsFile
from pipeline.records.laboratory import Laboratory
from pipeline.records.outcomes import OutcomeFile
from pipeline.site.pacs_settings import PacsTable
from pipeline.site.reasons import NO_SITE, SITE_EXISTS, SITE_KEY

Split = Literal["train", "validation", "test"]
# Shares of patients, by keyed hash: the first is tested on, the second calibrates, the rest is learnt from.
TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15
KEY_BYTES = 32


class SiteTable(BaseModel, extra="forbid"):
    """[site]"""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")
    source: Path = Path()  # folder against which the paths below are read; the site's own folder if empty
    min_patients: int = Field(default=10, ge=2)  # no figure over fewer patients leaves
    issuer: str = ""  # authority of the patient identifiers; empty: no file names another
    time_zone: str = ""  # IANA name; needed where the laboratory writes times with a zone

    @field_validator("time_zone")
    @classmethod
    def time_zone_is_known(cls, name: str) -> str:
        if name and name not in available_timezones():
            raise ValueError("no time zone has this name; Europe/Paris is one")
        return name


class CtTable(BaseModel, extra="forbid"):
    """[ct]"""

    folder: Path = Path("ct")


class ServerTable(BaseModel, extra="forbid"):
    """[server]: where the study's server is; empty until the node has joined one."""

    address: str = Field(default="", pattern=r"^$|^[A-Za-z0-9.\-\[\]:]+:\d{1,5}$")
    ca_certificate: Path = Path("keys/ca.crt")


class TrainingTable(BaseModel, extra="forbid"):
    """[training]"""

    threads: int = Field(default=0, ge=0)  # processor cores that a study may use here; 0 means all


class GatewayTable(BaseModel, extra="forbid"):
    """[gateway]: what a study may ask of this site, and how far its weights may move here."""

    own_app: bool = True  # the app that the installed release ships may run; any other by `node approve` alone
    studies: tuple[str, ...] = ()  # the release's own studies that may run; any other by `node approve-study` alone
    max_local_epochs: int = Field(default=10, ge=1)
    max_batch_size: int = Field(default=64, ge=1)
    min_batch_size: int = Field(default=4, ge=2)  # patients that a training step mixes
    min_local_steps: int = Field(default=4, ge=1)  # training steps that a round mixes
    require_augmentation: bool = True  # scans are changed at random in training
    max_rounds_a_day: int = Field(default=500, ge=1)
    max_rounds_a_month: int = Field(default=2000, ge=1)  # in 31 days
    max_missed_rounds: int = Field(default=5, ge=0)  # rounds that this site may miss and still accept the next model
    max_questions_a_month: int = Field(default=100, ge=0)  # answers about models, of all runs together, in 31 days
    max_update: float = Field(default=2.0, gt=0)  # length of an update, in lengths of the weights that came in
    histograms: bool = False  # counts of test patients by score may leave, none under min_patients
    embedding_statistics: bool = True  # means and variances of the network's features may leave

    @field_validator("studies")
    @classmethod
    def studies_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(names) - set(preset_files()):
            raise ValueError(
                f"no study of this release is called {', '.join(sorted(unknown))}; known are "
                f"{', '.join(preset_files())}"
            )
        return names


class SandboxTable(BaseModel, extra="forbid"):
    """[sandbox]: what keeps the study's code from the network and from the site's other files."""

    kind: Literal["bwrap", "systemd", "none"] = "bwrap"
    accepted_by: str = ""  # with "none": who accepted to run without, and why

    @model_validator(mode="after")
    def none_is_accepted(self) -> Self:
        if self.kind == "none" and not self.accepted_by.strip():
            raise ValueError('kind = "none" takes the name of whoever accepted it, and why, in accepted_by')
        return self


class PrivacyTable(BaseModel, extra="forbid"):
    """[privacy]: how much of a patient studies may ever learn here (differential privacy)."""

    required: bool = False  # only studies with [privacy] of their own may run
    max_epsilon: float = Field(default=8.0, gt=0, le=100)  # of all of them together, at delta = max_delta
    max_delta: float = Field(default=1e-4, gt=0, lt=1)


class SiteSettings(BaseModel):
    """site.toml; configs/site.toml explains each line."""

    model_config = ConfigDict(extra="forbid")

    site: SiteTable
    ct: CtTable = CtTable()
    pacs: PacsTable | None = None
    laboratory: Laboratory | None = None
    outcomes: OutcomeFile | None = None
    labels: LabelsFile | None = None
    join: JoinRules = JoinRules()
    server: ServerTable = ServerTable()
    training: TrainingTable = TrainingTable()
    gateway: GatewayTable = GatewayTable()
    sandbox: SandboxTable = SandboxTable()
    privacy: PrivacyTable = PrivacyTable()

    @model_validator(mode="after")
    def labels_come_one_way(self) -> Self:
        from_records = self.laboratory is not None and self.outcomes is not None
        if from_records == (self.labels is not None):
            raise ValueError("give [laboratory] and [outcomes], or [labels] in their place")
        if self.outcomes is not None and "icu" in self.join.severe_events and not self.outcomes.icu:
            raise ValueError("severe_events in [join] names icu, and [outcomes] names no column for it")
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
            E_NO_SITE, or what `load_settings` raises.
        """
        folder = folder.resolve()
        if not (folder / "site.toml").is_file():
            raise Refusal(NO_SITE, private=str(folder))
        settings = load_settings(folder / "site.toml", SiteSettings)
        source = folder / settings.site.source
        # Paths of site.toml are read against the source folder here, once, so that nobody else needs to know.
        settings.ct.folder = source / settings.ct.folder
        for table in (settings.laboratory, settings.outcomes, settings.labels):
            if table is not None:
                table.file = source / table.file
        return cls(folder, settings)

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

    @cached_property
    def _key(self) -> bytes:
        """Raises Refusal E_SITE_KEY; with an empty key anyone could make the pseudonyms."""
        path = self.folder / "keys" / "pseudonym.key"
        try:
            key = path.read_bytes()
        except OSError as error:
            raise Refusal(SITE_KEY, private=str(error)) from error
        if len(key) != KEY_BYTES:
            raise Refusal(SITE_KEY, private=str(path))
        return key

    def keyed(self, purpose: str, text: str) -> str:
        """64 hex digits that stand for a text, for one purpose; only this site can make them (HMAC-SHA-256).

        Raises Refusal E_SITE_KEY.
        """
        return hmac.new(self._key, f"{purpose}|{text}".encode(), hashlib.sha256).hexdigest()

    @property
    def ct_folder(self) -> Path:
        """Where the series are: fetched from the PACS, or as the hospital exports them."""
        return self.folder / "pacs" if self.settings.pacs else self.settings.ct.folder

    def pseudonym(self, patient_id: str) -> str:
        """16 hex digits that stand for the patient wherever something is shown; only this site can make them.

        Raises Refusal E_SITE_KEY, as `split` does.
        """
        return self.keyed("pseudonym", patient_id)[:16]

    def split(self, pseudonym: str) -> Split:
        """Where the patient belongs, fixed for good by the keyed hash."""
        place = int(self.keyed("split", pseudonym)[:8], 16) / 2**32
        if place < TEST_SHARE:
            return "test"
        return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def init_site(folder: Path, settings_text: str, *, key: bytes | None = None) -> Site:
    """Make a site folder with its settings and a new pseudonym key, readable by its owner alone.

    `key` is given for synthetic hospitals only, where splits must follow from the seed. Raises Refusal E_SITE_EXISTS.
    """
    if (folder / "site.toml").exists():
        raise Refusal(SITE_EXISTS, private=str(folder))
    (folder / "keys").mkdir(parents=True, exist_ok=True)
    for private in (folder, folder / "keys"):
        private.chmod(0o700)
    (folder / "logs").mkdir(exist_ok=True)
    with suppress(FileExistsError):  # a key that is there stays: a new one would rename every patient
        descriptor = os.open(folder / "keys" / "pseudonym.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key or secrets.token_bytes(KEY_BYTES))
    (folder / "site.toml").write_text(settings_text, encoding="utf-8")
    return Site.open(folder)


# What a synthetic hospital's site.toml says of studies.
SYNTHETIC_STUDIES = f"""[gateway]
studies = {json.dumps(list(preset_files()))}
"""


def site_settings(source: Path | None, *, name: str, server: str = "", threads: int = 0) -> str:
    """The text of a new site.toml.

    With `source`, a folder of the hospital's files that has a site.toml of its own (synthetic hospitals have), that
    file is taken over; else it is the template, which hospital IT then edits.
    """
    import configs

    template = source / "site.toml" if source and (source / "site.toml").is_file() else None
    text = (template or Path(configs.__file__).with_name("site.toml")).read_text(encoding="utf-8")
    if template is None:
        text = text.replace('name = "my-hospital"', f'name = "{name}"')
        text = text.replace('address = ""', f'address = "{server}"').replace("threads = 0", f"threads = {threads}")
        return text if source is None else _with_source(text, source)
    text += f'\n[server]\naddress = "{server}"\n\n[training]\nthreads = {threads}\n'
    assert source is not None
    return _with_source(text, source)


def _with_source(text: str, source: Path) -> str:
    return text.replace("[site]\n", f"[site]\nsource = {json.dumps(str(source.resolve()))}\n", 1)
