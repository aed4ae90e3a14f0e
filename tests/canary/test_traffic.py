"""Reading a capture: every byte is decoded, or is reported as unread."""

import contextlib
import ssl
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from federation.enrolment.certificates import create_server_certificates
from tests.canary.capture import MAGIC
from tests.canary.tls import Plain, Unreadable, decrypt, read_secrets
from tests.canary.traffic import DECRYPTED, outgoing

SITE, SERVER = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"
ADDRESS = {SITE: bytes([10, 77, 0, 2]), SERVER: bytes([10, 77, 0, 1])}
INGRESS = 8443
Change = Callable[[list[bytes]], list[bytes]]


def frame(source: bytes, protocol: int, content: bytes, kind: int = 0x0800) -> bytes:
    target = SERVER if source == SITE else SITE
    ethernet = target + source + struct.pack("!H", kind)
    if kind != 0x0800:
        return ethernet + content
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 1, 0, 64, protocol, 0)
    padding = b"\0" * max(0, 46 - 20 - len(content))  # Ethernet's shortest frame; padding is not part of IP
    return ethernet + head + ADDRESS[source] + ADDRESS[target] + content + padding


def tcp(source: bytes, sequence: int, content: bytes = b"", *, opens: bool = False, ports: tuple[int, int]) -> bytes:
    flags = 2 if opens else 16
    head = struct.pack("!HHIIBBHHH", *ports, sequence % 2**32, 0, 0x50, flags, 1024, 0, 0)
    return frame(source, 6, head + content)


def save(path: Path, frames: list[bytes]) -> Path:
    records = (struct.pack("<IIII", 0, 0, len(each), len(each)) + each for each in frames)
    path.write_bytes(MAGIC + b"".join(records))
    return path


def stream(sequence: int, pieces: list[bytes], port: int = 9999) -> list[bytes]:
    frames, at = [tcp(SITE, sequence, opens=True, ports=(50000, port))], sequence + 1
    for piece in pieces:
        frames.append(tcp(SITE, at, piece, ports=(50000, port)))
        at += len(piece)
    return frames


def test_tcp_stream_is_reassembled_from_any_order(tmp_path: Path) -> None:
    first, *rest = stream(2**32 - 8, [b"one ", b"two ", b"three ", b"four"])  # the sequence numbers wrap
    frames = [first, rest[2], rest[0], rest[0], rest[3], rest[1], rest[2]]
    out = outgoing(save(tmp_path / "c", frames), SITE, {}, INGRESS)
    assert out.parts["TCP to port 9999"] == b"one two three four"
    assert not out.unread
    assert out.bytes == sum(map(len, frames))
    assert len(out.parts["headers"]) == out.bytes - len(b"one two three fourone three ")  # two segments were sent twice


def test_second_connection_on_same_ports_is_read_separately(tmp_path: Path) -> None:
    frames = stream(100, [b"first"]) + stream(70000, [b"second"])
    out = outgoing(save(tmp_path / "c", frames), SITE, {}, INGRESS)
    assert out.parts["TCP to port 9999"] == b"firstsecond"
    assert not out.unread


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda frames: [frames[0], frames[2]], "a gap"),
        (lambda frames: frames[1:], "beginning is missing"),
        (lambda frames: [*frames, tcp(SITE, 101, b"other", ports=(50000, 9999))], "sent twice, and differently"),
        (lambda frames: [*frames, frame(SITE, 132, b"SCTP")], "IP protocol 132"),
        (lambda frames: [*frames, frame(SITE, 0, b"?", kind=0x88CC)], "EtherType 0x88cc"),
    ],
)
def test_unreadable_content_is_reported(tmp_path: Path, change: Change, why: str) -> None:
    frames = change(stream(100, [b"whole", b"story"]))
    out = outgoing(save(tmp_path / "c", frames), SITE, {}, INGRESS)
    assert len(out.unread) == 1
    assert why in out.unread[0]


