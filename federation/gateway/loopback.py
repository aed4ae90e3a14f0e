"""TLS certificate for the connection between node and gateway; Flower's node requires TLS even on loopback.

SITE_DIR/keys/gateway.crt, .key   created if missing; the node trusts no other certificate
"""

import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from federation.system.certificate_files import read_pair
from federation.system.process import LOOPBACK
from models.refusal import Refusal
from pipeline.site.folder import Site
from pipeline.system.atomic_files import write_atomically

_VALIDITY = timedelta(days=5 * 365)
_CLOCK_SKEW = timedelta(days=1)  # valid even if the clock was set back
_RENEW_BEFORE = timedelta(days=30)


def loopback_tls(site: Site) -> ssl.SSLContext:
    """Return the gateway's TLS settings for connections from the node."""
    certificate, key = loopback_certificate(site)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context


def loopback_certificate(site: Site) -> tuple[Path, Path]:
    """Return the loopback certificate and its key (ECDSA P-384); create them if missing, damaged or about to expire."""
    certificate, key = (site.folder / "keys" / f"gateway.{kind}" for kind in ("crt", "key"))
    if not _is_usable(certificate):
        private = ec.generate_private_key(ec.SECP384R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_atomically(key, pem, mode=0o600)
        write_atomically(certificate, self_signed(private).public_bytes(Encoding.PEM), mode=0o644)
    return certificate, key


def _is_usable(certificate: Path) -> bool:
    try:
        found = read_pair(certificate)
    except Refusal:
        return False
    return found.not_valid_after_utc > datetime.now(UTC) + _RENEW_BEFORE


def self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return a self-signed certificate for loopback with this key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedthorax gateway")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    begin = datetime.now(UTC) - _CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + _VALIDITY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA384())
    )
