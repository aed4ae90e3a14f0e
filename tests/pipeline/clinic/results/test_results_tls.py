"""Tests of sending results to a PACS by TLS. If the PACS is not trusted, the answer stays in the outbox."""

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
    """A hospital's certificate authority and PACS, for one protocol. `came`: the requests that the PACS accepted."""

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
        """Send one answer from a clinic with these TLS settings. Return the outcome of the first attempt."""
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
        """TLS context of the PACS. `demands`: it requires a client certificate of the hospital's authority."""
        return self.authority.server(signed_by, demands=demands, **options)


@pytest.fixture(params=["stow", "c-store"])
def hospital(request: pytest.FixtureRequest, tmp_path: Path) -> Hospital:
    return Hospital(request.param, Authority.make(tmp_path, "hospital"), tmp_path, [])


def test_results_are_sent_to_a_pacs_certified_by_the_hospital_authority(hospital: Hospital) -> None:
    with hospital.pacs(hospital.server()) as port:
        sent = hospital.send(port)
    assert (sent.state, sent.attempts, len(hospital.came)) == ("sent", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["another authority", "another host", "over"])
def test_results_are_not_sent_to_an_untrusted_pacs(hospital: Hospital, fault: str, tmp_path: Path) -> None:
    shown = {
        "another authority": lambda: hospital.server(Authority.make(tmp_path, "other")),
        "another host": lambda: hospital.server(host="192.0.2.7"),
        "over": lambda: hospital.server(is_over=True),
    }[fault]()
    with hospital.pacs(shown) as port:
        kept = hospital.send(port)
    assert (kept.state, kept.code, hospital.came) == ("waiting", "E_PACS_UNTRUSTED", [])
    assert kept.due_at is not None


def test_pacs_that_requires_a_client_certificate_gets_ours(hospital: Hospital) -> None:
    certificate, key = hospital.authority.sign("clinic")
    with hospital.pacs(hospital.server(demands=True)) as port:
        sent = hospital.send(port, certificate=certificate, key=key)
    assert (sent.state, len(hospital.came)) == ("sent", 1)


@pytest.mark.parametrize("shown", ["none", "of another authority", "over"])
def test_pacs_that_requires_a_client_certificate_rejects_any_other(
    hospital: Hospital, shown: str, tmp_path: Path
) -> None:
    signer = Authority.make(tmp_path, "other") if shown == "of another authority" else hospital.authority
    certificate, key = signer.sign("clinic", is_over=shown == "over")
    given = {} if shown == "none" else {"certificate": certificate, "key": key}
    with hospital.pacs(hospital.server(demands=True)) as port:
        kept = hospital.send(port, **given)
    assert (kept.state, hospital.came) == ("waiting", [])
    # The TLS alert may be lost when the PACS closes the connection while a request is in transit.
    assert kept.code in ("E_PACS_UNTRUSTED", "E_PACS_SILENT")


def test_nothing_is_sent_unencrypted_to_a_pacs_without_tls(hospital: Hospital) -> None:
    with hospital.pacs(None) as port:
        kept = hospital.send(port)
    assert (kept.state, hospital.came) == ("waiting", [])
    assert kept.code in ("E_PACS_UNTRUSTED", "E_PACS_SILENT")


@pytest.mark.parametrize("fault", ["missing", "no certificate", "key of another", "open to others", "locked"])
def test_unusable_tls_file_is_reported_as_such(hospital: Hospital, fault: str) -> None:
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
