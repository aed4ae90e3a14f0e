"""TLS between the clinic and a FHIR server or HL7 receiver, on real sockets: each fault has its code and loses nothing.

The last test is about fetching from a FHIR server, with the same client.
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.refusal import Refusal
from pipeline.clinic.records import Answer, Delivery
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.settings import Clinic, ClinicSettings
from pipeline.clinic.store import new_id
from pipeline.feeds.fhir_client import FhirClient
from pipeline.scoring.score import Score
from pipeline.site.fhir_settings import FhirTable
from tests.helpers.scored_answers import answer_to, series_of
from tests.pipeline.clinic.results.receivers import FhirServer, Receiver
from tests.pipeline.clinic.results.test_messages import PATIENT
from tests.pipeline.pacs.authority import Authority

UNTRUSTED = {"fhir": "E_FHIR_UNTRUSTED", "hl7": "E_HL7_UNTRUSTED"}
SILENT = {"fhir": "E_FHIR_SILENT", "hl7": "E_HL7_SILENT"}
SERVERS: dict[str, Callable[[Authority, Path], ssl.SSLContext]] = {
    "another authority": lambda ours, folder: ours.server(Authority.make(folder, "other")),
    "another host": lambda ours, _: ours.server(host="192.0.2.7"),
    "over": lambda ours, _: ours.server(is_over=True),
}


class Hospital:
    """A clinic with one result to send to a FHIR server ("fhir") or an HL7 receiver ("hl7"), and their authority."""

    def __init__(self, kind: str, folder: Path, made: Answer) -> None:
        self.kind, self.folder, self.made = kind, folder, made
        self.authority = Authority.make(folder, "hospital")
        self.peer: Receiver | FhirServer

    @contextmanager
    def serving(self, tls: ssl.SSLContext | None, peer: Any = None) -> Iterator[int]:
        """Run the other system; yield its port."""
        self.peer = peer or (Receiver(tls=tls) if self.kind == "hl7" else FhirServer(tls=tls))
        with self.peer.running() as at:
            yield at if isinstance(at, int) else int(at.split(":")[2].split("/")[0])

    def send(self, port: int, **given: Path) -> Delivery:
        """Send the result with these TLS settings; return the outcome of the first attempt."""
        way = {"host": "127.0.0.1", "port": port} if self.kind == "hl7" else {"url": f"https://127.0.0.1:{port}/fhir"}
        table = {"send": "always", "timeout_seconds": 5, "ca_certificate": self.authority.path, **way, **given}
        clinic = Clinic(self.folder, ClinicSettings.model_validate({"results": {self.kind: table}}))
        with clinic.store() as store:
            if not store.answers.newest():
                store.jobs.add(new_id(), source="upload", asked_by="test")
                job = store.jobs.take()
                assert job is not None
                made = replace(self.made, job_id=job.id)
                store.answers.add(job, made, deliver=Outbox(clinic).targets_of_new(made))
            (waiting,) = store.deliveries.in_state("waiting")
        outcome = Outbox(clinic).attempt(waiting)
        assert outcome.state == "sent" or outcome.due_at is not None
        return outcome


@pytest.fixture(params=["fhir", "hl7"])
def hospital(request: pytest.FixtureRequest, scan: Path, score: Score, tmp_path: Path) -> Hospital:
    answer = answer_to(score, series_of(scan), tmp_path / "answers" / new_id(), patient=PATIENT)
    return Hospital(request.param, tmp_path, answer)


@contextmanager
def broken_server(say: bytes = b"") -> Iterator[int]:
    """A server that reads once, says something and ends each connection; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65_536)
                    connection.sendall(say)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


def test_result_reaches_a_system_that_the_hospitals_authority_certified(hospital: Hospital) -> None:
    with hospital.serving(hospital.authority.server()) as port:
        assert hospital.send(port).state == "sent"
    assert len(hospital.peer.received) == 1


@pytest.mark.parametrize("fault", SERVERS)
def test_untrusted_system_gets_nothing_and_later_the_right_one_everything(
    fault: str, hospital: Hospital, tmp_path: Path
) -> None:
    with hospital.serving(SERVERS[fault](hospital.authority, tmp_path)) as port:
        kept = hospital.send(port)
    assert (kept.state, kept.code, hospital.peer.received) == ("waiting", UNTRUSTED[hospital.kind], [])
    with hospital.serving(hospital.authority.server()) as port:
        assert hospital.send(port).state == "sent"
    assert len(hospital.peer.received) == 1


