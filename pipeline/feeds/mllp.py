"""The frames of MLLP, in which HL7 v2 messages are sent over a connection: <VT> message <FS><CR>.

`hl7.mllp` is not used: after a message that is too long, it takes the rest of it for the next message, and never
answers. It also reads all messages in one encoding, and keeps no reference to the tasks of its connections.
"""

import asyncio
from dataclasses import dataclass

START, END = b"\x0b", b"\x1c\r"
_BLANKS = {b"\r", b"\n"}


class FrameError(Exception):
    """The bytes are not a frame of MLLP; where the next one begins is unknown."""


class MessageCut(Exception):
    """The connection ended or broke off within a frame; what had arrived of it is of no use."""


@dataclass(frozen=True)
class Block:
    """The content of a frame; only its beginning if it is longer than the reader's limit."""

    content: bytes
    is_whole: bool = True


async def read_block(reader: asyncio.StreamReader, *, idle_seconds: float, message_seconds: float) -> Block:
    """Read one frame. The reader's own limit bounds its length and the memory.

    Raises FrameError; TimeoutError if no frame begins for `idle_seconds`, or if it does not end within
    `message_seconds`; asyncio.IncompleteReadError or OSError if the connection ends before a frame begins; MessageCut
    if it ends within one.
    """
    async with asyncio.timeout(idle_seconds):
        first = await reader.readexactly(1)
        while first in _BLANKS:
            first = await reader.readexactly(1)
    if first != START:
        raise FrameError
    async with asyncio.timeout(message_seconds):
        try:
            block = await _read_content(reader)
        except (asyncio.IncompleteReadError, OSError) as error:  # OSError: reset, or the network is gone
            raise MessageCut from error
    if START in block.content:
        raise FrameError
    return block


async def _read_content(reader: asyncio.StreamReader) -> Block:
    try:
        return Block((await reader.readuntil(END)).removesuffix(END))
    except asyncio.LimitOverrunError as error:
        block = Block(await reader.readexactly(error.consumed), is_whole=False)
        await _discard(reader)
        return block


async def _discard(reader: asyncio.StreamReader) -> None:
    """Read to the end of the frame and keep nothing."""
    while True:
        try:
            await reader.readuntil(END)
            return
        except asyncio.LimitOverrunError as error:
            await reader.readexactly(error.consumed)


def frame(message: bytes) -> bytes:
    return START + message + END
