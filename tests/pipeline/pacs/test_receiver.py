"""Tests of the C-MOVE receiver: which peers and images are accepted, and that no peer can block or overload it."""

import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from io import SEEK_END, BytesIO
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, JPEG2000Lossless
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.sop_class import MRImageStorage, Verification  # type: ignore[attr-defined]

from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.imaging.codecs import is_readable
from pipeline.imaging.functional_groups import CT_CLASSES
from pipeline.pacs.association import keep_answers
from pipeline.pacs.places import MOST_WAITING
from pipeline.pacs.receiver import TRANSFER_SYNTAXES, Inbox, receiver
from tests.helpers.waiting import eventually
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE, images

NOT_AUTHORISED, OUT_OF_RESOURCES = 0x0124, 0xA700


class Desk:
    """A receiver that waits for `wanted` images, and its inbox."""

    def __init__(
        self, wanted: list[Dataset], *, silence_seconds: float = 120, tls: ssl.SSLContext | None = None
    ) -> None:
        self.port = free_port()
        self.inbox = Inbox({image.SOPInstanceUID for image in wanted}, silence_seconds)
        self.silence_seconds = silence_seconds
        self._options: dict[str, Any] = {"tls": tls, "silence_seconds": silence_seconds}

    def open(self) -> AbstractContextManager[None]:
        return receiver(
            self.inbox, ("127.0.0.1", self.port), our_title=OUR_TITLE, pacs_title=PACS_TITLE, **self._options
        )

    @contextmanager
    def association(
        self,
        *,
        calling: str = PACS_TITLE,
        called: str = OUR_TITLE,
        classes: tuple[Any, ...] = (Verification, CTImageStorage),
        tls: ssl.SSLContext | None = None,
    ) -> Iterator[Association]:
        sender = AE(ae_title=calling)
        sender.acse_timeout = sender.dimse_timeout = sender.network_timeout = sender.connection_timeout = 30
        for each in classes:
            for syntax in TRANSFER_SYNTAXES if each == CTImageStorage else TRANSFER_SYNTAXES[:1]:
                sender.add_requested_context(each, syntax)
        association = sender.associate(
            "127.0.0.1", self.port, ae_title=called, tls_args=(tls, "127.0.0.1") if tls else None
        )
        keep_answers(association)
        try:
            yield association
        finally:
            association.abort()


def read(inbox: Inbox) -> list[Dataset]:
    """End the inbox and read its contents."""
    inbox.end(None)
    return [dcmread(BytesIO(content)) for content in inbox]


def test_images_are_received_as_complete_files_with_unchanged_pixels() -> None:
    sent = [*images(1), *images(2, syntax=JPEG2000Lossless, size=64)[1:]]
    desk = Desk(sent)
    with desk.open(), desk.association() as association:
        assert association.send_c_echo().Status == 0
        assert [association.send_c_store(image).Status for image in sent] == [0, 0]
        arrived = read(desk.inbox)
    assert [image.file_meta.TransferSyntaxUID for image in arrived] == [
        image.file_meta.TransferSyntaxUID for image in sent
    ]
    assert arrived == sent


def test_every_accepted_transfer_syntax_can_be_decoded() -> None:
    assert all(is_readable(syntax) for syntax in TRANSFER_SYNTAXES)


@pytest.mark.parametrize(
    ("title", "diagnostic"), [({"calling": "STRANGER"}, 3), ({"called": "ANOTHER"}, 7)], ids=["calling", "called"]
)
def test_wrong_ae_title_is_rejected(title: dict[str, str], diagnostic: int) -> None:
    desk = Desk(images(1))

    def rejected() -> int:
        """Return the diagnostic of the rejection; 0 if the message was lost when the connection closed."""
        with desk.association(**title) as association:
            assert not association.is_established
            primitive = association.acceptor.primitive
            return int(primitive.diagnostic) if association.is_rejected and primitive else 0

    with desk.open():
        assert eventually(rejected) == diagnostic


@pytest.mark.parametrize("image_class", sorted(CT_CLASSES))
def test_multi_frame_ct_is_received_like_single_frames(image_class: str) -> None:
    (image,) = images(1, SOPClassUID=image_class)
    desk = Desk([image])
    with desk.open(), desk.association(classes=(image_class,)) as association:
        assert association.send_c_store(image).Status == 0
        assert read(desk.inbox) == [image]


def test_other_sop_class_is_not_accepted() -> None:
    desk = Desk(images(1))
    with desk.open(), desk.association(classes=(Verification, MRImageStorage)) as association:
        assert {context.abstract_syntax for context in association.accepted_contexts} == {Verification}


