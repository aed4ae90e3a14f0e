"""The hospital's side of enrolment: join a study, and keep the node's certificate valid.

SITE_DIR/keys/ca.crt      the study's authority
SITE_DIR/keys/node.crt    the certificate that the node presents, for the node's own key

The code from the study's office identifies the authority. A server that impersonates the study's is therefore detected
before the code's secret leaves this machine.
"""

import base64
import hmac
import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from federation.enrolment import reasons
from federation.enrolment.certificates import (
    client_tls,
    create_node_key,
    fingerprint,
    load_node_key,
    trust,
    valid_until,
)
from federation.secure_aggregation.roster import Roster
from models.refusal import Refusal
from models.settings import read_settings, with_value
from pipeline.site.folder import UNNAMED, Site
from pipeline.site.study_server import refused_connect, server_proxy
from pipeline.system.atomic_files import write_atomically
from pipeline.system.json_text import parse_json

if TYPE_CHECKING:
    import httpx

RENEW_BEFORE = timedelta(days=30)
TIMEOUT_SECONDS = 60.0
MAX_ANSWER_BYTES = 64 * 1024

_ADDRESS = re.compile(r"[A-Za-z0-9.\-\[\]:]+:\d{1,5}")
_CODE = re.compile(rf"({_ADDRESS.pattern})" + r"/([0-9a-f]{64})/([0-9a-f]{16})/([A-Za-z0-9_-]{32})")
_REFUSAL = re.compile(r"[EW]_[A-Z0-9_]{1,40}")


@dataclass(frozen=True)
class JoinCode:
    """The code that the study's office gives to a hospital. `authority`: SHA-256 of the authority's certificate."""

    address: str
    authority: str
    invitation: str
    secret: str

    @classmethod
    def read(cls, text: str) -> Self:
        """Parse a code, even if a mail program broke it into lines. Raises Refusal E_JOIN_CODE."""
        found = _CODE.fullmatch("".join(text.split()))
        if not found:
            raise Refusal(reasons.JOIN_CODE)
        return cls(*found.groups())


def node_certificate(site: Site) -> Path:
    """Return the path of the certificate that the site's node presents to the study's server."""
    return site.node_key.with_name("node.crt")


def join(site: Site, code: str, *, name: str = "") -> str:
    """Join the study of the code; return the name under which the study knows this site.

    `name`: the name that the study must know it by; by default its name in site.toml, unless nobody has changed that.
    With the code of another hospital, the server refuses and the code stays valid.

    Creates the node's key if there is none, writes the certificates, and sets the server's address in site.toml.

    Raises Refusal: E_JOIN_CODE, E_OTHER_AUTHORITY, E_SERVER_SILENT, E_SERVER_PROXY, E_SERVER_UNTRUSTED, E_NODE_FILE,
    E_JOIN_NAME, E_JOIN_REFUSED with the server's own code, E_NODE_CERTIFICATE, E_SETTINGS_FORM.
    """
    invitation = JoinCode.read(code)
    with_server_address(read_settings(site.folder / "site.toml"), invitation.address)  # before the code is used up
    if not site.node_key.exists():
        create_node_key(site.node_key)
    expected = name or (site.name if site.name != UNNAMED else "")
    proxy = server_proxy(site, invitation.address)
    authority = _fetch_authority(invitation, proxy)
    form = {"invitation": invitation.invitation, "secret": invitation.secret, "request": _request(site.node_key)}
    try:
        url = f"https://{invitation.address}/enrolment/join"
        answer = _ask(trust(authority), proxy, "POST", url, json=form | {"name": expected})
    except Refusal as refusal:
        if refusal.numbers.get("answer") == reasons.JOIN_NAME.code:
            raise Refusal(reasons.JOIN_NAME, site=expected) from refusal
        raise
    _keep(site, authority, answer["certificate"])
    _write_address(site, invitation.address)
    return str(answer["site"])


def renew(site: Site) -> datetime:
    """Renew the node's certificate while the present one is valid; return when the newest one expires.

    Raises Refusal: E_NO_SERVER_SET, E_NODE_FILE, E_NODE_CERTIFICATE, E_SERVER_SILENT, E_SERVER_PROXY,
    E_SERVER_UNTRUSTED, E_JOIN_REFUSED.
    """
    address = site.settings.server.address
    if not address:
        raise Refusal(reasons.NO_SERVER_SET)
    return _renew_at(site, address)


def move(site: Site, address: str) -> None:
    """Use another `address` (host:port) for the study's server from the node's next start.

    The server there must have a certificate of the study's authority and know this node. Nothing else in site.toml
    changes. Raises Refusal: E_SERVER_ADDRESS, E_SETTINGS_FORM, and those of `renew`.
    """
    if not site.settings.server.address:
        raise Refusal(reasons.NO_SERVER_SET)
    if not _ADDRESS.fullmatch(address):
        raise Refusal(reasons.SERVER_ADDRESS)
    _renew_at(site, address)
    _write_address(site, address)


def _renew_at(site: Site, address: str) -> datetime:
    tls = client_tls(site.ca_certificate, certificate=node_certificate(site), private_key=site.node_key)
    answer = _ask(tls, server_proxy(site, address), "POST", f"https://{address}/enrolment/renew")
    _keep(site, site.ca_certificate.read_text(encoding="ascii"), answer["certificate"])
    return valid_until(node_certificate(site))


