"""Keys and certificates as files, and TLS contexts made from them.

Every node pins the study's own authority and trusts no other, so a certificate from another authority is useless.
Private keys are written once, readable only by their owner, and never overwritten. `authority` defines what is signed.
"""

import ipaddress
import os
import re
import ssl
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeGuard

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from federation.enrolment import reasons
from federation.enrolment.authority import Authority, self_signed
from federation.system.certificate_files import read_certificate, read_pair, unusable
from models.refusal import Refusal
from pipeline.system.atomic_files import write_atomically

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?)*", re.I)
_THIS_MACHINE = ("localhost", "127.0.0.1")


# --- the server's -----------------------------------------------------------------------------------------


def create_server_certificates(folder: Path, *, hosts: Sequence[str], authority: Authority | None = None) -> None:
    """Write a server's certificates into `folder`: PEM, with new ECDSA P-384 keys.

    ca.crt, ca.key            the study's authority: `authority`, or a new one
    server.crt, server.key    what hospitals connect to; for localhost, 127.0.0.1 and `hosts`
    loopback.crt, .key        what processes of this machine use behind the ingress
    crl.pem                   the list of revoked certificates, still empty

    Hospitals pin `ca.crt`; `ca.key` stays with the operator of the study.
    Raises Refusal: E_HOST_NAME, E_KEY_EXISTS.
    """
    names = alternative_names(hosts)
    files = ("ca.key", "ca.crt", "server.key", "server.crt", "loopback.key", "loopback.crt", "crl.pem")
    _refuse_existing(*(folder / file for file in files))
    authority = authority or Authority.new()
    key = ec.generate_private_key(ec.SECP384R1())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_new(folder / "ca.key", _private(authority.key), mode=0o600)
    write_new(folder / "server.key", _private(key), mode=0o600)
    write_new(folder / "ca.crt", _pem(authority.certificate), mode=0o644)
    write_new(folder / "server.crt", _pem(authority.server_certificate(key.public_key(), names)), mode=0o644)
    create_loopback_certificate(folder / "loopback.crt", folder / "loopback.key")
    write_atomically(folder / "crl.pem", authority.revocation_list({}).public_bytes(Encoding.PEM))


def open_authority(folder: Path) -> Authority:
    """Open the authority of a server's certificates. Raises Refusal E_AUTHORITY."""
    return Authority.read(folder / "ca.crt", folder / "ca.key")


def renew_server_certificate(folder: Path) -> datetime:
    """Issue a new certificate for the server's key with the old one's names; return when it expires.

    Raises Refusal: E_AUTHORITY, E_CERTIFICATE_FILE.
    """
    old = read_pair(folder / "server.crt")
    key = old.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise unusable(folder / "server.key", "it is not an ECDSA key")
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    new = open_authority(folder).server_certificate(key, list(names))
    write_atomically(folder / "server.crt", _pem(new))
    return new.not_valid_after_utc


def create_loopback_certificate(certificate: Path, key: Path) -> None:
    """Write a key (ECDSA P-384, PEM, mode 0600) and its self-signed certificate for localhost and 127.0.0.1.

    Raises Refusal E_KEY_EXISTS.
    """
    _refuse_existing(certificate, key)
    private = ec.generate_private_key(ec.SECP384R1())
    write_new(key, _private(private), mode=0o600)
    write_new(certificate, _pem(self_signed(private, alternative_names(()))), mode=0o644)


def alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Return this machine's names and `hosts`, without duplicates, as in a certificate. Raises Refusal E_HOST_NAME."""
    return [_alternative_name(host) for host in dict.fromkeys([*_THIS_MACHINE, *hosts])]


def host_names(certificate: Path) -> list[str]:
    """Return the names and addresses in a server's certificate (PEM), without those of this machine itself.

    Raises Refusal E_CERTIFICATE_FILE.
    """
    names = read_certificate(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name for name in map(str, (each.value for each in names)) if name not in _THIS_MACHINE]


