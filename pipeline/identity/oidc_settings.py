"""The table [oidc] of clinic.toml: the hospital's provider of identities (OpenID Connect), and who gets which role.

clinic.toml never contains the client's secret: it names a file, relative to the clinic's folder.
"""

from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, field_validator, model_validator

from pipeline.site.fhir_settings import origin_of
from pipeline.system.addresses import is_loopback


def is_safe_address(address: str) -> bool:
    """Whether a URL uses https, or http on this machine, and contains no user and no password."""
    origin = origin_of(address)
    return origin is not None and (origin[0] == "https" or is_loopback(origin[1]))


class RolesTable(BaseModel, extra="forbid"):
    """[oidc.roles]: the values of the role claim that give each role; the highest role counts."""

    read: list[str] = []
    score: list[str] = []
    admin: list[str] = []


class OidcTable(BaseModel, extra="forbid"):
    """[oidc]: how browsers sign in with the hospital's accounts."""

    issuer: str  # as in the provider's /.well-known/openid-configuration
    client_id: str = Field(min_length=1)
    client_secret_file: Path | None = None  # without it, the service is a public client, protected by PKCE alone
    page_url: str  # of the page as browsers open it; the provider sends them back to it
    scope: str = "openid profile"
    name_claim: str = Field(default="preferred_username", min_length=1)
    family_name_claim: str = "family_name"  # both names together make a named person; '' for neither
    given_name_claim: str = "given_name"
    role_claim: str | list[str] = "groups"  # a list: keys of nested objects, e.g. ["realm_access", "roles"]
    roles: RolesTable = RolesTable()
    sign_in_with_tokens: bool = True  # false: only `emergency_admin` may sign in without the provider
    emergency_admin: str = ""  # name of the token that is permitted also then
    ca_certificate: Path | None = None  # of the hospital's certificate authority; public authorities if None
    proxy: str = ""
    timeout_seconds: float = Field(default=10, gt=0, le=30)

    @field_validator("issuer")
    @classmethod
    def issuer_is_an_address(cls, issuer: str) -> str:
        parts = urlsplit(issuer)
        if not is_safe_address(issuer) or parts.query or parts.fragment:
            raise ValueError("must be like https://host/path, exactly as the provider states it; http only on loopback")
        return issuer  # compared letter by letter, so a slash at the end is kept

    @field_validator("page_url")
    @classmethod
    def page_is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if not is_safe_address(url) or parts.query or parts.fragment or not parts.path.endswith("/"):
            raise ValueError("must be like https://host/ and end with a slash; http only on loopback")
        return url

    @field_validator("scope")
    @classmethod
    def scope_asks_for_an_identity(cls, scope: str) -> str:
        if "openid" not in scope.split():
            raise ValueError("must contain openid")
        return scope

    @field_validator("role_claim")
    @classmethod
    def role_claim_is_named(cls, claim: str | list[str]) -> str | list[str]:
        if not claim or not all(claim):
            raise ValueError("must name a claim")
        return claim

    @field_validator("proxy")
    @classmethod
    def proxy_is_an_address(cls, address: str) -> str:
        if address and origin_of(address) is None:
            raise ValueError("must be like http://host:port, without user and password")
        return address

    @model_validator(mode="after")
    def someone_can_sign_in(self) -> Self:
        if not any((self.roles.read, self.roles.score, self.roles.admin)):
            raise ValueError("[oidc.roles] gives no role to anybody")
        if not self.sign_in_with_tokens and not self.emergency_admin:
            raise ValueError("sign_in_with_tokens = false needs emergency_admin, the name of a token with role admin")
        return self

    @model_validator(mode="after")
    def names_are_whole(self) -> Self:
        if bool(self.family_name_claim) != bool(self.given_name_claim):
            raise ValueError("family_name_claim and given_name_claim belong together")
        return self
