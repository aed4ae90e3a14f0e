"""Invitations, certificates and revocation in a server's folder, with a fake SuperLink."""

import re
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from federation.enrolment import invitations as enrolment
from federation.enrolment.certificates import fingerprint, public_pem
from federation.enrolment.invitations import (
    INVITATION_SECONDS,
    MAX_WRONG_TRIES,
    EnrolledSite,
    JoinRequest,
    accept,
    enrolled_patients,
    has_open_code,
    invite,
    overview,
    renew,
    restore_roster,
    revoke,
)
from federation.enrolment.registry import holder, registry
from federation.server.start import init_server
from federation.superlink import reasons
from federation.superlink.control import ca_certificate
from federation.superlink.nodes import Site
from models.refusal import Refusal

Key = ec.EllipticCurvePrivateKey


class SuperLink:
    """Replaces the running SuperLink. `nodes`: the registered nodes, by name."""

    def __init__(self) -> None:
        self.nodes: dict[str, bytes] = {}
        self.up = True

    def enrol(self, folder: Path, public_key: bytes, name: str) -> int:
        self._answer()
        self.nodes[name] = public_key
        return 1

    def strike_off(self, folder: Path, name: str) -> None:
        self._answer()
        self.nodes.pop(name, None)

    def _answer(self) -> None:
        if not self.up:
            raise Refusal(reasons.SERVER_UNREACHABLE, port=1)


