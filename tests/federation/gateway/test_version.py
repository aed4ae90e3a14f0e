"""A gateway tells the server its version when it connects, and logs the code if the server does not accept it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.enrolment import invitations
from federation.enrolment.certificates import client_tls, create_node_key
from federation.enrolment.invitations import invite
from federation.enrolment.join import join, node_certificate
from federation.flower.messages import ActivateNodeRequest, ActivateNodeResponse
from federation.gateway.credentials import NodeKey
from federation.gateway.upstream import Declined, Upstream
from federation.ingress import authorization
from pipeline.site.folder import Site, init_site, site_settings
from tests.e2e.ingress_rig import Rig, open_rig


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(invitations, "enrol", lambda folder, public_key, name: None)
    with open_rig(tmp_path / "server") as rig:
        rig.answer = b""
        yield rig


@pytest.fixture
def site(tmp_path: Path, rig: Rig) -> Site:
    site = init_site(tmp_path / "site", site_settings(None, name="north"))
    create_node_key(site.node_key)
    join(site, invite(rig.folder, "north", patients=100))
    return Site.open(site.folder)


def connect(site: Site, rig: Rig) -> None:
    async def ask() -> None:
        tls = client_tls(site.ca_certificate, certificate=node_certificate(site), private_key=site.node_key)
        async with Upstream(f"localhost:{rig.port}", NodeKey(site), tls) as server:
            await server.ask("activate-node", ActivateNodeRequest(), ActivateNodeResponse)

    asyncio.run(ask())


def test_gateway_of_the_servers_version_is_accepted(site: Site, rig: Rig) -> None:
    connect(site, rig)
    assert [seen.path for seen in rig.seen] == ["/v1/fleet/activate-node"]


@pytest.mark.parametrize(("server", "code"), [("0.0.5", "E_SERVER_OUTDATED"), ("9.0.0", "E_SITE_OUTDATED")])
def test_gateway_logs_who_must_upgrade(
    site: Site, rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, server: str, code: str
) -> None:
    judge = authorization.who_must_upgrade
    monkeypatch.setattr(authorization, "version", lambda name: server)
    monkeypatch.setattr(authorization, "who_must_upgrade", lambda node, own: judge(node, own, oldest=server))
    with pytest.raises(Declined):
        connect(site, rig)
    assert f"the server refused: {code}" in caplog.text
    assert not rig.seen
