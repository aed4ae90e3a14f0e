"""A certificate authority made for a test, for TLS between a node and a PACS on this machine."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from federation.enrolment.authority import key_usage


@dataclass(frozen=True)
class Authority:
    """A certificate authority for a test; it signs certificates."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, folder: Path, name: str = "ca") -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(key, key, name, name, is_authority=True)
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return cls(folder, key, certificate)

    @property
    def path(self) -> Path:
        issuer = self.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
        return self.folder / f"{issuer!s}.crt"

    def sign(
        self, name: str, *, password: bytes | None = None, host: str = "127.0.0.1", is_over: bool = False
    ) -> tuple[Path, Path]:
        """Write a certificate for an address and its key; return both paths. `is_over`: it expired an hour ago."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(
            key, self.key, name, self.path.stem, is_authority=False, host=host, hours=-1 if is_over else 24
        )
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        paths[1].touch(mode=0o600)
        paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
        return paths

    def server(self, signed_by: "Authority | None" = None, *, demands: bool = False, **options: Any) -> ssl.SSLContext:
        """Return the TLS context of a server. `demands`: clients must show a certificate of this authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.path)
        context.load_cert_chain(*(signed_by or self).sign("server", **options))
        context.verify_mode = ssl.CERT_REQUIRED if demands else ssl.CERT_NONE
        return context


def _certificate(
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    name: str,
    issuer: str,
    *,
    is_authority: bool,
    host: str = "127.0.0.1",
    hours: float = 24,
) -> x509.Certificate:
    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.datetime.now(datetime.UTC)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    return (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=2))
        .not_valid_after(now + datetime.timedelta(hours=hours))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(hosts, critical=False)
        # Python 3.13 refuses certificates without these, as RFC 5280 (4.2.1) has it.
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(key_usage(signs_certificates=is_authority), critical=True)
        .sign(signer, hashes.SHA256())
    )
