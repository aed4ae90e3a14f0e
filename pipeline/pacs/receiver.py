"""Receive images from a PACS: over our association (C-GET), or with our own receiver (C-MOVE)."""

import logging
import socket
import socketserver
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from threading import Event as Flag
from threading import Lock, Thread
from typing import Any, Protocol

from pydicom import uid
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from models.refusal import Refusal
from pipeline.imaging.functional_groups import CT_CLASSES
from pipeline.pacs import reasons
from pipeline.pacs.places import Places, end_connection

log = logging.getLogger("fedthorax.pacs")

# pynetdicom logs messages, including patients' names.
logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False

# One presentation context each, so that the PACS can send an image as stored; the reader can decode all of them.
TRANSFER_SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.JPEGLosslessSV1,
    uid.JPEGLossless,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.RLELossless,
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLSNearLossless,
    uid.JPEG2000,
    uid.HTJ2K,
)
PDU_BYTES = 2**17  # the maximum that we announce to peers
_MAX_PDU_BYTES = 2**20  # hard limit for peers that ignore it; their first PDU may be longer
SLICE_BYTES = 2**27  # a CT slice has 0.5 to 32 MB
MAX_MESSAGE_BYTES = 2**30  # an image with all slices of a series; only one association at a time may send such a one
_QUEUED_IMAGES = 4
_NO_LIMIT = 10**6
REQUEST_SECONDS = 10  # from the connection to the association request

# Statuses of C-STORE (PS3.4, table B.2-1, and PS3.7, annex C).
SUCCESS, NOT_AUTHORISED, SOP_CLASS_NOT_SUPPORTED, OUT_OF_RESOURCES = 0x0000, 0x0124, 0x0122, 0xA700


class Taker(Protocol):
    """Consumer of received images."""

    def store(self, event: Event) -> int:
        """Handle a C-STORE request and return its status; called in the threads of the associations."""

    def close(self) -> None:
        """Accept no more images; called when the receiver ends."""


class Inbox:
    """A queue of images from the network threads to one reader, which iterates over it.

    It accepts only the `wanted` SOP instances (None: any), each once, and holds only a few: a sender waits for the
    reader. After `silence_seconds` without an image or a sign of life the reader gets Refusal E_PACS_SILENT.
    """

    def __init__(self, wanted: set[str] | None, silence_seconds: float) -> None:
        self._wanted = wanted
        self._arrived: set[str] = set()
        self._silence_seconds = silence_seconds
        self._queue: Queue[bytes | Refusal | None] = Queue(_QUEUED_IMAGES)
        self._lock = Lock()
        self._is_closed = Flag()
        self.is_complete = Flag()

    @property
    def is_untouched(self) -> bool:
        """Whether nothing has arrived."""
        return not self._arrived

    def store(self, event: Event) -> int:
        """Handle a C-STORE request and return its status."""
        request: Any = event.request
        if request.AffectedSOPClassUID not in CT_CLASSES:
            return SOP_CLASS_NOT_SUPPORTED
        instance = str(request.AffectedSOPInstanceUID)
        if self._wanted is not None and instance not in self._wanted:
            return NOT_AUTHORISED
        with self._lock:
            if instance in self._arrived:
                return SUCCESS  # sent again, because our response was lost
            self._arrived.add(instance)
        if not self._put(event.encoded_dataset()):
            return OUT_OF_RESOURCES
        if self._arrived == self._wanted:
            self.is_complete.set()
        return SUCCESS

    def show_life(self) -> None:
        """Reset the timeout: the sender is alive, although no image has come."""
        self._put(b"")

    def end(self, refusal: Refusal | None) -> None:
        """Mark the end of the images; a refusal is raised in the reader."""
        self._put(refusal)

    def close(self) -> None:
        """Stop accepting images: the reader has ended."""
        self._is_closed.set()

    def _put(self, item: bytes | Refusal | None) -> bool:
        """Add an item, waiting for space; return False if the reader has ended."""
        while not self._is_closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[bytes]:
        """Yield complete files until the end."""
        while True:
            try:
                item = self._queue.get(timeout=self._silence_seconds)
            except Empty:
                raise Refusal(reasons.PACS_SILENT, private="no more images came") from None
            if item is None:
                return
            if isinstance(item, Refusal):
                raise item
            if item:
                yield item


