"""The gateway in one process, without sockets and threads. Its clock advances as soon as every task waits.

The exchange, the proxy and the client to the server are the gateway's own. The replaced parts are the server's bytes
(`Server`), the time, and the study's schema, for which the gateway would start a process with torch.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast
from unittest.mock import patch

from aiohttp import ClientTimeout, web
from aiohttp.payload import Payload
from google.protobuf.message import Message as ProtobufMessage

from federation.approval.approvals import Approvals
from federation.enrolment.certificates import create_node_key
from federation.gateway import admission, proxy, reply_sender, task_exchange, task_intake
from federation.gateway.credentials import NodeKey
from federation.gateway.proxy import Proxy
from federation.gateway.schema import Schema
from federation.gateway.spool import Spool
from federation.gateway.task_exchange import Exchange
from federation.gateway.task_state import Idle
from federation.gateway.upstream import Declined, Unreachable, Unusable, Upstream
from federation.ledger.chain import Ledger, ledger_file
from pipeline.site.folder import Site, init_site, site_settings
from tests.federation.gateway.messages import ABOUT, PATIENTS, EveryStudy, arrays_of, first_of, train_here

T = TypeVar("T")
PATIENCE_SECONDS = 30.0  # how long the gateway waits for the server, by this clock
CALLS_AT_MOST = 3000  # calls of the gateway to the server in one scenario

log = logging.getLogger("fedthorax.gateway")


class Wedged(AssertionError):
    """All tasks wait, and no timer will wake one of them."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer when nothing else is ready."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds = time.time()
        self._clock_resolution = 1e-3  # a double of seconds since 1970 has a resolution of microseconds at best
        self.problems: list[str] = []
        self.set_exception_handler(lambda loop, context: self.problems.append(repr(context)))

    def time(self) -> float:
        return self._seconds

    def _run_once(self) -> None:
        inner = cast(Any, self)
        if not inner._ready:
            if not inner._scheduled:
                raise Wedged
            self._seconds = max(self._seconds, inner._scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


async def _at_once(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Replaces asyncio.to_thread: other tasks run first, but no thread is started."""
    await asyncio.sleep(0)
    return function(*arguments, **named)


Answer = bytes | Exception | Callable[[bytes], "bytes | Exception"]


@dataclass
class Server:
    """The server's answers by path, as bytes, and everything that the server received."""

    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[tuple[str, bytes]] = field(default_factory=list)

    def answer(self, path: str, body: bytes) -> bytes:
        self.calls.append((path, body))
        if len(self.calls) > CALLS_AT_MOST:
            raise Wedged(f"{path} is asked for without end")
        answer = self.answers.get(path, b"")
        answer = answer(body) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        return answer


class DirectUpstream(Upstream):
    """The gateway's own client, with its HTTP requests replaced by a function call."""

    def __init__(self, key: NodeKey, server: Server) -> None:
        self._key, self._server = key, server

    async def _post(self, path: str, content: BytesIO, timeout: ClientTimeout, limit: int) -> bytearray:
        await asyncio.sleep(0)
        body = self._server.answer(path, content.read())
        if len(body) > limit:
            raise Unusable("the answer is too long")
        return bytearray(body)


class _Body:
    """The body of a request, with the interface of aiohttp."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def iter_any(self) -> AsyncIterator[bytes]:
        yield self._body


class Errors(logging.Handler):
    """Collects unexpected errors: the gateway logs them with their traceback, and here each is a finding."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.texts.append(logging.Formatter().format(record))


async def _ended(tasks: set[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)


class World:
    """A site's gateway, started in `folder`. Use as a context manager."""

    def __init__(self, folder: Path, schema: Schema) -> None:
        self.site: Site = init_site(folder, site_settings(None, name="north", server="127.0.0.1:1"))
        self.site.settings.gateway.histograms = True
        self.site.settings.gateway.max_rounds_a_day = 10**6
        create_node_key(self.site.node_key)
        self.server = Server()
        self.loop = VirtualLoop()
        self.errors = Errors()
        self._key = NodeKey(self.site)
        self._trained = folder.with_name("trained")  # what the gateway stores about a run in which the site trained
        train_here(self.site, schema, first_of(schema))
        (self.site.folder / "gateway" / "models").rename(self._trained)
        clock = SimpleNamespace(time=self.loop.time, monotonic=self.loop.time)
        self._patches = [
            *(patch.object(module, "time", clock) for module in (task_intake, reply_sender, task_exchange, proxy)),
            *(
                patch.object(module, "count_patients", lambda site, **_: PATIENTS)
                for module in (task_intake, task_exchange)
            ),
            patch.object(task_intake, "schema_of", lambda *_: schema),
            patch.object(admission, "first_model_of", lambda *_: arrays_of(first_of(schema))),
            patch.object(task_intake, "names_by_digest", lambda folder: EveryStudy()),
            patch.object(task_exchange, "about_site", lambda site, study: dict(ABOUT)),  # avoids a process with torch
            patch.object(task_exchange, "policy_digest", lambda settings: "0" * 64),
            patch.object(task_intake, "MAX_FETCH_SECONDS", PATIENCE_SECONDS),
            patch.object(reply_sender, "GIVE_UP_SECONDS", PATIENCE_SECONDS),
            patch.object(asyncio, "to_thread", _at_once),
        ]

    def __enter__(self) -> "World":
        for each in self._patches:
            each.start()
        log.addHandler(self.errors)
        log.propagate = False
        log.setLevel(logging.ERROR)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.loop.close()
        log.removeHandler(self.errors)
        log.propagate = True
        log.setLevel(logging.NOTSET)
        for each in self._patches:
            each.stop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def start(self) -> None:
        """Start the gateway with the content of its spool."""
        spool = Spool(self.site.folder / "gateway")
        connection = DirectUpstream(self._key, self.server)
        self.exchange = Exchange(
            self.site,
            connection,
            ledger=Ledger(ledger_file(self.site)),
            approvals=Approvals(self.site),
            spool=spool,
        )
        self.proxy = Proxy(self._key, connection, self.exchange)
        self.run(self.exchange.started())

    def stop(self) -> None:
        """Stop the gateway at once, in its present state."""
        if tasks := asyncio.all_tasks(self.loop):
            for task in tasks:
                task.cancel()
            self.run(_ended(tasks))

    def forget_budgets(self, *, trained: bool) -> None:
        """Delete what the gateway stored about its answers. `trained`: keep only one round of training."""
        spool = self.site.folder / "gateway"
        for name in ("models", "answers"):
            shutil.rmtree(spool / name, ignore_errors=True)
        for name in ("rounds.json", "private.json"):
            (spool / name).unlink(missing_ok=True)
        if trained:
            shutil.copytree(self._trained, spool / "models")

    def clean(self) -> None:
        """Delete what grows with each scenario: the ledger, apps that were not approved, the day's rounds."""
        self.stop()
        for name in ("ledger", "gateway", "apps"):
            shutil.rmtree(self.site.folder / name, ignore_errors=True)
        self.start()

    async def node_asks(self, path: str, request: ProtobufMessage | bytes) -> tuple[int, bytes]:
        """Return the status and the body that the node gets for a request."""
        content = request if isinstance(request, bytes) else request.SerializeToString()
        asked = cast(web.Request, SimpleNamespace(content=_Body(content)))
        response = await self.proxy.respond(path, asked)
        assert response.status == 200 or 400 <= response.status < 600, (
            f"{path}: the node takes {response.status} for good"
        )
        body = response.body
        return response.status, await body.as_bytes() if isinstance(body, Payload) else bytes(body or b"")

    @property
    def is_idle(self) -> bool:
        return isinstance(self.exchange.current.state, Idle)

    def check(self) -> None:
        """Raise AssertionError if the gateway met an unexpected error."""
        problems = self.errors.texts + self.loop.problems
        self.errors.texts, self.loop.problems = [], []
        assert not problems, "\n".join(problems)


def fault(number: int) -> Exception:
    """Return one of the errors with which a request can fail."""
    statuses = (201, 204, 301, 400, 401, 403, 404, 413, 429, 500, 503, 599, 999)
    bodies = (b"", b'{"detail": "E_RUN_OVER"}', b'{"code": "x"}', b"\xff", b"[" * 5000, b'{"detail": 5}', b"7")
    if number % 3 == 0:
        return Unreachable("no line")
    return Declined(statuses[number % len(statuses)], bodies[number % len(bodies)])
