"""Defines the table [fhir] of site.toml: the FHIR R4 server from which records are fetched.

site.toml never contains tokens or keys: it names files, relative to the site's folder.
"""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

from pipeline.system.addresses import is_loopback
from pipeline.system.days import Day

Origin = tuple[str, str, int]
_PORTS = {"https": 443, "http": 80}


def origin_of(url: str) -> Origin | None:
    """Return scheme, host and port of a URL; None if it is not a plain http(s) URL."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or "@" in parts.netloc:
            return None
        return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]
    except ValueError:
        return None


def _checked(address: str, *, is_open: bool = False) -> str:
    """Return a valid address; `is_open`: it may also be unencrypted on the network. Raises ValueError."""
    origin = origin_of(address)
    if address and origin is None:
        raise ValueError("must be like https://host:port/path, without user and password")
    if origin and not is_open and origin[0] != "https" and not is_loopback(origin[1]):
        raise ValueError("must begin with https, except on this machine")
    return address


class FhirTable(BaseModel, extra="forbid"):
    """[fhir]: address, access and limits; `method` is "search", or "export" for Bulk Data Access ($export)."""

    url: str = Field(min_length=1)
    method: Literal["search", "export"] = "search"
    from_date: Day | None = None  # search: only results of specimens since this day
    page_size: int = Field(default=200, ge=1, le=1000)
    group: str = Field(default="", pattern=r"^[A-Za-z0-9.\-]{0,64}$")  # export: id of a Group; empty: all patients
    file_origins: list[str] = []  # export: other servers from which files may be fetched
    token_file: Path | None = None  # a fixed bearer token
    token_url: str = ""  # or SMART backend services: where to get tokens
    client_id: str = ""
    client_key: Path | None = None  # our private key, RSA (RS384) or P-384 (ES384)
    key_id: str = ""
    scope: str = "system/*.read"
    ca_certificate: Path | None = None  # of the hospital's certificate authority; public authorities if None
    certificate: Path | None = None  # the node's certificate, if the server requires one
    key: Path | None = None
    proxy: str = ""
    timeout_seconds: float = Field(default=60, gt=0)  # without data from the server
    refresh_days: float = Field(default=7, gt=0)  # everything is fetched again after this time, else only changes
    retries: int = Field(default=5, ge=0)  # if the server does not respond or is busy
    max_pages: int = Field(default=20_000, ge=1)
    max_gb: float = Field(default=20, gt=0)  # of one fetch
    export_hours: float = Field(default=4, gt=0)  # to wait for an export; the next fetch continues to wait

    @field_validator("url", "token_url")
    @classmethod
    def is_an_address(cls, address: str) -> str:
        return _checked(address).rstrip("/")

    @field_validator("proxy")
    @classmethod
    def proxy_is_an_address(cls, address: str) -> str:
        return _checked(address, is_open=True)

    @field_validator("file_origins")
    @classmethod
    def origins_are_addresses(cls, addresses: list[str]) -> list[str]:
        if "" in addresses:
            raise ValueError("an address must not be empty")
        return [_checked(each) for each in addresses]

    @model_validator(mode="after")
    def has_one_way_in(self) -> Self:
        smart = (self.token_url, self.client_id, self.client_key)
        if any(smart) and not all(smart):
            raise ValueError("token_url, client_id and client_key belong together")
        if self.token_url and self.token_file:
            raise ValueError("give either token_file, or token_url with client_id and client_key")
        return self

    @model_validator(mode="after")
    def tls_is_whole(self) -> Self:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key belong together")
        if (self.ca_certificate or self.certificate) and not self.url.startswith("https:"):
            raise ValueError("ca_certificate and certificate need a url that begins with https")
        return self
