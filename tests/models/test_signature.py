"""Signed folders are accepted unchanged, and refused with a code after any change or with another key."""

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat, PublicFormat

from models.refusal import Refusal
from models.signature import SIGNATURE, fingerprint, new_private_key, public_key, sign, verify


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(new_private_key())
    public.write_bytes(public_key(private))
    return private, public


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path, "own")


@pytest.fixture
def signed(tmp_path: Path, own: tuple[Path, Path]) -> Path:
    folder = tmp_path / "release"
    (folder / "configs").mkdir(parents=True)
    (folder / "model.json").write_text('{"rounds": 3}')
    (folder / "configs" / "inference.json").write_text("{}")
    sign(folder, own[0])
    return folder


def code(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    assert "/" not in str(caught.value)
    return caught.value.code


def test_signed_folder_is_accepted_under_any_name_and_returns_the_key(
    signed: Path, own: tuple[Path, Path], tmp_path: Path
) -> None:
    assert verify(signed, [own[1]]) == hashlib.sha256(own[1].read_bytes()).hexdigest()
    moved = shutil.copytree(signed, tmp_path / "elsewhere" / "other-name")
    assert verify(moved, [key_pair(tmp_path, "another")[1], own[1]]) == fingerprint(own[1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: flip(folder / "model.json"),
        lambda folder: flip(folder / "configs" / "inference.json"),
        lambda folder: (folder / "model.json").unlink(),
        lambda folder: (folder / "model.json").rename(folder / "model2.json"),
        lambda folder: (folder / "extra.py").write_text(""),
        lambda folder: (folder / "configs" / ".hidden").write_text(""),
        lambda folder: (folder / ".gitignore").write_text("*"),
        lambda folder: ((folder / ".git").mkdir(), (folder / ".git" / "hook").write_text("")),
        lambda folder: (folder / "link").symlink_to(folder / "model.json"),
        lambda folder: (folder / "link").symlink_to("/etc"),
    ],
    ids=["edited", "deep", "gone", "renamed", "extra", "hidden", "gitignore", "git", "link", "link out"],
)
def test_any_changed_file_is_refused(signed: Path, own: tuple[Path, Path], change: Callable[[Path], object]) -> None:
    change(signed)
    assert code(verify, signed, [own[1]]) == "E_SIGNATURE"


def edited(signature: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(signature.read_text())
    change(content)
    signature.write_text(json.dumps(content))


def test_file_list_edited_to_match_a_changed_file_is_refused(signed: Path, own: tuple[Path, Path]) -> None:
    before = hashlib.sha256((signed / "model.json").read_bytes()).hexdigest().encode()
    (signed / "model.json").write_text('{"rounds": 4}')
    after = hashlib.sha256((signed / "model.json").read_bytes()).hexdigest().encode()

    def mend(content: dict[str, Any]) -> None:
        envelope = content["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        assert before in payload
        envelope["payload"] = base64.b64encode(payload.replace(before, after)).decode()

    edited(signed / SIGNATURE, mend)
    assert code(verify, signed, [own[1]]) == "E_SIGNATURE"


def test_other_key_is_refused_even_with_a_forged_hint(signed: Path, own: tuple[Path, Path], tmp_path: Path) -> None:
    stranger = key_pair(tmp_path, "stranger")
    assert code(verify, signed, [stranger[1]]) == "E_SIGNATURE"
    sign(signed, stranger[0])
    assert verify(signed, [stranger[1]])
    edited(
        signed / SIGNATURE,
        lambda content: content["verificationMaterial"]["publicKey"].update(hint=fingerprint(own[1])),
    )
    assert code(verify, signed, [own[1]]) == "E_SIGNATURE"


def test_folder_without_signature_is_refused(signed: Path, own: tuple[Path, Path]) -> None:
    (signed / SIGNATURE).unlink()
    assert code(verify, signed, [own[1]]) == "E_NOT_SIGNED"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_malformed_signature_is_refused(signed: Path, own: tuple[Path, Path], content: bytes) -> None:
    (signed / SIGNATURE).write_bytes(content)
    assert code(verify, signed, [own[1]]) == "E_SIGNATURE"


def test_library_warning_is_not_printed_to_stdout(
    signed: Path, own: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    edited(signed / SIGNATURE, lambda content: content["verificationMaterial"]["publicKey"].pop("hint"))
    verify(signed, [own[1]])
    told = capsys.readouterr()
    assert told.out == "" and told.err, "the library prints its warning to standard error only"


def public_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        public_pem(rsa.generate_private_key(65537, 2048)),
        public_pem(ec.generate_private_key(ec.SECP256K1())),
    ],
    ids=["empty", "text", "RSA", "other curve"],
)
def test_invalid_trusted_key_is_refused(signed: Path, own: tuple[Path, Path], content: bytes) -> None:
    wrong = signed.parent / "wrong.pub"
    wrong.write_bytes(content)
    assert code(verify, signed, [own[1], wrong]) == "E_TRUSTED_KEY", "refused even if another key matches"
    assert code(verify, signed, [signed.parent / "nowhere.pub"]) == "E_TRUSTED_KEY"


def test_invalid_signing_key_is_refused_before_writing(signed: Path, own: tuple[Path, Path]) -> None:
    before = (signed / SIGNATURE).read_bytes()
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")
    )
    for content in (b"no key", locked, own[1].read_bytes()):
        wrong = signed.parent / "wrong.key"
        wrong.write_bytes(content)
        assert code(sign, signed, wrong) == "E_SIGNING_KEY"
    assert (signed / SIGNATURE).read_bytes() == before
