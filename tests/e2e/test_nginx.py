"""Access control for external clients: same behaviour by the ingress alone and behind nginx (docs/nginx)."""

import hashlib
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from federation.enrolment import invitations as enrolment
from federation.enrolment.authority import Authority
from federation.enrolment.invitations import revoke
from federation.enrolment.join import join, renew
from federation.ingress.authorization import FLEET, MAX_BODY_BYTES
from federation.superlink.control import read_server_config
from pipeline.site.folder import Site, init_site, site_settings
from tests.e2e.ingress_rig import CONFIGURATION, NGINX, PULL, Node, Rig, open_rig
from tests.federation.ingress.test_connections import ADDRESSES, CONNECTIONS_OF_ADDRESS, Flood, half_a_hello, silent
from tests.helpers.waiting import eventually

pytestmark = pytest.mark.e2e
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


@pytest.fixture(scope="module", params=["door", pytest.param("nginx", marks=needs_nginx)])
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with open_rig(tmp_path_factory.mktemp("server") / "server", nginx=request.param == "nginx") as rig:
        yield rig


@pytest.fixture(scope="module")
def north(front: Rig) -> Node:
    return front.enrol_node("north")


@pytest.fixture
def rig(front: Rig) -> Rig:
    """The front end, with empty lists of requests and log lines."""
    front.seen.clear()
    front.lines.clear()
    return front


@pytest.mark.parametrize("path", sorted(FLEET))
def test_fleet_requests_of_a_node_pass(rig: Rig, north: Node, path: str) -> None:
    assert rig.ask(north, path) == (200, "from the SuperLink")
    assert [seen.path for seen in rig.seen] == [path]
    assert rig.seen[0].headers["flwr-signature"]


def test_large_object_passes_unchanged_in_both_directions(rig: Rig, north: Node) -> None:
    content = bytes(range(256)) * 20 * 1024  # 5 MiB, the chunk size of Flower
    rig.answer = b"x" * len(content)
    try:
        status, answer = rig.ask(north, "/v1/fleet/push-object", body=content)
    finally:
        rig.answer = b"from the SuperLink"
    assert (status, len(answer)) == (200, len(content))
    assert (rig.seen[0].length, rig.seen[0].sha256) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/fleet/register-node"),
        ("POST", "/v1/fleet/unregister-node"),
        ("POST", "/v1/control/start-run"),
        ("POST", "/v1/control/list-nodes"),
        ("POST", "/v1/runtime/acquire-task"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/health"),
        ("GET", "/"),
        ("GET", PULL),
        ("PUT", PULL),
        ("POST", f"/{PULL}"),
        ("POST", "/v1//fleet/pull-messages"),
        ("POST", "/v1/fleet/../control/start-run"),
        ("POST", "/v1/control/../fleet/pull-messages"),
        ("POST", "/v1/fleet/pull-messages/../../control/start-run"),
        ("POST", "/v1/fleet/%2e%2e/control/start-run"),
        ("POST", "/v1/fleet/pull%2Dmessages"),
        ("POST", "/v1/fleet%2Fpull-messages"),
        ("POST", "/V1/FLEET/PULL-MESSAGES"),
        ("POST", "/v1/fleet/pull-messages/"),
        ("POST", "/v1/fleet/pull-messages?a=b"),
        ("POST", "/v1/fleet/pull-messages;a=b"),
        ("POST", "/enrolment/accept"),
        ("POST", "/enrolment/ca.crt"),
    ],
)
def test_other_methods_and_paths_are_refused(rig: Rig, north: Node, method: str, path: str) -> None:
    status, code = rig.ask(north, path, method=method)
    assert (status, code) == (403, "E_NO_WAY")
    assert not rig.seen


def test_request_without_certificate_is_refused(rig: Rig, north: Node) -> None:
    assert rig.ask(None, headers=north.headers()) == (401, "E_NO_CERTIFICATE")
    assert not rig.seen


