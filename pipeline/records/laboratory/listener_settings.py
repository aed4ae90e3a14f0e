"""Defines the table [laboratory.listener] of site.toml: results that the laboratory sends over the network."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, IPvAnyNetwork, model_validator

from pipeline.system.addresses import is_loopback


class ListenerTable(BaseModel, extra="forbid"):
    """[laboratory.listener]: receive HL7 v2 messages over MLLP with `fedthorax node listen`.

    `certificate`, `key` and `ca_certificate` are relative to the site's folder, as is `queue`.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=2575, ge=1, le=65535)  # IANA's port for HL7
    peers: list[IPvAnyNetwork] = []  # addresses and networks that may connect; empty only on loopback
    queue: Path = Path("results")  # folder of the received messages
    certificate: Path | None = None  # of the listener; if given, only TLS is accepted
    key: Path | None = None
    ca_certificate: Path | None = None  # the authority that must have signed the senders' certificates
    without_tls: bool = False  # for other machines: messages are then not encrypted on the network
    max_message_mb: float = Field(default=4, gt=0, le=15)
    max_connections: int = Field(default=16, ge=1, le=1000)
    message_seconds: float = Field(default=30, gt=0)  # from the first byte of a message to its last
    idle_seconds: float = Field(default=3600, gt=0)  # between two messages of a connection
    keep_free_gb: float = Field(default=1, ge=0)  # free space that is kept on the disk

    @model_validator(mode="after")
    def nothing_comes_in_the_clear(self) -> Self:
        if len({bool(path) for path in (self.certificate, self.key, self.ca_certificate)}) > 1:
            raise ValueError("certificate, key and ca_certificate belong together")
        if is_loopback(self.host):
            return self
        if not (self.certificate or self.without_tls):
            raise ValueError(
                "a host other than this machine needs certificate, key and ca_certificate, or without_tls = true"
            )
        if not self.peers:
            raise ValueError("a host other than this machine needs peers: the addresses that may connect")
        return self
