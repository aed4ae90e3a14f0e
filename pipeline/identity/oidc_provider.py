"""The hospital's provider of identities over HTTP: discovery, keys, and the exchange of a code for an ID token.

TLS is verified, redirects are not followed, compressed responses are refused, and no response is read beyond a limit.
A provider that is down costs one attempt in some seconds, so that it does not occupy the threads of the page.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import requests

from models.refusal import Refusal
from pipeline.identity import id_token
from pipeline.identity.oidc_settings import OidcTable, is_safe_address
from pipeline.identity.reasons import SIGN_IN_KEY, SIGN_IN_PROVIDER, SIGN_IN_REFUSED, SIGN_IN_SECRET
from pipeline.site.pacs_settings import read_secret
from pipeline.site.tls import as_client
from pipeline.system.json_text import parse_json

KEEP_SECONDS = 3600.0  # discovery and keys; a key that the provider removed is not accepted for longer
KEYS_AGAIN_SECONDS = 30.0  # between two requests for the keys because of an unknown key id
DOWN_SECONDS = 5.0  # after a failed discovery, until the next attempt
_MAX_BYTES = 1_000_000
_DISCOVERY = "/.well-known/openid-configuration"

log = logging.getLogger("fedthorax.clinic")


@dataclass(frozen=True)
class Endpoints:
    """What discovery tells. `sign_out`: '' if the provider offers none. `names_issuer`: responses have `iss`."""

    authorization: str
    token: str
    keys: str
    sign_out: str
    secret_in_header: bool
    names_issuer: bool


class Provider:
    """The provider of one clinic; any thread may use it. `clock`: seconds since any fixed moment."""

    def __init__(self, table: OidcTable, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises Refusal E_SIGN_IN_SECRET."""
        self.table, self._clock = table, clock
        try:
            self._secret = read_secret(folder / table.client_secret_file) if table.client_secret_file else ""
            if table.ca_certificate:
                as_client(folder, authority=table.ca_certificate)  # checked now; requests reads it later
        except Refusal as refusal:
            raise Refusal(SIGN_IN_SECRET, private=refusal.private) from refusal
        self._verify = str(folder / table.ca_certificate) if table.ca_certificate else True
        self._lock = threading.Lock()
        self._endpoints: tuple[Endpoints, float] | None = None  # each with its time on the clock
        self._keys: tuple[list[Any], float] | None = None
        self._down_until = 0.0

    def endpoints(self) -> Endpoints:
        """Return what discovery tells; it is repeated each hour. Raises Refusal E_SIGN_IN_PROVIDER."""
        with self._lock:
            return self._discovered()

    def known_endpoints(self) -> Endpoints:
        """Return what discovery told last, however old; ask only if there is nothing. Raises as `endpoints`."""
        return self._endpoints[0] if self._endpoints else self.endpoints()

    def id_token(self, code: str, verifier: str) -> str:
        """Exchange a code for an ID token. Raises Refusal E_SIGN_IN_PROVIDER, E_SIGN_IN_REFUSED."""
        endpoints = self.endpoints()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.table.page_url,
            "code_verifier": verifier,
        }
        credentials = None
        if self._secret and endpoints.secret_in_header:  # RFC 6749, 2.3.1: each part form-encoded
            credentials = quote_plus(self.table.client_id), quote_plus(self._secret)
        else:
            form |= {"client_id": self.table.client_id} | ({"client_secret": self._secret} if self._secret else {})
        status, content = self._request("POST", endpoints.token, form=form, credentials=credentials)
        if status in (400, 401, 403):
            raise Refusal(SIGN_IN_REFUSED, private=f"token endpoint: status {status}")
        token = content.get("id_token") if status == requests.codes.ok else None
        if not isinstance(token, str):
            raise Refusal(SIGN_IN_PROVIDER, private=f"token endpoint: status {status}, no ID token")
        return token

    def key(self, algorithm: str, key_id: str | None) -> Any:
        """Return a public key; unknown ones are looked for once more, at most every half minute.

        Raises Refusal E_SIGN_IN_KEY, E_SIGN_IN_TOKEN, E_SIGN_IN_PROVIDER.
        """
        with self._lock:
            now = self._clock()
            if self._keys is None or now - self._keys[1] > KEEP_SECONDS:
                self._fetch_keys()
            assert self._keys is not None
            keys, at = self._keys
            try:
                return id_token.key_for(keys, algorithm, key_id)
            except Refusal as refusal:
                if refusal.reason is not SIGN_IN_KEY or now - at < KEYS_AGAIN_SECONDS:
                    raise
            return id_token.key_for(self._fetch_keys(), algorithm, key_id)

    def _fetch_keys(self) -> list[Any]:
        status, content = self._request("GET", self._discovered().keys)
        keys = content.get("keys")
        if status != requests.codes.ok or not isinstance(keys, list):
            raise Refusal(SIGN_IN_PROVIDER, private=f"keys: status {status}, no list of keys")
        self._keys = keys, self._clock()
        return keys

    def _discovered(self) -> Endpoints:
        now = self._clock()
        if self._endpoints and now - self._endpoints[1] < KEEP_SECONDS:
            return self._endpoints[0]
        if now < self._down_until:
            raise Refusal(SIGN_IN_PROVIDER, private="discovery failed some seconds ago")
        try:
            status, content = self._request("GET", self.table.issuer.rstrip("/") + _DISCOVERY)
            if status != requests.codes.ok:
                raise Refusal(SIGN_IN_PROVIDER, private=f"discovery: status {status}")
            found = _endpoints(content, self.table.issuer)
        except Refusal:
            self._down_until = self._clock() + DOWN_SECONDS
            raise
        self._endpoints = found, self._clock()
        return found

    def _request(
        self, method: str, url: str, *, form: dict[str, str] | None = None, credentials: tuple[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Return status and JSON object of a response; {} for anything else. Raises Refusal E_SIGN_IN_PROVIDER."""
        table = self.table
        try:
            with requests.Session() as session:
                session.trust_env = False  # ignore proxies and passwords of the environment
                session.verify = self._verify
                session.proxies = {"http": table.proxy, "https": table.proxy} if table.proxy else {}
                headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
                with session.request(
                    *(method, url),
                    data=form,
                    auth=credentials,
                    headers=headers,
                    timeout=table.timeout_seconds,
                    allow_redirects=False,
                    stream=True,
                ) as response:
                    body = response.raw.read(_MAX_BYTES)
        except (requests.RequestException, OSError, ValueError) as error:
            raise Refusal(SIGN_IN_PROVIDER, private=f"no response: {type(error).__name__}") from None
        try:
            content = parse_json(body)
        except ValueError:
            content = None
        return response.status_code, content if isinstance(content, dict) else {}


def _endpoints(content: dict[str, Any], issuer: str) -> Endpoints:
    """Read the provider's metadata (OpenID Connect Discovery 1.0, section 3). Raises Refusal E_SIGN_IN_PROVIDER."""
    if content.get("issuer") != issuer:
        raise Refusal(SIGN_IN_PROVIDER, private="discovery: the issuer is not exactly the one in clinic.toml")
    urls = [content.get(f"{name}") for name in ("authorization_endpoint", "token_endpoint", "jwks_uri")]
    authorization, token, keys = (url if isinstance(url, str) and is_safe_address(url) else "" for url in urls)
    if not (authorization and token and keys):
        raise Refusal(SIGN_IN_PROVIDER, private="discovery: an address is missing, or does not begin with https")
    sign_out = content.get("end_session_endpoint")
    methods = content.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
    return Endpoints(
        authorization=authorization,
        token=token,
        keys=keys,
        sign_out=sign_out if isinstance(sign_out, str) and is_safe_address(sign_out) else "",
        secret_in_header="client_secret_basic" in methods,
        names_issuer=content.get("authorization_response_iss_parameter_supported") is True,
    )
