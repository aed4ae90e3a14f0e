"""How many connections a DICOM receiver holds, and which of them end so that the PACS always gets in.

AE titles are no secret, so that anybody who reaches the port can open connections and associations and send nothing.
A limit alone would let them keep the PACS out. Here a newcomer takes the place of a caller that sends no images. One
that never sent any goes first, then one of the address that holds the most places, then the one that has been silent
for longest. An association over which images come keeps its place. One address never holds all places.
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
MOST_OF_ONE_PEER = 6  # so that another address finds a place even while this one sends images over all of its own
MOST_WAITING = 16  # connections without an association
BUSY_SECONDS = 5.0  # since the last part of an image; so long an association keeps its place


@dataclass(eq=False)
class _Place:
    """One connection. `image_at`: when part of an image last came over it."""

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
        """End the connection; the threads that serve it find out by themselves."""
        connection = self.association.dul.socket
        if connection and connection.socket:
            with suppress(OSError):
                socket.socket.shutdown(connection.socket, socket.SHUT_RDWR)  # not of TLS: its thread may be reading
        if not self.is_associated:  # its thread waits for a request, and takes None for the end of that time
            self.association.dul.to_user_queue.put(None)  # type: ignore[arg-type]


class Places:
    """The places of one receiver; any thread may call. `titles`: of the PACS and of the receiver."""

    def __init__(self, titles: tuple[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._titles = titles
        self._clock = clock
        self._lock = Lock()
        self._places: dict[Association, _Place] = {}

    def opened(self, event: Event) -> None:
        """A connection was opened (EVT_CONN_OPEN)."""
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
        """An association is requested (EVT_REQUESTED): it gets a place, or is rejected for now."""
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
        """An image has come."""
        place = self._places.get(association)
        if place:
            place.image_at = self._clock()

    def _place(self, association: Association) -> bool:
        newcomer = self._places.get(association)
        if newcomer is None:  # its place went to another
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
    """One that never sent an image; of the address that holds the most of them; the one that is silent for longest."""
    held = Counter(place.address for place in places)

    def rank(place: _Place) -> tuple[bool, int, float]:
        has_sent = place.image_at is not None
        return has_sent, -held[place.address], place.image_at if place.image_at is not None else place.opened_at

    return min(places, key=rank)
