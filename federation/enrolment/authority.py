"""A study's certificate authority: it signs the certificates of server and nodes, and the list of revoked ones.

The profile follows RFC 5280. A study has its own authority, or one that the hospital group made for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.enrolment import reasons
from models.refusal import Refusal

AUTHORITY_DAYS, SERVER_DAYS, NODE_DAYS = 3650, 365, 365
# Hospitals' clocks differ: a new certificate must already be valid for a clock that is slow.
CLOCK_SKEW = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """An authority's certificate and its signing key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @classmethod
    def new(cls) -> "Authority":
        """Create a study's own root authority (ECDSA P-384), valid for `AUTHORITY_DAYS` days."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = _name("fedthorax study authority")
        now = datetime.now(UTC)
        builder = _builder(name, key.public_key(), now - CLOCK_SKEW, now + timedelta(days=AUTHORITY_DAYS))
        certificate = (
            builder.issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA384())
        )
        return cls(certificate, key)

    @classmethod
    def read(cls, certificate: Path, key: Path) -> "Authority":
        """Read an authority from two PEM files. Raises Refusal E_AUTHORITY if it may not or cannot sign."""
        try:
            authority = x509.load_pem_x509_certificate(certificate.read_bytes())
            private = load_pem_private_key(key.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise Refusal(reasons.AUTHORITY, problem="its files cannot be read", private=str(error)) from error
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise Refusal(reasons.AUTHORITY, problem="its key is neither ECDSA nor RSA")
        if private.public_key() != authority.public_key():
            raise Refusal(reasons.AUTHORITY, problem="its key does not match its certificate")
        if authority.not_valid_after_utc < datetime.now(UTC):
            raise Refusal(reasons.AUTHORITY, problem=f"it expired on {authority.not_valid_after_utc:%Y-%m-%d}")
        if not _may_sign(authority):
            raise Refusal(reasons.AUTHORITY, problem="its certificate does not allow it to sign certificates and CRLs")
        return cls(authority, private)

    def server_certificate(self, key: ec.EllipticCurvePublicKey, names: Sequence[x509.GeneralName]) -> x509.Certificate:
        """Issue a certificate for the study's server under `names` (RFC 9525), valid for `SERVER_DAYS` days."""
        builder = self._builder(_name("fedthorax study server"), key, datetime.now(UTC), days=SERVER_DAYS)
        return (
            builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self.key, hashes.SHA384())
        )

    def node_certificate(
        self, key: ec.EllipticCurvePublicKey, site: str, *, now: datetime | None = None
    ) -> x509.Certificate:
        """Issue a certificate for a site's node and its own key, valid from `now` for `NODE_DAYS` days."""
        builder = self._builder(_name(site), key, now or datetime.now(UTC), days=NODE_DAYS)
        return builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False).sign(
            self.key, hashes.SHA384()
        )

    def revocation_list(self, revoked: Mapping[int, datetime]) -> x509.CertificateRevocationList:
        """Return the CRL with these serial numbers and their times of revocation.

        It does not expire before the authority: its readers read this file itself, not a copy from a distribution
        point, and an expired list would lock out every site.
        """
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(self._identifier(), critical=False)
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1000)), critical=False)
        )
        for serial, when in revoked.items():
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, hashes.SHA384())

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, *, days: int
    ) -> x509.CertificateBuilder:
        """Return the common part of server and node certificates; none is valid longer than the authority."""
        begins = max(now - CLOCK_SKEW, self.certificate.not_valid_before_utc)
        ends = min(now + timedelta(days=days), self.certificate.not_valid_after_utc)
        return (
            _builder(subject, key, begins, ends)
            .issuer_name(self.certificate.subject)
            .add_extension(self._identifier(), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(key_usage(signs_certificates=False), critical=True)
        )

    def _identifier(self) -> x509.AuthorityKeyIdentifier:
        try:
            own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def self_signed(key: ec.EllipticCurvePrivateKey, names: Sequence[x509.GeneralName]) -> x509.Certificate:
    """Create a self-signed certificate for two processes of one machine that share its file."""
    subject = _name("fedthorax loopback")
    now = datetime.now(UTC)
    return (
        _builder(subject, key.public_key(), now - CLOCK_SKEW, now + timedelta(days=AUTHORITY_DAYS))
        .issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA384())
    )


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca and usage.key_cert_sign and usage.crl_sign


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return the key usage of an authority, which signs certificates, or of a peer (RFC 5280, 4.2.1.3)."""
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
