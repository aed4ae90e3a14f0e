"""Access tokens for a FHIR server: a fixed one from a file, or SMART backend services (client_credentials with a JWT).

https://hl7.org/fhir/smart-app-launch/backend-services.html
"""

import secrets
import time
from pathlib import Path
from typing import Any

import jwt
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.site import reasons as site_reasons
from pipeline.site.fhir_settings import FhirTable
from pipeline.site.pacs_settings import read_secret
from pipeline.system.json_text import parse_json

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_ASSERTION_SECONDS = 300  # the longest that SMART allows
_BEFORE_SECONDS = 30  # a token that expires sooner is renewed
_DEFAULT_SECONDS = 300
_LEAST_RSA_BITS = 2048
_MAX_BYTES = 100_000


class Tokens:
    """Tokens of one site. `folder`: the base of relative paths in the table."""

    def __init__(self, table: FhirTable, folder: Path, session: requests.Session, timeout: tuple[float, float]) -> None:
        """Raises Refusal E_PACS_FILE if the token's or the key's file cannot be used."""
        self._table, self._session, self._timeout = table, session, timeout
        self._fixed = read_secret(folder / table.token_file) if table.token_file else ""
        self._key = read_key(folder / table.client_key) if table.client_key else None
        self._token, self._until = "", 0.0

    def current(self) -> str:
        """Return a valid token, "" if the table sets up none. Raises Refusal E_FHIR_AUTH, requests' exceptions."""
        if self._key is None:
            return self._fixed
        if time.monotonic() > self._until - _BEFORE_SECONDS:
            self._renew()
        return self._token

    def forget(self) -> bool:
        """Forget a token that the server no longer accepts; return whether another one can be requested."""
        self._until = 0.0
        return self._key is not None

    def _renew(self) -> None:
        table = self._table
        form = {
            "grant_type": "client_credentials",
            "scope": table.scope,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": self._assertion(),
        }
        with self._session.post(
            table.token_url, form, timeout=self._timeout, allow_redirects=False, stream=True
        ) as response:
            if response.status_code != requests.codes.ok:
                private = f"the token server answered with status {response.status_code}"
                raise Refusal(reasons.FHIR_AUTH, private=private)
            content = response.raw.read(_MAX_BYTES)
        self._token, seconds = _parsed(content)
        self._until = time.monotonic() + seconds

    def _assertion(self) -> str:
        table, now = self._table, int(time.time())
        claims = {
            "iss": table.client_id,
            "sub": table.client_id,
            "aud": table.token_url,
            "jti": secrets.token_urlsafe(24),
            "iat": now,
            "exp": now + _ASSERTION_SECONDS,
        }
        assert self._key is not None
        algorithm = "RS384" if isinstance(self._key, rsa.RSAPrivateKey) else "ES384"
        return jwt.encode(claims, self._key, algorithm=algorithm, headers={"kid": table.key_id} if table.key_id else {})


def _parsed(content: bytes) -> tuple[str, float]:
    """Return token and lifetime in seconds (RFC 6749, 5.1). Raises Refusal E_FHIR_AUTH."""
    try:
        answer: dict[str, Any] = parse_json(content)
        token, seconds = answer["access_token"], float(answer.get("expires_in", _DEFAULT_SECONDS))
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or not token:
            raise ValueError
        if str(answer.get("token_type", "")).lower() != "bearer":
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        raise Refusal(reasons.FHIR_AUTH, private="the token server did not return a bearer token") from None
    return token, seconds


def read_key(path: Path) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    """Read a private key: RSA with 2048 bits or more, or P-384. Raises Refusal E_PACS_FILE."""
    read_secret(path)  # nobody else may read it
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise Refusal(site_reasons.PACS_FILE, private=f"{path}: {type(error).__name__}") from None
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _LEAST_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    raise Refusal(site_reasons.PACS_FILE, private=f"{path}: neither RSA of 2048 bits or more nor P-384")
