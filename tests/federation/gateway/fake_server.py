"""A fake server of the study and a gateway, which run in one thread, for the tests of the gateway.

The node is Flower's own client, so both sides use the same protocol as in a real study.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto, user_config_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_connection import http_request_response

from federation.approval import fab
from federation.approval.approvals import Approvals
from federation.enrolment.certificates import load_node_key
from federation.enrolment.join import node_certificate, with_server_address
from federation.gateway.credentials import NodeKey
from federation.gateway.loopback import loopback_tls, self_signed
from federation.gateway.process import start_gateway
from federation.gateway.proxy import PREFIX, make_app
from federation.gateway.spool import Spool
from federation.gateway.task_exchange import Exchange
from federation.gateway.upstream import Upstream
from federation.ledger.chain import Ledger, ledger_file
from federation.system.process import Process, free_port
from pipeline.site.folder import Site
from tests.federation.gateway.messages import message, objects_of

NODE_ID, RUN_ID = 42, 7
T = TypeVar("T")


@dataclass
class Server:
    """The data that the server sends and the data that it has received.

    `down`: it answers every request with 503. `down_for`: it answers requests to these paths with 503.
    `declines`: statuses with which it answers requests, by path. `accepts_heartbeats`: what it says to each heartbeat.
    """

    app: bytes = field(default_factory=lambda: fab.build(fab.APP))
    study: str = '{"study": {}}'
    run: str = "trial-0123abcd"
    run_id: int = RUN_ID
    named_hash: str = ""  # the hash of the app that the server states, if it differs from that of the app it sends
    waiting: list[Message] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    replies: list[Any] = field(default_factory=list)
    runtimes: list[list[float]] = field(default_factory=list)  # the runtimes reported with the replies
    received: dict[str, bytes] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    down: bool = False
    down_for: set[str] = field(default_factory=set)
    declines: dict[str, int] = field(default_factory=dict)
    accepts_heartbeats: bool = True
    lost: int = 0  # the number of next requests that get no answer
    run_is_over: bool = False
    forgets: int = 0  # the number of next objects that are not stored, as after the end of a session

    def give(self, content: RecordDict, **metadata: Any) -> Message:
        """Queue a task for the node."""
        about = {"src_node_id": 1, "dst_node_id": NODE_ID, "reply_to_message_id": "", "run_id": self.run_id}
        task = message(content, **about | {"created_at": time.time()} | metadata)
        self.objects |= objects_of(task)
        self.waiting.append(task)
        return task

    async def handle(self, request: web.Request) -> web.Response:
        path, body = request.path.removeprefix(PREFIX), await request.read()
        self.paths.append(path)
        if self.lost:
            self.lost -= 1
            assert request.transport is not None
            request.transport.abort()
        if self.down or path in self.down_for:
            return web.Response(status=503)
        if path in self.declines:
            return web.Response(status=self.declines[path])
        if self.run_is_over and path in ("push-messages", "push-object"):
            return web.Response(status=403)
        answer = getattr(self, path.replace("-", "_"))(body)
        return web.Response(body=answer.SerializeToString(), content_type="application/protobuf")

    def activate_node(self, body: bytes) -> Any:
        return fleet_pb2.ActivateNodeResponse(node_id=NODE_ID)

    def deactivate_node(self, body: bytes) -> Any:
        return fleet_pb2.DeactivateNodeResponse()

    def send_node_heartbeat(self, body: bytes) -> Any:
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=self.accepts_heartbeats)

    def pull_messages(self, body: bytes) -> Any:
        if not self.waiting:
            return fleet_pb2.PullMessagesResponse()
        task = self.waiting.pop(0)
        return fleet_pb2.PullMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(task))],
            message_object_trees=[get_object_tree(task)],
        )

    def get_run(self, body: bytes) -> Any:
        from federation.gateway.flower_objects import object_id

        config = user_config_to_proto({"study": self.study, "run": self.run})
        hash_str = self.named_hash or object_id(self.app)
        return run_pb2.GetRunResponse(run=run_pb2.Run(run_id=self.run_id, fab_hash=hash_str, override_config=config))

    def get_fab(self, body: bytes) -> Any:
        asked = fab_pb2.GetFabRequest.FromString(body)
        return fab_pb2.GetFabResponse(fab=fab_pb2.Fab(hash_str=asked.hash_str, content=self.app))

    def pull_object(self, body: bytes) -> Any:
        content = self.objects.get(message_pb2.PullObjectRequest.FromString(body).object_id)
        found = content is not None
        return message_pb2.PullObjectResponse(object_found=found, object_available=found, object_content=content or b"")

    def confirm_message_received(self, body: bytes) -> Any:
        return message_pb2.ConfirmMessageReceivedResponse()

    def push_messages(self, body: bytes) -> Any:
        request = fleet_pb2.PushMessagesRequest.FromString(body)
        tree = request.message_object_trees[0]
        self.replies.append((request.messages_list[0], tree))
        self.runtimes.append(list(request.clientapp_runtime_list))
        missing = {node.object_id for node in iterate_object_tree(tree)} - set(self.received)
        return fleet_pb2.PushMessagesResponse(objects_to_push=missing, session_id="s")

    def push_object(self, body: bytes) -> Any:
        request = message_pb2.PushObjectRequest.FromString(body)
        if self.forgets > 0:
            self.forgets -= 1
            return message_pb2.PushObjectResponse(stored=False)
        self.received[request.object_id] = request.object_content
        return message_pb2.PushObjectResponse(stored=True)

    def last_reply(self) -> Message:
        """The last reply with all its objects."""
        proto, tree = self.replies[-1]
        if proto.HasField("error"):
            return message_from_proto(proto)
        contents = {node.object_id: self.received[node.object_id] for node in iterate_object_tree(tree)}
        reply: Message = inflate_object_from_contents(tree.object_id, contents)  # type: ignore[assignment]
        return reply


class Bench:
    """A server and a site's gateway, which run in a thread. The gateway can be stopped and started.

    With `own_process` the gateway is a separate process, started as a node starts it.
    """

    def __init__(self, site: Site, server: Server, *, own_process: bool = False) -> None:
        self.site, self.server = site, server
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._certificate = site.folder / "keys" / "gateway.crt"
        self.server_port, self.port = free_port(), free_port()
        self._tls = loopback_tls(site)  # the server uses the same certificate as the gateway
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", server.handle)
        self._server = self._serve(app, self.server_port)
        self.process: Process | None = None
        if own_process:
            self.process = self._start_process()
        else:
            self.start_gateway()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _serve(self, app: web.Application, port: int) -> web.AppRunner:
        async def serve() -> web.AppRunner:
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port, ssl_context=self._tls).start()
            return runner

        return self._do(serve())

    def start_gateway(self) -> None:
        key = NodeKey(self.site)
        upstream = Upstream(f"127.0.0.1:{self.server_port}", key, ssl.create_default_context(cafile=self._certificate))

        def exchange() -> Exchange:
            return Exchange(
                self.site,
                upstream,
                ledger=Ledger(ledger_file(self.site)),
                approvals=Approvals(self.site),
                spool=Spool(self.site.folder / "gateway"),
            )

        self._gateway = self._serve(make_app(key, upstream, exchange), self.port)

    def _start_process(self) -> Process:
        """Start the gateway with a self-signed certificate of the node's key, which this server does not check."""
        keys = self.site.folder / "keys"
        (keys / "ca.crt").write_bytes(self._certificate.read_bytes())
        node_certificate(self.site).write_bytes(
            self_signed(load_node_key(self.site.node_key)).public_bytes(Encoding.PEM)
        )
        settings = (self.site.folder / "site.toml").read_text()
        (self.site.folder / "site.toml").write_text(with_server_address(settings, f"127.0.0.1:{self.server_port}"))
        site = Site.open(self.site.folder)
        return start_gateway(site, port=self.port, log=self.site.logs / "gateway.log")

    def stop_gateway(self) -> None:
        if self.process:
            self.process.stop()
        else:
            self._do(self._gateway.cleanup())

    def close(self) -> None:
        self.stop_gateway()
        self._do(self._server.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    @contextmanager
    def node(self, *, direct: bool = False) -> Iterator["NodeSide"]:
        """Flower's own client, as the SuperNode uses it. With `direct` it connects straight to the server.

        Flower's client only logs an exception, such as that of a failed assertion. Here it is raised again.
        """
        key, raised = load_node_key(self.site.node_key), list[Exception]()
        with http_request_response(
            f"127.0.0.1:{self.server_port if direct else self.port}",
            False,
            self._certificate.read_bytes(),
            (key, key.public_key()),
        ) as connection:
            try:
                yield NodeSide(*connection)
            except Exception as error:
                raised.append(error)
        if raised:
            raise raised[0]


@dataclass
class NodeSide:
    """The calls that a SuperNode makes for a task, made here by the test."""

    node_id: int
    receive: Callable[[], Any]
    send: Callable[..., Any]
    get_run: Callable[[int], Any]
    get_fab: Callable[[str, int], Any]
    pull_object: Callable[[int, str], bytes]
    push_object: Callable[[int, str, str, bytes], None]
    confirm: Callable[[int, str], None]

    def fetch(self) -> Message | None:
        """Fetch the next task with all its objects."""
        if (received := self.receive()) is None:
            return None
        proto, tree = received
        run = self.get_run(proto.metadata.run_id)
        self.get_fab(run.fab_hash, proto.metadata.run_id)
        ids = dict.fromkeys(node.object_id for node in iterate_object_tree(tree))
        contents = {id: self.pull_object(proto.metadata.run_id, id) for id in ids}
        self.confirm(proto.metadata.run_id, proto.metadata.message_id)
        task: Message = inflate_object_from_contents(tree.object_id, contents)  # type: ignore[assignment]
        task.metadata.__dict__["_message_id"] = proto.metadata.message_id
        return task

    def push(self, reply: Message, runtime_s: float = 1.25) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        objects = objects_of(reply)
        wanted, session = self.send(reply, get_object_tree(reply), runtime_s)
        for id in objects:
            if id in wanted:
                self.push_object(reply.metadata.run_id, session, id, objects[id])
