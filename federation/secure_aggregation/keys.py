"""The cryptography of a masked round, from the package `cryptography` alone.

Ed25519 signs, X25519 agrees on keys, HKDF-SHA256 derives them, ChaCha20-Poly1305 seals shares. Every derived key
depends on the round's header and lists, so that hospitals which were told different things derive different keys.
"""

import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.secure_aggregation import reasons
from models.refusal import Refusal
from pipeline.system.atomic_files import write_durably

KEY_BYTES, NONCE_BYTES = 32, 12
_DOMAIN = b"fedthorax secagg 1 "


class Identity:
    """The Ed25519 key of a hospital's gateway; it signs nothing else. It never leaves the site."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def kept(cls, path: Path) -> "Identity":
        """Return the identity in a file, which is created at the first call. Raises Refusal E_SECAGG_IDENTITY."""
        if not path.exists():
            write_durably(path, secrets.token_bytes(KEY_BYTES))
        content = path.read_bytes()
        if len(content) != KEY_BYTES:
            raise Refusal(reasons.SECAGG_IDENTITY, private=str(path))
        return cls(Ed25519PrivateKey.from_private_bytes(content))

    def sign(self, purpose: str, content: bytes) -> bytes:
        return self._private.sign(_DOMAIN + purpose.encode() + b"\0" + content)


def check_signature(key: bytes, signature: bytes, purpose: str, content: bytes) -> None:
    """Raises Refusal E_SECAGG_SIGNATURE."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _DOMAIN + purpose.encode() + b"\0" + content)
    except (InvalidSignature, ValueError) as error:
        raise Refusal(reasons.SECAGG_SIGNATURE) from error


def public_key(private: bytes) -> bytes:
    """Return the X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agreed_key(private: bytes, other: bytes, purpose: str, context: bytes) -> bytes:
    """Return the key that two hospitals agree on for one purpose; `context` is all that it must depend on.

    Raises Refusal E_SECAGG_MESSAGE for a public key of small order, which would give everybody the same key.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError as error:
        raise Refusal(reasons.SECAGG_MESSAGE, private="a public key of small order") from error
    return derived_key(secret, purpose, context)


def derived_key(secret: bytes, purpose: str, context: bytes) -> bytes:
    """Return the 32-byte key that HKDF-SHA256 derives from a secret."""
    info = _DOMAIN + purpose.encode() + b"\0" + context
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def seal(key: bytes, content: bytes, about: bytes) -> bytes:
    """Encrypt with a random nonce, which precedes the result. `about` is authenticated, not encrypted."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, content, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """Decrypt what `seal` made. Raises Refusal E_SECAGG_SHARE."""
    try:
        return ChaCha20Poly1305(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
    except (InvalidTag, ValueError) as error:
        raise Refusal(reasons.SECAGG_SHARE) from error
