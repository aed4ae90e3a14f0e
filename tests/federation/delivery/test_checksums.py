"""A signed folder: every way to change it is refused, and openssl and sha256sum agree."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from typer.testing import CliRunner

from federation.cli.main import app
from federation.delivery.checksums import SIGNATURE, SUMS, sign_sums, verify_release, write_sums
from models.refusal import Refusal
from models.signature import fingerprint, new_private_key, public_key, sign


@pytest.fixture
def signed(tmp_path: Path, private_key: Path) -> Path:
    folder = tmp_path / "release"
    for name in ("a.tar", "wheelhouse/b.whl", ".hidden", "name with spaces"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    write_sums(folder)
    sign_sums(folder, private_key)
    return folder


def code(folder: Path, *keys: Path) -> str:
    with pytest.raises(Refusal) as refusal:
        verify_release(folder, keys)
    return refusal.value.code


def test_the_signed_files_are_accepted_and_sums_are_the_same_each_time(signed: Path, private_key: Path) -> None:
    key = private_key.with_suffix(".pub")
    assert verify_release(signed, [key]) == fingerprint(key)
    before = (signed / SUMS).read_bytes()
    write_sums(signed)
    assert (signed / SUMS).read_bytes() == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda folder: (folder / "a.tar").write_text("A.tar"),
    "a longer file": lambda folder: (folder / "a.tar").write_text("a.tar\0"),
    "an empty file": lambda folder: (folder / "wheelhouse/b.whl").write_text(""),
    "missing": lambda folder: (folder / "wheelhouse/b.whl").unlink(),
    "renamed": lambda folder: (folder / "a.tar").rename(folder / "b.tar"),
    "swapped": lambda folder: shutil.copyfile(folder / "a.tar", folder / "wheelhouse/b.whl"),
    "extra": lambda folder: (folder / "extra").write_text(""),
    "extra and hidden": lambda folder: (folder / "wheelhouse/.pth").write_text("import os"),
    "a link to the same bytes": lambda folder: (
        shutil.move(folder / "a.tar", folder.parent / "a.tar"),
        (folder / "a.tar").symlink_to(folder.parent / "a.tar"),
    ),
    "a link to a folder": lambda folder: (folder / "more").symlink_to(folder.parent),
    "a dangling link": lambda folder: (folder / "more").symlink_to("nothing"),
    "another kind of file": lambda folder: subprocess.run(["mkfifo", folder / "pipe"], check=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_are_refused(change: str, signed: Path, private_key: Path) -> None:
    CHANGES[change](signed)
    assert code(signed, private_key.with_suffix(".pub")) == "E_RELEASE_FILES"
    (signed / SUMS).write_text(f"{'0' * 64}  extra\n")  # other sums, without the key
    assert code(signed, private_key.with_suffix(".pub")) == "E_RELEASE_SIGNATURE"


def test_another_key_and_a_damaged_signature_are_refused(signed: Path, private_key: Path, tmp_path: Path) -> None:
    (tmp_path / "other.key").write_bytes(new_private_key())
    other = tmp_path / "other.pub"
    other.write_bytes(public_key(tmp_path / "other.key"))
    assert code(signed, other) == "E_RELEASE_SIGNATURE"
    assert code(signed) == "E_RELEASE_SIGNATURE"
    assert verify_release(signed, [other, private_key.with_suffix(".pub")]) == fingerprint(
        private_key.with_suffix(".pub")
    )
    whole = (signed / SIGNATURE).read_bytes()
    for damaged in (b"", whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], whole[:20] + b"\0" * (len(whole) - 20)):
        (signed / SIGNATURE).write_bytes(damaged)
        assert code(signed, private_key.with_suffix(".pub")) == "E_RELEASE_SIGNATURE"


def test_sums_of_one_folder_do_not_sign_another(signed: Path, private_key: Path, tmp_path: Path) -> None:
    other = tmp_path / "older"
    other.mkdir()
    (other / "a.tar").write_text("an older version with a fault")
    shutil.copyfile(signed / SUMS, other / SUMS)
    shutil.copyfile(signed / SIGNATURE, other / SIGNATURE)
    assert code(other, private_key.with_suffix(".pub")) == "E_RELEASE_FILES"


@pytest.mark.parametrize("line", ["no sum", f"{'0' * 64}  a.tar", f"{'0' * 64} *b.tar", f"{'0' * 63}  c"])
def test_sums_with_a_line_that_is_not_valid_are_refused(line: str, signed: Path, private_key: Path) -> None:
    """Even signed: two sums for one file, or a line that sha256sum would skip, can mean two things."""
    with (signed / SUMS).open("a") as file:
        file.write(f"{line}\n")
    sign_sums(signed, private_key)
    assert code(signed, private_key.with_suffix(".pub")) == "E_RELEASE_FILES"


def test_keys_of_another_kind_are_refused(signed: Path, tmp_path: Path) -> None:
    small = ec.generate_private_key(ec.SECP192R1())
    for key in (small, ed25519.Ed25519PrivateKey.generate()):
        (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        with pytest.raises(Refusal, match="E_SIGNING_KEY"):
            sign_sums(signed, tmp_path / "key")
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pub").write_bytes(public)
        assert code(signed, tmp_path / "key.pub") == "E_TRUSTED_KEY"


def test_what_holds_no_signature_is_named_as_such(signed: Path, private_key: Path, tmp_path: Path) -> None:
    key = private_key.with_suffix(".pub")
    for missing in (tmp_path / "nowhere", key, signed / "a.tar"):
        assert code(missing, key) == "E_NO_RELEASE"
    (tmp_path / "empty").mkdir()
    assert code(tmp_path / "empty", key) == "E_NO_SUMS"
    for wrong in (tmp_path / "nowhere.pub", signed):
        assert code(signed, wrong) == "E_TRUSTED_KEY"
    (signed / SIGNATURE).unlink()
    assert code(signed, key) == "E_RELEASE_SIGNATURE"


def test_model_is_verified_by_its_own_signature(private_key: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    sign(model, private_key)
    key = private_key.with_suffix(".pub")
    assert verify_release(model, [key]) == fingerprint(key)
    (model / "extra").touch()
    assert code(model, key) == "E_SIGNATURE"


def test_openssl_and_sha256sum_alone_verify_it(signed: Path, private_key: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not here")
    command = (
        f"openssl dgst -sha256 -verify {private_key.with_suffix('.pub')} -signature SHA256SUMS.sig SHA256SUMS"
        " && sha256sum --check --quiet SHA256SUMS"
    )
    assert subprocess.run(["sh", "-c", command], cwd=signed, capture_output=True, check=False).returncode == 0
    (signed / "a.tar").write_text("changed")
    assert subprocess.run(["sh", "-c", command], cwd=signed, capture_output=True, check=False).returncode == 1
    write_sums(signed)
    assert subprocess.run(["sh", "-c", command], cwd=signed, capture_output=True, check=False).returncode == 1


def test_command_verifies_a_folder(signed: Path, private_key: Path) -> None:
    key = private_key.with_suffix(".pub")
    done = CliRunner().invoke(app, ["verify-release", str(signed), "--key", str(key), "--json"])
    assert json.loads(done.stdout) == {"folder": str(signed), "signed_by": fingerprint(key)}
    (signed / "extra").write_text("")
    done = CliRunner().invoke(app, ["verify-release", str(signed), "--key", str(key)])
    assert isinstance(done.exception, Refusal)
    assert done.exception.code == "E_RELEASE_FILES"