@pytest.mark.parametrize("shown", ["ours", "none", "of another authority", "over"])
def test_system_that_requires_a_client_certificate(shown: str, hospital: Hospital, tmp_path: Path) -> None:
    signer = Authority.make(tmp_path, "other") if shown == "of another authority" else hospital.authority
    certificate, key = signer.sign("clinic", is_over=shown == "over")
    given = {} if shown == "none" else {"certificate": certificate, "key": key}
    with hospital.serving(hospital.authority.server(demands=True)) as port:
        kept = hospital.send(port, **given)
    if shown == "ours":
        assert (kept.state, len(hospital.peer.received)) == ("sent", 1)
    else:
        assert (kept.state, kept.code, hospital.peer.received) == ("waiting", UNTRUSTED[hospital.kind], [])


def test_nothing_is_sent_unencrypted_to_a_system_without_tls(hospital: Hospital) -> None:
    with hospital.serving(None) as port:
        kept = hospital.send(port)
    # A web server answers a TLS handshake in plain text; an MLLP receiver ends the connection.
    assert (kept.state, hospital.peer.received) == ("waiting", [])
    assert kept.code == (UNTRUSTED["fhir"] if hospital.kind == "fhir" else SILENT["hl7"])


@pytest.mark.parametrize(
    ("says", "is_silent"),
    [(b"", True), (b"\x16\x03\x03\x00\x7a\x02", True), (b"HTTP/1.1 400 Bad Request\r\n\r\n", False)],
    ids=["nothing", "half a handshake", "plain text"],
)
def test_connection_that_ends_within_the_handshake(says: bytes, is_silent: bool, hospital: Hospital) -> None:
    with broken_server(says) as port:
        kept = hospital.send(port)
    assert (kept.state, kept.code) == ("waiting", (SILENT if is_silent else UNTRUSTED)[hospital.kind])


def test_acknowledgement_that_is_cut_does_not_count(hospital: Hospital) -> None:
    tls = hospital.authority.server()
    peer: Any = Receiver(answer=b"\x0bMSH|^~\\&|X\rMSA|AA|", tls=tls) if hospital.kind == "hl7" else FhirServer(tls=tls)
    if isinstance(peer, FhirServer):
        peer.cut = True
    with hospital.serving(tls, peer) as port:
        kept = hospital.send(port)
        assert (kept.state, kept.code) == ("waiting", SILENT[hospital.kind])
        if isinstance(peer, FhirServer):
            peer.cut = False
        else:
            peer.answer = None
        assert hospital.send(port).state == "sent"
    assert len(peer.received) == 2 and peer.received[0] == peer.received[1]


@pytest.mark.parametrize("fault", ["missing", "key of another", "open to others"])
def test_unusable_file_has_a_code_of_its_own(fault: str, hospital: Hospital) -> None:
    certificate, key = hospital.authority.sign("clinic")
    if fault == "missing":
        certificate.unlink()
    if fault == "key of another":
        key = hospital.authority.sign("other")[1]
    if fault == "open to others":
        key.chmod(0o644)
    assert hospital.send(9, certificate=certificate, key=key).code == "E_PACS_FILE"


# --- fetching from a FHIR server ---


def fetched(authority: Authority, port: int, **given: Path) -> str:
    """Fetch one resource; return the code of the refusal, "" without one."""
    table = FhirTable.model_validate(
        {"url": f"https://127.0.0.1:{port}/fhir", "retries": 0, "ca_certificate": authority.path, **given}
    )
    try:
        with FhirClient(table, authority.folder) as client:
            client.get_json(f"{client.base}/metadata")
    except Refusal as refusal:
        return refusal.code
    return ""


@pytest.mark.parametrize(
    "fault", ["none", *SERVERS, "no client certificate", "client certificate", "plain text", "ends", "cut"]
)
def test_fetch_from_a_fhir_server_has_the_same_codes(fault: str, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path, "hospital")
    if fault == "ends":
        with broken_server() as port:
            assert fetched(authority, port) == "E_FHIR_SILENT"
        return
    tls = SERVERS[fault](authority, tmp_path) if fault in SERVERS else authority.server(demands="client" in fault)
    server = FhirServer(None if fault == "plain text" else tls)
    server.cut = fault == "cut"
    given = dict(zip(("certificate", "key"), authority.sign("node"), strict=True))
    with server.running():
        code = fetched(authority, server.server_port, **(given if fault == "client certificate" else {}))
    expected = {"none": "", "client certificate": "", "cut": "E_FHIR_SILENT"}
    assert code == expected.get(fault, "E_FHIR_UNTRUSTED")
