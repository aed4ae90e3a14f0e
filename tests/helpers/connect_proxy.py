"""An HTTP proxy that understands CONNECT only. It is the only way to names that no resolver knows."""

import asyncio
import base64
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class ConnectProxy:
    """The running proxy. `asked`: the targets of its CONNECT requests, each as "host:port".

    `most_bytes`: a connection on which the client sends more is cut off: it stays open and is silent. `cut`: how many
    were.
    """

    port: int = 0
    login: str = ""  # "user:password"; empty if none is required
    asked: list[str] = field(default_factory=list)
    most_bytes: int | None = None
    cut: int = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(maxsplit=2)
        self.asked.append(target)
        login = f"Basic {base64.b64encode(self.login.encode()).decode()}"
        if method != "CONNECT" or (self.login and f"proxy-authorization: {login}".lower() not in head.lower()):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        # Every name leads to this machine, as if the proxy alone could resolve it.
        from_server, to_server = await asyncio.open_connection("127.0.0.1", int(target.rpartition(":")[2]))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(self._pass_on(reader, to_server, self.most_bytes), self._pass_on(from_server, writer))

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, most_bytes: int | None = None
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while received := await source.read(65536):
                passed += len(received)
                if most_bytes and passed > most_bytes:
                    self.cut += 1
                    return
                target.write(received)
                await target.drain()
        target.close()


@contextlib.contextmanager
def connect_proxy(*, login: str = "", most_bytes: int | None = None) -> Iterator[ConnectProxy]:
    """Run the proxy in a thread of its own, on a free port of loopback."""
    proxy = ConnectProxy(login=login, most_bytes=most_bytes)
    ready, loop = threading.Event(), asyncio.new_event_loop()

    async def start() -> asyncio.Server:
        server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        ready.set()
        return server

    def run() -> None:
        server = loop.run_until_complete(start())
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
