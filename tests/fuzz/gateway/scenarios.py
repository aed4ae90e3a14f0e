"""A round with a hostile server or a hostile app, followed by an honest round. Whatever they send:

- a handler raises only the exceptions that it declares, and the gateway meets no unexpected exception;
- the gateway finishes the task in limited time, and the next honest task is processed and answered;
- this also holds if the gateway is restarted in the middle;
- no text that an app wrote is sent to the server, and every name in a record is in the tables.
"""

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import user_config_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.proto.error_pb2 import Error
from flwr.proto.node_pb2 import Node
from google.protobuf.message import Message as ProtobufMessage

from federation.approval import fab
from federation.gateway.flower_objects import object_id, parse
from federation.protocol.handshake import KEYS
from federation.protocol.metric_allowlist import EPSILON, FIGURES, MAX_PROBED, Kind
from tests.federation.gateway.messages import KINDS, Case, first_of, message, moments, record_of, schema_for
from tests.fuzz.gateway.choices import Choices
from tests.fuzz.gateway.mutations import CANARY, change_bytes, change_json, change_message
from tests.fuzz.gateway.parts import Part, change_part
from tests.fuzz.gateway.world import Answer, Wedged, World, fault

NODE_ID = 42
RUN_ID, HOSTILE_RUN_ID = 7, 8  # two runs, so that the gateway asks the server about each run again
SCHEMA = schema_for(60, 4)
STUDY = '{"study": {"name": "trial", "rounds": 3, "sites": 1}, "network": {"architecture": "resnet18"}}'
PULLS_AT_MOST = 12  # by the node, until the gateway has finished a task
_ASKED = [
    *("pull-messages", "get-run", "get-fab", "pull-object", "confirm-message-received"),
    *("push-messages", "push-object"),
]
_CODE = re.compile(r"[EW]_[A-Z_]{2,40}")
_RECORDS = {"Message", "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "MetricRecord", "ConfigRecord"}
_NAMES = {"num-examples", EPSILON, "head", "lines", *KEYS, *(name for table in FIGURES.values() for name in table)}


@dataclass(frozen=True)
class Material:
    """An honest task of one kind, and an honest reply to it."""

    task: Part
    reply: Part


@functools.cache
def material(kind: Kind) -> Material:
    rng = np.random.default_rng(list(KINDS).index(kind))
    came_in = first_of(SCHEMA)
    records: dict[str, Any] = {name: record_of(arrays) for name, arrays in came_in.items()}
    settings: dict[str, Any] = {"server-round": 1, "proximal-mu": 0.0, "ledger-head": "", "ledger-lines": 0}
    if kind == "query.handshake":
        records.clear()
    if kind == "evaluate.calibrate":
        records["typical"] = record_of(moments(SCHEMA, rng)["looks"])
    if kind == "evaluate.assign":
        settings["probed"] = 2
        records["probe"] = record_of({"discriminants": np.zeros(MAX_PROBED * (SCHEMA.features + 1), np.float32)})
    records["config"] = ConfigRecord(settings)
    about = {"src_node_id": 1, "dst_node_id": NODE_ID, "reply_to_message_id": "", "run_id": RUN_ID}
    case = Case.of(kind, SCHEMA, came_in, rng, 0)
    return Material(
        Part.of(message(RecordDict(records), message_type=kind, **about)),
        Part.of(message(case.content(), message_type=kind)),
    )


@functools.cache
def app() -> bytes:
    return fab.build(fab.APP)


def run_answer(run_id: int) -> run_pb2.GetRunResponse:
    config = user_config_to_proto({"study": STUDY, "run": "trial-0123abcd"})
    return run_pb2.GetRunResponse(run=run_pb2.Run(run_id=run_id, fab_hash=object_id(app()), override_config=config))


def app_answer() -> fab_pb2.GetFabResponse:
    return fab_pb2.GetFabResponse(fab=fab_pb2.Fab(hash_str=object_id(app()), content=app()))


@dataclass
class Story:
    """One task as the server sends it, with everything that the server sends with it. It is changed before `tell`."""

    world: World
    kind: Kind
    pull: fleet_pb2.PullMessagesResponse
    objects: dict[str, bytes]
    run: run_pb2.GetRunResponse
    app: fab_pb2.GetFabResponse = field(default_factory=app_answer)
    more: dict[str, Answer] = field(default_factory=dict)  # answers that replace the honest ones, by path
    pulled: bool = False

    @classmethod
    def of(cls, world: World, kind: Kind, task: Part, run_id: int = RUN_ID) -> "Story":
        tree, objects = task.compiled()
        metadata = message_pb2.Metadata(
            run_id=run_id,
            message_id=tree.object_id,
            src_node_id=1,
            dst_node_id=NODE_ID,
            group_id="1",
            created_at=world.loop.time(),
            ttl=3600.0,
            message_type=kind,
        )
        pull = fleet_pb2.PullMessagesResponse(
            messages_list=[message_pb2.Message(metadata=metadata)], message_object_trees=[tree]
        )
        return cls(world, kind, pull, objects, run_answer(run_id))

    def tell(self) -> None:
        """Make the server give these answers."""
        honest: dict[str, Answer] = {
            "activate-node": fleet_pb2.ActivateNodeResponse(node_id=NODE_ID).SerializeToString(),
            "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatResponse(success=True).SerializeToString(),
            "pull-messages": self._pull,
            "get-run": self.run.SerializeToString(),
            "get-fab": self.app.SerializeToString(),
            "pull-object": self._object,
            "push-messages": self._pushed,
            "push-object": message_pb2.PushObjectResponse(stored=True).SerializeToString(),
        }
        self.world.server.answers = honest | self.more
        self.world.server.calls.clear()

    def _pull(self, body: bytes) -> bytes:
        if self.pulled:
            return b""
        self.pulled = True
        return self.pull.SerializeToString()

    def _object(self, body: bytes) -> bytes:
        content = self.objects.get(message_pb2.PullObjectRequest.FromString(body).object_id)
        found = content is not None
        return message_pb2.PullObjectResponse(
            object_found=found, object_available=found, object_content=content or b""
        ).SerializeToString()

    @staticmethod
    def _pushed(body: bytes) -> bytes:
        request = fleet_pb2.PushMessagesRequest.FromString(body)
        ids = _ids(request.message_object_trees[0])
        return fleet_pb2.PushMessagesResponse(objects_to_push=ids, session_id="s").SerializeToString()


def _ids(tree: message_pb2.ObjectTree) -> list[str]:
    return [tree.object_id, *(id for child in tree.children for id in _ids(child))]


# --- the node ---------------------------------------------------------------------------------------------


def requests_of_a_reply(task: message_pb2.Metadata, reply: Part) -> list[tuple[str, ProtobufMessage]]:
    """Return the requests that a node sends to answer a task. `push` sets the session of each push-object."""
    tree, objects = reply.compiled()
    metadata = message_pb2.Metadata(
        run_id=task.run_id,
        message_id=tree.object_id,
        src_node_id=NODE_ID,
        dst_node_id=1,
        reply_to_message_id=task.message_id,
        created_at=task.created_at,
        ttl=60.0,
        message_type=task.message_type,
    )
    announced = fleet_pb2.PushMessagesRequest(
        node=Node(node_id=NODE_ID),
        messages_list=[message_pb2.Message(metadata=metadata)],
        message_object_trees=[tree],
        clientapp_runtime_list=[1.0],
    )
    pushed = [
        message_pb2.PushObjectRequest(
            node=Node(node_id=NODE_ID), run_id=task.run_id, object_id=id, object_content=content
        )
        for id, content in objects.items()
    ]
    return [("push-messages", announced), *(("push-object", each) for each in pushed)]


def receive(world: World) -> fleet_pb2.PullMessagesResponse:
    """Return what the node gets when it asks for a task."""
    status, body = world.run(
        world.node_asks("pull-messages", fleet_pb2.PullMessagesRequest(node=Node(node_id=NODE_ID)))
    )
    return fleet_pb2.PullMessagesResponse.FromString(body if status == 200 else b"")


def fetch(world: World, given: fleet_pb2.PullMessagesResponse) -> None:
    """Send all requests that a node sends to fetch a task."""
    task = given.messages_list[0].metadata
    node = Node(node_id=NODE_ID)
    ids = _ids(given.message_object_trees[0]) if given.message_object_trees else []
    questions: list[tuple[str, ProtobufMessage]] = [
        ("get-run", run_pb2.GetRunRequest(node=node, run_id=task.run_id)),
        ("get-fab", fab_pb2.GetFabRequest(node=node, run_id=task.run_id, hash_str=object_id(app()))),
        *(("pull-object", message_pb2.PullObjectRequest(node=node, run_id=task.run_id, object_id=id)) for id in ids),
        ("confirm-message-received", message_pb2.ConfirmMessageReceivedRequest(node=node, run_id=task.run_id)),
    ]
    for path, question in questions:
        status, body = world.run(world.node_asks(path, question))
        if path == "get-run" and status == 200:
            check_run(run_pb2.GetRunResponse.FromString(body).run, task.run_id)


def push(world: World, requests: list[tuple[str, ProtobufMessage | bytes]]) -> None:
    """Send a reply. The session that the gateway opens is set in each object's request."""
    session = ""
    for path, request in requests:
        if isinstance(request, message_pb2.PushObjectRequest):
            request.session_id = request.session_id or session
        status, body = world.run(world.node_asks(path, request))
        if path == "push-messages" and status == 200:
            session = fleet_pb2.PushMessagesResponse.FromString(body).session_id


def work(world: World, change: Callable[[list[Any]], list[Any]] = lambda requests: requests) -> bool:
    """Act as an honest node until the gateway has finished. Return whether there was a task. Raises Wedged.

    `change` is applied to the requests of the reply.
    """
    is_given = False
    for _ in range(PULLS_AT_MOST):
        given = receive(world)
        if given.messages_list:
            is_given = True
            fetch(world, given)
            task = given.messages_list[0].metadata
            reply = material(task.message_type).reply  # type: ignore[arg-type]
            push(world, change(requests_of_a_reply(task, reply)))
        if world.is_idle:
            return is_given
    raise Wedged("the gateway does not come to an end with the task")


def check_run(told: run_pb2.Run, run_id: int) -> None:
    """Check that the node is told of the approved app only: it uses the app's name as a path, and starts the app."""
    own = fab.read(app())
    assert (told.run_id, told.fab_hash, f"{told.fab_id} {told.fab_version}") == (run_id, own.sha256, own.name)
    assert not told.primary_task_type and set(told.override_config) == {"study", "run"}


# --- what must hold ---------------------------------------------------------------------------------------


def honest_round(world: World, kind: Kind) -> None:
    """The gateway accepts an honest task, and the server receives the reply. Raises AssertionError."""
    _forget_budgets(world, kind)
    story = Story.of(world, kind, material(kind).task)
    story.tell()
    assert work(world), "the node did not receive the honest task"
    sent = [body for path, body in world.server.calls if path == "push-messages"]
    assert len(sent) == 1, f"{len(sent)} answers to an honest task"
    answer = fleet_pb2.PushMessagesRequest.FromString(sent[0])
    assert not answer.messages_list[0].HasField("error"), answer.messages_list[0].error.reason
    wanted = set(_ids(answer.message_object_trees[0]))
    assert wanted == {push.object_id for push in _pushed_objects(world)}
    check_what_left(world)
    world.check()


def _pushed_objects(world: World) -> list[message_pb2.PushObjectRequest]:
    return [
        message_pb2.PushObjectRequest.FromString(body) for path, body in world.server.calls if path == "push-object"
    ]


def check_what_left(world: World) -> None:
    """Check that the gateway itself composed everything that the server received, as far as the bytes show."""
    for path, body in world.server.calls:
        assert CANARY.encode() not in body and CANARY.upper().encode() not in body, f"{path} tells what an app wrote"
        if path == "push-messages":
            for sent in fleet_pb2.PushMessagesRequest.FromString(body).messages_list:
                assert not sent.HasField("error") or _CODE.fullmatch(sent.error.reason), sent.error.reason
    for push in _pushed_objects(world):
        parsed = parse(push.object_content)
        assert parsed.kind in _RECORDS and object_id(push.object_content) == push.object_id
        if parsed.kind in ("MetricRecord", "ConfigRecord"):
            record = MetricRecord if parsed.kind == "MetricRecord" else ConfigRecord
            assert set(record.inflate(push.object_content)) <= _NAMES, "a name is in no table"


def _forget_budgets(world: World, kind: Kind) -> None:
    """Reset the limits. Each kind of task is answered a limited number of times, and questions need a model trained
    here.
    """
    world.forget_budgets(trained=kind not in ("train", "query.handshake"))


# --- scenarios --------------------------------------------------------------------------------------------


def hostile_server(world: World, content: bytes) -> None:
    """Send a task that differs from an honest one in up to three places, then an honest one. Raises AssertionError."""
    choices = Choices(content)
    kind = choices.pick(list(KINDS))
    _forget_budgets(world, kind)
    task = copy.deepcopy(material(kind).task)
    changes = [choices.below(10) for _ in range(1 + choices.below(3))]
    for _ in range(changes.count(0) + changes.count(1)):
        change_part(task, choices)
    story = Story.of(world, kind, task, HOSTILE_RUN_ID)
    for change in changes:
        _change_story(story, change, choices)
    story.tell()
    if choices.chance(4):
        for _ in range(choices.below(3)):
            receive(world)
        _end_in_the_middle(world, choices)
    work(world)
    world.check()
    honest_round(world, kind if choices.chance(4) else "query.handshake")


def _change_story(story: Story, change: int, choices: Choices) -> None:
    """Make one change of the server's answers. Changes 0 and 1 concern the message's objects and were made before."""
    if change == 2:
        change_message(story.pull.messages_list[0].metadata if story.pull.messages_list else story.pull, choices)
    elif change == 3:
        change_message(story.pull, choices)
    elif change == 4:
        changed = change_bytes(story.pull.SerializeToString(), choices)
        story.more["pull-messages"] = lambda body: b"" if story.pulled else _once(story, changed)
    elif change == 5:
        change_message(story.run, choices)
    elif change == 6:
        change_message(story.app, choices)
    elif change == 7:
        _change_object(story, choices)
    elif change == 8:
        text = change_json(STUDY.encode(), choices).decode(errors="replace")
        story.run.run.override_config["study"].string = text
    elif change == 9:
        path = choices.pick(_ASKED)
        story.more[path] = _sometimes(story, path, choices)


def _once(story: Story, content: bytes) -> bytes:
    story.pulled = True
    return content


def _change_object(story: Story, choices: Choices) -> None:
    """Change the server's answer about one object, or the content of that object."""
    id = choices.pick(sorted(story.objects))
    kind = choices.below(4)
    if kind == 0:
        del story.objects[id]
    elif kind == 1:
        story.objects[id] = change_bytes(story.objects[id], choices)
    elif kind == 2:
        story.objects[id] = bytes(choices.pick([0, 1, 64 * 1024, 64 * 1024 + 1, 2**18, 6 * 2**20]))
    else:
        answer = message_pb2.PullObjectResponse(object_found=True, object_available=False)
        change_message(answer, choices)
        story.more["pull-object"] = lambda body: (
            answer.SerializeToString() if id.encode() in body else story._object(body)
        )


def _sometimes(story: Story, path: str, choices: Choices) -> Answer:
    """Return an answer that fails from one call on, a number of times, with a fault or with damaged bytes."""
    first, count = choices.below(4), choices.pick([1, 2, 5, 10**6])
    number, is_fault = choices.byte(), choices.below(2) == 0
    damage = choices.take(12)
    calls = [0]

    def answer(body: bytes) -> bytes | Exception:
        calls[0] += 1
        honest = honest_answer(story, path, body)
        if not first < calls[0] <= first + count:
            return honest
        return fault(number) if is_fault else change_bytes(honest, Choices(damage))

    return answer


def honest_answer(story: Story, path: str, body: bytes) -> bytes:
    if path == "pull-messages":
        return story._pull(body)
    if path == "pull-object":
        return story._object(body)
    if path == "push-messages":
        return story._pushed(body)
    known = {"get-run": story.run, "get-fab": story.app, "push-object": message_pb2.PushObjectResponse(stored=True)}
    return known[path].SerializeToString() if path in known else b""


def _end_in_the_middle(world: World, choices: Choices) -> None:
    """Restart the gateway. Its spool may be damaged."""
    world.stop()
    left = world.site.folder / "gateway" / "unanswered"
    if choices.chance(2):
        before = left.read_bytes() if left.exists() else b""
        left.write_bytes(change_bytes(before, choices))
    world.start()


def hostile_app(world: World, content: bytes) -> None:
    """Send an honest task, to which the node sends anything in reply; then an honest one. Raises AssertionError."""
    choices = Choices(content)
    kind = choices.pick(list(KINDS))
    _forget_budgets(world, kind)
    Story.of(world, kind, material(kind).task, HOSTILE_RUN_ID).tell()
    given = receive(world)
    assert given.messages_list, "the node did not receive the honest task"
    task = given.messages_list[0].metadata
    reply = copy.deepcopy(material(kind).reply)
    for _ in range(choices.below(3)):
        change_part(reply, choices)
    if choices.below(4):
        fetch(world, given)
    requests: list[tuple[str, Any]] = list(requests_of_a_reply(task, reply))
    for _ in range(choices.below(3)):
        requests = _changed_requests(requests, task, choices)
    push(world, requests)
    if choices.chance(6):
        _end_in_the_middle(world, choices)
    work(world, lambda requests: [])
    check_what_left(world)
    world.check()
    honest_round(world, kind if choices.chance(4) else "query.handshake")


def _changed_requests(
    requests: list[tuple[str, Any]], task: message_pb2.Metadata, choices: Choices
) -> list[tuple[str, Any]]:
    place = choices.below(len(requests)) if requests else 0
    kind = choices.below(7)
    if kind == 0 and requests:
        path, request = requests[place]
        if isinstance(request, ProtobufMessage):
            change_message(request, choices)
    elif kind == 1 and requests:
        path, request = requests[place]
        content = request if isinstance(request, bytes) else request.SerializeToString()
        requests[place] = (path, change_bytes(content, choices))
    elif kind == 2 and requests:
        del requests[place]
    elif kind == 3 and requests:
        requests.insert(choices.below(len(requests)), requests[place])
    elif kind == 4:
        requests.insert(place, _any_request(task, choices))
    elif kind == 5:
        reason = choices.pick([CANARY, f"E_{CANARY}", f"E_{CANARY.upper()}", "E_SITE_FAILED " + CANARY, "", "\0"])
        metadata = message_pb2.Metadata(run_id=task.run_id, reply_to_message_id=task.message_id)
        failed = message_pb2.Message(metadata=metadata, error=Error(code=choices.byte(), reason=reason))
        tree = message_pb2.ObjectTree(object_id="a" * 64)
        requests.insert(
            place, ("push-messages", fleet_pb2.PushMessagesRequest(messages_list=[failed], message_object_trees=[tree]))
        )
    return requests


def _any_request(task: message_pb2.Metadata, choices: Choices) -> tuple[str, Any]:
    """Return a request to any path, changed in one place."""
    path, request = choices.pick(
        [
            ("activate-node", fleet_pb2.ActivateNodeRequest()),
            ("deactivate-node", fleet_pb2.DeactivateNodeRequest(node_id=NODE_ID)),
            ("send-node-heartbeat", heartbeat_pb2.SendNodeHeartbeatRequest(node=Node(node_id=NODE_ID))),
            ("pull-messages", fleet_pb2.PullMessagesRequest(node=Node(node_id=NODE_ID))),
            ("get-run", run_pb2.GetRunRequest(run_id=task.run_id)),
            ("get-fab", fab_pb2.GetFabRequest(run_id=task.run_id)),
            ("pull-object", message_pb2.PullObjectRequest(run_id=task.run_id, object_id=task.message_id)),
            ("confirm-message-received", message_pb2.ConfirmMessageReceivedRequest(run_id=task.run_id)),
        ]
    )
    change_message(request, choices)
    return path, request
