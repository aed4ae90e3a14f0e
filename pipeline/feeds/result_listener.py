"""Receives laboratory results: HL7 v2 messages ORU^R01 over MLLP, stored in the site's queue before they are accepted.

A connection is checked before its TLS handshake: only permitted addresses, and only `max_connections` of them. The
messages of a connection are handled one after another. What is logged contains no part of a message.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address

from models.refusal import Refusal
from pipeline.feeds import reasons
from pipeline.feeds.acknowledgement import INTERNAL, Fault, acknowledge, find_fault, read_header
from pipeline.feeds.mllp import Block, FrameError, MessageCut, frame, read_block
from pipeline.feeds.result_queue import LOCK, ResultQueue, listener_of
from pipeline.records.laboratory.hl7_messages import Header
from pipeline.records.laboratory.listener_settings import ListenerTable
from pipeline.records.laboratory.settings import Hl7Laboratory
from pipeline.site.folder import Site
from pipeline.site.tls import as_server
from pipeline.system.locks import alone

log = logging.getLogger("fedthorax.listener")

_HANDSHAKE_SECONDS, _CLOSE_SECONDS = 10.0, 5.0
_WAITING_CONNECTIONS = 64  # that the kernel queues
_AGAIN_SECONDS = 1.0  # after the process has run out of file descriptors
_LOG_SECONDS = 60.0  # between two log lines about refused connections


def listen(site: Site, say: Callable[[str], None]) -> None:
    """Receive results until SIGINT or SIGTERM.

    Raises Refusal: E_NO_LISTENER, E_LISTENER_RUNNING, E_LISTENER_ADDRESS, E_PACS_FILE, E_QUEUE, E_SITE_KEY.
    """
    table, laboratory = listener_of(site), site.settings.laboratory
    if table is None or not isinstance(laboratory, Hl7Laboratory):
        raise Refusal(reasons.NO_LISTENER)
    site.keyed("received message", "")  # a missing key is reported now, not at the first message
    tls = None
    if table.certificate and table.key and table.ca_certificate:
        tls = as_server(site.folder, authority=table.ca_certificate, certificate=table.certificate, key=table.key)
    queue = ResultQueue(site, table)
    with alone(site.logs / LOCK, reasons.LISTENER_RUNNING):
        try:
            queue.prepare()
        except OSError as error:
            raise Refusal(reasons.QUEUE, private=str(error)) from error
        with _bound(table) as listening:
            say(f"Receiving laboratory results on {table.host}:{table.port}{' with TLS' if tls else ''}.")
            asyncio.run(_Listener(table, queue, laboratory.encoding, tls).run(listening))


def _bound(table: ListenerTable) -> socket.socket:
    """Return the listening socket. Raises Refusal E_LISTENER_ADDRESS."""
    try:
        family, *_, address = socket.getaddrinfo(table.host, table.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_WAITING_CONNECTIONS)
    except OSError as error:
        raise Refusal(reasons.LISTENER_ADDRESS, private=f"{table.host}:{table.port}: {error.strerror}") from error


async def _close(writer: asyncio.StreamWriter) -> None:
    """Close a connection after what is still to be sent; do not wait long for a peer that reads nothing."""
    writer.close()
    try:
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        writer.transport.abort()


class _Listener:
    def __init__(self, table: ListenerTable, queue: ResultQueue, encoding: str, tls: ssl.SSLContext | None) -> None:
        self._table, self._queue, self._encoding, self._tls = table, queue, encoding, tls
        self._connections: set[asyncio.Task[None]] = set()
        self._refused, self._logged_at = 0, -_LOG_SECONDS

    async def run(self, listening: socket.socket) -> None:
        """Accept connections until a signal. What was not acknowledged then is sent again by its sender."""
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        accepting = asyncio.create_task(self._accept(listening))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, accepting.cancel)
        with suppress(asyncio.CancelledError):
            await accepting
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                connection, address = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                log.warning("connections cannot be accepted: %s", errno.errorcode.get(error.errno or 0, "?"))
                await asyncio.sleep(_AGAIN_SECONDS)
                continue
            if not self._admits(address[0]):
                connection.close()
                continue
            task = asyncio.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    def _admits(self, host: str) -> bool:
        """Whether a connection from this address may be served now; some of the others are logged."""
        address = ip_address(host.partition("%")[0])
        peer = getattr(address, "ipv4_mapped", None) or address
        peers = self._table.peers
        if peers and not any(peer in network for network in peers):
            says = "its address is not in `peers`"
        elif len(self._connections) >= self._table.max_connections:
            says = "there are `max_connections` others"
        else:
            return True
        self._refused += 1
        if time.monotonic() - self._logged_at >= _LOG_SECONDS:
            log.warning("a connection from %s was closed: %s (%d closed since the start)", peer, says, self._refused)
            self._logged_at = time.monotonic()
        return False

    async def _serve(self, connection: socket.socket) -> None:
        """Handle the messages of one connection until it ends."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(int(self._table.max_message_mb * 1e6), loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        timeout = _HANDSHAKE_SECONDS if self._tls else None
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._tls, ssl_handshake_timeout=timeout
            )
        except (OSError, TimeoutError) as error:
            connection.close()
            detail = getattr(error, "reason", None) or type(error).__name__
            log.warning("a connection was closed: %s (%s)", reasons.LISTENER_TLS.code, detail)
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            await self._messages(reader, writer)
        except asyncio.IncompleteReadError:
            pass  # between two messages
        except MessageCut:
            log.warning("a connection ended within a message: %s", reasons.MESSAGE_CUT.code)
        except TimeoutError:
            log.info("a connection was closed: no whole message came in time")
        except FrameError:
            log.warning("a connection was closed: the bytes between two messages are not MLLP")
        except OSError as error:
            log.info("a connection broke off: %s", type(error).__name__)
        except Exception as error:  # its text could contain a part of a message
            log.error("a connection was closed because of an error in this program: %s", type(error).__name__)
        finally:
            await _close(writer)

    async def _messages(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seconds = self._table.message_seconds
        while True:
            block = await read_block(reader, idle_seconds=self._table.idle_seconds, message_seconds=seconds)
            answer = await self._answer(block)
            if answer is not None:
                async with asyncio.timeout(seconds):
                    writer.write(frame(answer))
                    await writer.drain()

    async def _answer(self, block: Block) -> bytes | None:
        """Store a message and return its acknowledgement."""
        header = read_header(block.content)
        fault = header if isinstance(header, Fault) else await self._take(header, block)
        if fault:
            log.warning("a message was not accepted: %s", fault.reason.code)
        return acknowledge(
            None if isinstance(header, Fault) else header,
            fault,
            control_id=os.urandom(10).hex(),
            now=datetime.now().astimezone(),
        )

    async def _take(self, header: Header, block: Block) -> Fault | None:
        if not block.is_whole:
            return Fault(reasons.MESSAGE_SIZE, INTERNAL)
        if fault := find_fault(header, block.content, self._encoding):
            return fault
        try:
            known = await asyncio.to_thread(self._queue.keep, header, block.content)
        except OSError as error:
            log.error("a message cannot be stored: %s", errno.errorcode.get(error.errno or 0, "?"))
            return Fault(reasons.QUEUE, INTERNAL)
        log.info("a message was %s", "received again" if known else "received")
        return None