class _LargeMessage:
    """The one message of this process that may be larger than a slice: associations hold their messages in memory."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._owner: Association | None = None

    def may_grow(self, association: Association) -> bool:
        """Whether the message that an association receives may become larger than it is."""
        held = _held(association)
        if held > MAX_MESSAGE_BYTES:
            return False
        if held <= SLICE_BYTES:
            return True
        with self._lock:
            owner = self._owner
            if owner is None or not owner.is_alive() or _held(owner) <= SLICE_BYTES:
                self._owner = association
            return self._owner is association


def _held(association: Association) -> int:
    """Return the bytes of the message that an association is receiving."""
    message = association.dimse.message
    return message.data_set.tell() if message and message.data_set else 0


_large_message = _LargeMessage()


def guard(silence_seconds: float) -> Callable[[Event], None]:
    """Return a handler of EVT_CONN_OPEN that limits time and size of reads, and avoids network delays.

    pynetdicom itself waits forever for the rest of a PDU, and reads PDUs and messages of any length into memory.
    """

    def bound(event: Event) -> None:
        association = event.assoc
        connection = association.dul.socket
        assert connection is not None and connection.socket is not None
        stream, read = connection.socket, connection.recv
        stream.settimeout(silence_seconds)
        # Each message consists of two small packets. Nagle's algorithm and delayed acknowledgements together would
        # delay each by 40 ms.
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def recv(nr_bytes: int) -> bytearray:
            if nr_bytes > _MAX_PDU_BYTES or not _large_message.may_grow(association):
                raise OSError("too long")  # pynetdicom closes the connection
            if hasattr(socket, "TCP_QUICKACK"):  # Linux resets this option from time to time
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            try:
                return read(nr_bytes)
            except ssl.SSLError as error:  # the handshake takes place here; pynetdicom closes silently
                if association.is_acceptor:
                    log.warning(
                        "a connection to the DICOM receiver was closed because of a TLS error: %s",
                        error.reason or type(error).__name__,
                    )
                raise

        connection.recv = recv  # type: ignore[method-assign]

    return bound


class _Contexts(list[PresentationContext]):
    """Supported contexts without deep copies: pynetdicom would copy them for each connection, which takes 40 ms."""

    def __deepcopy__(self, memo: dict[int, Any]) -> list[PresentationContext]:
        return list(self)


class _Server(ThreadedAssociationServer):
    """pynetdicom's server, without blocking by slow peers and without printing."""

    request_queue_size = 64  # connections that the kernel queues

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; its TLS handshake takes place in its own thread, at the first read."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        if self.ssl_context:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: the default prints addresses and a stack trace."""


@contextmanager
def receiver(
    inbox: Taker,
    address: tuple[str, int],
    *,
    our_title: str,
    pacs_title: str,
    tls: ssl.SSLContext | None,
    silence_seconds: float,
    others_too: bool = False,
) -> Iterator[None]:
    """Listen on `address` (host, port) and pass images from the PACS to the inbox, until the context ends.

    Only peers that use `pacs_title` and call `our_title` are accepted, with CT images and C-ECHO only. Titles are not
    secret, so use TLS if others can reach this port. `others_too`: also accept all other storage classes of DICOM, for
    an inbox that checks the SOP class. Raises Refusal E_PACS_RECEIVER.
    """
    entity = AE(ae_title=our_title)
    entity.require_called_aet = True
    entity.require_calling_aet = [pacs_title]
    entity.maximum_pdu_size = PDU_BYTES
    entity.acse_timeout = REQUEST_SECONDS
    entity.network_timeout = silence_seconds
    entity.maximum_associations = _NO_LIMIT  # `Places` counts them
    entity.add_supported_context(Verification)
    for ct in CT_CLASSES:
        entity.add_supported_context(ct, list(TRANSFER_SYNTAXES))
    if others_too:
        for each in {context.abstract_syntax for context in AllStoragePresentationContexts} - {*CT_CLASSES, None}:
            entity.add_supported_context(str(each), ALL_TRANSFER_SYNTAXES)
    places = Places((pacs_title, our_title))

    def store(event: Event) -> int:
        places.image(event.assoc)
        status = inbox.store(event)
        places.image(event.assoc)
        return status

    handlers: list[evt.EventHandlerType] = [
        (evt.EVT_CONN_OPEN, guard(silence_seconds)),
        (evt.EVT_CONN_OPEN, places.opened),
        (evt.EVT_REQUESTED, places.requested),
        (evt.EVT_C_STORE, store),
    ]
    try:
        server = entity.make_server(address, ssl_context=tls, evt_handlers=handlers, server_class=_Server)
    except OSError as error:
        raise Refusal(reasons.PACS_RECEIVER, private=f"{address[0]}:{address[1]}: {error.strerror}") from error
    server.contexts = _Contexts(server.contexts)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        inbox.close()
        socketserver.BaseServer.shutdown(server)  # pynetdicom's version expects a server that it started itself
        server.server_close()
        for association in server.active_associations:
            if association.is_established:
                association.abort()
            else:
                end_connection(association, is_associated=False)
        thread.join()