# --- a node's ---------------------------------------------------------------------------------------------


def create_node_key(private_key: Path) -> Path:
    """Write a node's private key (ECDSA P-384, OpenSSH format, mode 0600) and next to it the public key.

    Returns the path of the public key, `<private_key>.pub`. Raises Refusal: E_KEY_EXISTS.
    """
    public_key = private_key.with_name(private_key.name + ".pub")
    _refuse_existing(private_key, public_key)
    key = ec.generate_private_key(ec.SECP384R1())
    private_key.parent.mkdir(parents=True, exist_ok=True)
    write_new(private_key, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    write_new(public_key, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n", mode=0o644)
    return public_key


def load_node_key(private_key: Path) -> ec.EllipticCurvePrivateKey:
    """Load a node's private key. Raises Refusal E_NODE_FILE."""
    try:
        key = load_ssh_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refusal(reasons.NODE_FILE, file="the node's key", private=f"{private_key}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Refusal(reasons.NODE_FILE, file="the node's key", private=f"{private_key}: not ECDSA")
    return key


def load_node_public_key(public_key: Path) -> bytes:
    """Return the public key in a `.pub` file as PEM, the format that Flower stores.

    Raises Refusal: E_PUBLIC_KEY.
    """
    try:
        key = load_ssh_public_key(public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise Refusal(reasons.PUBLIC_KEY, private=f"{public_key}: {error}") from error
    if not is_node_key(key):
        raise Refusal(reasons.PUBLIC_KEY, private=f"{public_key}: not ECDSA P-384")
    return public_pem(key)


def is_node_key(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    """Tell whether this is a public key of the kind that nodes have."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)


def public_pem(key: CertificatePublicKeyTypes) -> bytes:
    """Return a public key as PEM, the format that Flower sends and stores."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def client_tls(ca: Path, *, certificate: Path, private_key: Path) -> ssl.SSLContext:
    """Return the TLS context of a node towards the study's server: trusts only `ca`, and presents the certificate.

    Raises Refusal: E_NODE_FILE, E_NODE_CERTIFICATE.
    """
    key = load_node_key(private_key)
    for what, path in (("the study's certificate", ca), ("the node's certificate", certificate)):
        if not os.access(path, os.R_OK):
            raise Refusal(reasons.NODE_FILE, file=what, private=str(path))
    try:
        context = trust(ca.read_text(encoding="ascii"))
        # OpenSSL reads only files, and not the OpenSSH format that Flower requires for the key.
        with tempfile.NamedTemporaryFile(dir=private_key.parent) as pem:
            pem.write(_private(key))
            pem.flush()
            context.load_cert_chain(certificate, pem.name)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise Refusal(reasons.NODE_CERTIFICATE, private=str(error)) from error
    return context


def trust(ca: str) -> ssl.SSLContext:
    """Return a client's TLS context that trusts only this authority (PEM), even if it is not a root."""
    context = ssl.create_default_context(cadata=ca)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


# --- both -------------------------------------------------------------------------------------------------


def trust_file(certificate: Path) -> ssl.SSLContext:
    """Return a client's TLS context that trusts only this certificate (PEM). Raises Refusal E_CERTIFICATE_FILE."""
    return trust(_pem(read_certificate(certificate)).decode())


def valid_until(certificate: Path) -> datetime:
    """Return when a PEM certificate expires, in UTC. Raises Refusal E_CERTIFICATE_FILE."""
    return read_certificate(certificate).not_valid_after_utc


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate (DER) in 64 hex digits, as `openssl x509 -fingerprint -sha256` shows it."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def write_new(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file that does not exist yet. Raises FileExistsError."""
    # O_EXCL: nothing is overwritten, even if another process created the file since the check; and the mode applies
    # from the first byte.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise Refusal(reasons.HOST_NAME, host=host) from None
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _private(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise Refusal(reasons.KEY_EXISTS, private=str(path), file=path.name)
