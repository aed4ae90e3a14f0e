"""Passes connections on, between a unix socket and a port of loopback: the one way into the sandbox and out of it.

    python -I relay.py FROM TO [COMMAND [ARGUMENT...]]

FROM and TO are `unix:PATH` or `tcp:PORT`. Whoever connects at FROM is connected to TO, and to nothing else: no byte
of what passes can name another place. COMMAND is started once FROM is open; when it ends, the relay ends with its
exit code, and SIGTERM ends both. Without COMMAND the relay passes on until SIGTERM.

A process without network has a loopback of its own, where nobody listens. One relay outside opens a socket in a
folder of the site for it, another inside leads a port of that loopback to the socket.

Only the standard library is imported: this file runs as a program on both sides.
"""

import asyncio
import os
import signal
import sys
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from pathlib import Path

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 64 * 1024
# More than a process has open by default: a unix socket whose queue is full turns callers away.
CONNECTIONS_WAITING = 1024


async def connect(place: str) -> tuple[StreamReader, StreamWriter]:
    """Raises OSError where nobody listens."""
    kind, _, where = place.partition(":")
    if kind == "tcp":
        return await asyncio.open_connection(LOOPBACK, int(where))
    return await asyncio.open_unix_connection(where)


async def pump(reader: StreamReader, writer: StreamWriter) -> None:
    """Pass on until the sender has said all, and tell the receiver so; the other way stays open.

    No more is read than the receiver takes: `drain` waits, the sender's buffers fill, and the sender waits too.
    """
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


async def pass_on(near: tuple[StreamReader, StreamWriter], place: str) -> None:
    """Connect one caller to `place`, until both have said all or one of them is gone."""
    writers = [near[1]]
    try:
        far = await connect(place)
        writers.append(far[1])
        async with asyncio.TaskGroup() as both:
            both.create_task(pump(near[0], far[1]))
            both.create_task(pump(far[0], near[1]))
    except* OSError:
        pass  # one of them is gone, or nobody listens; the other learns it by the end of its connection
    finally:
        for writer in writers:
            writer.close()


async def listen(place: str, to: str) -> asyncio.Server:
    """Open `place`, from which every caller is led to `to`. Raises OSError."""
    # asyncio itself forgets a task that waits for a connection which it does not read just now: the caller has said
    # all, or must wait for the receiver. The garbage collector would then end the connection.
    callers = set()

    async def call(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        callers.add(task)
        with suppress(asyncio.CancelledError):  # at our own end; asyncio would print a stack trace for each caller
            await pass_on((reader, writer), to)
        callers.discard(task)

    kind, _, where = place.partition(":")
    if kind == "tcp":
        return await asyncio.start_server(call, LOOPBACK, int(where), backlog=CONNECTIONS_WAITING)
    server = await asyncio.start_unix_server(call, where, backlog=CONNECTIONS_WAITING)
    Path(where).chmod(0o660)  # who comes here at all is for its folder to say, and for that folder's access list
    return server


async def run(place: str, to: str, command: list[str]) -> int:
    """Pass on until the command ends or we are told to; the command's exit code."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    server = await listen(place, to)
    stop = asyncio.create_task(told.wait())
    code = 0
    if not command:
        await stop
    else:
        process = await asyncio.create_subprocess_exec(*command, cwd="/")
        end = asyncio.create_task(process.wait())
        await asyncio.wait([stop, end], return_when=asyncio.FIRST_COMPLETED)
        if not end.done():
            process.terminate()
        code = await end
        stop.cancel()
    server.close()
    return code if code >= 0 else 128 - code


def main(place: str, to: str, command: list[str]) -> int:
    try:
        return asyncio.run(run(within_reach(place), within_reach(to), command))
    except OSError as error:
        sys.stderr.write(f"the relay from {place} to {to} cannot work: {error}\n")
        return 1


def within_reach(place: str) -> str:
    """A unix socket by its bare name, from within its folder: its whole path may be longer than a socket's can be."""
    kind, _, where = place.partition(":")
    if kind != "unix":
        return place
    os.chdir(Path(where).parent)
    return f"unix:{Path(where).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
