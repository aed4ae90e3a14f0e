"""A site joins a study through its ingress, renews its certificate, and detects a server that is not the study's."""

import re
import socketserver
import ssl
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from federation.enrolment import invitations as enrolment
from federation.enrolment import join
from federation.enrolment.authority import Authority
from federation.enrolment.certificates import (
    create_node_key,
    fingerprint,
    load_node_key,
    open_authority,
    public_pem,
    valid_until,
)
from federation.enrolment.invitations import invite, revoke
from federation.enrolment.join import JoinCode, node_certificate, renew_if_due, with_server_address
from federation.enrolment.registry import record, registry
from federation.gateway.loopback import loopback_certificate, loopback_tls
from federation.superlink.control import ca_certificate
from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings
from tests.e2e.ingress_rig import Rig, open_rig


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("server") / "server") as rig:
        yield rig


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The nodes that a SuperLink would have registered."""
    nodes: dict[str, bytes] = {}
    monkeypatch.setattr(enrolment, "enrol", lambda folder, public_key, name: nodes.update({name: public_key}))
    return nodes


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = init_site(tmp_path / "site", site_settings(None, name="my-hospital"))
    create_node_key(site.node_key)
    return site


def files(site: Site) -> dict[str, bytes]:
    return {str(p.relative_to(site.folder)): p.read_bytes() for p in site.folder.rglob("*") if p.is_file()}


def test_site_joins_with_only_its_code(rig: Rig, site: Site, registered: dict[str, bytes]) -> None:
    code = invite(rig.folder, "hospital-a", patients=80)
    broken = f"{code[:40]}\n  {code[40:90]}\r\n{code[90:]} "  # line breaks and spaces as added by a mail client
    assert join.join(site, broken) == "hospital-a"

    site = Site.open(site.folder)
    assert site.settings.server.address == f"localhost:{rig.port}"
    assert site.ca_certificate.read_bytes() == ca_certificate(rig.folder).read_bytes()
    certificate = x509.load_pem_x509_certificate(node_certificate(site).read_bytes())
    key = load_node_key(site.node_key).public_key()
    assert certificate.public_key() == key
    assert registered == {"hospital-a": public_pem(key)}
    assert any("joined site=? from=127.0.0.1" in line and "hospital-a" in line for line in rig.lines)
    tls = join.client_tls(site.ca_certificate, certificate=node_certificate(site), private_key=site.node_key)
    assert isinstance(tls, ssl.SSLContext)


def test_site_without_a_key_creates_one(rig: Rig, site: Site) -> None:
    before = site.node_key.read_bytes()
    site.node_key.unlink()
    site.node_key.with_suffix(".pub").unlink()
    join.join(site, invite(rig.folder, "hospital-b"))
    assert site.node_key.read_bytes() != before


@pytest.mark.parametrize(
    "code", ["", "localhost:8443", "localhost:8443/x/y/z", "http://a:1/" + "0" * 64 + "/" + "0" * 16 + "/" + "a" * 32]
)
def test_invalid_code_is_refused_before_any_connection(site: Site, code: str) -> None:
    with pytest.raises(Refusal, match="E_JOIN_CODE"):
        join.join(site, code)


def test_code_is_not_used_up_where_the_address_could_not_be_written(rig: Rig, site: Site) -> None:
    code = invite(rig.folder, "hospital-inline")
    settings, asked = site.folder / "site.toml", len(rig.lines)
    inline = 'server = {address = ""}\n' + re.sub(r"(?s)\[server\].*?(?=\n\[)", "", settings.read_text())
    settings.write_text(inline)
    with pytest.raises(Refusal, match="E_SETTINGS_FORM"):
        join.join(Site.open(site.folder), code)
    assert settings.read_text() == inline
    assert not node_certificate(site).exists()
    assert len(rig.lines) == asked, "the server was not asked"


def test_secret_is_not_sent_to_a_server_of_another_authority(rig: Rig, site: Site) -> None:
    """For example when a proxy on the way terminates TLS to inspect the traffic."""
    code = JoinCode.read(invite(rig.folder, "hospital-c"))
    other = f"{code.address}/{'0' * 64}/{code.invitation}/{code.secret}"
    before = files(site)
    with pytest.raises(Refusal, match="E_OTHER_AUTHORITY"):
        join.join(site, other)
    assert files(site) == before
    with registry(rig.folder) as db:
        row = db.execute("SELECT wrong_tries, used_by FROM invitations WHERE id = ?", (code.invitation,)).fetchone()
    assert row == (0, None)


def test_server_with_a_wrong_host_name_is_refused(rig: Rig, site: Site) -> None:
    code = JoinCode.read(invite(rig.folder, "hospital-c"))
    with pytest.raises(Refusal, match="E_SERVER_UNTRUSTED"):
        join.join(site, f"127.1:{rig.port}/{code.authority}/{code.invitation}/{code.secret}")


def test_unreachable_server_is_reported(site: Site) -> None:
    code = f"localhost:{free_port()}/{'0' * 64}/{'0' * 16}/{'a' * 32}"
    with pytest.raises(Refusal, match="E_SERVER_SILENT"):
        join.join(site, code)


def test_refusal_of_the_server_is_reported_with_its_code(rig: Rig, site: Site) -> None:
    code = JoinCode.read(invite(rig.folder, "hospital-d"))
    before = files(site)
    with pytest.raises(Refusal, match=r"E_JOIN_REFUSED: .*: E_INVITATION$"):
        join.join(site, f"{code.address}/{code.authority}/{code.invitation}/{'x' * 32}")
    assert files(site) == before


def test_certificate_that_does_not_match_the_request_is_not_stored(
    rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, before = invite(rig.folder, "hospital-e"), files(site)
    other = create_node_key(site.folder.parent / "other").with_suffix("")
    signer = open_authority(ca_certificate(rig.folder).parent)
    for authority, key in ((Authority.new(), site.node_key), (signer, other)):
        certificate = authority.node_certificate(load_node_key(key).public_key(), "hospital-e")
        pem = certificate.public_bytes(join.Encoding.PEM).decode()
        monkeypatch.setattr(
            "federation.ingress.authorization.accept", lambda folder, form, pem=pem: ("hospital-e", pem)
        )
        with pytest.raises(Refusal, match="E_NODE_CERTIFICATE"):
            join.join(site, code)
    assert files(site) == before


def test_certificate_is_renewed_when_due(rig: Rig, site: Site) -> None:
    join.join(site, invite(rig.folder, "hospital-f"))
    site = Site.open(site.folder)
    fresh = node_certificate(site).read_bytes()
    assert not renew_if_due(site)
    assert join.renew(site) - datetime.now(UTC) > timedelta(days=360)
    assert node_certificate(site).read_bytes() == fresh, "the current certificate is still valid for long"

    authority = open_authority(ca_certificate(rig.folder).parent)
    key = load_node_key(site.node_key).public_key()
    old = authority.node_certificate(key, "hospital-f", now=datetime.now(UTC) - timedelta(days=350))
    with registry(rig.folder) as db:
        db.execute("DELETE FROM certificates WHERE site = 'hospital-f'")
        record(db, "hospital-f", old)
    node_certificate(site).write_bytes(old.public_bytes(join.Encoding.PEM))
    assert renew_if_due(site)
    assert valid_until(node_certificate(site)) - datetime.now(UTC) > timedelta(days=360)
    assert any("renewed site=hospital-f" in line for line in rig.lines)

    revoke(rig.folder, "hospital-f")
    with pytest.raises(Refusal, match=r"E_JOIN_REFUSED: .*: E_CERTIFICATE_REVOKED"):
        join.renew(site)


def test_site_that_has_not_joined_cannot_renew(site: Site) -> None:
    with pytest.raises(Refusal, match="E_NO_SERVER_SET"):
        join.renew(site)


@pytest.mark.parametrize(
    "text",
    [
        '[server]\naddress = ""\nca_certificate = "keys/ca.crt"\n\n[training]\nthreads = 2\n',
        "[server]\n# where it is\naddress = 'old.example:1'  # note\n[training]\nthreads = 2\n",
        '[server]\nca_certificate = "keys/ca.crt"\n[training]\nthreads = 2\n',
        "[training]\nthreads = 2\n",
        '[pacs.dimse]\naddress = "not this one"\n[server]\n[training]\nthreads = 2',
        '[training]\nthreads = 2\n[server]\naddress = ""',
    ],
)
def test_setting_the_address_changes_nothing_else(text: str) -> None:
    before = tomllib.loads(text)
    after = tomllib.loads(with_server_address(text, "study.example:8443"))
    assert after["server"].pop("address") == "study.example:8443"
    before.setdefault("server", {}).pop("address", None)
    assert after == before
    if "# note" in text:
        assert "# note" in with_server_address(text, "study.example:8443")


def named(tmp_path: Path, name: str) -> Site:
    return init_site(tmp_path / name, site_settings(None, name=name))


def test_code_of_another_hospital_is_refused_and_stays_valid(rig: Rig, tmp_path: Path) -> None:
    south, west = named(tmp_path, "south"), named(tmp_path, "west")
    create_node_key(south.node_key)
    code, before = invite(rig.folder, "west"), files(south)
    with pytest.raises(Refusal, match="E_JOIN_NAME") as refusal:
        join.join(south, code)
    assert "south" in refusal.value.says
    assert files(south) == before
    assert join.join(west, code) == "west"


def test_site_may_have_another_name_in_the_study_if_it_says_so(rig: Rig, tmp_path: Path) -> None:
    site = named(tmp_path, "south")
    code = invite(rig.folder, "hospital-s")
    with pytest.raises(Refusal, match="E_JOIN_NAME"):
        join.join(site, code, name="hospital-t")
    assert join.join(site, code, name="hospital-s") == "hospital-s"


# --- hostile servers --------------------------------------------------------------------------------------


def answer(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers])
    return f"{head}\r\n\r\n".encode() + body


HOSTILE = {
    "no gzip": answer(b"no gzip", "Content-Encoding: gzip"),
    "an unknown encoding": answer(b"{}", "Content-Encoding: no-such"),
    "nested lists": answer(b"[" * 60_000),
    "no text": answer(b"\xff\xfe\x00"),
    "numbers for texts": answer(b'{"site": 5, "certificate": 7}'),
    "a list": answer(b"[]"),
    "too long": answer(b" " * 70_000),
    "cut off": answer(b"{}")[:-1],
    "no HTTP": b"\x00\x01\x02",
    "nothing": b"",
    "another place": b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "an error with hostile text": b"HTTP/1.1 500 E_\x1b[2J\r\nContent-Length: 4\r\n\r\nE_\x1b[",
}


@contextmanager
def answering(site: Site, *answers: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A TLS server that sends these bytes, one text for each connection. Yields a code for it, and the requests."""
    certificate, _ = loopback_certificate(site)
    waiting, requests, tls = list(answers), list[bytes](), loopback_tls(site)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), tls.wrap_socket(self.request, server_side=True) as connection:
                request = connection.recv(65_536)
                if request.startswith(b"POST"):
                    request += connection.recv(65_536)  # its body comes in a record of its own
                requests.append(request)
                connection.sendall(waiting.pop(0))
                connection.unwrap()

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        authority = fingerprint(x509.load_pem_x509_certificate(certificate.read_bytes()))
        yield f"127.0.0.1:{server.server_address[1]}/{authority}/{'0' * 16}/{'s' * 32}", requests
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("knows_authority", [False, True])
def test_any_answer_of_a_hostile_server_is_a_refusal(site: Site, name: str, knows_authority: bool) -> None:
    """`knows_authority`: the server is the study's, so it gets the secret and answers that with hostile bytes."""
    good = answer(loopback_certificate(site)[0].read_bytes(), "Connection: close")
    before = files(site)
    with (
        answering(site, *([good] if knows_authority else []), HOSTILE[name]) as (code, requests),
        pytest.raises(Refusal) as refused,
    ):
        join.join(site, code)
    assert "\x1b" not in str(refused.value)
    assert files(site) == before
    assert (b"s" * 32 in b"".join(requests)) is knows_authority
