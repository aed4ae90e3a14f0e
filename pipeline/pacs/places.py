"""Connection limits of a DICOM receiver, which always leave a place for the PACS.

AE titles are not secret, so anyone who reaches the port can open connections and associations and send nothing. With a
simple limit they could block the PACS. Here a new association replaces one that sends no images. The order is: first
those that never sent an image, then those of the address with the most places, then the one that has been silent for
longest. An association that is sending images keeps its place. One address never has all places.
"""

import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock

from pynetdicom.association import Association
from pynetdicom.events import Event

MOST_ASSOCIATIONS = 8  # each holds up to one image in memory
MOST_OF_ONE_PEER = 6  # leaves places for other addresses while this one sends images over all of its own
MOST_WAITING = 16  # connections without an association
BUSY_SECONDS = 5.0  # after the last part of an image, during which an association keeps its place


def end_connection(association: Association, *, is_associated: bool) -> None:
    """End a connection of another thread, which notices this and ends.

    Only that thread may close the socket. If another one did, the number of the socket could be that of a file by the
    time TLS writes its last message.
    """
    connection = association.dul.socket
    if connection and connection.socket:
        with suppress(OSError):
            # The plain socket's method: that of a TLS socket takes TLS away from the thread that reads.
            socket.socket.shutdown(connection.socket, socket.SHUT_RDWR)
    if not is_associated:  # its thread waits for a request; None means timeout
        association.dul.to_user_queue.put(None)  # type: ignore[arg-type]


@dataclass(eq=False)
class _Place:
    """One connection. `image_at`: when it last received part of an image."""

    association: Association
    address: str
    opened_at: float
    image_at: float | None = None
    is_associated: bool = False

    def is_busy(self, now: float) -> bool:
        return self.image_at is not None and now - self.image_at < BUSY_SECONDS

    def has_ended(self) -> bool:
        dul = self.association.dul
        return dul.ident is not None and not dul.is_alive()

    def close(self) -> None:
        end_connection(self.association, is_associated=self.is_associated)


class Places:
    """The places of one receiver; thread-safe. `titles`: of the PACS and of the receiver."""

    def __init__(self, titles: tuple[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._titles = titles
        self._clock = clock
        self._lock = Lock()
        self._places: dict[Association, _Place] = {}

    def opened(self, event: Event) -> None:
        """Handle a new connection (EVT_CONN_OPEN)."""
        peer = event.assoc.requestor.address_info
        assert peer is not None
        place = _Place(event.assoc, peer.address, self._clock())
        connection = event.assoc.dul.socket
        assert connection is not None
        read = connection.recv

        def recv(nr_bytes: int) -> bytearray:
            received = read(nr_bytes)
            message = event.assoc.dimse.message
            if message and message.data_set and message.data_set.tell():
                place.image_at = self._clock()
            return received

        connection.recv = recv  # type: ignore[method-assign]
        with self._lock:
            waiting = [each for each in self._held() if not each.is_associated]
            if len(waiting) >= MOST_WAITING:
                self._end(_most_dispensable(waiting))
            self._places[event.assoc] = place

    def requested(self, event: Event) -> None:
        """Handle an association request (EVT_REQUESTED): give it a place, or reject it temporarily."""
        primitive = event.assoc.requestor.primitive
        assert primitive is not None
        if (primitive.calling_ae_title, primitive.called_ae_title) != self._titles:
            return  # pynetdicom rejects it, with the reason
        with self._lock:
            is_placed = self._place(event.assoc)
        if not is_placed:
            event.assoc.acse.send_reject(0x02, 0x03, 0x02)  # transient, local limit exceeded (PS3.8, table 9-21)
            event.assoc.kill()

    def image(self, association: Association) -> None:
        """Note that an image was received."""
        place = self._places.get(association)
        if place:
            place.image_at = self._clock()

    def _place(self, association: Association) -> bool:
        newcomer = self._places.get(association)
        if newcomer is None:  # replaced by another connection
            return False
        associated = [each for each in self._held() if each.is_associated]
        own = [each for each in associated if each.address == newcomer.address]
        if len(own) >= MOST_OF_ONE_PEER:
            rivals = own
        elif len(associated) >= MOST_ASSOCIATIONS:
            rivals = associated
        else:
            rivals = []
        silent = [each for each in rivals if not each.is_busy(self._clock())]
        if rivals and not silent:
            return False
        if silent:
            self._end(_most_dispensable(silent))
        newcomer.is_associated = True
        return True

    def _held(self) -> list[_Place]:
        self._places = {each: place for each, place in self._places.items() if not place.has_ended()}
        return list(self._places.values())

    def _end(self, place: _Place) -> None:
        del self._places[place.association]
        place.close()


def _most_dispensable(places: list[_Place]) -> _Place:
    """Return the first place to end, in the order of the module's docstring."""
    held = Counter(place.address for place in places)

    def rank(place: _Place) -> tuple[bool, int, float]:
        has_sent = place.image_at is not None
        return has_sent, -held[place.address], place.image_at if place.image_at is not None else place.opened_at

    return min(places, key=rank)
