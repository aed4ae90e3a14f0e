"""A TCP proxy that simulates a bad network link. Its quality can change while it is in use.

It runs between a node and the server. It does in user space what a kernel's queueing disciplines do, because not all
kernels include them: delay, jitter, limited bandwidth, a partition in which nothing passes, a connection that is lost
on one side only, a link that is cut.
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
    """A link to a port of this machine. It listens on `port`. Use it as a context manager.

    `delay_s`, `jitter_s` (uniform, plus or minus) and `bytes_per_s` apply to each direction and may change at any
    time. Bytes keep their order. `connections` counts the accepted connections.
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
        """Start a partition: connections stay open, new ones are accepted, and nothing passes until `mend`."""
        self._loop.call_soon_threadsafe(self._passes.clear)

    def cut(self) -> None:
        """Reset every connection and refuse new ones until `mend`."""
        self._run(self._reset(refuse=True))

    def mend(self, *, forget: bool = False) -> None:
        """Let everything pass again. Delayed bytes come first.

        `forget`: reset the old connections instead, as if one side had lost them (half-open TCP).
        """
        self._run(self._mend(forget))

    # --- in the event loop -------------------------------------------------------------------------------------

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=60)

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
        """Forward one direction: deliver each piece in order, when its delay is over."""
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
        while (piece := await pieces.get())[1]:  # to the end, even if the receiver is gone: the reader must not block
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
