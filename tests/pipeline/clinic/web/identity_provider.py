"""A provider of identities for tests: a real HTTP(S) server on this machine with OpenID Connect's code flow and PKCE.

It grants every sign-in at once, as the user that the test names. A test can change what it answers, to attack a clinic.
"""

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

Json = dict[str, Any]
CLIENT_ID, SECRET = "fedthorax", "s/cret+of the client"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS: dict[str, Any] = {
    "RS256": RSA_KEY,
    "PS256": RSA_KEY,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def public_jwk(algorithm: str, key: Any, key_id: str) -> Json:
    found: Json = json.loads(get_default_algorithms()[algorithm].to_jwk(key.public_key()))  # type: ignore[attr-defined]
    return {**found, "kid": key_id, "use": "sig", "alg": algorithm}


@dataclass
class IdentityProvider:
    """The provider's users and answers. `forge`: makes the ID token of its claims; `asked`: requests by path.

    `codes`: by code, what the browser asked for. `more_metadata`: replaces entries of the discovery document.
    """

    redirect_uri: str
    algorithm: str = "RS256"
    user: Json = field(default_factory=lambda: {"sub": "0815", "preferred_username": "anna", "groups": ["radiology"]})
    changes: Json = field(default_factory=dict)  # of the token's claims; None removes one
    forge: Callable[[Json], str] | None = None
    keys: list[Json] | None = None
    key_id: str = "first"
    more_metadata: Json = field(default_factory=dict)
    secret: str = SECRET
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    origin: str = ""

    @property
    def issuer(self) -> str:
        return f"{self.origin}/realm"

    def metadata(self) -> Json:
        found = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
            "end_session_endpoint": f"{self.issuer}/sign-out",
            "authorization_response_iss_parameter_supported": True,
        }
        return {**found, **self.more_metadata}

    def authorize(self, query: dict[str, str]) -> str:
        """Grant a sign-in; return where the browser goes. Fails if the request is not as the code flow demands."""
        assert (query["response_type"], query["client_id"]) == ("code", CLIENT_ID)
        assert query["redirect_uri"] == self.redirect_uri
        assert query["code_challenge_method"] == "S256" and "openid" in query["scope"].split()
        assert min(len(query[name]) for name in ("state", "nonce", "code_challenge")) >= 43
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        return f"{self.redirect_uri}?{urlencode({'code': code, 'state': query['state'], 'iss': self.issuer})}"

    def token(self, form: dict[str, str], authorization: str) -> tuple[int, Json]:
        """Exchange a code once, for the client that has it, its secret and its verifier."""
        name, _, secret = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if not authorization:
            name, secret = form.get("client_id", ""), form.get("client_secret", "")
        else:
            name, secret = unquote_plus(name), unquote_plus(secret)
        if (name, secret) != (CLIENT_ID, self.secret):
            return 401, {"error": "invalid_client"}
        query = self.codes.pop(form["code"], None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).rstrip(b"=")
        if query is None or challenge.decode() != query["code_challenge"] or form["redirect_uri"] != self.redirect_uri:
            return 400, {"error": "invalid_grant"}
        claims = self.claims(query["nonce"])
        token = self.forge(claims) if self.forge else self.signed(claims)
        return 200, {"access_token": "none", "token_type": "Bearer", "id_token": token}

    def claims(self, nonce: str) -> Json:
        now = int(time.time())
        found = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": nonce}
        return {key: value for key, value in {**found, **self.user, **self.changes}.items() if value is not None}

    def signed(self, claims: Json, *, key: Any = None, key_id: str | None = None) -> str:
        signer = key or KEYS[self.algorithm]
        return jwt.encode(claims, signer, self.algorithm, headers={"kid": key_id or self.key_id})

    def published(self) -> list[Json]:
        if self.keys is not None:
            return self.keys
        return [public_jwk(self.algorithm, KEYS[self.algorithm], self.key_id)]


@contextmanager
def serving(provider: IdentityProvider, certificate: tuple[Path, Path] | None = None) -> Iterator[IdentityProvider]:
    """Serve within the block, with TLS if there is a certificate with its key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            provider.asked[url.path] += 1
            if url.path.endswith("/openid-configuration"):
                self._send(200, provider.metadata())
            elif url.path.endswith("/keys"):
                self._send(200, {"keys": provider.published()})
            elif url.path.endswith("/authorize"):
                self._go(provider.authorize({name: values[0] for name, values in parse_qs(url.query).items()}))
            elif url.path.endswith("/sign-out"):
                self._go(parse_qs(url.query)["post_logout_redirect_uri"][0])
            else:
                self._send(404, {})

        def do_POST(self) -> None:
            provider.asked[urlsplit(self.path).path] += 1
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            plain = {name: values[0] for name, values in form.items()}
            self._send(*provider.token(plain, self.headers.get("Authorization", "")))

        def _go(self, url: str) -> None:
            self.send_response_only(302)
            self.send_header("Location", url)
            self.end_headers()

        def _send(self, status: int, content: Json) -> None:
            body = json.dumps(content).encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    provider.origin = f"{'https' if certificate else 'http'}://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