def test_unrequested_image_is_refused() -> None:
    wanted, other = images(2)
    desk = Desk([wanted])
    with desk.open(), desk.association() as association:
        assert association.send_c_store(other).Status == NOT_AUTHORISED
        assert association.send_c_store(wanted).Status == 0
        assert read(desk.inbox) == [wanted]


def test_image_sent_again_is_delivered_once() -> None:
    (image,) = images(1)
    desk = Desk([image])
    with desk.open(), desk.association() as association:
        assert [association.send_c_store(image).Status for _ in range(3)] == [0, 0, 0]
        assert read(desk.inbox) == [image]


def test_sender_waits_for_a_slow_reader() -> None:
    sent = images(20)
    desk = Desk(sent)
    accepted: list[int] = []
    with desk.open(), desk.association() as association:

        def send() -> None:
            for image in sent:
                accepted.append(association.send_c_store(image).Status)
            desk.inbox.end(None)

        thread = threading.Thread(target=send)
        thread.start()
        time.sleep(0.7)
        assert len(accepted) < 6
        assert len(list(desk.inbox)) == 20
        thread.join(timeout=60)
    assert accepted == [0] * 20


def test_sender_gets_an_error_after_the_reader_has_closed() -> None:
    sent = images(20)
    desk = Desk(sent)
    with desk.open(), desk.association() as association:
        desk.inbox.close()
        assert association.send_c_store(sent[0]).Status == OUT_OF_RESOURCES


def test_wait_ends_after_the_timeout() -> None:
    with pytest.raises(Refusal, match="E_PACS_SILENT"):
        next(iter(Inbox({"1.2"}, silence_seconds=0.2)))


class Paced(Queue[Any]):
    """A queue whose items come 0.4 s apart, on a clock of its own."""

    def __init__(self, _size: int) -> None:
        super().__init__()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if timeout is not None and timeout < 0.4:
            raise Empty
        return super().get(block=False)


@pytest.mark.parametrize("silence_seconds", [0.5, 0.3])
def test_signs_of_activity_extend_the_wait(monkeypatch: pytest.MonkeyPatch, silence_seconds: float) -> None:
    monkeypatch.setattr("pipeline.pacs.receiver.Queue", Paced)
    inbox = Inbox({"1.2"}, silence_seconds)
    for _ in range(5):
        inbox.show_life()
    inbox.end(None)
    with nullcontext() if silence_seconds > 0.4 else pytest.raises(Refusal, match="E_PACS_SILENT"):
        assert list(inbox) == []


def test_address_in_use_is_refused_with_its_reason() -> None:
    desk = Desk([])
    with (
        socket.create_server(("127.0.0.1", desk.port)),
        pytest.raises(Refusal, match="E_PACS_RECEIVER"),
        desk.open(),
    ):
        pass


def test_port_is_closed_and_no_thread_is_left_afterwards() -> None:
    desk, before = Desk([]), threading.enumerate()
    with desk.open():
        stranger = socket.create_connection(("127.0.0.1", desk.port))
        time.sleep(0.2)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", desk.port))
    assert eventually(lambda: all(thread.daemon or thread in before for thread in threading.enumerate()))
    stranger.close()


def test_pdu_with_huge_length_closes_the_connection_before_reading() -> None:
    desk = Desk([])
    with desk.open(), socket.create_connection(("127.0.0.1", desk.port), timeout=60) as stranger:
        stranger.sendall(struct.pack(">BBL", 1, 0, 2**31))
        with suppress(ConnectionResetError):
            assert stranger.recv(100) == b""  # long before the receiver gives up waiting for more


def test_endless_message_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = images(1, size=16)[0], images(2, size=512)[1]
    desk = Desk([small, large])
    monkeypatch.setattr("pipeline.pacs.receiver.MAX_MESSAGE_BYTES", 2**17)
    with desk.open(), desk.association() as association:
        assert association.send_c_store(small).Status == 0
        assert "Status" not in association.send_c_store(large)
        assert read(desk.inbox) == [small]


def test_only_one_association_at_a_time_may_send_a_message_larger_than_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, small = (images(number + 1, size=512)[number] for number in (0, 1, 2))
    small.PixelData, small.Rows = small.PixelData[: 2 * 512 * 8], 8
    desk = Desk([first, second, small])
    monkeypatch.setattr("pipeline.pacs.receiver.SLICE_BYTES", 2**17)
    with desk.open(), desk.association() as one, desk.association() as other:
        assert one.send_c_store(first).Status == 0
        assert other.send_c_store(second).Status == 0  # the first message has ended
        begun = begin_message(one, bytes(2**18))
        assert eventually(begun)
        assert other.send_c_store(small).Status == 0
        assert "Status" not in other.send_c_store(second)


