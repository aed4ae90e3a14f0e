"""Extract what left a site from a capture of its link: each byte of each frame is read, or reported as unread."""

import struct
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from tests.canary.capture import read_frames
from tests.canary.tls import Secrets, Unreadable, decrypt, is_tls

_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TCP = 6
_PROTOCOLS = {0: "IPv6 options and ICMPv6", 1: "ICMP", 17: "UDP", 58: "ICMPv6"}
DECRYPTED = "to the server, decrypted"

Flow = tuple[bytes, int, bytes, int]  # source address and port, destination address and port


@dataclass
class Outgoing:
    """What left a site.

    `parts`: content by kind of traffic, to be searched. `unread`: for each content that could not be read, the reason.
    `frames` and `bytes` count everything that left, headers included. `counted`: the number of bytes of each kind.
    """

    parts: dict[str, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    counted: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    unread: list[str] = field(default_factory=list)
    frames: int = 0

    @property
    def bytes(self) -> int:
        return sum(self.counted.values())


@dataclass(frozen=True)
class _Segment:
    """One TCP segment."""

    flow: Flow
    sequence: int
    opens: bool
    content: bytes
    around: bytes  # headers before it, and padding after it


def outgoing(path: Path, hardware_address: bytes, secrets: Secrets, ingress: int) -> Outgoing:
    """Return what the interface with this address sent, from the capture in `path`.

    The headers of all frames come first, then datagrams by protocol, then reassembled TCP streams. The streams to the
    port `ingress` are decrypted with `secrets`.
    """
    result = Outgoing()
    streams: dict[Flow, list[_Stream]] = defaultdict(list)
    from_site = set()
    for frame in read_frames(path):
        kind, segment = _look(frame)
        if segment is not None:
            _add(streams[segment.flow], segment)
        if frame[6:12] != hardware_address:
            continue
        result.frames += 1
        result.parts["headers"] += segment.around if segment else frame[:14]
        if segment is not None:
            from_site.add(segment.flow)
            kind = f"TCP to port {segment.flow[3]}"
        else:
            result.parts[kind] += frame[14:]
        result.counted[kind] += len(frame)
        if kind.startswith("unknown"):
            result.unread.append(kind)
    for flow in sorted(from_site):
        back = streams.get(flow[2:] + flow[:2], [])
        for sent, answered in zip_longest(streams[flow], back[: len(streams[flow])], fillvalue=_Stream(0)):
            _read_stream(f"TCP to port {flow[3]}", sent, answered, secrets if flow[3] == ingress else None, result)
    return result


def _read_stream(name: str, sent: "_Stream", answered: "_Stream", secrets: Secrets | None, result: Outgoing) -> None:
    """Add what the site sent on one TCP connection. A stream to the ingress must be TLS that can be decrypted."""
    content, problem = sent.content()
    if problem:
        result.unread.append(f"{name}: {problem}")
    elif secrets is not None and content:
        try:
            if not is_tls(content):
                raise Unreadable("no TLS")
            plain, _ = decrypt(content, answered.content()[0], secrets)
        except Unreadable as error:
            result.unread.append(f"{name}: {error}")
        else:
            result.parts[DECRYPTED] += plain.application
            result.parts["TLS handshakes, decrypted"] += plain.rest
            return
    result.parts[name] += content


def _look(frame: bytes) -> tuple[str, _Segment | None]:
    """Return the kind of a frame, and its TCP segment if it has one."""
    kind = int.from_bytes(frame[12:14])
    if kind == _ARP:
        return "ARP", None
    if kind == _IPV4:
        start, protocol = 14 + (frame[14] & 15) * 4, frame[23]
        end = 14 + int.from_bytes(frame[16:18])
        source, target = frame[26:30], frame[30:34]
        if int.from_bytes(frame[20:22]) & 0x3FFF:
            return "unknown: an IPv4 fragment", None
    elif kind == _IPV6:
        start, protocol = 54, frame[20]
        end = 54 + int.from_bytes(frame[18:20])
        source, target = frame[22:38], frame[38:54]
    else:
        return f"unknown: EtherType {kind:#06x}", None
    if protocol != _TCP:
        return _PROTOCOLS.get(protocol, f"unknown: IP protocol {protocol}"), None
    tcp = frame[start:end]
    ports = struct.unpack("!HH", tcp[:4])
    flow = (source, ports[0], target, ports[1])
    head = (tcp[12] >> 4) * 4
    around = frame[: start + head] + frame[end:]
    return "TCP", _Segment(flow, int.from_bytes(tcp[4:8]), bool(tcp[13] & 2), tcp[head:], around)


class _Stream:
    """One direction of a TCP connection, reassembled from its segments; shorter than 2 GB."""

    def __init__(self, first: int, *, seen_to_begin: bool = True) -> None:
        self.first = first
        self._problem = "" if seen_to_begin else "its beginning is missing"
        self._pieces: list[tuple[int, bytes]] = []

    def add(self, segment: _Segment) -> None:
        place = (segment.sequence - self.first + 2**31) % 2**32 - 2**31
        if segment.content and place >= 0:  # before the first byte there are only keep-alive probes
            self._pieces.append((place, segment.content))

    def content(self) -> tuple[bytes, str]:
        """Return all bytes up to a problem, and the problem: a gap, or a position sent again with other bytes."""
        joined = bytearray()
        for place, piece in sorted(self._pieces, key=lambda each: each[0]):
            if place > len(joined):
                return bytes(joined), "a gap"
            overlap = joined[place : place + len(piece)]
            if not piece.startswith(overlap):
                return bytes(joined), "sent twice, and differently"
            joined += piece[len(overlap) :]
        return bytes(joined), self._problem


def _add(streams: list[_Stream], segment: _Segment) -> None:
    """Add a segment to the last stream of its flow. Another initial sequence number starts a new connection."""
    first = (segment.sequence + segment.opens) % 2**32
    if not streams or (segment.opens and streams[-1].first != first):
        streams.append(_Stream(first, seen_to_begin=segment.opens))
    streams[-1].add(segment)