def test_certificate_of_another_ca_is_refused(rig: Rig) -> None:
    status, said = rig.ask(rig.make_node("north", authority=Authority.new()))
    assert status in (0, 401)
    assert "E_CERTIFICATE_UNKNOWN" in said
    assert not rig.seen


def test_certificate_of_our_ca_that_is_not_registered_is_refused(rig: Rig) -> None:
    """The CA of the hospital group may also sign certificates for other uses."""
    assert rig.ask(rig.make_node("north")) == (401, "E_CERTIFICATE_UNKNOWN")
    assert not rig.seen


def test_expired_certificate_is_refused(rig: Rig) -> None:
    node = rig.enrol_node("east", now=datetime.now(UTC) - timedelta(days=366))
    assert rig.ask(node) == (401, "E_CERTIFICATE_EXPIRED")
    assert not rig.seen


def test_revocation_applies_at_once_to_open_connections(rig: Rig) -> None:
    node = rig.enrol_node("west")
    connection = rig.connect(node)
    assert rig.ask(node, connection=connection)[0] == 200
    opened = connection.sock
    revoke(rig.folder, "west")
    assert rig.ask(node, connection=connection) == (401, "E_CERTIFICATE_REVOKED")
    assert connection.sock in (opened, None), "the same connection must be used"
    assert rig.ask(node) == (401, "E_CERTIFICATE_REVOKED")
    assert len(rig.seen) == 1


def test_site_cannot_use_the_node_key_of_another(rig: Rig, north: Node) -> None:
    other = rig.enrol_node("south")
    assert rig.ask(north, headers=other.headers()) == (401, "E_NODE_KEY")
    assert rig.ask(north, headers={"content-type": "application/protobuf"}) == (401, "E_NODE_KEY")
    assert not rig.seen


def test_duplicate_header_is_not_forwarded(rig: Rig, north: Node) -> None:
    """The SuperLink receives exactly the headers that were checked."""
    other = rig.enrol_node("hidden")
    connection = rig.connect(north)
    connection.putrequest("POST", PULL)
    for name, value in north.headers().items():
        connection.putheader(name, value)
    for name, value in other.headers().items():
        if name.startswith("flwr-"):
            connection.putheader(name.title(), value)
    connection.putheader("content-length", "0")
    connection.endheaders()
    assert connection.getresponse().status == 200
    connection.close()
    (seen,) = rig.seen
    assert seen.headers["flwr-public-key"] == north.headers()["flwr-public-key"]
    assert seen.headers["flwr-signature"] != other.headers()["flwr-signature"]
    assert len(seen.headers) == len(seen.pairs)


@pytest.mark.parametrize("seconds", [301, 86_400, -6, -600])
def test_old_or_future_signature_is_refused(rig: Rig, north: Node, seconds: int) -> None:
    assert rig.ask(north, headers=north.headers(seconds_ago=seconds)) == (401, "E_CLOCK")
    assert not rig.seen


def test_too_long_body_is_refused(rig: Rig, north: Node) -> None:
    headers = north.headers() | {"content-length": str(MAX_BODY_BYTES + 1)}
    connection = rig.connect(north)
    connection.request("POST", PULL, headers=headers)  # only the length: the server does not wait for the body
    response = connection.getresponse()
    assert (response.status, b"E_BODY_SIZE" in response.read()) == (413, True)
    connection.close()
    assert not rig.seen