def test_datagrams_and_other_frames_are_grouped_by_protocol(tmp_path: Path) -> None:
    sent = [frame(SITE, 17, b"....UDP?"), frame(SITE, 1, b"ping"), frame(SITE, 0, b"who has", kind=0x0806)]
    out = outgoing(save(tmp_path / "c", [*sent, frame(SERVER, 17, b"not from here")]), SITE, {}, INGRESS)
    assert {"UDP", "ICMP", "ARP"} <= set(out.parts)
    assert b"UDP?" in out.parts["UDP"]
    assert out.frames == 3
    assert not any(b"not from here" in part for part in out.parts.values())


def test_non_tls_traffic_to_ingress_is_reported(tmp_path: Path) -> None:
    out = outgoing(save(tmp_path / "c", stream(1, [b"GET / HTTP/1.1"], INGRESS)), SITE, {}, INGRESS)
    assert out.unread == [f"TCP to port {INGRESS}: no TLS"]
    assert out.parts[f"TCP to port {INGRESS}"] == b"GET / HTTP/1.1"


# --- TLS --------------------------------------------------------------------------------------------------


class Conversation:
    """A TLS connection in memory, with everything that each side sent, and the file of its secrets."""

    def __init__(self, folder: Path, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        create_server_certificates(folder / "certificates", hosts=["localhost"])
        certificates = folder / "certificates"
        self.secrets = folder / "secrets"
        ours = ssl.create_default_context(cafile=certificates / "ca.crt")
        ours.maximum_version = newest
        ours.keylog_filename = str(self.secrets)
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(certificates / "server.crt", certificates / "server.key")
        # The server's data comes first, the client's second.
        self._taps, self._buffers = ([ssl.MemoryBIO(), ssl.MemoryBIO()] for _ in range(2))
        self.sent = [b"", b""]
        self.client = ours.wrap_bio(self._buffers[0], self._taps[1], server_hostname="localhost")
        self.server = theirs.wrap_bio(self._buffers[1], self._taps[0], server_side=True)
        for _ in range(4):
            for end in (self.client, self.server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                self.pass_on()

    def pass_on(self) -> None:
        for number, (tap, buffer) in enumerate(zip(self._taps, self._buffers, strict=True)):
            piece = tap.read()
            self.sent[number] += piece
            buffer.write(piece)

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.client.write(piece)
            self.pass_on()
            self.server.read(len(piece))
            self.server.write(b"thanks")
            self.pass_on()
            self.client.read(6)

    def read(self) -> tuple[Plain, Plain]:
        return decrypt(self.sent[1], self.sent[0], read_secrets(self.secrets))


def test_tls_is_decrypted_with_its_secrets(tmp_path: Path) -> None:
    conversation = Conversation(tmp_path)
    conversation.say(b"a name", b"x" * 40_000, b"the end")
    sent, answered = conversation.read()
    assert sent.application == b"a name" + b"x" * 40_000 + b"the end"
    assert answered.application == b"thanks" * 3
    assert b"localhost" in sent.rest  # the server name in the ClientHello


def test_captured_tls_is_decrypted(tmp_path: Path) -> None:
    conversation = Conversation(tmp_path)
    conversation.say(b"a name")
    back = [
        tcp(SERVER, 5, opens=True, ports=(INGRESS, 50000)),
        tcp(SERVER, 6, conversation.sent[0], ports=(INGRESS, 50000)),
    ]
    frames = stream(9, [conversation.sent[1]], INGRESS) + back
    out = outgoing(save(tmp_path / "c", frames), SITE, read_secrets(conversation.secrets), INGRESS)
    assert not out.unread
    assert out.parts[DECRYPTED] == b"a name"


def test_undecryptable_tls_raises_unreadable(tmp_path: Path) -> None:
    conversation = Conversation(tmp_path)
    conversation.say(b"a name")
    client, server, secrets = conversation.sent[1], conversation.sent[0], read_secrets(conversation.secrets)
    altered = client[:-1] + bytes([client[-1] ^ 1])
    for stream_, known in ((client, {}), (altered, secrets), (client[:-3], secrets)):
        with pytest.raises(Unreadable):
            decrypt(stream_, server, known)


def test_tls_1_2_raises_unreadable(tmp_path: Path) -> None:
    conversation = Conversation(tmp_path, newest=ssl.TLSVersion.TLSv1_2)
    conversation.say(b"a name")
    with pytest.raises(Unreadable):
        conversation.read()
