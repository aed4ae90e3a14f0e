"""A bad line: a TCP proxy whose quality changes while it is in use.

It stands between a node and the server, and does in user space what a kernel's queueing disciplines do where they are
built in: delay, jitter, few bytes a second, a partition in which nothing passes, a connection that is lost on one side
only, a line that is cut.
"""

import asyncio
import contextlib
import math
import random
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 16_384


class Link:
    """A line to a port of this machine; `port` is its own. Use as a context manager.

    `delay_s`, `jitter_s` (added or taken off evenly) and `bytes_per_s` hold for each direction and may be changed at
    any time. What passes keeps its order. `connections` counts those that were made.
    """

    def __init__(self, target: int, *, seed: int = 0) -> None:
        self.target = target
        self.port = 0
        self.delay_s, self.jitter_s, self.bytes_per_s = 0.0, 0.0, math.inf
        self.connections = 0
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._passes = asyncio.Event()
        self._refuses = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._serve())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def hold(self) -> None:
        """A partition: connections stay open, new ones are taken, and nothing passes until `mend`."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def cut(self) -> None:
        """Reset every connection, and take no new one until `mend`."""
        self._run(self._reset(refuse=True))

    def mend(self, *, forget: bool = False) -> None:
        """Let everything pass again, what was held first.

        `forget`: connections from before are reset instead, as when one side has lost them (half-open TCP).
        """
        self._run(self._mend(forget))

    # --- within the loop ---------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    async def _serve(self) -> None:
        self._passes.set()
        self._server = await asyncio.start_server(self._connect, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _mend(self, forget: bool) -> None:
        if forget:
            await self._reset(refuse=False)
        self._refuses = False
        self._passes.set()

    async def _reset(self, *, refuse: bool) -> None:
        self._refuses = refuse
        for writer in self._writers:
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        await self._reset(refuse=True)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self._refuses:
            writer.transport.abort()
            return
        self.connections += 1
        try:
            target_reader, target_writer = await asyncio.open_connection(LOOPBACK, self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(target_writer)
        await asyncio.gather(self._carry(reader, target_writer), self._carry(target_reader, writer))
        self._writers -= {writer, target_writer}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: what is read is delivered in its order, each piece when its time has come."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        delivery = asyncio.create_task(self._deliver(pieces, writer))
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                delay_s = max(0.0, self.delay_s + self._random.uniform(-self.jitter_s, self.jitter_s))
                await pieces.put((self._loop.time() + delay_s, data))
        await pieces.put((0.0, b""))
        await delivery

    async def _deliver(self, pieces: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        is_open = True
        while (piece := await pieces.get())[1]:  # to the end, even when nobody listens: the reader must not wait
            due, data = piece
            await asyncio.sleep(max(0.0, due - self._loop.time()) + len(data) / self.bytes_per_s)
            await self._passes.wait()
            try:
                if is_open:
                    writer.write(data)
                    await writer.drain()
            except OSError:
                is_open = False
        with contextlib.suppress(OSError):
            writer.close()
