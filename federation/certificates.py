"""The study's certificate authority, the server's certificate, and the nodes' keys.

Every node pins the study's own authority and trusts no other, so that a certificate bought elsewhere opens
nothing. Private keys are written once, readable by their owner alone, and never overwritten.
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation import reasons
from models.refusal import Refusal

# One lifetime for both: a study's authority and its server end together, and no renewal has to be arranged.
VALIDITY_DAYS = 5 * 365
# Clocks of hospitals differ; a certificate made just now must already be valid for a clock that is behind.
CLOCK_SKEW = timedelta(days=1)

_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?)*", re.I)


def create_server_certificates(folder: Path, *, hosts: Sequence[str]) -> None:
    """Write `ca.crt`, `ca.key`, `server.crt` and `server.key` (PEM, ECDSA P-384) into `folder`.

    The server's certificate holds for localhost, 127.0.0.1 and `hosts`, as TLS checks them (RFC 9525), for
    `VALIDITY_DAYS` days. `ca.crt` is what the hospitals get; `ca.key` stays with whoever runs the study.

    Raises Refusal: E_HOST_NAME, E_KEY_EXISTS.
    """
    names = [_alternative_name(host) for host in dict.fromkeys(["localhost", "127.0.0.1", *hosts])]
    paths = {name: folder / name for name in ("ca.key", "ca.crt", "server.key", "server.crt")}
    _refuse_existing(*paths.values())
    ca_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    ca = _authority(ca_key)
    server = _server_certificate(server_key, ca=ca, ca_key=ca_key, names=names)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, key in (("ca.key", ca_key), ("server.key", server_key)):
        _write_new(paths[name], key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    for name, certificate in (("ca.crt", ca), ("server.crt", server)):
        _write_new(paths[name], certificate.public_bytes(Encoding.PEM), mode=0o644)


def create_node_key(private_key: Path) -> Path:
    """Write a node's private key (ECDSA P-384, OpenSSH format, mode 0600) and, beside it, the public one.

    Returns the path of the public key, `<private_key>.pub`: the file that the study's coordinator enrols.
    Raises Refusal: E_KEY_EXISTS.
    """
    public_key = private_key.with_name(private_key.name + ".pub")
    _refuse_existing(private_key, public_key)
    key = ec.generate_private_key(ec.SECP384R1())
    private_key.parent.mkdir(parents=True, exist_ok=True)
    _write_new(private_key, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    _write_new(public_key, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n", mode=0o644)
    return public_key


def load_node_public_key(public_key: Path) -> bytes:
    """The public key in a `.pub` file as PEM, the form in which Flower keeps it.

    Raises Refusal: E_PUBLIC_KEY.
    """
    try:
        key = load_ssh_public_key(public_key.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise Refusal(reasons.PUBLIC_KEY, private=f"{public_key}: {error}") from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise Refusal(reasons.PUBLIC_KEY, private=f"{public_key}: not ECDSA P-384")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def valid_until(certificate: Path) -> datetime:
    """When the PEM certificate ends, in UTC."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise Refusal(reasons.HOST_NAME, host=host) from None
        return x509.DNSName(host)


def _builder(common_name: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=VALIDITY_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    builder = _builder("fedthorax study authority", key.public_key())
    return (
        builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedthorax study authority")]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server_certificate(
    key: ec.EllipticCurvePrivateKey,
    *,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
) -> x509.Certificate:
    return (
        _builder("fedthorax study server", key.public_key())
        .issuer_name(ca.subject)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise Refusal(reasons.KEY_EXISTS, private=str(path), file=path.name)


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    # O_EXCL: even if another process was quicker since the check above, nothing is overwritten; and the mode
    # holds from the first byte on.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
