"""Encrypt a file with a passphrase in the age format. `age --decrypt` can also open it.

The format is age version 1 with the scrypt recipient (https://c2sp.org/age): a random file key is wrapped with the
passphrase, and the content is encrypted in pieces of 64 KiB with ChaCha20-Poly1305. The nonce contains the piece's
number and a flag for the last piece, so a changed, missing, moved or truncated piece is detected.

Why not pyrage 1.4: with a passphrase it takes and returns whole contents in memory; it streams only with key files. A
server's archive can have gigabytes. Peak memory for 512 MiB: 1.5 GiB with pyrage, 0.3 GiB here, of which scrypt needs
256 MiB; the size of the archive changes nothing here. pyrage also chooses scrypt's memory by the machine's speed (0.5
and 1 GiB in two runs on one machine), and a hostile file made it use 8 GiB. MAX_WORK_FACTOR bounds that to 1 GiB.
"""

import base64
import hmac
import re
import secrets
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from federation.migration import reasons
from federation.migration.archive import Writable
from models.refusal import Refusal

MIN_PASSPHRASE = 12  # characters
WORK_FACTOR = 18  # log2 of scrypt's N, as in age: about one second and 256 MiB
MAX_WORK_FACTOR = 20  # upper bound for a file: 1 GiB

_MAGIC = b"age-encryption.org/v1\n"
_PIECE_BYTES = 64 * 1024
_TAG_BYTES = 16
_MAX_HEADER_BYTES = 1024
_HEADER = re.compile(
    rb"(age-encryption\.org/v1\n-> scrypt ([A-Za-z0-9+/]{22}) ([1-9][0-9]?)\n([A-Za-z0-9+/]{43})\n---) "
    rb"([A-Za-z0-9+/]{43})\n"
)


def is_sealed(stream: BinaryIO) -> bool:
    """Whether a file is in the age format. Its position is reset to the beginning."""
    begins = stream.read(len(_MAGIC))
    stream.seek(0)
    return begins == _MAGIC


def require_length(passphrase: str) -> None:
    """Check a new passphrase. Raises Refusal E_PASSPHRASE if it could be guessed."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise Refusal(reasons.PASSPHRASE, problem=f"it has fewer than {MIN_PASSPHRASE} characters")


class SealingWriter:
    """Encrypts everything that is written to it into `out`. `close` writes the last piece and leaves `out` open."""

    def __init__(self, out: Writable, passphrase: str) -> None:
        file_key, salt, nonce = secrets.token_bytes(16), secrets.token_bytes(16), secrets.token_bytes(16)
        wrapped = ChaCha20Poly1305(_wrapping_key(passphrase, salt, WORK_FACTOR)).encrypt(bytes(12), file_key, None)
        header = _MAGIC + b"-> scrypt %s %d\n%s\n---" % (_base64(salt), WORK_FACTOR, _base64(wrapped))
        out.write(b"%s %s\n%s" % (header, _base64(_header_mac(file_key, header)), nonce))
        self._out, self._pieces, self._waiting = out, _Pieces(file_key, nonce), bytearray()

    def write(self, data: bytes) -> int:
        self._waiting += data
        while len(self._waiting) > _PIECE_BYTES:  # which piece is the last is known only at `close`
            self._out.write(self._pieces.seal(bytes(self._waiting[:_PIECE_BYTES]), is_last=False))
            del self._waiting[:_PIECE_BYTES]
        return len(data)

    def close(self) -> None:
        self._out.write(self._pieces.seal(bytes(self._waiting), is_last=True))


class UnsealingReader:
    """Decrypts a file piece by piece. A piece is returned only after it was verified."""

    def __init__(self, stream: BinaryIO, passphrase: str) -> None:
        """Read the header of `stream`, which must be at its beginning.

        Raises Refusal: E_PASSPHRASE if the passphrase is wrong, E_ARCHIVE_DAMAGED if the header was changed.
        """
        header = _HEADER.match(stream.read(_MAX_HEADER_BYTES))
        if header is None or not 1 <= int(header[3]) <= MAX_WORK_FACTOR:
            raise Refusal(reasons.ARCHIVE_DAMAGED, private="the header of the age format")
        key = _wrapping_key(passphrase, _bytes(header[2]), int(header[3]))
        try:
            file_key = ChaCha20Poly1305(key).decrypt(bytes(12), _bytes(header[4]), None)
        except InvalidTag as error:
            raise Refusal(reasons.PASSPHRASE, problem="it does not open the archive") from error
        # Compare the encoded text, because the last base64 character has unused bits, which must not be free to change.
        if not hmac.compare_digest(_base64(_header_mac(file_key, header[1])), header[5]):
            raise Refusal(reasons.ARCHIVE_DAMAGED, private="the header's MAC")
        stream.seek(header.end())
        self._stream, self._pieces = stream, _Pieces(file_key, stream.read(16))
        self._sealed, self._open = stream.read(_PIECE_BYTES + _TAG_BYTES), b""
        self._is_over = False

    def read(self, count: int) -> bytes:
        """Read at most `count` bytes, fewer only at the end. Raises Refusal E_ARCHIVE_DAMAGED."""
        parts = []
        while count > 0 and (self._open or not self._is_over):
            if not self._open:
                self._next()
            part, self._open = self._open[:count], self._open[count:]
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _next(self) -> None:
        following = self._stream.read(_PIECE_BYTES + _TAG_BYTES)
        self._is_over = not following
        self._open = self._pieces.unseal(self._sealed, is_last=self._is_over)
        self._sealed = following


class _Pieces:
    """The cipher of the content (STREAM): the nonce is the piece's number and a flag for the last piece."""

    def __init__(self, file_key: bytes, nonce: bytes) -> None:
        self._cipher = ChaCha20Poly1305(_derive(file_key, salt=nonce, info=b"payload"))
        self._number = 0

    def seal(self, data: bytes, *, is_last: bool) -> bytes:
        return self._cipher.encrypt(self._nonce(is_last), data, None)

    def unseal(self, data: bytes, *, is_last: bool) -> bytes:
        try:
            return self._cipher.decrypt(self._nonce(is_last), data, None)
        except InvalidTag as error:
            raise Refusal(
                reasons.ARCHIVE_DAMAGED, private="an encrypted piece was changed, or the last piece is missing"
            ) from error

    def _nonce(self, is_last: bool) -> bytes:
        number, self._number = self._number, self._number + 1
        return number.to_bytes(11, "big") + bytes([is_last])


def _wrapping_key(passphrase: str, salt: bytes, work_factor: int) -> bytes:
    scrypt = Scrypt(salt=b"age-encryption.org/v1/scrypt" + salt, length=32, n=2**work_factor, r=8, p=1)
    return scrypt.derive(passphrase.encode())


def _derive(file_key: bytes, *, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), length=32, salt=salt, info=info).derive(file_key)


def _header_mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derive(file_key, salt=b"", info=b"header"), header, "sha256")


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _bytes(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4))
