"""Tests of the socket relay: it forwards every byte in both directions to one fixed target."""

import asyncio
import functools
import gc
import hashlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from federation.node.socket_relay import CHUNK_BYTES, listen

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MODEL_BYTES = 126_000_000


def in_a_loop(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        asyncio.run(test(**fixtures))

    return run


@asynccontextmanager
async def relayed(folder: Path, talk: Talk) -> AsyncIterator[int]:
    """A server with the handler `talk` behind two relays: port, unix socket, server. Yields the port."""
    path = str(folder / "s")
    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    outer = await listen(f"unix:{path}", f"tcp:{server.sockets[0].getsockname()[1]}")
    inner = await listen("tcp:0", f"unix:{path}")
    try:
        yield inner.sockets[0].getsockname()[1]
    finally:
        for each in (inner, outer, server):
            each.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.close()


async def digest_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers after the caller's end of stream. This needs a half-closed connection."""
    seen = hashlib.sha256()
    while chunk := await reader.read(CHUNK_BYTES):
        seen.update(chunk)
    writer.write(seen.digest())
    writer.close()


@in_a_loop
async def test_half_closed_connection_receives_its_answer(tmp_path: Path) -> None:
    async with relayed(tmp_path, digest_at_the_end) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"all that I have to say")
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(b"all that I have to say").digest()
        writer.close()


@in_a_loop
async def test_a_connection_outlives_the_garbage_collector(tmp_path: Path) -> None:
    all_heard, answer = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        all_heard.set()
        await answer.wait()
        writer.write(b"at last")
        writer.close()

    async with relayed(tmp_path, slow) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write_eof()
        await all_heard.wait()
        gc.collect()
        answer.set()
        assert await reader.read() == b"at last"
        writer.close()


@in_a_loop
async def test_model_of_126_mb_is_relayed_in_both_directions(tmp_path: Path) -> None:
    content = os.urandom(2**20)
    async with relayed(tmp_path, echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def send() -> None:
            for start in range(0, MODEL_BYTES, len(content)):
                writer.write(content[: MODEL_BYTES - start])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        sent, received, size = hashlib.sha256(), hashlib.sha256(), 0
        while chunk := await reader.read(2**20):
            received.update(chunk)
            size += len(chunk)
        await sending
        for start in range(0, MODEL_BYTES, len(content)):
            sent.update(content[: MODEL_BYTES - start])
        writer.close()
    assert size == MODEL_BYTES
    assert received.digest() == sent.digest()


@in_a_loop
async def test_concurrent_connections_are_not_mixed(tmp_path: Path) -> None:
    async with relayed(tmp_path, echo) as port:

        async def ask(number: int) -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            said = f"{number:09d}".encode() * 5000
            writer.write(said)
            writer.write_eof()
            heard = await reader.read()
            writer.close()
            return heard == said

        assert all(await asyncio.gather(*map(ask, range(150))))


@in_a_loop
async def test_slow_receiver_blocks_the_sender(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go_on.wait()
        await digest_at_the_end(reader, writer)

    async with relayed(tmp_path, slow) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent, chunk = 1, bytes(2**20)
        writer.write(chunk)
        await writer.drain()
        with pytest.raises(TimeoutError):
            while sent < 64:
                writer.write(chunk)
                await asyncio.wait_for(writer.drain(), 1)
                sent += 1
        # The kernel and both relays buffer some megabytes, not the 64 MiB that were offered.
        assert sent < 32
        go_on.set()
        writer.write_eof()
        assert await reader.read() == hashlib.sha256(chunk * (sent + 1)).digest()
        writer.close()


@in_a_loop
async def test_connection_is_closed_when_the_target_does_not_listen(tmp_path: Path) -> None:
    inner = await listen("tcp:0", f"unix:{tmp_path / 'nobody'}")
    reader, writer = await asyncio.open_connection("127.0.0.1", inner.sockets[0].getsockname()[1])
    assert await reader.read() == b""
    writer.close()
    inner.close()


@pytest.mark.parametrize("who", ["caller", "called"])
@in_a_loop
async def test_reset_of_one_side_closes_the_other(tmp_path: Path, who: str) -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if who == "called":
            reset(writer)
            return
        while await reader.read(CHUNK_BYTES):
            pass
        ended.set()
        writer.close()

    async with relayed(tmp_path, talk) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        if who == "caller":
            writer.write(b"half a")
            reset(writer)
            await asyncio.wait_for(ended.wait(), 60)
        else:
            assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, not FIN, as the kernel does for a killed process with unread data."""
    there = writer.get_extra_info("socket")
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


@in_a_loop
async def test_relay_listens_only_on_loopback() -> None:
    inner = await listen("tcp:0", "tcp:9")
    assert {each.getsockname()[0] for each in inner.sockets} == {"127.0.0.1"}
    inner.close()