class Clock:
    """The time that enrolment and registry see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead, real = 0.0, enrolment.time.time
        monkeypatch.setattr("time.time", lambda: real() + self.ahead)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_server(tmp_path / "server", hosts=["study.example"], port=9443)
    return tmp_path / "server"


@pytest.fixture(autouse=True)
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    fake = SuperLink()
    monkeypatch.setattr(enrolment, "enrol", fake.enrol)
    monkeypatch.setattr(enrolment, "strike_off", fake.strike_off)
    monkeypatch.setattr(enrolment, "registered_sites", lambda folder: [Site(n, 1, online=True) for n in fake.nodes])
    return fake


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP384R1())


def request_for(key: Key) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM).decode()


def joining(code: str, key: Key, *, secret: str | None = None) -> JoinRequest:
    _, _, invitation, told = code.split("/")
    return JoinRequest(invitation=invitation, secret=secret or told, request=request_for(key))


def refused(folder: Path, request: JoinRequest) -> str:
    with pytest.raises(Refusal) as refusal:
        accept(folder, request)
    return refusal.value.code


def holder_of(folder: Path, pem: str) -> enrolment.Holder:
    with registry(folder) as db:
        return holder(db, x509.load_pem_x509_certificate(pem.encode()))


def test_code_contains_address_and_authority_and_admits_one_node(folder: Path, superlink: SuperLink) -> None:
    code = invite(folder, "north", patients=120)
    assert re.fullmatch(r"study\.example:9443/[0-9a-f]{64}/[0-9a-f]{16}/[\w-]{32}", code)
    authority = x509.load_pem_x509_certificate(ca_certificate(folder).read_bytes())
    assert code.split("/")[1] == fingerprint(authority)
    assert enrolled_patients(folder) == {}

    key = new_key()
    name, pem = accept(folder, joining(code, key))
    certificate = x509.load_pem_x509_certificate(pem.encode())
    certificate.verify_directly_issued_by(authority)
    assert (name, certificate.subject.rfc4514_string()) == ("north", "CN=north")
    assert certificate.public_key() == key.public_key()
    assert superlink.nodes == {"north": public_pem(key.public_key())}
    assert enrolled_patients(folder) == {"north": 120}
    holder_of(folder, pem).judge()


def test_server_does_not_store_the_secret(folder: Path) -> None:
    secret = invite(folder, "north").split("/")[3]
    assert all(secret.encode() not in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert (folder / "sites.sqlite").stat().st_mode & 0o077 == 0


def test_used_code_is_valid_only_for_the_same_node(folder: Path) -> None:
    """The node repeats its request if the answer was lost."""
    code, key = invite(folder, "north"), new_key()
    first = accept(folder, joining(code, key))
    assert accept(folder, joining(code, key)) == first
    assert refused(folder, joining(code, new_key())) == "E_INVITATION_OVER"


def test_concurrent_requests_with_one_code_admit_only_one_node(folder: Path, superlink: SuperLink) -> None:
    code = invite(folder, "north")
    requests = [joining(code, new_key()) for _ in range(8)]

    def outcome(request: JoinRequest) -> str:
        try:
            return accept(folder, request)[0]
        except Refusal as refusal:
            return refusal.code

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(outcome, requests))
    assert outcomes == ["E_INVITATION_OVER"] * 7 + ["north"]
    with registry(folder) as db:
        assert db.execute("SELECT count(*) FROM certificates").fetchone() == (1,)


def test_code_expires_after_a_week(folder: Path, clock: Clock) -> None:
    code = invite(folder, "north")
    clock.ahead = INVITATION_SECONDS + 1
    assert refused(folder, joining(code, new_key())) == "E_INVITATION_OVER"


def test_code_is_void_after_ten_wrong_secrets(folder: Path) -> None:
    code, key = invite(folder, "north"), new_key()
    for _ in range(MAX_WRONG_TRIES):
        assert refused(folder, joining(code, key, secret="x" * 32)) == "E_INVITATION"
    assert refused(folder, joining(code, key)) == "E_INVITATION"


def test_code_is_valid_after_nine_wrong_secrets(folder: Path) -> None:
    code, key = invite(folder, "north"), new_key()
    for _ in range(MAX_WRONG_TRIES - 1):
        refused(folder, joining(code, key, secret="x" * 32))
    assert accept(folder, joining(code, key))[0] == "north"


def test_unknown_invitation_gets_the_same_code_as_a_wrong_secret(folder: Path) -> None:
    invite(folder, "north")
    unknown = JoinRequest(invitation="0" * 16, secret="x" * 32, request=request_for(new_key()))
    assert refused(folder, unknown) == "E_INVITATION"


def test_new_invitation_voids_the_previous_one(folder: Path) -> None:
    first, second, key = invite(folder, "north"), invite(folder, "north"), new_key()
    assert refused(folder, joining(first, key)) == "E_INVITATION"
    assert accept(folder, joining(second, key))[0] == "north"


def test_open_code_is_known_until_it_is_used_or_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_open_code(folder, "north")
    code = invite(folder, "north")
    assert has_open_code(folder, "north") and not has_open_code(folder, "south")
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + INVITATION_SECONDS + 1)
        assert not has_open_code(folder, "north")
    accept(folder, joining(code, new_key()))
    assert not has_open_code(folder, "north")


def test_code_stays_valid_while_the_superlink_is_down(folder: Path, superlink: SuperLink) -> None:
    code, key = invite(folder, "north"), new_key()
    superlink.up = False
    assert refused(folder, joining(code, key)) == "E_SERVER_UNREACHABLE"
    assert enrolled_patients(folder) == {}
    superlink.up = True
    assert accept(folder, joining(code, key))[0] == "north"


@pytest.mark.parametrize("kind", ["text", "p256", "signed by another"])
def test_invalid_certificate_request_is_refused(folder: Path, superlink: SuperLink, kind: str) -> None:
    code = invite(folder, "north")
    _, _, invitation, secret = code.split("/")
    text = "hello"
    if kind == "p256":
        text = request_for(ec.generate_private_key(ec.SECP256R1()))
    elif kind == "signed by another":
        der = bytearray(x509.load_pem_x509_csr(request_for(new_key()).encode()).public_bytes(Encoding.DER))
        der[-1] ^= 1
        text = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    assert refused(folder, JoinRequest(invitation=invitation, secret=secret, request=text)) == "E_PUBLIC_KEY"
    assert not superlink.nodes


def test_name_in_the_certificate_request_is_ignored(folder: Path) -> None:
    key = new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "south")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA384())
    _, _, invitation, secret = invite(folder, "north").split("/")
    text = request.public_bytes(Encoding.PEM).decode()
    name, pem = accept(folder, JoinRequest(invitation=invitation, secret=secret, request=text))
    assert (name, x509.load_pem_x509_certificate(pem.encode()).subject.rfc4514_string()) == ("north", "CN=north")


@pytest.mark.parametrize("name", ["", "Hospital", "hôpital", "a b", "a_b", "a\n", "x" * 64])
def test_invalid_site_name_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(Refusal, match="E_SITE_NAME:"):
        invite(folder, name)


def test_site_name_in_use_is_refused(folder: Path) -> None:
    accept(folder, joining(invite(folder, "north"), new_key()))
    with pytest.raises(Refusal, match="E_SITE_NAME_TAKEN"):
        invite(folder, "north")


def test_revoked_site_is_refused_and_can_join_again_with_a_new_key(folder: Path, superlink: SuperLink) -> None:
    old, new = new_key(), new_key()
    _, pem = accept(folder, joining(invite(folder, "north", patients=50), old))
    revoke(folder, "north")
    with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
        holder_of(folder, pem).judge()
    assert superlink.nodes == {}
    assert enrolled_patients(folder) == {}
    crl = x509.load_pem_x509_crl((folder / "certificates" / "crl.pem").read_bytes())
    certificate = x509.load_pem_x509_certificate(pem.encode())
    assert crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None

    again = invite(folder, "north", patients=60)
    assert refused(folder, joining(again, old)) == "E_KEY_REVOKED"
    _, fresh = accept(folder, joining(again, new))
    holder_of(folder, fresh).judge()
    assert enrolled_patients(folder) == {"north": 60}
    with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
        holder_of(folder, pem).judge()


def test_revocation_works_without_a_running_server(folder: Path, superlink: SuperLink) -> None:
    _, pem = accept(folder, joining(invite(folder, "north"), new_key()))
    superlink.up = False
    revoke(folder, "north")
    with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
        holder_of(folder, pem).judge()


def test_revocation_is_effective_if_the_revocation_list_cannot_be_written(folder: Path) -> None:
    _, pem = accept(folder, joining(invite(folder, "north"), new_key()))
    (folder / "certificates" / "ca.key").unlink()
    with pytest.raises(Refusal, match="E_AUTHORITY"):
        revoke(folder, "north")
    with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
        holder_of(folder, pem).judge()


def test_revoking_an_invited_site_voids_its_code(folder: Path) -> None:
    code = invite(folder, "north")
    revoke(folder, "north")
    assert refused(folder, joining(code, new_key())) == "E_INVITATION"
    with pytest.raises(Refusal, match="E_SITE_UNKNOWN"):
        revoke(folder, "south")


def test_renewal_issues_a_new_certificate_for_the_same_key_when_due(folder: Path, clock: Clock) -> None:
    key = new_key()
    _, first = accept(folder, joining(invite(folder, "north"), key))
    assert renew(folder, holder_of(folder, first)) == first, "the certificate is valid for nearly a year"
    clock.ahead = 340 * 86_400.0
    second = renew(folder, holder_of(folder, first))
    certificate = x509.load_pem_x509_certificate(second.encode())
    assert (second != first, certificate.public_key() == key.public_key()) == (True, True)
    holder_of(folder, first).judge()
    holder_of(folder, second).judge()
    revoke(folder, "north")
    for pem in (first, second):
        with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
            holder_of(folder, pem).judge()


def test_revoked_or_expired_certificate_cannot_be_renewed(folder: Path, clock: Clock) -> None:
    _, pem = accept(folder, joining(invite(folder, "north"), new_key()))
    held = holder_of(folder, pem)
    revoke(folder, "north")
    with pytest.raises(Refusal, match="E_CERTIFICATE_REVOKED"):
        renew(folder, held)  # checked before the revocation, renewed after it
    _, late = accept(folder, joining(invite(folder, "south"), new_key()))
    clock.ahead = 366 * 86_400.0
    with pytest.raises(Refusal, match="E_CERTIFICATE_EXPIRED"):
        renew(folder, holder_of(folder, late))
    invite(folder, "south")  # a site with an expired certificate may be invited again


def test_nodes_are_registered_again_at_an_empty_superlink(folder: Path, superlink: SuperLink) -> None:
    for name in ("north", "west"):
        accept(folder, joining(invite(folder, name), new_key()))
    invite(folder, "east")
    revoke(folder, "west")
    before = dict(superlink.nodes)
    superlink.nodes.clear()
    restore_roster(folder)
    assert superlink.nodes == before
    assert list(before) == ["north"]


def test_overview_lists_every_site_with_its_state(folder: Path, superlink: SuperLink) -> None:
    invite(folder, "east", patients=10)
    for name in ("north", "west"):
        accept(folder, joining(invite(folder, name, patients=20), new_key()))
    revoke(folder, "west")
    found = overview(folder)
    assert [(s.name, s.state, s.patients, s.online) for s in found] == [
        ("east", "invited", 10, False),
        ("north", "enrolled", 20, True),
        ("west", "revoked", 20, False),
    ]
    assert isinstance(found[0], EnrolledSite)
    assert found[0].until is None
    assert found[1].until is not None


def test_a_folder_without_a_server_is_refused(tmp_path: Path) -> None:
    for act in (lambda: invite(tmp_path, "north"), lambda: revoke(tmp_path, "north"), lambda: overview(tmp_path)):
        with pytest.raises(Refusal, match="E_NO_SERVER"):
            act()
    assert list(tmp_path.iterdir()) == []


def test_damaged_registry_admits_no_node(folder: Path) -> None:
    _, pem = accept(folder, joining(invite(folder, "north"), new_key()))
    (folder / "sites.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        holder_of(folder, pem)
    (folder / "sites.sqlite").unlink()
    with pytest.raises(Refusal, match="E_CERTIFICATE_UNKNOWN"):
        holder_of(folder, pem)
