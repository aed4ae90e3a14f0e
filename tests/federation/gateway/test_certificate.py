"""The gateway renews the node's certificate when it is due, uses the new one, and retries a failed renewal."""

import asyncio
import errno
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse

from federation.enrolment import invitations
from federation.enrolment.certificates import create_node_key, fingerprint, load_node_key, open_authority
from federation.enrolment.invitations import invite
from federation.enrolment.join import join, node_certificate, renew
from federation.enrolment.registry import record, registry
from federation.gateway import __main__ as gateway
from federation.gateway.credentials import NodeKey
from federation.gateway.loopback import loopback_certificate, loopback_tls
from federation.gateway.upstream import Declined, Unreachable, Upstream
from federation.ingress import reasons
from federation.superlink.control import ca_certificate
from models.refusal import Refusal
from pipeline.site.folder import Site, init_site, site_settings
from tests.e2e.ingress_rig import Rig, open_rig

DAYS_LEFT = 14


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A server behind its ingress. The fake SuperLink has no messages."""
    monkeypatch.setattr(invitations, "enrol", lambda folder, public_key, name: None)
    with open_rig(tmp_path / "server") as rig:
        rig.answer = b""
        yield rig


@pytest.fixture
def site(rig: Rig, tmp_path: Path) -> Site:
    """A site that has just joined."""
    site = init_site(tmp_path / "site", site_settings(None, name="north"))
    create_node_key(site.node_key)
    join(site, invite(rig.folder, "north"))
    return Site.open(site.folder)


@pytest.fixture
def old(rig: Rig, site: Site) -> x509.Certificate:
    """The only certificate of the site. It expires soon."""
    key = load_node_key(site.node_key).public_key()
    begin = datetime.now(UTC) - timedelta(days=365 - DAYS_LEFT)
    old = open_authority(ca_certificate(rig.folder).parent).node_certificate(key, "north", now=begin)
    with registry(rig.folder) as db:
        db.execute("DELETE FROM certificates")
        record(db, "north", old)
    node_certificate(site).write_bytes(old.public_bytes(Encoding.PEM))
    return old


def held(site: Site) -> x509.Certificate:
    return x509.load_pem_x509_certificate(node_certificate(site).read_bytes())


def forget(rig: Rig, certificate: x509.Certificate) -> None:
    """Make the ingress treat this certificate as unknown."""
    with registry(rig.folder) as db:
        db.execute("DELETE FROM certificates WHERE fingerprint = ?", (fingerprint(certificate),))


async def passes(upstream: Upstream) -> bool:
    try:
        await upstream.ask("pull-messages", PullMessagesRequest(), PullMessagesResponse)
    except (Declined, Unreachable):  # the ingress closes a connection that it refuses
        return False
    return True


async def until(is_so: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + 60
    while not await is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def with_gateway(
    site: Site,
    work: Callable[[Upstream, "asyncio.Task[None]"], Awaitable[None]],
    *,
    every_seconds: float = gateway.DAY_SECONDS,
) -> None:
    """Run `work` with the gateway's connection and its renewal task, which must still run afterwards."""

    async def main() -> None:
        async with Upstream(site.settings.server.address, NodeKey(site), gateway.node_tls(site)) as upstream:
            assert await passes(upstream)
            chore = asyncio.create_task(gateway.keep_certificate(site, upstream, every_seconds=every_seconds))
            await work(upstream, chore)
            assert not chore.done()
            chore.cancel()

    asyncio.run(main())


def test_certificate_is_renewed_when_due_and_used_from_then_on(rig: Rig, site: Site, old: x509.Certificate) -> None:
    async def work(upstream: Upstream, chore: "asyncio.Task[None]") -> None:
        async def renewed() -> bool:
            return held(site) != old

        await until(renewed)
        forget(rig, old)
        await until(lambda: passes(upstream))

    with_gateway(site, work)
    assert held(site).not_valid_after_utc - datetime.now(UTC) > timedelta(days=360)


def test_certificate_that_is_valid_for_long_is_not_renewed(
    rig: Rig, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    fresh, asked = held(site), len(rig.lines)

    async def work(upstream: Upstream, chore: "asyncio.Task[None]") -> None:
        await asyncio.sleep(0.3)
        assert await passes(upstream)

    with_gateway(site, work, every_seconds=0.01)
    assert held(site) == fresh
    assert not [line for line in rig.lines[asked:] if "renew" in line]
    assert not caplog.records


def test_certificate_renewed_by_another_process_is_used(
    rig: Rig, site: Site, old: x509.Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example by `fedthorax node renew`."""
    monkeypatch.setattr(gateway, "renew_if_due", lambda site: False)

    async def work(upstream: Upstream, chore: "asyncio.Task[None]") -> None:
        await asyncio.to_thread(renew, site)
        assert held(site) != old
        forget(rig, old)
        await until(lambda: passes(upstream))

    with_gateway(site, work, every_seconds=0.01)


@pytest.mark.parametrize(
    ("place", "failure", "level"),
    [
        ("federation.ingress.authorization.renew", Refusal(reasons.DOOR_BUSY), logging.WARNING),
        ("federation.enrolment.join.write_atomically", OSError(errno.ENOSPC, "No space left on device"), logging.ERROR),
    ],
)
def test_failed_renewal_is_retried_and_does_not_stop_the_gateway(
    rig: Rig,
    site: Site,
    old: x509.Certificate,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    failure: Exception,
    level: int,
) -> None:
    module, _, name = place.rpartition(".")
    original, tries = getattr(import_module(module), name), 0

    def fail_twice(*arguments: Any, **named: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise failure
        return original(*arguments, **named)

    monkeypatch.setattr(place, fail_twice)

    async def work(upstream: Upstream, chore: "asyncio.Task[None]") -> None:
        async def renewed() -> bool:
            return held(site) != old

        assert await passes(upstream)
        await until(renewed)
        forget(rig, old)
        await until(lambda: passes(upstream))

    with_gateway(site, work, every_seconds=0.01)
    assert tries > 2
    told = [record for record in caplog.records if "could not be renewed" in record.getMessage()]
    assert [record.levelno for record in told] == [level] * 2


def test_open_request_is_unreachable_after_a_change_of_certificate(site: Site) -> None:
    """The server has received the request and has not answered yet. The caller can retry it."""

    async def main() -> None:
        taken = asyncio.Event()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            taken.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=loopback_tls(site))
        tls = ssl.create_default_context(cafile=loopback_certificate(site)[0])
        port = server.sockets[0].getsockname()[1]
        async with server, Upstream(f"127.0.0.1:{port}", NodeKey(site), tls) as upstream:
            asked = asyncio.create_task(upstream.ask("pull-messages", PullMessagesRequest(), PullMessagesResponse))
            await taken.wait()
            await upstream.show(tls)
            with pytest.raises(Unreachable):
                await asked

    asyncio.run(main())
