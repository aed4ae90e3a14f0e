"""Tests of encrypted archives in the age format: altered, truncated or reassembled files are refused."""

import base64
import io
import random
import string

import pytest

from federation.migration import age_file
from federation.migration.age_file import SealingWriter, UnsealingReader, is_sealed, require_length
from models.refusal import Refusal

PASSPHRASE = "correct horse battery staple"
PIECE = 64 * 1024 + 16  # size of an encrypted chunk: 64 KiB and a 16-byte tag
# Encrypted by another implementation, pyrage 1.4.0 (the Rust crate age), with PASSPHRASE.
# The first test below has the plaintext.
FOREIGN = base64.b64decode(
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IHNjcnlwdCBzSVZQSDZCamRMcVF5aGhLR204TVNnIDE4CncycHpTaFZ6MkptUm9NQnRXTXFpZ0N0cjBx"
    "L09TclZjY0gvMFNWM3NUcmMKLS0tIEUxVWovNU45cmhERlc0VWh6K3daM3poc3hQdHVFUjdjdUdVSEdvZGU5ZFUKgGIukF/h72ToYtZb7qTGOPW6"
    "tvyOxz5KqSFZ1Hxm8IrxI8xOhOU7O/BM6ZoYql/mbL4P0oZb9dNsVNnZSBPZp89PzSafhgY="
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a low work factor: the real one takes a second. The file header records the factor that was used."""
    monkeypatch.setattr(age_file, "WORK_FACTOR", 4)


def seal(content: bytes, passphrase: str = PASSPHRASE, *, at_once: int = 10_240) -> bytes:
    out = io.BytesIO()
    writer = SealingWriter(out, passphrase)
    for begin in range(0, len(content), at_once):
        writer.write(content[begin : begin + at_once])
    writer.close()
    return out.getvalue()


def unseal(content: bytes, passphrase: str = PASSPHRASE, *, at_once: int = 1000) -> bytes:
    reader = UnsealingReader(io.BytesIO(content), passphrase)
    return b"".join(iter(lambda: reader.read(at_once), b""))


def header_bytes(content: bytes) -> int:
    return content.index(b"\n", content.index(b"\n---") + 1) + 1


def test_file_encrypted_by_pyrage_is_decrypted():
    assert unseal(FOREIGN) == b"a study moves" * 3


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000])
@pytest.mark.parametrize("at_once", [7_000, 65_536, 300_000])
def test_decryption_returns_the_encrypted_content(size: int, at_once: int):
    content = random.Random(size).randbytes(size)
    closed = seal(content, at_once=at_once)
    assert is_sealed(io.BytesIO(closed))
    assert unseal(closed, at_once=at_once) == content
    assert len(closed) == header_bytes(closed) + 16 + size + 16 * max(1, -(-size // 65_536))


def test_ciphertexts_differ_and_do_not_contain_the_plaintext():
    one, other = seal(b"a key" * 100), seal(b"a key" * 100)
    assert one[header_bytes(one) :] != other[header_bytes(other) :]
    assert b"a key" not in one


def test_wrong_passphrase_is_refused():
    for wrong in ("", "correct horse battery stapl", PASSPHRASE + " "):
        with pytest.raises(Refusal, match="E_PASSPHRASE"):
            unseal(seal(b"content"), wrong)


@pytest.mark.parametrize("passphrase", ["", "short", "eleven char"])
def test_short_passphrase_is_refused(passphrase: str):
    with pytest.raises(Refusal, match="E_PASSPHRASE"):
        require_length(passphrase)


def test_any_flipped_bit_is_refused():
    closed = seal(b"content" * 10)
    for position in range(len(closed)):
        changed = bytearray(closed)
        changed[position] ^= 1
        with pytest.raises(Refusal, match=r"E_ARCHIVE_DAMAGED|E_PASSPHRASE"):
            unseal(bytes(changed))


def test_only_the_canonical_base64_of_the_mac_is_accepted():
    closed = seal(b"content")
    last = header_bytes(closed) - 2
    for letter in (string.ascii_letters + string.digits + "+/").encode():
        if letter != closed[last]:
            with pytest.raises(Refusal, match="E_ARCHIVE_DAMAGED"):
                unseal(closed[:last] + bytes([letter]) + closed[last + 1 :])


def test_removed_reordered_or_added_chunks_are_refused():
    content = random.Random(1).randbytes(3 * 65_536)
    closed = seal(content)
    begin = header_bytes(closed) + 16
    head, pieces = closed[:begin], [closed[k : k + PIECE] for k in range(begin, len(closed), PIECE)]
    assert len(pieces) == 3
    other = seal(content)
    wrong = {
        "cut at a piece": head + b"".join(pieces[:2]),
        "cut within one": closed[:-100],
        "cut to the header": head,
        "the first left out": head + b"".join(pieces[1:]),
        "exchanged": head + pieces[1] + pieces[0] + pieces[2],
        "twice": head + pieces[0] + b"".join(pieces),
        "more after the end": closed + pieces[2],
        "another file's": head + other[header_bytes(other) + 16 :],
    }
    for what, changed in wrong.items():
        with pytest.raises(Refusal, match="E_ARCHIVE_DAMAGED"):
            unseal(changed)
            raise AssertionError(what)


def test_excessive_scrypt_work_factor_is_refused():
    closed = seal(b"content").replace(b" 4\n", b" 30\n", 1)
    with pytest.raises(Refusal, match="E_ARCHIVE_DAMAGED"):
        unseal(closed)
