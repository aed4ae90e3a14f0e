"""Malformed requests of a node and malformed answers of a server: each gets a defined HTTP status."""

# ruff: noqa: F811 (the fixtures are imported from test_task_exchange)

import gzip
import math
import socket
import struct
from collections.abc import Iterable

import httpx
import numpy as np
import pytest
from aiohttp import web
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.proto import fleet_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_object_tree

from federation.gateway import proxy
from federation.gateway.credentials import NodeKey
from pipeline.site.folder import Site
from tests.federation.gateway.fake_server import Bench, NodeSide, Server
from tests.federation.gateway.messages import first_of, objects_of, trained
from tests.federation.gateway.test_hostile_server import answer_with, honest_round
from tests.federation.gateway.test_task_exchange import (  # noqa: F401
    SCHEMA,
    STEPS,
    bench,
    is_refused,
    reply_content,
    schema,
    site,
    task_content,
    tls,
    wait_for_reply,
    wait_until_idle,
)

RNG = np.random.default_rng(3)


def post(bench: Bench, path: str, body: bytes) -> httpx.Response:
    url = f"https://127.0.0.1:{bench.port}/v1/fleet/{path}"
    return httpx.post(url, content=body, headers=NodeKey(bench.site).headers(), verify=tls(bench), timeout=60)


def reply_to(bench: Bench, node: NodeSide) -> Message:
    bench.server.give(task_content(came_in := first_of(SCHEMA)))
    task = node.fetch()
    assert task is not None
    reply = Message(reply_content(trained(came_in, RNG, STEPS)), reply_to=task)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


@pytest.mark.parametrize("runtimes", [[], [math.nan], [math.inf], [-1e308], [1.0, math.nan, -math.inf], [1e308] * 3])
def test_reply_with_invalid_runtime_is_accepted(bench: Bench, runtimes: list[float]) -> None:
    with bench.node() as node:
        reply = reply_to(bench, node)
    request = fleet_pb2.PushMessagesRequest(
        messages_list=[message_to_proto(reply)],
        message_object_trees=[get_object_tree(reply)],
        clientapp_runtime_list=runtimes,
    )
    answer = post(bench, "push-messages", request.SerializeToString())
    assert answer.status_code == 200
    session = fleet_pb2.PushMessagesResponse.FromString(answer.content).session_id
    for id, content in objects_of(reply).items():
        push = message_pb2.PushObjectRequest(object_id=id, object_content=content, session_id=session, run_id=7)
        assert post(bench, "push-object", push.SerializeToString()).status_code == 200
    assert not wait_for_reply(bench.server).has_error()


def test_reply_with_too_many_objects_is_refused(bench: Bench) -> None:
    with bench.node() as node:
        reply = reply_to(bench, node)
    tree = get_object_tree(reply)
    tree.children[0].children.extend(message_pb2.ObjectTree(object_id=f"{number:064x}") for number in range(100))
    request = fleet_pb2.PushMessagesRequest(messages_list=[message_to_proto(reply)], message_object_trees=[tree])
    answer = post(bench, "push-messages", request.SerializeToString())
    assert not fleet_pb2.PushMessagesResponse.FromString(answer.content).objects_to_push
    is_refused(bench, "E_REPLY_DAMAGED")


# --- malformed requests -----------------------------------------------------------------------------------

Headers = dict[str, bytes]


def first_line(bench: Bench, path: bytes, body: bytes, changed: Headers, method: bytes = b"POST") -> bytes:
    """The status line that the gateway sends for a request signed by the node, with some headers changed."""
    headers = {name: value.encode() for name, value in NodeKey(bench.site).headers().items()}
    headers |= {"host": b"127.0.0.1", "content-length": str(len(body)).encode(), **changed}
    lines = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in headers.items())
    with (
        socket.create_connection(("127.0.0.1", bench.port)) as bare,
        tls(bench).wrap_socket(bare, server_hostname="127.0.0.1") as node,
    ):
        node.settimeout(60)
        node.sendall(method + b" " + path + b" HTTP/1.1\r\n" + lines + b"\r\n" + body)
        return node.recv(4096).split(b"\r\n")[0]


PULL = b"/v1/fleet/pull-messages"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "body", "changed", "status"),
    [
        (b"/%ff%fe", b"", {}, b"403"),
        (b"/%ed%a0%80", b"", {}, b"403"),
        (b"/\xff", b"", {}, b"400"),
        (b"/v1/fleet/../fleet/%00", b"", {}, b"403"),
        (PULL, b"no gzip", {"content-encoding": b"gzip"}, b"400"),
        (PULL, b"no deflate", {"content-encoding": b"deflate"}, b"400"),
        (PULL, gzip.compress(b"a" * 1000, mtime=0)[:-9], {"content-encoding": b"gzip"}, b"400"),
        (PULL, gzip.compress(bytes(30_000_000), mtime=0), {"content-encoding": b"gzip"}, b"413"),
        (PULL, b"", {"content-length": b"-1"}, b"400"),
        (PULL, b"\xff" * 100, {}, b"400"),
        (PULL, b"", {"flwr-timestamp": b"2026-11-27\xff13:00:00+00:00"}, b"401"),
        (PULL, b"", {"flwr-timestamp": b"9999-12-31T23:59:59-23:59"}, b"401"),
        (PULL, b"", {"flwr-signature": b"\xff"}, b"401"),
        (PULL, b"", {"flwr-public-key": b"="}, b"401"),
    ],
)
def test_malformed_request_is_rejected_with_a_status(
    bench: Bench, caplog: pytest.LogCaptureFixture, path: bytes, body: bytes, changed: Headers, status: bytes
) -> None:
    assert first_line(bench, path, body, changed).split()[1] == status
    assert not [record for record in caplog.records if record.name.startswith("fedthorax") and record.exc_info]
    honest_round(bench)


def varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def bodies() -> Iterable[bytes]:
    """Fields 1 to 8 of every wire type and many lengths: some are valid messages, some are not."""
    numbers = [0, 1, 7, 42, 2**31, 2**63 - 1, 2**64 - 1]
    for field in range(1, 9):
        yield from (varint(field << 3) + varint(number) for number in numbers)
        yield from (varint(field << 3 | 1) + struct.pack("<d", value) for value in (0.0, math.nan, math.inf))
        yield from (varint(field << 3 | 2) + varint(length) + b"\n" * 3 for length in (0, 3, 2**31, 2**64 - 1))
        yield varint(field << 3 | 3) * 200
        yield varint(field << 3 | 5) + b"\0" * 4
    yield b"\x80" * 20
    yield b"\n\x02\n\x00" * 5000


def test_malformed_body_never_causes_a_server_error(bench: Bench) -> None:
    paths = ["activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages"]
    paths += ["get-run", "get-fab", "push-object", "pull-object", "confirm-message-received"]
    with bench.node() as node:
        reply_to(bench, node)
    with httpx.Client(headers=NodeKey(bench.site).headers(), verify=tls(bench), timeout=60) as client:
        for path in paths:
            for body in bodies():
                answer = client.post(f"https://127.0.0.1:{bench.port}/v1/fleet/{path}", content=body)
                assert answer.status_code in (200, 400, 403), (path, body[:50], answer.status_code)


# --- answers of the server --------------------------------------------------------------------------------


class Declining(Server):
    """Answers every request with `status` and `body`. With status 200 it gives valid answers instead."""

    status, body = 200, b""

    async def handle(self, request: web.Request) -> web.Response:
        if self.status == 200:
            return await super().handle(request)
        return web.Response(status=self.status, body=self.body)


BODIES = [b'{"detail": "SMUGGLED', b"[" * 9999, b'"SMUGGLED"', b'{"code": "SMUGGLED", "extra": "SMUGGLED"}']
STATUSES = [201, 202, 204, 205, 206, 226, 300, 302, 304, 399, 400, 403, 404, 421, 429, 499, 500, 501, 599, 600, 999]


def test_error_answer_of_the_server_never_reaches_the_node_as_success(
    site: Site, schema: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's node accepts any 2xx as an answer, so a message could bypass the gateway's checks."""
    monkeypatch.setattr(proxy, "NODE_WAITS_SECONDS", 0.0)
    server = Declining()
    bench = Bench(site, server)
    smuggled = answer_with(group_id="SMUGGLED").SerializeToString()
    with httpx.Client(headers=NodeKey(bench.site).headers(), verify=tls(bench), timeout=60) as client:
        for server.status in STATUSES:
            for path in ("pull-messages", "send-node-heartbeat", "activate-node"):
                for server.body in (
                    smuggled,
                    b'{"detail": "SMUGGLED',
                    b"[" * 9999,
                    b'"SMUGGLED"',
                    b'{"code": "SMUGGLED"}',
                ):
                    body = activation(bench) if path == "activate-node" else b""
                    answer = client.post(f"https://127.0.0.1:{bench.port}/v1/fleet/{path}", content=body)
                    expected = server.status if 400 <= server.status < 600 else 502
                    is_repeated = path != "activate-node" or server.status == 429
                    assert answer.status_code == (503 if is_repeated else expected)
                    nothing = b"" if server.status == 429 else b'{"code": 0, "detail": ""}'
                    assert answer.content == nothing
    server.status = 200
    honest_round(bench)
    bench.close()


def activation(bench: Bench) -> bytes:
    return fleet_pb2.ActivateNodeRequest(public_key=NodeKey(bench.site).public_pem).SerializeToString()


def test_error_text_of_the_server_is_forwarded_without_control_characters(site: Site, schema: object) -> None:
    server = Declining()
    server.status, server.body = 403, b'{"code": 7, "detail": "no such\\nnode\\u001b[2J", "extra": "more"}'
    bench = Bench(site, server)
    answer = post(bench, "activate-node", activation(bench))
    assert (answer.status_code, answer.json()) == (403, {"code": 7, "detail": "no suchnode[2J"})
    bench.close()
