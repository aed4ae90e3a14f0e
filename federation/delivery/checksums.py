"""SHA256SUMS of a folder and its signature: made at the publisher, verified offline at a hospital.

    SHA256SUMS       the SHA-256 of every other file, in the format of sha256sum
    SHA256SUMS.sig   its signature: ECDSA with SHA-256, DER

The key is of the kind that signs models (`models.signature`). A model's own signature format needs a library; this one
is verified by openssl and sha256sum alone, because it is verified before anything is installed:

    openssl dgst -sha256 -verify KEY.pub -signature SHA256SUMS.sig SHA256SUMS && sha256sum --check --quiet SHA256SUMS
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from federation.delivery import reasons
from federation.delivery.wheelhouse import sha256_of
from models import signature as model_signature
from models.refusal import Refusal
from models.signature import fingerprint, public_key

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n\\]+)")


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS of all files below a folder."""
    (folder / SIGNATURE).unlink(missing_ok=True)
    lines = [f"{sha256_of(folder / name)}  {name}\n" for name in _names(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def sign_sums(folder: Path, private_key: Path) -> None:
    """Sign SHA256SUMS with an elliptic-curve key. Raises Refusal E_SIGNING_KEY."""
    public_key(private_key)
    key = load_pem_private_key(private_key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)  # RFC 6979: the same release, the same bytes
    (folder / SIGNATURE).write_bytes(key.sign((folder / SUMS).read_bytes(), algorithm))


def verify_release(folder: Path, trusted_keys: Sequence[Path]) -> str:
    """Return the fingerprint of the key in `trusted_keys` that signed exactly the files below `folder`.

    The folder of a model has a signature of another format, which is verified as `models.signature` does.

    Raises Refusal: E_NO_RELEASE, E_NO_SUMS, E_TRUSTED_KEY, E_RELEASE_SIGNATURE, E_RELEASE_FILES; of a model
    E_SIGNATURE.
    """
    if not folder.is_dir():
        raise Refusal(reasons.NO_RELEASE, private=str(folder))
    if not any(os.path.lexists(folder / name) for name in (SIGNATURE, SUMS)):
        if os.path.lexists(folder / model_signature.SIGNATURE):
            return model_signature.verify(folder, trusted_keys)
        raise Refusal(reasons.NO_SUMS, private=str(folder))
    try:
        signature, signed = (folder / SIGNATURE).read_bytes(), (folder / SUMS).read_bytes()
    except OSError as error:
        raise Refusal(reasons.RELEASE_SIGNATURE, private=str(error)) from error
    signed_by = _signer(signature, signed, trusted_keys)
    listed = _listed(signed)
    names = set(_names(folder))
    for problem, wrong in (
        ("a file is missing", listed.keys() - names),
        ("a file is not in SHA256SUMS", names - listed.keys()),
        ("a file was changed", {name for name in names & listed.keys() if not _is(folder / name, listed[name])}),
    ):
        if wrong:
            raise Refusal(reasons.RELEASE_FILES, problem=problem, private=", ".join(sorted(wrong)))
    return signed_by


def _signer(signature: bytes, signed: bytes, trusted_keys: Sequence[Path]) -> str:
    prints = {fingerprint(path): path for path in trusted_keys}
    for name, path in prints.items():
        key = load_pem_public_key(path.read_bytes())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            key.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return name
    raise Refusal(reasons.RELEASE_SIGNATURE)


def _listed(signed: bytes) -> dict[str, str]:
    listed: dict[str, str] = {}
    for line in signed.decode("utf-8", "replace").splitlines():
        if not (found := _LINE.fullmatch(line)) or found[2] in listed:
            raise Refusal(reasons.RELEASE_FILES, problem="SHA256SUMS has a line that is not valid", private=line)
        listed[found[2]] = found[1]
    return listed


def _is(path: Path, digest: str) -> bool:
    # A link could lead to another file after it was verified.
    return not path.is_symlink() and path.is_file() and sha256_of(path) == digest


def _names(folder: Path) -> list[str]:
    """Return whatever is below a folder but folders, without the two files of this module."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted({path.relative_to(folder).as_posix() for path in paths} - {SUMS, SIGNATURE})
