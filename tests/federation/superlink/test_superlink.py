"""Tests that SuperLink responses are sent in chunks, unchanged, and that no data of a request is kept."""

import asyncio
from typing import Any

import pytest
import uvicorn
from starlette.middleware import Middleware
from starlette.types import Message, Receive, Scope, Send

from federation.flower import superlink_program
from federation.superlink import superlink
from federation.superlink.superlink import ENROLLED, PIECE_BYTES, Pieces


def answered(*bodies: bytes) -> tuple[list[Message], dict[str, Any]]:
    """Send these bodies from the application. Returns the messages sent and the state left of the request."""
    state: dict[str, Any] = {"of": "the application"}
    sent: list[Message] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["object"] = bodies
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]})
        for left, body in reversed(list(enumerate(reversed(bodies)))):
            await send({"type": "http.response.body", "body": body, "more_body": left > 0})

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(Pieces(application)({"type": "http", "state": state}, receive, send))
    return sent, state


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES, 5 * PIECE_BYTES + 7])
def test_long_response_is_sent_in_chunks(size: int):
    body = bytes(range(256)) * (size // 256 + 1)
    (start, *pieces), state = answered(body[:size])
    assert start == {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"7")]}
    assert b"".join(piece["body"] for piece in pieces) == body[:size]
    assert max(len(piece["body"]) for piece in pieces) <= PIECE_BYTES
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert state == {}


def test_response_in_several_parts_ends_only_once():
    (_, *pieces), _ = answered(b"a" * (PIECE_BYTES + 3), b"b" * 3, b"")
    assert b"".join(piece["body"] for piece in pieces) == b"a" * (PIECE_BYTES + 3) + b"bbb"
    assert [piece["more_body"] for piece in pieces] == [True, True, True, False]


def test_lifespan_state_is_not_cleared():
    state = {"of": "the application"}

    async def application(scope: Scope, receive: Receive, send: Send) -> None: ...

    asyncio.run(Pieces(application)({"type": "lifespan", "state": state}, None, None))  # type: ignore[arg-type]
    assert state == {"of": "the application"}


@pytest.mark.parametrize("enrolled", [True, False])
def test_flower_builds_its_application_with_our_middleware(monkeypatch: pytest.MonkeyPatch, enrolled: bool):
    """With enrolled nodes, FleetBinding runs last, after Flower has parsed and authenticated the request."""
    from flwr.superlink import extensions, main

    found: list[Middleware] = []
    for module, name in ((extensions, "get_middleware"), (main, "_get_middleware"), (uvicorn, "run")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that monkeypatch restores it
    monkeypatch.setattr(superlink_program, "flower_superlink", lambda: found.extend(main._get_middleware()))
    monkeypatch.setattr("sys.argv", ["superlink", *([ENROLLED] if enrolled else [])])
    superlink.main()
    assert found[0].cls is Pieces
    names = [getattr(middleware.cls, "__name__", "") for middleware in found]
    assert (names[-1] == "FleetBinding") == enrolled
    assert names.index("ProtobufTranslationMiddleware") < names.index("NodeAuthMiddleware")
