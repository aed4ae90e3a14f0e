"""Defines the table [pacs] of site.toml; configs/site.toml explains each line.

site.toml never contains passwords, tokens or keys: it names files, relative to the site's folder.
"""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

from models.refusal import Refusal
from pipeline.site import reasons
from pipeline.system.addresses import is_loopback
from pipeline.system.days import Day

AE_TITLE = r"^[ -\[\]-~]{1,16}$"  # printable, without backslash (DICOM PS3.5, 6.2)


class DicomWebTable(BaseModel, extra="forbid"):
    """[pacs.dicomweb]: QIDO-RS and WADO-RS under one URL."""

    url: str
    user: str = ""
    password_file: Path | None = None
    token_file: Path | None = None
    ca_certificate: Path | None = None  # of the hospital's certificate authority; public authorities if None
    certificate: Path | None = None  # the node's certificate, if the PACS requires one
    key: Path | None = None
    proxy: str = ""
    timeout_seconds: float = Field(default=60, gt=0)

    @field_validator("url", "proxy")
    @classmethod
    def is_an_address(cls, address: str) -> str:
        """Check an address; the proxy may be empty, and neither may contain a password."""
        parts = urlsplit(address)
        if address and (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc):
            raise ValueError("must be like https://host:port/path, without user and password")
        return address

    @model_validator(mode="after")
    def has_one_way_in(self) -> Self:
        if not self.url:
            raise ValueError("url must not be empty")
        if bool(self.user) != bool(self.password_file):
            raise ValueError("user and password_file belong together")
        if self.user and self.token_file:
            raise ValueError("give either user and password_file, or token_file")
        return self

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
        if (self.ca_certificate or self.certificate) and not self.url.lower().startswith("https:"):
            raise ValueError("ca_certificate and certificate need a url that begins with https")
        return self


class DimseTable(BaseModel, extra="forbid"):
    """[pacs.dimse]: C-FIND, then C-GET or C-MOVE.

    With C-MOVE the PACS opens connections to `receiver_port` here and must know this node's title, host and port.
    """

    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    called_aet: str = Field(pattern=AE_TITLE)  # AE title of the PACS
    calling_aet: str = Field(default="FEDTHORAX", pattern=AE_TITLE)  # AE title of the node
    retrieve: Literal["c-get", "c-move"] = "c-get"
    receiver_host: str = "127.0.0.1"  # address on which the node listens for C-MOVE
    receiver_port: int = Field(default=11112, ge=1, le=65535)
    receiver_without_tls: bool = False  # accept unencrypted images from other machines, from any sender
    ca_certificate: Path | None = None  # if set: use TLS and trust only certificates of this authority
    certificate: Path | None = None  # the node's certificate, if the PACS requires one
    key: Path | None = None
    connect_seconds: float = Field(default=30, gt=0)
    timeout_seconds: float = Field(default=60, gt=0)  # without a response, within an association

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
        if self.certificate and not self.ca_certificate:
            raise ValueError("certificate needs ca_certificate, to verify the PACS")
        if self.ca_certificate and self.retrieve == "c-move" and not self.certificate:
            raise ValueError("c-move over TLS needs certificate and key for the receiver")
        return self

    @model_validator(mode="after")
    def nothing_comes_in_the_clear(self) -> Self:
        is_open = self.retrieve == "c-move" and not is_loopback(self.receiver_host)
        if is_open and not (self.ca_certificate or self.receiver_without_tls):
            raise ValueError(
                "a receiver_host that other machines can reach needs ca_certificate, certificate and key, "
                "or receiver_without_tls = true"
            )
        return self


class Filters(BaseModel, extra="forbid"):
    """[pacs.filters]: which series are fetched; dates are study dates, inclusive."""

    modality: str = "CT"
    body_parts: list[str] = []  # any if empty; "" matches a series without a body part in the PACS
    from_date: Day | None = None
    to_date: Day | None = None
    accessions: Path | None = None  # a text file with one accession number in each line

    @model_validator(mode="after")
    def days_are_in_order(self) -> Self:
        if self.from_date and self.to_date and self.from_date > self.to_date:
            raise ValueError("from_date is after to_date")
        return self


class Limits(BaseModel, extra="forbid"):
    """[pacs.limits]: limits on the load of the PACS, the network and the disk."""

    megabytes_per_second: float = Field(default=0, ge=0)  # 0: no limit
    retries: int = Field(default=5, ge=0)  # if the PACS does not respond
    retry_seconds: float = Field(default=2, ge=0)  # wait before the first retry; doubled for each further one
    keep_free_gb: float = Field(default=10, ge=0)  # free space that is kept on the disk


class PacsTable(BaseModel, extra="forbid"):
    """[pacs]: how to fetch series from the PACS."""

    protocol: Literal["dicomweb", "dimse"]
    dicomweb: DicomWebTable | None = None
    dimse: DimseTable | None = None
    filters: Filters = Filters()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def the_protocol_is_set_up(self) -> Self:
        if getattr(self, self.protocol) is None:
            raise ValueError(f"the table [pacs.{self.protocol}] is missing")
        return self


def named_file(path: Path) -> Path:
    """Return the path if it is a readable file. Raises Refusal E_PACS_FILE."""
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise Refusal(reasons.PACS_FILE, private=str(error)) from error


def read_secret(path: Path) -> str:
    """Read a password or token: the first line of a file that only its owner may read.

    Raises Refusal E_PACS_FILE.
    """
    try:
        secret = named_file(path).read_text(encoding="utf-8").partition("\n")[0].strip()
    except UnicodeDecodeError:
        raise Refusal(reasons.PACS_FILE, private=f"{path}: not a line of text") from None
    if path.stat().st_mode & 0o077:
        raise Refusal(reasons.PACS_FILE, private=f"{path}: others may read it")
    if not secret:
        raise Refusal(reasons.PACS_FILE, private=f"{path}: empty")
    return secret
