"""The listener for laboratory results, with real processes and sockets; the sender is the client of `hl7`."""

import asyncio
import resource
import signal
import socket
import ssl
import stat
import tarfile
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path

import hl7
import pytest
from hl7.client import MLLPClient
from hl7.mllp import open_hl7_connection

from federation.migration.backup import back_up_site
from federation.node.start import node_status
from models.refusal import Refusal
from pipeline.clinic.laboratory import open_feed
from pipeline.doctor.connectivity import listener as listener_lines
from pipeline.doctor.environment import secret_files
from pipeline.feeds.mllp_sender import send_message
from pipeline.feeds.result_listener import listen
from pipeline.feeds.result_queue import queue_state
from pipeline.records.laboratory import PcrResult
from pipeline.site.folder import Site, init_site
from tests.helpers.waiting import eventually
from tests.pipeline.feeds.killed_listener import STEPS
from tests.pipeline.feeds.listener_rig import SITE, Rig, result, running
from tests.pipeline.pacs.authority import Authority

pytestmark = pytest.mark.slow

MORNING = datetime(2020, 4, 1, 8, 30)
POSITIVE = [PcrResult("P-SECRET", MORNING, True)]


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A running listener with small limits."""
    more = "message_seconds = 600\nmax_message_mb = 0.02\nmax_connections = 4"
    with running(Rig.make(tmp_path_factory.mktemp("listener"), more)) as started:
        yield started


def test_message_is_stored_privately_acknowledged_and_read_by_the_ingest(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path)
    with running(rig):
        reply = rig.send(result("MSG-1"))
        assert reply is not None
        assert (reply.code, reply.control_id) == ("AA", "MSG-1")
        msh = reply.message[0]
        assert (str(msh[9]), str(msh[12]), str(msh[3]), str(msh[5])) == ("ACK^R01^ACK", "2.5.1", "FED", "LIS")
        assert len(str(msh[10])) == 20
        state = queue_state(rig.site)
        assert state is not None and state.is_listening and state.messages == 1 and state.last is not None
        (line,) = listener_lines(rig.site)
        assert (line.status, line.detail[:10]) == ("ok", "1 messages")
        status = node_status(rig.site)
        assert (status["results_listening"], status["results_queued"]) == (True, 1)
        assert status["last_result"] is not None
        with pytest.raises(Refusal, match="E_LISTENER_RUNNING"):
            listen(rig.site, print)
    assert rig.stored == [result("MSG-1")]
    assert rig.read() == (POSITIVE, [])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in rig.queue.rglob("*.hl7")}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in (rig.queue, *rig.queue.iterdir())}
    assert (modes, folders) == ({0o600}, {0o700})
    (line,) = listener_lines(rig.site)
    assert line.status == "warn"
    back_up_site(rig.site.folder, tmp_path / "backup")
    with tarfile.open(tmp_path / "backup") as archive:
        assert [name for name in archive.getnames() if name.endswith(".hl7")] == [
            str(path.relative_to(rig.site.folder)) for path in rig.queue.rglob("*.hl7")
        ]


def test_clinic_finds_a_received_result(tmp_path: Path) -> None:
    with running(Rig.make(tmp_path)) as rig:
        before = open_feed(rig.site.folder)
        assert before is None or before.find("P-SECRET", "", date(2020, 4, 1)) is None
        rig.send(result())
        feed = open_feed(rig.site.folder)
        found = feed and feed.find("P-SECRET", "", date(2020, 4, 1))
        assert found and found.result == "positive"


def test_replay_is_acknowledged_and_stored_once(rig: Rig) -> None:
    before = len(rig.stored)
    codes = [reply.code for reply in (rig.send(result("AGAIN")) for _ in range(3)) if reply]
    assert codes == ["AA"] * 3
    assert len(rig.stored) == before + 1


def test_other_content_under_a_used_control_id_is_a_correction_by_its_status(tmp_path: Path) -> None:
    with running(Rig.make(tmp_path)) as rig:
        for message in (result(), result(positive=False, status="C")):
            reply = rig.send(message)
            assert reply is not None and reply.code == "AA"
        assert len(rig.stored) == 2
        assert rig.read() == ([PcrResult("P-SECRET", MORNING, False)], [])
        rig.send(result(status="W"))
        assert rig.read() == ([], ["W_PCR_WITHDRAWN"])


@pytest.mark.parametrize("step", STEPS)
def test_no_acknowledged_message_is_lost_and_none_is_doubled_by_a_kill(tmp_path: Path, step: str) -> None:
    """The process dies at each step; its sender sends again whatever was not acknowledged."""
    rig = Rig.make(tmp_path)
    rig.start(step)
    try:
        first = rig.send(result())
    finally:
        assert rig.process is not None and rig.process.wait(60) == -signal.SIGKILL
    assert (first is not None) == (step == "after ack")
    is_stored = step in ("before folder fsync", "before ack", "after ack")
    assert rig.stored == ([result()] if is_stored else [])
    if first is not None:
        assert first.code == "AA"
    with running(rig):
        second = rig.send(result())
        assert second is not None and second.code == "AA"
    assert rig.stored == [result()]
    assert rig.read() == (POSITIVE, [])
    assert list(rig.queue.rglob(".*")) == []


def test_full_disk_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    """The kernel refuses to write; afterwards the same message is accepted."""
    rig, message = Rig.make(tmp_path), result() + b"NTE|1||" + b"x" * 30_000
    rig.start()
    assert rig.process is not None
    try:
        resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        refused = rig.send(message)
        assert refused is not None and (refused.code, refused.error) == ("AE", "207")
        assert rig.stored == []
        resource.prlimit(rig.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        accepted = rig.send(message)
        assert accepted is not None and accepted.code == "AA"
    finally:
        rig.stop()
    assert rig.stored == [message]
    assert list(rig.queue.rglob(".*")) == []


def test_disk_below_the_reserve_is_refused(tmp_path: Path) -> None:
    rig = Rig.make(tmp_path)
    path = rig.site.folder / "site.toml"
    path.write_text(path.read_text().replace("keep_free_gb = 0", "keep_free_gb = 1e9"))
    with running(rig):
        reply = rig.send(result())
        assert reply is not None and reply.code == "AE"
    assert rig.stored == []


@pytest.mark.parametrize(
    ("change", "code", "error"),
    [
        ((b"ORU^R01^ORU_R01", b"ADT^A01^ADT_A01"), "AR", "200"),
        ((b"ORU^R01^ORU_R01", b"ORU^R30^ORU_R30"), "AR", "201"),
        ((b"|P|2.5.1", b"|T|2.5.1"), "AR", "202"),
        ((b"|P|2.5.1", b"|P|3.0"), "AR", "203"),
        ((b"|X1|P|", b"||P|"), "AR", "101"),
        ((b"MSH|", b"PID|"), "AR", "100"),
        ((b"MSH|", b"FHS|"), "AR", "100"),
        ((b"|2.5.1\r", b"|2.5.1||||||KLINGON\r"), "AE", "103"),
        ((b"|2.5.1\r", b"|2.5.1||||||ASCII\r"), "AE", "102"),
        ((b"SYNTHETIC", b"\xff\xfe"), "AE", "102"),
        ((b"OBR|", b"NTE|"), "AE", "100"),
        ((b"PID|", b"pid "), "AE", "100"),
        ((b"OBX|", b"MSH|^~\\&|\rOBX|"), "AE", "100"),
    ],
)
def test_message_that_is_not_accepted(rig: Rig, change: tuple[bytes, bytes], code: str, error: str) -> None:
    before = rig.stored
    reply = rig.send(result("X1").replace(b"SYNTHETIC^ONE", "SYNTHETIC^ÉONE".encode()).replace(*change))
    assert reply is not None
    assert (reply.code, reply.error) == (code, error)
    assert reply.control_id == ("" if error in ("101",) or change[0] == b"MSH|" else "X1")
    assert rig.stored == before


def test_character_set_of_the_message_is_used_and_kept(tmp_path: Path) -> None:
    with running(Rig.make(tmp_path)) as rig:
        text = result().replace(b"|2.5.1\r", b"|2.5.1||||||8859/1\r").replace(b"P-SECRET", "Pé".encode("latin-1"))
        reply = rig.send(text)
        assert reply is not None and reply.code == "AA"
        assert str(reply.message[0][18]) == "8859/1"
        assert rig.stored == [text]
        assert [each.patient_id for each in rig.read()[0]] == ["Pé"]


@pytest.mark.parametrize(
    ("modes", "code"),
    [("||", "AA"), ("|AL|NE", "CA"), ("|SU|", "CA"), ("|ER|AL", None), ("|NE|AL", "AA"), ("|NE|NE", None)],
)
def test_enhanced_mode_acknowledges_what_the_sender_asks_for(rig: Rig, modes: str, code: str | None) -> None:
    """MSH-15 and MSH-16; without an acknowledgement the message is stored nevertheless."""
    message = result(f"M{modes}".replace("|", "-")).replace(b"|2.5.1\r", b"|2.5.1||" + modes.encode() + b"\r")
    with MLLPClient("127.0.0.1", rig.port) as client:
        client.socket.settimeout(60)
        client.socket.sendall(b"\x0b" + message + b"\x1c\r" + b"\x0b" + result("LAST") + b"\x1c\r")
        answers = b""
        while b"LAST" not in answers:
            answers += client.socket.recv(4096)
    codes = [str(hl7.parse(each.decode())["MSA.1"]) for each in answers.replace(b"\x1c\r", b"").split(b"\x0b")[1:]]
    assert codes == ([code] if code else []) + ["AA"]
    assert message in rig.stored


@pytest.mark.parametrize(
    "version", [("2.2", "ACK", False), ("2.3", "ACK^R01", False), ("2.5", "ACK^R01^ACK", True)], ids=lambda v: v[0]
)
def test_acknowledgement_has_the_version_of_the_message(rig: Rig, version: tuple[str, str, bool]) -> None:
    number, kind, has_error_segment = version
    good = rig.send(result(f"V{number}").replace(b"2.5.1", number.encode()))
    assert good is not None
    assert (good.code, str(good.message[0][9]), str(good.message[0][12])) == ("AA", kind, number)
    bad = rig.send(result("X").replace(b"ORU^R01", b"ADT^A01").replace(b"2.5.1", number.encode()))
    assert bad is not None and bad.code == "AR"
    assert ("\rERR|" in bad.text) is has_error_segment


def test_too_long_message_is_answered_and_the_next_one_accepted(rig: Rig) -> None:
    padding = b"NTE|1||" + b"x" * 1_000_000
    with MLLPClient("127.0.0.1", rig.port) as client:
        client.socket.settimeout(60)
        reply = hl7.parse(client.send_message(result("LONG") + padding).decode().strip("\x0b\x1c\r"))
        assert (str(reply["MSA.1"]), str(reply["MSA.2"])) == ("AE", "LONG")
        reply = hl7.parse(client.send_message(result("NEXT")).decode().strip("\x0b\x1c\r"))
        assert (str(reply["MSA.1"]), str(reply["MSA.2"])) == ("AA", "NEXT")
    assert not any(b"LONG" in each for each in rig.stored)


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(60)
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    "sent", [b"MSH|^~\\&|no frame\r", b"\x0bMSH|\x0bMSH|\x1c\r", b"GET / HTTP/1.1\r\n\r\n", b"\x00"]
)
def test_malformed_frame_ends_the_connection(rig: Rig, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", rig.port)) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def four_slow_senders(rig: Rig) -> list[socket.socket]:
    """Take all connections and send the beginning of a message on each."""
    slow = [socket.create_connection(("127.0.0.1", rig.port)) for _ in range(4)]
    for each in slow:
        each.sendall(b"\x0bMSH|")
    return slow


def is_served(rig: Rig) -> bool:
    """Whether a sender is served, once there is a place for it."""
    reply = eventually(lambda: rig.send(result("AFTER-SLOW")))
    return reply is not None and reply.code == "AA"


def test_extra_connections_are_refused(rig: Rig) -> None:
    slow = four_slow_senders(rig)
    with socket.create_connection(("127.0.0.1", rig.port)) as fifth:
        assert is_closed(fifth)
    for each in slow:
        each.close()
    assert is_served(rig)
    assert eventually(lambda: "max_connections" in rig.log)


def test_slow_senders_are_cut_off(tmp_path: Path) -> None:
    with running(Rig.make(tmp_path, "message_seconds = 0.5\nmax_connections = 4")) as rig:
        for each in four_slow_senders(rig):
            assert is_closed(each)
            each.close()
        assert is_served(rig)


def test_address_outside_of_peers_is_refused(tmp_path: Path) -> None:
    with running(Rig.make(tmp_path, 'peers = ["192.0.2.0/24"]')) as rig:
        assert rig.send(result()) is None
        assert eventually(lambda: "`peers`" in rig.log)
    assert rig.stored == []


def test_log_contains_nothing_of_a_message(rig: Rig) -> None:
    """After the tests above: accepted, refused and malformed messages of the same patient."""
    rig.send(result("CONTROL-ID", patient="P-SECRET"))
    rig.send(result("CONTROL-ID").replace(b"OBR|", b"NTE|"))
    assert "received" in rig.log and "E_MESSAGE_BROKEN" in rig.log
    assert [word for word in ("SECRET", "SYNTHETIC", "CONTROL-ID", "Traceback", "1950") if word in rig.log] == []
    assert not any("SECRET" in path.name for path in rig.queue.rglob("*"))


# --- TLS --------------------------------------------------------------------------------------------------


async def send_over_tls(port: int, context: ssl.SSLContext) -> str:
    """Send a result with the library's client; return the code of its acknowledgement."""
    reader, writer = await open_hl7_connection("127.0.0.1", port, encoding="utf-8", ssl=context)
    writer.writeblock(result())
    await writer.drain()
    try:
        async with asyncio.timeout(60):
            return str((await reader.readmessage())["MSA.1"])
    finally:
        writer.close()


