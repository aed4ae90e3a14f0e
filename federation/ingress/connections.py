"""How many connections the ingress holds, and whose: counted from the moment they are accepted, before TLS begins.

A connection is a stranger's until its TLS handshake is over and has shown a certificate of the study's authority. Then
it counts for the certificate too, from wherever it comes. Strangers are few and have little time: one that comes when
there are too many takes the place of the oldest one, of the address that has most of them. So a flood without a
certificate, from however many addresses, costs a bounded amount of memory, and a node's handshake comes through.

IPv6 addresses are counted by their /64, which is what one customer is given.
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
# For the handshake and the one request that a stranger has to send: to join, or to fetch the authority's certificate.
STRANGER_SECONDS = 20.0
MAX_STRANGERS = 256
MAX_STRANGERS_OF_ADDRESS = 32
MAX_CONNECTIONS_OF_ADDRESS = 64
MAX_CONNECTIONS_OF_CERTIFICATE = 64  # a node has two to eight
MAX_CONNECTIONS = 4096
_DESCRIPTORS_OF_OTHERS = 128  # registry, log, listening sockets
_LINE_SECONDS = 60.0  # an address that is refused gets a line this often

log = logging.getLogger("fedthorax.door")


def raise_descriptor_limit() -> int:
    """Let this process open as many files as it may; how many connections that is enough for.

    Each connection may need another to the SuperLink.
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
    """One accepted connection. `handler` is aiohttp's, once TLS stands."""

    transport: asyncio.Transport
    address: str
    certificate: bytes = b""  # its SHA-256; none is a stranger's
    handler: asyncio.Protocol | None = None
    deadline: asyncio.TimerHandle | None = None


class Gate:
    """Accepts connections, speaks TLS on those that there is room for, and hands them over to aiohttp."""

    def __init__(self, server: web.Server, tls: ssl.SSLContext, *, room: int = MAX_CONNECTIONS) -> None:
        self._server, self._tls, self._room = server, tls, room
        self._held: dict[Connection, None] = {}  # the oldest first
        self._by_handler: dict[asyncio.Protocol, Connection] = {}
        self._of_address: Counter[str] = Counter()
        self._strangers: Counter[str] = Counter()
        self._of_certificate: Counter[bytes] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lines: dict[str, float] = {}

    def __call__(self) -> asyncio.Protocol:
        """What asyncio asks for at each connection that it accepts."""
        return _Arrival(self)

    def arrived(self, transport: asyncio.Transport) -> None:
        """Make room for a connection and let TLS begin, or end it."""
        address = _counted(transport.get_extra_info("peername")[0])
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
        """aiohttp's handler has lost its connection."""
        if handler in self._by_handler:
            self._forget(self._by_handler[handler])

    def _know(self, connection: Connection, certificate: bytes) -> bool:
        """Count a connection for its certificate; whether that has room for it."""
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
        """Whether there is room, if need be after the oldest stranger was sent away."""
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
        self._lines = {other: when for other, when in self._lines.items() if now - when < _LINE_SECONDS}
        if address not in self._lines and len(self._lines) < MAX_STRANGERS:
            self._lines[address] = now
            log.info("refused site=? from=%s connections  %s", address, reasons.DOOR_BUSY.code)


class _Arrival(asyncio.Protocol):
    """A connection that was accepted and on which nothing is read yet."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # what comes is TLS's
        self._gate.arrived(transport)


def _count_down(counter: Counter[Any], key: object) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _counted(host: str) -> str:
    """The address that a connection counts for."""
    with suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address):
            return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return host
