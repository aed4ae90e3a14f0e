"""A node behind a proxy: joining, renewing, the check and the running gateway all use it."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse

from federation.enrolment import invitations
from federation.enrolment.certificates import create_node_key
from federation.enrolment.invitations import invite
from federation.enrolment.join import join, renew
from federation.gateway import __main__ as gateway
from federation.gateway.credentials import NodeKey
from federation.gateway.process import start_gateway
from federation.gateway.upstream import Unreachable, Upstream
from federation.system.process import free_port
from models.refusal import Refusal
from pipeline.doctor.connectivity import network
from pipeline.site.folder import Site, init_site, site_settings
from pipeline.site.study_server import refused_connect, server_proxy
from tests.e2e.ingress_rig import Rig, open_rig
from tests.helpers.connect_proxy import connect_proxy

HOST = "study.invalid"  # no resolver knows this name, so that only a proxy reaches it (RFC 2606)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "no_proxy", "all_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(invitations, "enrol", lambda folder, public_key, name: None)
    with open_rig(tmp_path / "server", hosts=[HOST]) as rig:
        rig.answer = b""
        yield rig


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = init_site(tmp_path / "site", site_settings(None, name="north"))
    create_node_key(site.node_key)
    return site


def with_proxy(site: Site, proxy: str) -> Site:
    settings = site.folder / "site.toml"
    lines = [line for line in settings.read_text().splitlines() if not re.match("#? ?proxy = .*HTTPS_PROXY", line)]
    settings.write_text("\n".join(lines).replace("[server]", f'[server]\nproxy = "{proxy}"'))
    return Site.open(site.folder)


def join_through_a_proxy(rig: Rig, site: Site) -> None:
    """Join through a proxy that works; the study's name leads nowhere without one."""
    with connect_proxy() as proxy, pytest.MonkeyPatch.context() as patched:
        patched.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        join(site, invite(rig.folder, "north"))


def ask(site: Site) -> None:
    """Ask the server for messages as the gateway does."""

    async def main() -> None:
        address = site.settings.server.address
        proxy = server_proxy(site, address)
        async with Upstream(address, NodeKey(site), gateway.node_tls(site), proxy=proxy) as upstream:
            await upstream.ask("pull-messages", PullMessagesRequest(), PullMessagesResponse)

    asyncio.run(main())