def test_tls_with_client_certificates(tmp_path: Path) -> None:
    """A sender with a certificate of the hospital's authority is served; others and plain text are not."""
    authority, stranger = Authority.make(tmp_path), Authority.make(tmp_path, "stranger")
    (certificate, key), ours = authority.sign("listener"), authority.sign("sender")
    others = stranger.sign("other")
    more = f'certificate = "{certificate}"\nkey = "{key}"\nca_certificate = "{authority.path}"'
    with running(Rig.make(tmp_path, more)) as rig:
        assert key in secret_files(rig.site)
        trusting = ssl.create_default_context(cafile=authority.path)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            asyncio.run(send_over_tls(rig.port, trusting))
        trusting.load_cert_chain(*others)
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            asyncio.run(send_over_tls(rig.port, trusting))
        assert rig.send(result()) is None
        assert rig.stored == []
        trusting = ssl.create_default_context(cafile=authority.path)
        trusting.load_cert_chain(*ours)
        assert asyncio.run(send_over_tls(rig.port, trusting)) == "AA"
    assert rig.stored == [result()]


@pytest.mark.parametrize("fault", ["no certificate", "another authority", "over", "plain text", "cut", "cut message"])
def test_faulty_sender_loses_nothing_and_its_code_is_in_the_log(fault: str, tmp_path: Path) -> None:
    """The sender is the clinic's. It learns that nothing was accepted, and sends the message again when it is right."""
    authority = Authority.make(tmp_path)
    certificate, key = authority.sign("listener")
    signer = Authority.make(tmp_path, "stranger") if fault == "another authority" else authority
    shown, right = signer.sign("faulty", is_over=fault == "over"), authority.sign("sender")
    more = f'certificate = "{certificate}"\nkey = "{key}"\nca_certificate = "{authority.path}"'

    def send(shown: tuple[Path, Path] | None) -> str:
        tls = ssl.create_default_context(cafile=authority.path)
        if shown:
            tls.load_cert_chain(*shown)
        try:
            send_message(result(), "C1", "127.0.0.1", rig.port, tls=tls, timeout_seconds=60)
        except Refusal as refusal:
            return refusal.code
        return ""

    with running(Rig.make(tmp_path, more)) as rig:
        if fault == "plain text":
            assert rig.send(result()) is None
        elif fault == "cut":
            with socket.create_connection(("127.0.0.1", rig.port)) as connection:
                connection.sendall(b"\x16\x03\x01\x02\x00\x01")
        elif fault == "cut message":
            tls = ssl.create_default_context(cafile=authority.path)
            tls.load_cert_chain(*right)
            with (
                socket.create_connection(("127.0.0.1", rig.port)) as plain,
                tls.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
            ):
                connection.sendall(b"\x0b" + result()[:40])
                # A socket with unread bytes is reset when it is closed, and then the message may never arrive.
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        else:
            # Python's asyncio ends the connection without the TLS alert (with TLS 1.3 after the client's handshake).
            assert send(None if fault == "no certificate" else shown) == "E_HL7_SILENT"
        assert rig.stored == []
        assert send(right) == ""
    assert rig.stored == [result()]
    assert ("E_MESSAGE_CUT" if fault == "cut message" else "E_LISTENER_TLS") in rig.log
    assert "P-SECRET" not in rig.log


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        'host = "192.0.2.1"',
        'host = "192.0.2.1"\nwithout_tls = true',
        'host = "192.0.2.1"\npeers = ["192.0.2.7"]',
        'certificate = "a.crt"',
        'peers = ["the laboratory"]',
    ],
)
def test_open_or_incomplete_listener_is_refused(tmp_path: Path, more: str) -> None:
    with pytest.raises(Refusal, match="E_SETTINGS"):
        init_site(tmp_path / "site", SITE.format(port=2575, more=more))


def test_listener_for_another_machine_needs_tls_or_a_decision_and_peers(tmp_path: Path) -> None:
    more = 'host = "192.0.2.1"\npeers = ["192.0.2.7"]\nwithout_tls = true'
    with pytest.raises(Refusal, match="E_LISTENER_ADDRESS"):
        listen(init_site(tmp_path / "site", SITE.format(port=2575, more=more)), print)


def test_site_without_listener(tmp_path: Path) -> None:
    text = SITE.format(port=2575, more="").replace("[laboratory.listener]\nport = 2575\nkeep_free_gb = 0\n", "")
    site: Site = init_site(tmp_path / "site", text.replace('"hl7"', '"hl7"\nfile = "results.hl7"'))
    assert queue_state(site) is None
    assert list(listener_lines(site)) == []
    with pytest.raises(Refusal, match="E_NO_LISTENER"):
        listen(site, print)
