"""A Flower message as a tree of objects. Any object can be changed; the hashes above it are then computed again.

So the gateway accepts the hashes of a changed message.
"""

import copy
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.proto import message_pb2, recorddict_pb2
from flwr.proto.message_pb2 import ObjectTree
from google.protobuf.message import DecodeError

from federation.gateway.flower_objects import compose, object_id, parse
from tests.federation.gateway.messages import objects_of
from tests.fuzz.gateway.choices import Choices
from tests.fuzz.gateway.mutations import change_bytes, change_json, change_message

_PROTOBUF = {
    "Message": message_pb2.Message,
    "ConfigRecord": recorddict_pb2.ConfigRecord,
    "MetricRecord": recorddict_pb2.MetricRecord,
}
_KINDS = [*_PROTOBUF, "RecordDict", "ArrayRecord", "Array", "ArrayChunk", "", "X" * 21]


@dataclass
class Part:
    """One object. `id`: the id of the unchanged object, which a parent's body may contain.

    `content`: replaces the composed content.
    """

    kind: str
    body: bytes
    id: str
    children: list["Part"] = field(default_factory=list)
    content: bytes | None = None

    @classmethod
    def of(cls, message: Message) -> "Part":
        return _read(message.object_id, objects_of(message))

    def all(self) -> list["Part"]:
        """Return this object and all objects below it."""
        return [self, *(part for child in self.children for part in child.all())]

    def compiled(self) -> tuple[ObjectTree, dict[str, bytes]]:
        """Return the tree of the objects' ids, and the objects."""
        objects: dict[str, bytes] = {}
        return _compile(self, objects), objects


def _read(id: str, objects: dict[str, bytes]) -> Part:
    parsed = parse(objects[id])
    return Part(parsed.kind, parsed.body, id, [_read(child, objects) for child in parsed.children])


def _compile(part: Part, objects: dict[str, bytes]) -> ObjectTree:
    trees = [_compile(child, objects) for child in part.children]
    body = part.body
    for child, tree in zip(part.children, trees, strict=True):
        body = body.replace(child.id.encode(), tree.object_id.encode())
    content = part.content
    if content is None:
        content = compose(part.kind, [tree.object_id for tree in trees], body)
    id = object_id(content)
    objects[id] = content
    return ObjectTree(object_id=id, children=trees)


def change_part(root: Part, choices: Choices) -> None:
    """Change the root or one object below it."""
    part = choices.pick(root.all())
    kind = choices.below(8)
    if kind == 0:
        part.kind = choices.pick(_KINDS)
    elif kind == 1 and part.children:
        del part.children[choices.below(len(part.children))]
    elif kind == 2:
        part.children.append(copy.deepcopy(choices.pick(root.all())))
    elif kind == 3 and part.children:
        place = choices.below(len(part.children))
        part.children[place] = copy.deepcopy(choices.pick(root.all()))
    elif kind == 4:
        tree, objects = part.compiled()
        part.content = change_bytes(objects[tree.object_id], choices)
    elif kind == 5:
        part.body = change_bytes(part.body, choices)
    else:
        part.body = _changed_body(part, choices)


def _changed_body(part: Part, choices: Choices) -> bytes:
    if part.kind not in _PROTOBUF:
        return change_json(part.body, choices)
    message = _PROTOBUF[part.kind]()
    try:
        message.ParseFromString(part.body)
    except DecodeError:
        return change_bytes(part.body, choices)
    change_message(message, choices)
    return message.SerializeToString()