def test_long_body_without_content_length_is_refused(rig: Rig, north: Node) -> None:
    """A short body may pass: nginx buffers it and determines its length."""
    connection = rig.connect(north)
    pieces = (bytes(2**20) for _ in range(MAX_BODY_BYTES // 2**20 + 1))
    try:
        connection.request("POST", PULL, body=pieces, headers=north.headers(), encode_chunked=True)
        assert connection.getresponse().status == 413
    except ConnectionError:
        pass  # refused before the whole body was sent
    finally:
        connection.close()
    assert not rig.seen


def test_certificate_in_a_header_is_ignored(rig: Rig, north: Node) -> None:
    forged = north.headers() | {"X-Client-Certificate": quote(north.certificate.read_text())}
    assert rig.ask(None, headers=forged) == (401, "E_NO_CERTIFICATE")
    assert not rig.seen


def test_ca_certificate_is_public(rig: Rig) -> None:
    status, text = rig.ask(None, "/enrolment/ca.crt", method="GET", body=b"")
    assert (status, text) == (200, (rig.folder / "certificates" / "ca.crt").read_text())


def test_wrong_join_code_is_refused(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "enrol", lambda *arguments: pytest.fail("nobody was to be registered"))
    enrolment.invite(rig.folder, "new")
    for body in (b"", b"{}", b'{"invitation": "0123456789abcdef", "secret": "x", "request": "y"}'):
        assert rig.ask(None, "/enrolment/join", body=body) in ((403, "E_INVITATION"), (413, "E_BODY_SIZE"))


def test_site_joins_and_renews_its_certificate(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrolment, "enrol", lambda *arguments: 1)
    site = init_site(tmp_path / "site", site_settings(None, name="my-hospital"))
    assert join(site, enrolment.invite(rig.folder, "joined", patients=50)) == "joined"
    site = Site.open(site.folder)
    first = Node(site.folder / "keys")
    assert rig.ask(first)[0] == 200
    monkeypatch.setattr(enrolment, "RENEW_BEFORE_SECONDS", 400 * 86_400)
    before = first.certificate.read_bytes()
    renew(site)
    assert first.certificate.read_bytes() != before
    assert rig.ask(first)[0] == 200
    assert any("renewed site=joined" in line for line in rig.lines)


@needs_nginx
def test_socket_is_accessible_only_to_owner_and_group(tmp_path: Path) -> None:
    with open_rig(tmp_path / "server", nginx=True) as rig:
        socket = read_server_config(rig.folder).socket
        assert socket is not None
        assert stat.S_IMODE(socket.stat().st_mode) == 0o660


@needs_nginx
def test_nginx_itself_refuses_revoked_certificates_after_reload(tmp_path: Path) -> None:
    """After a reload, nginx itself refuses the certificate, without the ingress, and logs the reason."""
    with open_rig(tmp_path / "server", nginx=True) as rig:
        node = rig.enrol_node("west")
        assert rig.ask(node)[0] == 200
        revoke(rig.folder, "west")
        socket = read_server_config(rig.folder).socket
        assert socket is not None
        run = socket.parent
        reload = [str(NGINX), "-p", str(run), "-c", str(run / "nginx.conf"), "-s", "reload"]
        subprocess.run(reload, check=True, capture_output=True)
        deadline = time.monotonic() + 120
        while "revoked" not in (run / "fedthorax.log").read_text():
            assert rig.ask(node) == (401, "E_CERTIFICATE_REVOKED")
            assert time.monotonic() < deadline
            time.sleep(0.2)


@needs_nginx
@pytest.mark.parametrize("connect", [silent, half_a_hello])
def test_node_is_served_through_nginx_during_a_connection_flood(
    tmp_path: Path, connect: Callable[[Rig, str], Any]
) -> None:
    with open_rig(tmp_path / "server", nginx=True) as rig:
        node = rig.enrol_node("north")
        with Flood(rig, connect) as flood:
            assert eventually(lambda: len(flood.held) >= CONNECTIONS_OF_ADDRESS * len(ADDRESSES), seconds=300)
            for _ in range(5):
                assert rig.ask(node)[0] == 200


def test_nginx_configuration_lists_the_allowed_fleet_paths() -> None:
    text = CONFIGURATION.read_text()
    for path in FLEET:
        assert path.removeprefix("/v1/fleet/") in text
    assert "register-node" not in text
