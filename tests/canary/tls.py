"""Decrypt captured TLS 1.3 with the secrets that the client's library logged (SSLKEYLOGFILE).

RFC 8446: records (5.1, 5.2), key schedule (7.1 to 7.3), KeyUpdate (4.6.3). The format of the file is that of RFC 9850.
Data that is not TLS 1.3, or cannot be decrypted, raises Unreadable; the proof reports it as a finding.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION = 20, 21, 22, 23
_CLIENT_HELLO, _SERVER_HELLO, _FINISHED, _KEY_UPDATE = 1, 2, 20, 24
Cipher = type[AESGCM] | type[ChaCha20Poly1305]
_SUITES: dict[int, tuple[Cipher, int, HashAlgorithm]] = {
    0x1301: (AESGCM, 16, SHA256()),
    0x1302: (AESGCM, 32, SHA384()),
    0x1303: (ChaCha20Poly1305, 32, SHA256()),
}
Secrets = Mapping[tuple[str, bytes], bytes]


class Unreadable(Exception):
    """A captured stream cannot be read to its end."""


@dataclass
class Plain:
    """One direction of a connection in plain text: the application data, and the handshake and alerts around it."""

    application: bytes
    rest: bytes


def read_secrets(path: Path) -> dict[tuple[str, bytes], bytes]:
    """Return a dict from (label, client random) to secret."""
    secrets = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        words = line.split()
        if len(words) == 3 and not line.startswith("#"):
            secrets[words[0], bytes.fromhex(words[1])] = bytes.fromhex(words[2])
    return secrets


def is_tls(stream: bytes) -> bool:
    """Return whether a stream begins with a TLS handshake."""
    return stream[:2] == b"\x16\x03"


def decrypt(client: bytes, server: bytes, secrets: Secrets) -> tuple[Plain, Plain]:
    """Decrypt both directions of a captured connection. Raises Unreadable."""
    random = _hello(client, _CLIENT_HELLO)[2:34]
    suite = _suite(_hello(server, _SERVER_HELLO)) if server else None
    return (
        _read(client, _Keys(suite, "CLIENT", random, secrets)),
        _read(server, _Keys(suite, "SERVER", random, secrets)),
    )


def records(stream: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (type, header, content) of each record. Raises Unreadable if a record is truncated."""
    at = 0
    while at < len(stream):
        header = stream[at : at + 5]
        if len(header) < 5 or header[0] not in (CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION):
            raise Unreadable("no TLS record")
        end = at + 5 + int.from_bytes(header[3:])
        if end > len(stream):
            raise Unreadable("a record is cut off")
        yield header[0], header, stream[at + 5 : end]
        at = end


def _hello(stream: bytes, kind: int) -> bytes:
    """Return the body of the first handshake message, which is a ClientHello or ServerHello."""
    record_type, _, content = next(records(stream), (0, b"", b""))
    if record_type != HANDSHAKE or content[:1] != bytes([kind]):
        raise Unreadable("no TLS hello")
    return content[4:]


def _suite(server_hello: bytes) -> int:
    after_session = 35 + server_hello[34]
    return int.from_bytes(server_hello[after_session : after_session + 2])


@dataclass
class _Keys:
    """The key of one direction. It changes after the handshake and with each KeyUpdate."""

    suite: int | None
    side: str
    random: bytes
    secrets: Secrets
    secret: bytes = b""
    sequence: int = 0
    key: bytes = field(default=b"", repr=False)
    iv: bytes = b""

    def use(self, secret: bytes | None) -> None:
        if secret is None or self.suite not in _SUITES:
            raise Unreadable("no secret was written down for this connection, or it is not TLS 1.3")
        self.secret, self.sequence = secret, 0
        self.key = self._expand(b"key", _SUITES[self.suite][1])
        self.iv = self._expand(b"iv", 12)

    def use_stage(self, stage: str) -> None:
        self.use(self.secrets.get((f"{self.side}_{stage}", self.random)))

    def update(self) -> None:
        self.use(self._expand(b"traffic upd", len(self.secret)))

    def _expand(self, label: bytes, length: int) -> bytes:
        """HKDF-Expand-Label with an empty context (RFC 8446, 7.1)."""
        assert self.suite is not None
        name = b"tls13 " + label
        info = struct.pack("!HB", length, len(name)) + name + b"\0"
        return HKDFExpand(_SUITES[self.suite][2], length, info).derive(self.secret)

    def open(self, header: bytes, content: bytes) -> tuple[int, bytes]:
        """Return (type, content) of one protected record."""
        if not self.key:
            self.use_stage("HANDSHAKE_TRAFFIC_SECRET")
        assert self.suite is not None
        nonce = (int.from_bytes(self.iv) ^ self.sequence).to_bytes(12)
        self.sequence += 1
        try:
            inner = _SUITES[self.suite][0](self.key).decrypt(nonce, content, header).rstrip(b"\0")
        except InvalidTag:
            raise Unreadable("a record does not decrypt") from None
        return inner[-1], inner[:-1]


def _read(stream: bytes, keys: _Keys) -> Plain:
    application, rest, handshake = [], [], b""
    for record_type, header, sealed in records(stream):
        kind, content = keys.open(header, sealed) if record_type == APPLICATION else (record_type, sealed)
        if kind == APPLICATION:
            application.append(content)
            continue
        rest.append(content)
        if record_type == APPLICATION and kind == HANDSHAKE:
            handshake += content
            while len(handshake) >= 4 and len(handshake) >= (end := 4 + int.from_bytes(handshake[1:4])):
                message, handshake = handshake[0], handshake[end:]
                if message == _FINISHED:
                    keys.use_stage("TRAFFIC_SECRET_0")
                elif message == _KEY_UPDATE:
                    keys.update()
    return Plain(b"".join(application), b"".join(rest))