@pytest.mark.parametrize("login", ["", "node:p%40ss"])
def test_each_connection_to_the_server_goes_through_the_proxy(
    rig: Rig, site: Site, login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy(login=login.replace("%40", "@")) as proxy:
        if login:  # a password is never in site.toml
            monkeypatch.setenv("HTTPS_PROXY", f"http://{login}@127.0.0.1:{proxy.port}")
        else:
            site = with_proxy(site, f"http://127.0.0.1:{proxy.port}")
        join(site, invite(rig.folder, "north"))
        site = Site.open(site.folder)
        renew(site)
        ask(site)
        found = {line.name: line for line in network(site)}
    assert len(proxy.asked) == 5  # two to join
    assert set(proxy.asked) == {f"{HOST}:{rig.port}"}
    assert found["study's server"].status == found["clock"].status == "ok"
    assert "proxy" in found["study's server"].says


@pytest.mark.slow
def test_gateways_process_uses_the_proxy_of_the_environment(
    rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect_proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        join(site, invite(rig.folder, "north"))
        site = Site.open(site.folder)
        joined = len(proxy.asked)
        with start_gateway(site, port=free_port(), log=site.logs / "gateway.log") as process:
            process.wait_until(lambda: len(proxy.asked) > joined, seconds=120)  # it presents its key for masked rounds
    assert set(proxy.asked) == {f"{HOST}:{rig.port}"}


def test_name_in_no_proxy_is_reached_directly(rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_proxy() as proxy:
        site = with_proxy(site, f"http://127.0.0.1:{proxy.port}")
        join(site, invite(rig.folder, "north"))
        monkeypatch.setenv("NO_PROXY", f"other.example,{HOST}")
        before = len(proxy.asked)
        with pytest.raises(Unreachable):
            ask(Site.open(site.folder))
    assert len(proxy.asked) == before


def test_refusal_by_the_proxy_is_told_from_a_silent_server(rig: Rig, site: Site) -> None:
    with connect_proxy(login="node:secret") as proxy:
        site = with_proxy(site, f"http://127.0.0.1:{proxy.port}")
        with pytest.raises(Refusal, match=r"E_SERVER_PROXY: .* HTTP 407"):
            join(site, invite(rig.folder, "north"))
    with pytest.raises(Refusal, match="E_SERVER_SILENT"):
        join(site, invite(rig.folder, "north"))


@pytest.mark.parametrize(("status", "refuses"), [(401, True), (403, True), (407, True), (500, False), (504, False)])
def test_proxy_that_cannot_connect_does_not_refuse(status: int, refuses: bool) -> None:
    assert (refused_connect(status) is not None) == refuses


def test_password_for_the_proxy_is_in_no_log_and_its_refusal_is_logged_once(
    rig: Rig, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with connect_proxy(login="node:right") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://node:right@127.0.0.1:{proxy.port}")
        join(site, invite(rig.folder, "north"))
        site = Site.open(site.folder)
        wrong = f"http://us%40er:pass%3Aword@127.0.0.1:{proxy.port}"

        async def ask_twice() -> str:
            async with Upstream(
                site.settings.server.address, NodeKey(site), gateway.node_tls(site), proxy=wrong
            ) as upstream:
                for _ in range(2):
                    with pytest.raises(Unreachable) as failed:
                        await upstream.ask("pull-messages", PullMessagesRequest(), PullMessagesResponse)
                return str(failed.value)

        said = asyncio.run(ask_twice())
    assert said == "the proxy answers HTTP 407"
    assert caplog.text.count("E_SERVER_PROXY") == 1
    assert not [secret for secret in ("us%40er", "us@er", "pass%3A", "pass:") if secret in caplog.text]


@pytest.mark.parametrize(
    ("answers", "logged"),
    [
        ([b"garbage alert\r\n\r\n"], 0),
        ([b"HTTP/1.1 407 Denied\r\n\r\n", b"HTTP/1.1 502 Bad\r\n\r\n"] * 3, 1),
    ],
)
def test_answer_of_a_proxy_neither_ends_the_node_nor_fills_its_log(
    rig: Rig, site: Site, answers: list[bytes], logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    join_through_a_proxy(rig, site)
    site = Site.open(site.folder)

    async def ask_through() -> list[Unreachable]:
        left = list(answers)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0))
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            proxy = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            errors = []
            async with Upstream(
                site.settings.server.address, NodeKey(site), gateway.node_tls(site), proxy=proxy
            ) as upstream:
                for _ in answers:
                    with pytest.raises(Unreachable) as failed:
                        await upstream.ask("pull-messages", PullMessagesRequest(), PullMessagesResponse)
                    errors.append(failed.value)
            return errors

    errors = asyncio.run(ask_through())
    assert [error.reason for error in errors] == [None] * len(answers), "the node tries again"
    assert caplog.text.count("E_SERVER_PROXY") == logged


@pytest.mark.parametrize(
    "proxy",
    [
        "socks5://user:word@proxy.example:1080",
        "https://user:word@proxy.example",
        "http://user:word@proxy:x",
        "http://user:12#se@cret@proxy.example:3128",
        "http://user:1/word@proxy.example:3128",
        "http://user:1?word@proxy.example:3128",
    ],
)
def test_proxy_of_the_environment_that_cannot_be_used_is_refused_without_its_password(
    site: Site, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(Refusal, match="E_SERVER_PROXY") as refused:
        server_proxy(site, "study.example:8443")
    assert "word" not in str(refused.value) + refused.value.private
    settings = site.folder / "site.toml"
    settings.write_text(settings.read_text().replace('address = ""', 'address = "study.example:8443"'))
    line = next(iter(network(Site.open(site.folder))))
    assert (line.status, "E_SERVER_PROXY" in line.says, "word" in repr(line)) == ("fail", True, False)


@pytest.mark.parametrize(
    "proxy", ["proxy.example:3128", "https://proxy.example", "socks5://proxy.example:1080", "http://u:p@proxy.example"]
)
def test_proxy_that_is_no_http_address_or_has_a_password_is_refused(site: Site, proxy: str) -> None:
    with pytest.raises(Refusal, match="E_SETTINGS"):
        with_proxy(site, proxy)


@pytest.mark.parametrize("address", ["127.0.0.1:8443", "localhost:8443", "[::1]:8443"])
def test_this_machine_is_never_reached_through_a_proxy(site: Site, address: str) -> None:
    assert server_proxy(with_proxy(site, "http://proxy.example:3128"), address) == ""