def fetch_peers(site: Site, key: bytes) -> Roster:
    """Present this site's key for masked rounds to the server, and return the hospitals with theirs.

    Raises Refusal: E_NO_SERVER_SET, E_SERVER_SILENT, E_SERVER_PROXY, E_SERVER_UNTRUSTED, E_JOIN_REFUSED,
    E_SECAGG_MESSAGE.
    """
    address = site.settings.server.address
    if not address:
        raise Refusal(reasons.NO_SERVER_SET)
    tls = client_tls(site.ca_certificate, certificate=node_certificate(site), private_key=site.node_key)
    with _client(tls, server_proxy(site, address)) as client:
        content = {"key": base64.b64encode(key).decode()}
        return Roster.parse(_bounded(client, "POST", f"https://{address}/v1/secagg/peers", json=content))


def renew_if_due(site: Site) -> bool:
    """Renew the node's certificate if it expires within 30 days; return whether it did. Raises as `renew` does."""
    if valid_until(node_certificate(site)) > datetime.now(UTC) + RENEW_BEFORE:
        return False
    renew(site)
    return True


def _write_address(site: Site, address: str) -> None:
    settings = site.folder / "site.toml"
    write_atomically(settings, with_server_address(read_settings(settings), address).encode())


def with_server_address(settings: str, address: str) -> str:
    """Return the text of a site.toml with this `address` in its table [server]; everything else stays unchanged.

    Raises Refusal E_SETTINGS_FORM.
    """
    return with_value(settings, "server", "address", f'"{address}"')


def _fetch_authority(invitation: JoinCode, proxy: str) -> str:
    """Fetch the authority's certificate (PEM) from a still untrusted server, and compare it with the code."""
    unverified = ssl.create_default_context()
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    with _client(unverified, proxy) as client:
        pem = _bounded(client, "GET", f"https://{invitation.address}/enrolment/ca.crt")
    try:
        certificate = x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise Refusal(reasons.OTHER_AUTHORITY, private=str(error)) from error
    if not hmac.compare_digest(fingerprint(certificate), invitation.authority):
        raise Refusal(reasons.OTHER_AUTHORITY)
    return certificate.public_bytes(Encoding.PEM).decode()


def _request(private_key: Path) -> str:
    """Create a certificate request (PKCS #10) for the node's key. It holds no name: the server knows the site's."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(load_node_key(private_key), hashes.SHA384()).public_bytes(Encoding.PEM).decode()


def _keep(site: Site, authority: str, pem: str) -> None:
    """Store the certificates if they are the requested ones. Raises Refusal E_NODE_CERTIFICATE."""
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.encode()))
    except Exception as error:  # InvalidSignature, ValueError, TypeError: the certificate is unusable
        raise Refusal(reasons.NODE_CERTIFICATE, private=repr(error)) from error
    if certificate.public_key() != load_node_key(site.node_key).public_key():
        raise Refusal(reasons.NODE_CERTIFICATE, private="the certificate is for another key")
    write_atomically(site.ca_certificate, authority.encode())
    write_atomically(node_certificate(site), certificate.public_bytes(Encoding.PEM))


@contextmanager
def _client(tls: ssl.SSLContext, proxy: str) -> Iterator["httpx.Client"]:
    """Open an HTTP client that goes through this proxy, if any; transport errors become a Refusal."""
    import httpx

    try:
        with httpx.Client(
            headers={"accept-encoding": "identity"},
            verify=tls,
            timeout=TIMEOUT_SECONDS,
            proxy=proxy or None,
            trust_env=False,
        ) as client:
            yield client
    except httpx.InvalidURL as error:
        raise Refusal(reasons.SERVER_ADDRESS, private=str(error)) from error
    except httpx.ProxyError as error:  # its text begins with the status with which the proxy answered CONNECT
        refused = refused_connect(int(str(error)[:3])) if str(error)[:3].isdecimal() else None
        raise refused or Refusal(reasons.SERVER_SILENT, private=f"the proxy answers {error}") from error
    except httpx.TransportError as error:
        untrusted = "certificate verify failed" in str(error)
        raise Refusal(reasons.SERVER_UNTRUSTED if untrusted else reasons.SERVER_SILENT, private=str(error)) from error


def _ask(tls: ssl.SSLContext, proxy: str, method: str, url: str, **content: Any) -> dict[str, str]:
    """Return the server's answer {"site", "certificate"}. Raises Refusal; E_JOIN_REFUSED holds the server's code."""
    with _client(tls, proxy) as client:
        try:
            answer = parse_json(_bounded(client, method, url, **content))
            return {"site": str(answer["site"]), "certificate": str(answer["certificate"])}
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(reasons.JOIN_REFUSED, answer="no certificate in the answer", private=str(error)) from error


def _bounded(client: "httpx.Client", method: str, url: str, **content: Any) -> bytes:
    """Return the body of a successful and short response, as it was sent: nothing is decompressed."""
    with client.stream(method, url, **content) as answer:
        body = b""
        for piece in answer.iter_raw():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise Refusal(reasons.JOIN_REFUSED, answer="the answer is too long")
    if answer.status_code != 200:
        code = _REFUSAL.search(body.decode(errors="replace"))
        raise Refusal(reasons.JOIN_REFUSED, answer=code[0] if code else f"HTTP {answer.status_code}")
    return body
