"""Signs and verifies releases offline with OpenSSF model signing (in-toto, DSSE) and an elliptic-curve key.

    model.sig   a signed list of all other files in the folder with their SHA-256

The signature becomes invalid if a file is added, removed or changed, including links, hidden files and files of git. It
does not cover the name of the folder, empty folders, times and permissions. A signature shows who released these files;
it does not show that the model is good. The key's fingerprint is the SHA-256 of its .pub file.

https://github.com/sigstore/model-transparency; ECDSA on P-256, P-384 or P-521 (FIPS 186-5).
"""

import contextlib
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from models.reasons import NOT_SIGNED, SIGNATURE_WRONG, SIGNING_KEY, TRUSTED_KEY
from models.refusal import Refusal

if TYPE_CHECKING:
    from model_signing.hashing import Config

SIGNATURE = "model.sig"
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # the curves that model signing supports


def new_private_key() -> bytes:
    """Make a private key for signing (P-256), as PEM without password; only its owner should be able to read it."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_key(private_key: Path) -> bytes:
    """Return the public key of a private key, as PEM. Raises Refusal E_SIGNING_KEY."""
    try:
        key = load_pem_private_key(private_key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:  # TypeError: the key has a password
        raise Refusal(SIGNING_KEY, private=f"{private_key}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise Refusal(SIGNING_KEY, private=str(private_key))
    return _pem(key.public_key())


def fingerprint(trusted_key: Path) -> str:
    """Return the SHA-256 of a public key as PEM, as `sha256sum` of its .pub file. Raises Refusal E_TRUSTED_KEY."""
    try:
        key = load_pem_public_key(trusted_key.read_bytes())
    except (OSError, ValueError) as error:
        raise Refusal(TRUSTED_KEY, private=f"{trusted_key}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise Refusal(TRUSTED_KEY, private=str(trusted_key))
    return hashlib.sha256(_pem(key)).hexdigest()


def sign(folder: Path, private_key: Path) -> None:
    """Sign all files of a release. Raises Refusal E_SIGNING_KEY."""
    public_key(private_key)
    from model_signing import signing

    config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(_every_file(folder)).sign(folder, folder / SIGNATURE)


def verify(folder: Path, trusted_keys: Sequence[Path]) -> str:
    """Return the fingerprint of the key in `trusted_keys` that signed exactly these files.

    Raises Refusal: E_TRUSTED_KEY if one of the keys is invalid, E_NOT_SIGNED, E_SIGNATURE if no trusted key signed or a
    file was changed, added or removed.
    """
    prints = [fingerprint(key) for key in trusted_keys]
    if not (folder / SIGNATURE).exists():
        raise Refusal(NOT_SIGNED)
    from model_signing import verifying

    causes = []
    for key, name in zip(trusted_keys, prints, strict=True):
        config = verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(_every_file(folder))
        try:
            with contextlib.redirect_stdout(sys.stderr):  # the library prints warnings to stdout, which is for JSON
                config.verify(folder, folder / SIGNATURE)
        except Exception as error:  # includes errors of its parsers about forged files
            causes.append(f"{key.name}: {type(error).__name__} {error}")
        else:
            return name
    raise Refusal(SIGNATURE_WRONG, private="; ".join(causes))


def _every_file(folder: Path) -> "Config":
    """Hash all files except the signature; by default the library would skip files of git."""
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
