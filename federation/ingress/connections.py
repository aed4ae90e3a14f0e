"""Limit the connections of the ingress, from the moment they are accepted, before TLS begins.

A connection is anonymous until its TLS handshake has finished with a certificate of the study's authority. From then
on it also counts for that certificate, whatever its address. The number and the duration of anonymous connections are
limited. If there are too many, a new one replaces the oldest one of the address that has most of them. So a flood
without certificates costs a bounded amount of memory, from however many addresses, and a node's handshake still
succeeds.

IPv6 addresses are counted by their /64, the range that one customer usually gets.
"""

import asyncio
import logging
import resource
import ssl
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from aiohttp import web

from federation.ingress import reasons

HANDSHAKE_SECONDS = 5.0
# For the handshake and the one request of an anonymous caller: to join, or to fetch the authority's certificate.
STRANGER_SECONDS = 20.0
MAX_STRANGERS = 256
MAX_STRANGERS_OF_ADDRESS = 32
MAX_CONNECTIONS_OF_ADDRESS = 64
MAX_CONNECTIONS_OF_CERTIFICATE = 64  # a node uses two to eight
MAX_CONNECTIONS = 4096
_DESCRIPTORS_OF_OTHERS = 128  # for registry, log and listening sockets
LINE_SECONDS = 60.0  # interval between log lines about one refused address

log = logging.getLogger("fedthorax.door")


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files to the maximum; return how many connections that allows.

    Each connection may need a second one to the SuperLink.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS + _DESCRIPTORS_OF_OTHERS
    allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= allowed:
        return MAX_CONNECTIONS
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(16, (allowed - _DESCRIPTORS_OF_OTHERS) // 2)


@dataclass(eq=False)
class Connection:
    """One accepted connection. `handler` is aiohttp's, after the TLS handshake."""

    transport: asyncio.Transport
    address: str
    certificate: bytes = b""  # its SHA-256; empty for an anonymous caller
    handler: asyncio.Protocol | None = None
    deadline: asyncio.TimerHandle | None = None


class Gate:
    """Accepts connections within the limits, starts TLS on them, and hands them over to aiohttp."""

    def __init__(self, server: web.Server, tls: ssl.SSLContext, *, room: int = MAX_CONNECTIONS) -> None:
        self._server, self._tls, self._room = server, tls, room
        self._held: dict[Connection, None] = {}  # oldest first
        self._by_handler: dict[asyncio.Protocol, Connection] = {}
        self._of_address: Counter[str] = Counter()
        self._strangers: Counter[str] = Counter()
        self._of_certificate: Counter[bytes] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: dict[str, float] = {}

    def __call__(self) -> asyncio.Protocol:
        """Return the protocol of a new connection; asyncio calls this for each one that it accepts."""
        return _Arrival(self)

    def arrived(self, transport: asyncio.Transport) -> None:
        """Make room for a connection and start TLS, or close it."""
        address = counted_address(transport.get_extra_info("peername")[0])
        if (
            self._of_address[address] >= MAX_CONNECTIONS_OF_ADDRESS
            or self._strangers[address] >= MAX_STRANGERS_OF_ADDRESS
            or not self._make_room()
        ):
            self._write_line(address)
            transport.abort()
            return
        connection = Connection(transport, address)
        self._held[connection] = None
        self._of_address[address] += 1
        self._strangers[address] += 1
        connection.deadline = asyncio.get_running_loop().call_later(STRANGER_SECONDS, transport.abort)
        task = asyncio.create_task(self._begin_tls(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin_tls(self, connection: Connection) -> None:
        handler = self._server()
        try:
            tls = await asyncio.get_running_loop().start_tls(
                connection.transport,
                handler,
                self._tls,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=HANDSHAKE_SECONDS,
            )
        except (OSError, asyncio.CancelledError):  # among them ssl.SSLError and TimeoutError
            connection.transport.abort()
            self._forget(connection)
            return
        if tls is None or tls.is_closing() or connection not in self._held:
            connection.transport.abort()
            self._forget(connection)
            return
        connection.handler = handler
        self._by_handler[handler] = connection
        if (shown := tls.get_extra_info("ssl_object").getpeercert(binary_form=True)) and not self._know(
            connection, sha256(shown).digest()
        ):
            self._write_line(connection.address)
            connection.transport.abort()
            self._forget(connection)
            return
        handler.connection_made(tls)

    def ended(self, handler: Any) -> None:
        """Note that aiohttp's handler has lost its connection."""
        if handler in self._by_handler:
            self._forget(self._by_handler[handler])

    def _know(self, connection: Connection, certificate: bytes) -> bool:
        """Count a connection for its certificate; return whether the certificate's limit allows it."""
        if self._of_certificate[certificate] >= MAX_CONNECTIONS_OF_CERTIFICATE:
            return False
        connection.certificate = certificate
        self._of_certificate[certificate] += 1
        _count_down(self._strangers, connection.address)
        if connection.deadline:
            connection.deadline.cancel()
        return True

    def _forget(self, connection: Connection) -> None:
        if connection not in self._held:
            return
        del self._held[connection]
        if connection.handler is not None:
            del self._by_handler[connection.handler]
        if connection.deadline:
            connection.deadline.cancel()
        _count_down(self._of_address, connection.address)
        if connection.certificate:
            _count_down(self._of_certificate, connection.certificate)
        else:
            _count_down(self._strangers, connection.address)

    def _make_room(self) -> bool:
        """Whether there is room, if necessary after closing the oldest anonymous connection."""
        if self._strangers.total() < MAX_STRANGERS and len(self._held) < self._room:
            return True
        if not self._strangers:
            return False
        ((address, _),) = self._strangers.most_common(1)
        oldest = next(c for c in self._held if not c.certificate and c.address == address)
        self._write_line(address)
        oldest.transport.abort()
        self._forget(oldest)
        return True

    def _write_line(self, address: str) -> None:
        now = time.monotonic()
        self._lines = {other: when for other, when in self._lines.items() if now - when < LINE_SECONDS}
        if address not in self._lines and len(self._lines) < MAX_STRANGERS:
            self._lines[address] = now
            log.info("refused site=? from=%s connections  %s", address, reasons.DOOR_BUSY.code)


class _Arrival(asyncio.Protocol):
    """An accepted connection before anything is read from it."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # the first bytes belong to TLS
        self._gate.arrived(transport)


def _count_down(counter: Counter[Any], key: object) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def counted_address(host: str) -> str:
    """Return the address for which a connection counts."""
    with suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address):
            return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return host
