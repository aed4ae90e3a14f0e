"""Frames of MLLP on a stream that is fed by hand."""

import asyncio

import pytest

from pipeline.feeds.mllp import Block, MessageCut, read_block


async def _read(sent: bytes, then: Exception | None) -> Block:
    """The frame that a reader gets, if the connection ends (or breaks off by `then`) after the bytes were read."""
    reader = asyncio.StreamReader(limit=64)
    reading = asyncio.create_task(read_block(reader, idle_seconds=60, message_seconds=60))
    reader.feed_data(sent)
    for _ in range(10):  # the reader takes what there is and waits for more
        await asyncio.sleep(0)
    if then:
        reader.set_exception(then)
    else:
        reader.feed_eof()
    return await reading


@pytest.mark.parametrize("then", [None, ConnectionResetError(), OSError("no route")])
@pytest.mark.parametrize("sent", [b"\x0b", b"\r\n\x0bMSH|", b"\x0bMSH|\x1c", b"\x0b" + b"A" * 200])
def test_connection_that_ends_within_a_message_says_so(sent: bytes, then: Exception | None) -> None:
    """However it ends: a machine that loses its power resets the connection or is silent. 200 bytes are too long."""
    with pytest.raises(MessageCut):
        asyncio.run(_read(sent, then))


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
def test_connection_that_ends_between_two_messages_cuts_none(sent: bytes) -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        asyncio.run(_read(sent, None))
    with pytest.raises(ConnectionResetError):
        asyncio.run(_read(sent, ConnectionResetError()))


def test_whole_message_is_read_before_the_end() -> None:
    assert asyncio.run(_read(b"\x0bMSH|\x1c\r", ConnectionResetError())).content == b"MSH|"
