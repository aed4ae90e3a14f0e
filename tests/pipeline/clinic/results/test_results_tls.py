"""Results on their way to a PACS by TLS: sent to the right one alone; from any other the answer stays in the outbox."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from pydicom.uid import Comprehensive3DSRStorage

from pipeline.clinic.records import Delivery
from pipeline.clinic.results.outbox import Outbox
from pipeline.clinic.settings import Clinic, ClinicSettings
from tests.helpers.dicom_files import ct_slice, save
from tests.pipeline.clinic.results.test_outbox import answered, delivery
from tests.pipeline.pacs.authority import Authority
from tests.pipeline.pacs.fake_pacs import OUR_TITLE, PACS_TITLE
from tests.pipeline.pacs.test_store_status import Web, keeper

By = Literal["stow", "c-store"]


@dataclass
class Hospital:
    """Its authority, and a PACS that speaks one protocol. `came`: what it took, request by request."""

    by: By
    authority: Authority
    folder: Path
    came: list[object]

    @contextmanager
    def pacs(self, tls: ssl.SSLContext | None) -> Iterator[int]:
        if self.by == "stow":
            web = Web(200, b"", tls=tls)
            with web.running():
                yield web.port
            self.came += [web.received] if web.received else []
        else:

            def take(event: Any) -> int:
                self.came.append(event.dataset)
                return 0

            with keeper(take, tls=tls) as port:
                yield port

    def send(self, port: int, **given: Path) -> Delivery:
        """One answer, by a clinic with these settings for TLS; what came of the first attempt."""
        way = {"url": f"https://127.0.0.1:{port}/dicom-web"} if self.by == "stow" else {"host": "127.0.0.1"}
        titles = {"port": port, "called_aet": PACS_TITLE, "calling_aet": OUR_TITLE, "timeout_seconds": 10}
        results = {"send": "always", "by": self.by, "ca_certificate": self.authority.path} | way | titles | given
        clinic = Clinic(self.folder, ClinicSettings.model_validate({"results": results}))
        answer = answered(clinic, deliver=True, files=())
        save(ct_slice([[0]], position_mm=(0, 0, 0), SOPClassUID=Comprehensive3DSRStorage), answer.folder / "sr.dcm")
        with clinic.store() as store:
            (waiting,) = store.deliveries.in_state("waiting")
        outcome = Outbox(clinic).attempt(waiting)
        assert outcome == delivery(clinic, answer)
        assert (answer.folder / "sr.dcm").exists()
        return outcome

    def server(self, signed_by: Authority | None = None, *, demands: bool = False, **options: Any) -> ssl.SSLContext:
        """What the PACS shows; `demands`: it asks for a certificate of the hospital's authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.authority.path)
        context.load_cert_chain(*(signed_by or self.authority).sign("pacs", **options))
        context.verify_mode = ssl.CERT_REQUIRED if demands else ssl.CERT_NONE
        return context


@pytest.fixture(params=["stow", "c-store"])
def hospital(request: pytest.FixtureRequest, tmp_path: Path) -> Hospital:
    return Hospital(request.param, Authority.make(tmp_path, "hospital"), tmp_path, [])


def test_to_the_pacs_that_the_hospitals_authority_vouches_for(hospital: Hospital) -> None:
    with hospital.pacs(hospital.server()) as port:
        sent = hospital.send(port)
    assert (sent.state, sent.attempts, len(hospital.came)) == ("sent", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["another authority", "another host", "over"])
def test_to_no_other_pacs(hospital: Hospital, fault: str, tmp_path: Path) -> None:
    shown = {
        "another authority": lambda: hospital.server(Authority.make(tmp_path, "other")),
        "another host": lambda: hospital.server(host="192.0.2.7"),
        "over": lambda: hospital.server(is_over=True),
    }[fault]()
    with hospital.pacs(shown) as port:
        kept = hospital.send(port)
    assert (kept.state, kept.code, hospital.came) == ("waiting", "E_PACS_UNTRUSTED", [])
    assert kept.due_at is not None


def test_a_pacs_that_demands_our_certificate_gets_it(hospital: Hospital) -> None:
    certificate, key = hospital.authority.sign("clinic")
    with hospital.pacs(hospital.server(demands=True)) as port:
        sent = hospital.send(port, certificate=certificate, key=key)
    assert (sent.state, len(hospital.came)) == ("sent", 1)


@pytest.mark.parametrize("shown", ["none", "of another authority", "over"])
def test_a_pacs_that_demands_our_certificate_takes_no_other(hospital: Hospital, shown: str, tmp_path: Path) -> None:
    signer = Authority.make(tmp_path, "other") if shown == "of another authority" else hospital.authority
    certificate, key = signer.sign("clinic", is_over=shown == "over")
    given = {} if shown == "none" else {"certificate": certificate, "key": key}
    with hospital.pacs(hospital.server(demands=True)) as port:
        kept = hospital.send(port, **given)
    assert (kept.state, hospital.came) == ("waiting", [])
    # What a PACS says when it closes may be lost with the connection, where a request is on its way already.
    assert kept.code in ("E_PACS_UNTRUSTED", "E_PACS_SILENT")


def test_nothing_goes_in_the_clear_to_a_pacs_without_tls(hospital: Hospital) -> None:
    with hospital.pacs(None) as port:
        kept = hospital.send(port)
    assert (kept.state, hospital.came) == ("waiting", [])
    assert kept.code in ("E_PACS_UNTRUSTED", "E_PACS_SILENT")


@pytest.mark.parametrize("fault", ["missing", "no certificate", "key of another", "open to others", "locked"])
def test_a_file_that_cannot_be_used_is_named_as_such(hospital: Hospital, fault: str) -> None:
    certificate, key = hospital.authority.sign("clinic", password=b"secret" if fault == "locked" else None)
    if fault == "missing":
        certificate.unlink()
    if fault == "no certificate":
        hospital.authority.path.write_text("nothing")
    if fault == "key of another":
        key = hospital.authority.sign("other")[1]
    if fault == "open to others":
        key.chmod(0o644)
    kept = hospital.send(9, certificate=certificate, key=key)
    assert (kept.state, kept.code) == ("waiting", "E_PACS_FILE")
