"""The gateway's HTTP server on loopback: the few paths that a node needs, for the node's key only.

It forwards no request. It reads each request and composes a new one for the server from it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from io import BytesIO
from weakref import WeakSet

from aiohttp import web
from google.protobuf.message import DecodeError, Message

from federation.flower.addresses import PREFIX
from federation.flower.messages import (
    HEARTBEAT_DEFAULT_INTERVAL,
    ActivateNodeRequest,
    ActivateNodeResponse,
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    GetFabRequest,
    GetFabResponse,
    GetRunRequest,
    GetRunResponse,
    Node,
    PullMessagesRequest,
    PullMessagesResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushMessagesRequest,
    PushMessagesResponse,
    PushObjectRequest,
    PushObjectResponse,
    SendNodeHeartbeatRequest,
    SendNodeHeartbeatResponse,
)
from federation.gateway import reasons
from federation.gateway.credentials import NodeKey
from federation.gateway.task_exchange import Exchange, Forbidden
from federation.gateway.upstream import MAX_BODY_BYTES, MEDIA_TYPE, Declined, TooLong, Unreachable, Upstream, read_body
from models.refusal import Reason

_LARGE = ("pull-object", "push-object")  # one request at a time, complete, to limit memory
# Flower's client gives up a request after 30 s (flwr.supercore.protobuf.client); our last try must end before that.
NODE_WAITS_SECONDS = 22.0  # no try begins later than this after the node's request
HEARTBEAT_SECONDS, HEARTBEAT_PAUSE_SECONDS = 4.0, 2.0  # the limit of one try, and the pause before the next
_CANNOT_CONNECT = 421  # a status after which Flower's node does not try again
# The node sends these two requests for as long as it runs. It repeats one after 503, and registers again after 401.
# After any other error status it would never ask again.
_REPEATED, _UNKNOWN_NODE, _TRY_AGAIN = ("pull-messages", "send-node-heartbeat"), 401, 503

log = logging.getLogger("fedthorax.gateway")


class Proxy:
    """Handlers of the node's requests, by path."""

    def __init__(self, key: NodeKey, upstream: Upstream, exchange: Exchange) -> None:
        self._key, self._upstream, self._exchange = key, upstream, exchange
        self._connections: WeakSet[asyncio.Transport] = WeakSet()  # those of the node
        self._large = asyncio.Lock()
        self._paths: dict[str, tuple[type[Message], Callable[..., Awaitable[Message | BytesIO]]]] = {
            "activate-node": (ActivateNodeRequest, self._activate),
            "deactivate-node": (DeactivateNodeRequest, self._deactivate),
            "send-node-heartbeat": (SendNodeHeartbeatRequest, self._heartbeat),
            "pull-messages": (PullMessagesRequest, self._pull_messages),
            "push-messages": (PushMessagesRequest, self._push_messages),
            "get-run": (GetRunRequest, self._get_run),
            "get-fab": (GetFabRequest, self._get_fab),
            "push-object": (PushObjectRequest, self._push_object),
            "pull-object": (PullObjectRequest, self._pull_object),
            "confirm-message-received": (ConfirmMessageReceivedRequest, self._confirm),
        }

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one request of the node."""
        if not self._is_node(request):
            log.warning("refused a caller other than the node: %s", reasons.GATEWAY_KEY.code)
            return _coded(401, reasons.GATEWAY_KEY)
        path = request.path.removeprefix(PREFIX)
        if request.method != "POST" or not request.path.startswith(PREFIX) or path not in self._paths:
            log.warning("refused out: %s", reasons.GATEWAY_PATH.code)
            await self._exchange.record_request(request.path, reasons.GATEWAY_PATH)
            return _coded(403, reasons.GATEWAY_PATH)
        if path not in _LARGE:
            return await self.respond(path, request)
        async with self._large:
            response = await self.respond(path, request)
            await response.prepare(request)
            await response.write_eof()
            response.body = None  # aiohttp keeps each connection's last response until its next request
            return response

    async def respond(self, path: str, request: web.Request) -> web.Response:
        """Return the response to a request of the node, whose path is known, also for errors."""
        try:
            return await self._answer(path, request)
        except DecodeError:
            return web.Response(status=400)
        except TooLong:
            return web.Response(status=413)
        except Forbidden:
            return web.Response(status=403)
        except Declined as error:
            return _error(_status_for_node(path, error.status), error.code, error.detail)
        except (ConnectionResetError, web.RequestPayloadError):  # of the request itself
            raise
        except Exception:
            if path not in _REPEATED:
                raise
            log.exception("%s failed", path)  # for example on a full disk
            return web.Response(status=_TRY_AGAIN)

    async def _answer(self, path: str, request: web.Request) -> web.Response:
        """Raises DecodeError, TooLong, Forbidden, Declined."""
        kind, handler = self._paths[path]
        try:
            # request.read() would keep the body until the connection's next request.
            answer = await handler(kind.FromString(await read_body(request.content, MAX_BODY_BYTES)))
        except Unreachable as error:
            log.info("%s: %s", path, error)
            if error.reason is not None and path == "activate-node":
                return _coded(_CANNOT_CONNECT, error.reason)
            return web.Response(status=_TRY_AGAIN)
        # A stream is encrypted and sent in pieces, without a second copy.
        body = answer if isinstance(answer, BytesIO) else BytesIO(answer.SerializeToString())
        return web.Response(body=body, content_type=MEDIA_TYPE)

    def _is_node(self, request: web.Request) -> bool:
        """Tell whether the node's key signed this request or an earlier one on the same connection."""
        transport = request.transport
        if transport is None:
            return False
        if transport not in self._connections and self._key.signed(request.headers):
            self._connections.add(transport)
        return transport in self._connections

    def end(self) -> None:
        """Hold no request of the node any longer."""
        self._exchange.end()

    # --- the node itself ----------------------------------------------------------------------------------

    async def _activate(self, request: ActivateNodeRequest) -> ActivateNodeResponse:
        if request.public_key != self._key.public_pem:
            raise Forbidden
        ours = ActivateNodeRequest(public_key=self._key.public_pem, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        answer = await self._upstream.ask("activate-node", ours, ActivateNodeResponse)
        self._exchange.node_id = answer.node_id
        self._exchange.node_restarted()
        return answer

    async def _deactivate(self, request: DeactivateNodeRequest) -> DeactivateNodeResponse:
        ours = DeactivateNodeRequest(node_id=self._known(request.node_id))
        return await self._upstream.ask("deactivate-node", ours, DeactivateNodeResponse)

    async def _heartbeat(self, request: SendNodeHeartbeatRequest) -> SendNodeHeartbeatResponse:
        """Repeat the heartbeat while the connection is down, as long as the node waits for the answer.

        The server considers a node gone after one minute without a heartbeat. Flower's node waits up to twenty seconds
        after a failed heartbeat. Without the repetitions, half a minute without a connection would cost a round.
        """
        node = Node(node_id=self._known(request.node.node_id))
        ours = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        last_try = time.monotonic() + NODE_WAITS_SECONDS
        while True:
            try:
                answer = await self._upstream.ask(
                    "send-node-heartbeat", ours, SendNodeHeartbeatResponse, seconds=HEARTBEAT_SECONDS
                )
                if not answer.success:
                    raise Unreachable("the server did not accept the heartbeat")
                return answer
            except Unreachable as error:
                if error.reason is not None or time.monotonic() > last_try:
                    raise
            await asyncio.sleep(HEARTBEAT_PAUSE_SECONDS)

    def _known(self, node_id: int) -> int:
        """Return the node's id. After a restart of the gateway alone, this is the id in the node's request."""
        self._exchange.node_id = self._exchange.node_id or node_id
        return self._exchange.node_id

    # --- its task -----------------------------------------------------------------------------------------

    async def _pull_messages(self, request: PullMessagesRequest) -> PullMessagesResponse:
        self._known(request.node.node_id)
        return await self._exchange.pull()

    async def _get_run(self, request: GetRunRequest) -> GetRunResponse:
        return self._exchange.run(request.run_id).info

    async def _get_fab(self, request: GetFabRequest) -> GetFabResponse:
        run = self._exchange.run(request.run_id)
        if request.hash_str != run.app:
            raise Forbidden
        return run.fab

    async def _pull_object(self, request: PullObjectRequest) -> PullObjectResponse | BytesIO:
        return await self._exchange.object(request.run_id, request.object_id)

    async def _confirm(self, request: ConfirmMessageReceivedRequest) -> ConfirmMessageReceivedResponse:
        return await self._exchange.confirm(request.run_id)

    async def _push_messages(self, request: PushMessagesRequest) -> PushMessagesResponse:
        return self._exchange.announce(request)

    async def _push_object(self, request: PushObjectRequest) -> PushObjectResponse:
        return PushObjectResponse(stored=await self._exchange.take(request))


def _status_for_node(path: str, status: int) -> int:
    """Return the status with which the node does what is right after the server declined its request with `status`."""
    if path in _REPEATED and status != _UNKNOWN_NODE:
        return _TRY_AGAIN
    # On 401, Flower's node ends without a message. At its start it must report the cause.
    return _CANNOT_CONNECT if path == "activate-node" and status == _UNKNOWN_NODE else status


def _coded(status: int, reason: Reason) -> web.Response:
    return _error(status, 0, reason.code)


def _error(status: int, code: int, detail: str) -> web.Response:
    """Return an error in Flower's format; Flower's node writes `detail` to its log."""
    return web.json_response({"code": code, "detail": detail}, status=status)


_PROXY = web.AppKey("proxy", Proxy)


def make_app(
    key: NodeKey, upstream: Upstream, make_exchange: Callable[[], Exchange], *chores: Coroutine[None, None, None]
) -> web.Application:
    """Create the gateway's aiohttp application. The server connections and the `chores` run as long as it does."""
    app = web.Application()

    async def run(app: web.Application) -> AsyncIterator[None]:
        async with upstream:
            exchange = make_exchange()
            app[_PROXY] = Proxy(key, upstream, exchange)
            await exchange.started()
            tasks = [asyncio.create_task(chore) for chore in chores]
            yield
            for task in tasks:
                task.cancel()

    async def handle(request: web.Request) -> web.Response:
        try:
            return await request.app[_PROXY].handle(request)
        except ConnectionResetError:  # the node closed it; a failure towards the server raises Unreachable
            log.info("the node hung up before the response was complete; it will repeat the request")
            return web.Response(status=400)
        except web.RequestPayloadError:  # the chunks or the compression contradict the header
            log.info("the node's request cannot be read")
            return web.Response(status=400)

    async def end(app: web.Application) -> None:
        app[_PROXY].end()

    app.cleanup_ctx.append(run)
    app.on_shutdown.append(end)  # before the requests that are still open are waited for
    app.router.add_route("*", "/{path:.*}", handle)
    return app