def begin_message(association: Association, content: bytes) -> Callable[[], bool]:
    """Send the beginning of a large message and no end; return a function that tells whether it has been sent."""
    context = next(each for each in association.accepted_contexts if each.abstract_syntax == CTImageStorage)
    request = C_STORE()
    request.MessageID, request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = 9, CTImageStorage, "1.2.9"
    request.Priority, request.DataSet = 2, BytesIO(content)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    assert context.context_id is not None
    parts = list(message.encode_msg(context.context_id, 2**14))
    for part in parts[:-1]:
        association.dul.send_pdu(part)
    return association.dul.to_provider_queue.empty


def test_incomplete_pdu_does_not_block_longer_than_the_timeout() -> None:
    (image,) = images(1)
    for desk in (Desk([image]), Desk([image], silence_seconds=1)):
        with desk.open(), socket.create_connection(("127.0.0.1", desk.port), timeout=60) as stranger:
            stranger.sendall(struct.pack(">BBL", 1, 0, 200))
            if desk.silence_seconds > 1:
                with desk.association() as association:
                    assert association.send_c_store(image).Status == 0
            else:
                assert stranger.recv(100) == b""  # closed by the receiver


def test_oldest_of_many_connections_without_association_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.pacs.receiver.REQUEST_SECONDS", 600)
    desk = Desk([])
    with desk.open(), ExitStack() as stack:
        held = []
        for _ in range(MOST_WAITING + 3):
            held.append(stack.enter_context(socket.create_connection(("127.0.0.1", desk.port), timeout=60)))
            time.sleep(0.02)
        assert [each.recv(1) for each in held[:3]] == [b""] * 3
        held[3].settimeout(0.3)
        with pytest.raises(TimeoutError):
            held[3].recv(1)


def _contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext, ssl.SSLContext]:
    """The receiver's context, a sender's context with a certificate of the same CA, and one without a certificate."""
    authority = Authority.make(folder)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.path)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(*authority.sign("node"))
    known, stranger = (ssl.create_default_context(cafile=authority.path) for _ in range(2))
    known.load_cert_chain(*authority.sign("pacs"))
    return server, known, stranger


def test_tls_accepts_only_peers_with_a_certificate_of_the_ca(tmp_path: Path) -> None:
    (image,) = images(1)
    server, known, stranger = _contexts(tmp_path)
    desk = Desk([image], tls=server)
    with desk.open():
        with desk.association(tls=stranger) as association:
            assert not association.is_established
        with desk.association() as association:
            assert not association.is_established
        with desk.association(tls=known) as association:
            assert association.send_c_store(image).Status == 0
        assert read(desk.inbox) == [image]


def test_unfinished_tls_handshake_does_not_block_the_pacs(tmp_path: Path) -> None:
    (image,) = images(1)
    server, known, _ = _contexts(tmp_path)
    desk = Desk([image], tls=server)
    with desk.open(), socket.create_connection(("127.0.0.1", desk.port)) as stranger:
        stranger.sendall(b"\x16\x03\x01")
        with desk.association(tls=known) as association:
            assert association.send_c_store(image).Status == 0


def test_unfinished_tls_handshake_writes_into_no_file_that_is_opened_later(tmp_path: Path) -> None:
    """The system gives the number of a closed socket to the next file."""
    server, _, _ = _contexts(tmp_path)
    desk, before = Desk([], tls=server), set(threading.enumerate())
    with desk.open():
        strangers = [socket.create_connection(("127.0.0.1", desk.port)) for _ in range(5)]
        for stranger in strangers:
            stranger.sendall(b"\x16\x03\x01")
        time.sleep(0.3)
    with ExitStack() as stack:
        files = [stack.enter_context((tmp_path / str(number)).open("w+b")) for number in range(50)]
        for stranger in strangers:
            stranger.close()
        assert eventually(lambda: not set(threading.enumerate()) - before)
        assert [file.seek(0, SEEK_END) for file in files] == [0] * len(files)


def test_no_received_data_is_logged_or_printed(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    (image, other) = images(2, StudyDescription="CANARY study")
    desk = Desk([image])
    with caplog.at_level(logging.DEBUG), desk.open(), desk.association() as association:
        association.send_c_store(image)
        association.send_c_store(other)
        read(desk.inbox)
    assert not [record for record in caplog.records if record.name.startswith("pynetdicom")]
    assert "".join(capfd.readouterr()) == ""
