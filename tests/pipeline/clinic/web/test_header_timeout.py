"""Tests of the header timeout: connections without a complete request head are closed, others are answered."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvicorn
from uvicorn.server import ServerState

from pipeline.clinic.web import header_timeout
from pipeline.clinic.web.header_timeout import Punctual

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


async def app(scope: dict[str, object], receive: object, send: Callable[..., Awaitable[None]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def talk(how: Talk) -> bytes:
    """Run `how` on a connection to a server with this protocol. Return its result."""

    async def serve() -> bytes:
        config = uvicorn.Config(app, lifespan="off", log_config=None)
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        server = await loop.create_server(lambda: Punctual(config, state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            return await how(reader, writer)
        finally:
            writer.close()
            server.close()

    return asyncio.run(serve())


@pytest.mark.parametrize("begun", [b"", REQUEST[:-3]])
def test_incomplete_request_head_closes_the_connection(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_timeout, "HEAD_SECONDS", 0.05)

    async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(begun)
        return await reader.read()  # until the connection ends

    assert talk(begin) == b""


def test_slow_second_request_head_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_timeout, "HEAD_SECONDS", 0.3)

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(REQUEST)
        answered = await reader.readuntil(b"ok")
        while not reader.at_eof():
            writer.write(b"G")
            try:
                await asyncio.wait_for(reader.read(1), 0.02)
            except TimeoutError:
                continue
        return answered

    assert talk(trickle).startswith(b"HTTP/1.1 200")


def test_repeated_timely_requests_are_answered() -> None:
    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        answers = b""
        for _ in range(3):
            writer.write(REQUEST)
            answers += await reader.readuntil(b"ok")
        return answers

    assert talk(ask).count(b"HTTP/1.1 200") == 3
