"""Reads certificates of this server or site, and the private keys beside them: PEM files that may be damaged."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from federation.system import reasons
from models.refusal import Refusal


def read_certificate(path: Path) -> x509.Certificate:
    """Read a certificate. Raises Refusal E_CERTIFICATE_FILE."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise unusable(path, error) from error


def read_pair(certificate: Path) -> x509.Certificate:
    """Read a certificate (`.crt`), and check that the private key beside it (`.key`) fits.

    Raises Refusal E_CERTIFICATE_FILE.
    """
    found, path = read_certificate(certificate), certificate.with_suffix(".key")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise unusable(path, error) from error
    if key.public_key() != found.public_key():
        raise unusable(path, "it is the key of another certificate")
    return found


def unusable(path: Path, problem: object) -> Refusal:
    """Return the refusal E_CERTIFICATE_FILE, which names the file without its folder."""
    return Refusal(reasons.CERTIFICATE_FILE, file=path.name, private=f"{path}: {problem}")
