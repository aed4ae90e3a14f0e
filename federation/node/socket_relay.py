"""Relay connections between a Unix socket and a port on loopback: the only connection into and out of the sandbox.

    python -I socket_relay.py FROM TO [COMMAND [ARGUMENT...]]

FROM and TO are `unix:PATH` or `tcp:PORT`. A client of FROM is connected to TO and to nothing else; the content of the
connection cannot select another target. COMMAND is started after FROM is open. When it ends, the relay ends with its
exit code, and SIGTERM ends both. Without COMMAND the relay runs until SIGTERM.

A process without network has its own loopback, on which nothing listens. One relay outside opens a socket in a folder
of the site. Another relay inside connects a port on that loopback to the socket.

Only the standard library is imported, because this file runs as a program on both sides.
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
# More than a process can have open by default: a Unix socket refuses clients when its queue is full.
CONNECTIONS_WAITING = 1024


async def connect(place: str) -> tuple[StreamReader, StreamWriter]:
    """Connect to a place. Raises OSError if nothing listens there."""
    kind, _, where = place.partition(":")
    if kind == "tcp":
        return await asyncio.open_connection(LOOPBACK, int(where))
    return await asyncio.open_unix_connection(where)


async def pump(reader: StreamReader, writer: StreamWriter) -> None:
    """Copy bytes until the sender has finished, then close the receiver's input. The other direction stays open.

    No more is read than the receiver accepts: `drain` waits, the sender's buffers fill, and the sender waits too.
    """
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()


async def pass_on(near: tuple[StreamReader, StreamWriter], place: str) -> None:
    """Connect one client to `place` until both sides have finished or one of them has gone."""
    writers = [near[1]]
    try:
        far = await connect(place)
        writers.append(far[1])
        async with asyncio.TaskGroup() as both:
            both.create_task(pump(near[0], far[1]))
            both.create_task(pump(far[0], near[1]))
    except* OSError:
        pass  # one side has gone, or nothing listens; closing the connection informs the other side
    finally:
        for writer in writers:
            writer.close()


async def listen(place: str, to: str) -> asyncio.Server:
    """Open `place` and connect each of its clients to `to`. Raises OSError."""
    # asyncio keeps no reference to a task whose connection is not being read at the moment (the client has finished,
    # or waits for the receiver). Without our own reference the garbage collector would end the connection.
    callers = set()

    async def call(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        callers.add(task)
        with suppress(
            asyncio.CancelledError
        ):  # when the relay ends; otherwise asyncio prints a stack trace for each client
            await pass_on((reader, writer), to)
        callers.discard(task)

    kind, _, where = place.partition(":")
    if kind == "tcp":
        return await asyncio.start_server(call, LOOPBACK, int(where), backlog=CONNECTIONS_WAITING)
    server = await asyncio.start_unix_server(call, where, backlog=CONNECTIONS_WAITING)
    Path(where).chmod(0o660)  # its folder and the folder's access control list decide who can reach it
    return server


async def run(place: str, to: str, command: list[str]) -> int:
    """Relay until the command ends or a signal arrives; return the command's exit code."""
    stop_requested = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop_requested.set)
    server = await listen(place, to)
    stop = asyncio.create_task(stop_requested.wait())
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
    """Use a Unix socket by its bare name from its folder, because its full path may exceed the limit for sockets."""
    kind, _, where = place.partition(":")
    if kind != "unix":
        return place
    os.chdir(Path(where).parent)
    return f"unix:{Path(where).name}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
