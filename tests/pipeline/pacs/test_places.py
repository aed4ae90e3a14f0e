"""Tests of the receiver's association limits: other connections never block or interrupt the sending PACS."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from federation.system.process import free_port
from pipeline.pacs.places import MOST_ASSOCIATIONS, MOST_OF_ONE_PEER
from pipeline.pacs.receiver import SUCCESS, TRANSFER_SYNTAXES, receiver
from pipeline.site.tls import as_client, as_server
from tests.helpers.waiting import eventually
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE, images

PACS, OTHER = "127.0.0.1", "127.0.0.2"  # on Linux, all of 127.0.0.0/8 is this machine
MANY = tuple(f"127.0.0.{number}" for number in range(2, 22))
PROMPT_SECONDS = 30.0  # on a loaded machine; without load it takes 0.1 s
LOCAL_LIMIT_EXCEEDED = 2


class Taker:
    """Accepts every image."""

    def store(self, event: Event) -> int:
        event.encoded_dataset()
        return SUCCESS

    def close(self) -> None:
        """Nothing to do."""


@contextmanager
def listening(tls: Any = None) -> Iterator[int]:
    port = free_port()
    titles = {"our_title": OUR_TITLE, "pacs_title": PACS_TITLE}
    with receiver(Taker(), ("127.0.0.1", port), **titles, tls=tls, silence_seconds=120, others_too=True):
        yield port


def associate(port: int, address: str, *, calling: str = PACS_TITLE, tls: Any = None) -> Association:
    entity = AE(ae_title=calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = PROMPT_SECONDS
    entity.add_requested_context(Verification)
    for syntax in TRANSFER_SYNTAXES:
        entity.add_requested_context(CTImageStorage, syntax)
    options = {"tls_args": (tls, "127.0.0.1")} if tls else {}
    return entity.associate("127.0.0.1", port, ae_title=OUR_TITLE, bind_address=(address, 0), **options)


def hold_connections(port: int, addresses: tuple[str, ...], stop: threading.Event, number: int) -> None:
    """Connect and send nothing; connect again each time the connection is closed."""
    source = (addresses[number % len(addresses)], 0)
    while not stop.is_set():
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5, source_address=source) as held:
            held.settimeout(0.1)
            while not stop.is_set():
                with suppress(TimeoutError):
                    if held.recv(1) == b"":
                        break
        stop.wait(0.05)


def hold_associations(port: int, addresses: tuple[str, ...], stop: threading.Event, number: int) -> None:
    """Associate with the PACS's AE title and send nothing; associate again each time the association ends."""
    while not stop.is_set():
        held = associate(port, addresses[number % len(addresses)])
        while held.is_established and not stop.is_set():
            stop.wait(0.05)
        held.abort()


def echo(port: int, addresses: tuple[str, ...], stop: threading.Event, number: int) -> None:
    """Like `hold_associations`, but never idle: C-ECHO ten times a second."""
    while not stop.is_set():
        held = associate(port, addresses[number % len(addresses)])
        while held.is_established and not stop.is_set():
            held.send_c_echo()
            stop.wait(0.1)
        held.abort()


@pytest.mark.slow
@pytest.mark.parametrize("addresses", [(OTHER,), (PACS,), MANY], ids=["one other", "the PACS's own", "many"])
@pytest.mark.parametrize("attack", [hold_connections, hold_associations, echo])
def test_idle_connections_do_not_block_the_pacs(
    attack: Callable[[int, tuple[str, ...], threading.Event, int], None], addresses: tuple[str, ...]
) -> None:
    stop = threading.Event()
    with listening() as port:
        threads = [threading.Thread(target=attack, args=(port, addresses, stop, number)) for number in range(12)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)
            for image in images(2):
                sender = associate(port, PACS)
                assert sender.is_established
                assert sender.send_c_store(image).Status == SUCCESS
                sender.release()
        finally:
            stop.set()
            for thread in threads:
                thread.join()


@pytest.mark.slow
def test_busy_association_is_not_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new association never evicts a busy one. It evicts idle ones, first those that never sent an image."""
    monkeypatch.setattr("pipeline.pacs.places.BUSY_SECONDS", 60.0)
    (image,) = images(1)
    with listening() as port, ExitStack() as stack:

        def associated(address: str) -> Association:
            sender = associate(port, address)
            stack.callback(sender.abort)
            return sender

        sending = [associated(PACS) for _ in range(MOST_OF_ONE_PEER)]
        assert [each.send_c_store(image).Status for each in sending] == [SUCCESS] * MOST_OF_ONE_PEER
        one_more = associated(PACS)  # the limit of associations of this peer is reached
        assert not one_more.is_established  # the rejection message may be lost when the connection closes
        if one_more.is_rejected:
            assert one_more.acceptor.primitive is not None
            assert one_more.acceptor.primitive.diagnostic == LOCAL_LIMIT_EXCEEDED
        idle = [associated(OTHER) for _ in range(MOST_ASSOCIATIONS - MOST_OF_ONE_PEER)]
        assert all(each.is_established for each in idle)
        third = associated(MANY[5])
        assert third.is_established and third.send_c_store(image).Status == SUCCESS
        eventually(lambda: not idle[0].is_established)
        assert [each.is_established for each in idle] == [False, True]  # the one that was idle longer is evicted
        assert [each.send_c_store(image).Status for each in sending] == [SUCCESS] * MOST_OF_ONE_PEER


def test_association_that_stopped_sending_is_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.pacs.places.BUSY_SECONDS", 0.0)
    (image,) = images(1)
    with listening() as port, ExitStack() as stack:
        for _ in range(MOST_OF_ONE_PEER + 1):
            sender = associate(port, PACS)
            stack.callback(sender.abort)
            assert sender.is_established
            assert sender.send_c_store(image).Status == SUCCESS


@pytest.mark.slow
def test_wrong_ae_title_evicts_no_association() -> None:
    with listening() as port, ExitStack() as stack:
        held = [associate(port, address) for address in MANY[:MOST_ASSOCIATIONS]]
        for each in held:
            stack.callback(each.abort)
        assert not associate(port, OTHER, calling="STRANGER").is_established
        time.sleep(0.3)
        assert all(each.is_established for each in held)
        assert [each.send_c_echo().Status for each in held] == [SUCCESS] * MOST_ASSOCIATIONS


@pytest.mark.slow
def test_unfinished_tls_handshakes_do_not_block_the_pacs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    authority = Authority.make(tmp_path)
    certificate, key = authority.sign("node")
    server = as_server(tmp_path, authority=authority.path, certificate=certificate, key=key)
    certificate, key = authority.sign("pacs")
    client = as_client(tmp_path, authority=authority.path, certificate=certificate, key=key)
    stop = threading.Event()
    with listening(server) as port:
        threads = [
            threading.Thread(target=hold_connections, args=(port, MANY, stop, number)) for number in range(len(MANY))
        ]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1)
            sender = associate(port, PACS, tls=client)
            assert sender.is_established and sender.send_c_store(images(1)[0]).Status == SUCCESS
            sender.release()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_many_connections_leave_few_threads() -> None:
    before = threading.active_count()
    with listening() as port, ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 60, source_address=(OTHER, 0)))
        assert eventually(lambda: threading.active_count() - before <= 50)
        sender = associate(port, PACS)
        assert sender.is_established and sender.send_c_store(images(1)[0]).Status == SUCCESS
        sender.release()
