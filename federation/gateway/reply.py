"""The messages that the gateway itself sends: a reply composed from what was checked, or a failure's code alone.

Nothing that the app wrote as text goes into them. What describes the message (round, run, times) is taken from the task
that is answered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.common.serde_utils import metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree

from federation.gateway.flower_objects import Content, compose, compose_array, compose_names, object_id
from federation.ledger.chain import Head

REFUSED = 1001  # Flower wants a number; the code in the text is what counts


@dataclass(frozen=True)
class Outgoing:
    """A message as it is sent: `objects` are its small ones by id; the chunks in its tree lie in the spool."""

    message: ProtoMessage
    tree: ObjectTree
    objects: Mapping[str, bytes]


@dataclass(frozen=True)
class Records:
    """The records of a reply, composed, by their names."""

    names: Mapping[str, str]
    objects: Mapping[str, bytes]
    trees: Mapping[str, ObjectTree]

    @property
    def digest(self) -> str:
        """The SHA-256 of all that the records hold, for the ledger (whose head is not yet among them)."""
        return object_id(compose_names("RecordDict", self.names))


def compose_records(content: Content, values: Mapping[str, MetricRecord | ConfigRecord]) -> Records:
    """Arrays as they came, under the names that were checked, and records of values; no record without arrays."""
    objects: dict[str, bytes] = {}
    trees: dict[str, ObjectTree] = {}

    def add(content: bytes, children: Iterable[ObjectTree] = ()) -> ObjectTree:
        tree = _tree(object_id(content), children)
        objects[tree.object_id] = content
        return tree

    filled = {record: heads for record, heads in content.arrays.items() if heads}
    for record, heads in sorted(filled.items()):
        arrays = {
            name: add(compose_array(head), [_tree(chunk) for chunk in dict.fromkeys(head.chunks)])
            for name, head in sorted(heads.items())
        }
        ids = {name: tree.object_id for name, tree in arrays.items()}
        unique = {tree.object_id: tree for tree in arrays.values()}
        trees[record] = add(compose_names("ArrayRecord", ids), unique.values())
    trees |= {name: add(record.deflate()) for name, record in values.items()}
    names = {record: tree.object_id for record, tree in trees.items()}
    return Records(names, objects, trees)


def compose_reply(task: Message, records: Records, head: Head) -> Outgoing:
    """The reply to a task: the records, and how far the site's ledger had come with it."""
    ledger = ConfigRecord({"head": head.sha256, "lines": head.lines}).deflate()
    trees = {**records.trees, "ledger": _tree(object_id(ledger))}
    record_dict = compose_names("RecordDict", {name: tree.object_id for name, tree in trees.items()})
    message = Message(RecordDict(), reply_to=task)
    body = ProtoMessage(metadata=metadata_to_proto(message.metadata)).SerializeToString(deterministic=True)
    root = compose("Message", [object_id(record_dict)], body)
    unique = {tree.object_id: tree for tree in trees.values()}
    tree = _tree(object_id(root), [_tree(object_id(record_dict), unique.values())])
    message.metadata.__dict__["_message_id"] = tree.object_id
    objects = {object_id(content): content for content in (*records.objects.values(), ledger, record_dict, root)}
    return Outgoing(message_to_proto(message), tree, objects)


def compose_failure(task: Message, code: str) -> Outgoing:
    """The answer to a task that failed or was refused: the code, and no text."""
    message = Message(Error(REFUSED, code), reply_to=task)
    content = message.deflate()
    message.metadata.__dict__["_message_id"] = object_id(content)
    return Outgoing(message_to_proto(message), _tree(object_id(content)), {object_id(content): content})


def bare_message(proto: ProtoMessage) -> Message:
    """A task without its content, to be answered."""
    return make_message(metadata_from_proto(proto.metadata), content=RecordDict())


def _tree(root: str, children: Iterable[ObjectTree] = ()) -> ObjectTree:
    return ObjectTree(object_id=root, children=children)
