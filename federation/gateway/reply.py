"""Compose the messages that the gateway sends: a reply of checked values, or only the code of a failure.

They contain no text that the app wrote. The description of a message (round, run, times) is taken from the task that
it answers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from federation.flower.messages import (
    ObjectTree,
    ProtoMessage,
    make_message,
    message_to_proto,
    metadata_from_proto,
    metadata_to_proto,
)
from federation.gateway.flower_objects import Content, compose, compose_array, compose_names, object_id
from federation.ledger.chain import Head

REFUSED = 1001  # Flower requires a number; only the code in the text has a meaning


@dataclass(frozen=True)
class Outgoing:
    """A message to send. `objects`: its small objects by id; the chunks of its tree are in the spool."""

    message: ProtoMessage
    tree: ObjectTree
    objects: Mapping[str, bytes]


@dataclass(frozen=True)
class Records:
    """The composed records of a reply, by name."""

    names: Mapping[str, str]
    objects: Mapping[str, bytes]
    trees: Mapping[str, ObjectTree]

    @property
    def digest(self) -> str:
        """The SHA-256 over all records, for the ledger; the ledger's own record is added later."""
        return object_id(compose_names("RecordDict", self.names))


def compose_records(content: Content, values: Mapping[str, MetricRecord | ConfigRecord]) -> Records:
    """Compose array records with the checked names and the chunks as received, and value records; omit empty ones."""
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
    """Return the reply to a task: the records, and the head of the site's ledger after the reply's own line."""
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
    """Return the answer to a failed or refused task: only the code, no text."""
    message = Message(Error(REFUSED, code), reply_to=task)
    content = message.deflate()
    message.metadata.__dict__["_message_id"] = object_id(content)
    return Outgoing(message_to_proto(message), _tree(object_id(content)), {object_id(content): content})


def bare_message(proto: ProtoMessage) -> Message:
    """Return a task without its content, to compose an answer to it."""
    return make_message(metadata_from_proto(proto.metadata), content=RecordDict())


def _tree(root: str, children: Iterable[ObjectTree] = ()) -> ObjectTree:
    return ObjectTree(object_id=root, children=children)
