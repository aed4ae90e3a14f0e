"""Parse and compose Flower's objects: byte strings named by their SHA-256. Input is untrusted.

An object is `Type child,child length`, a zero byte, and a body of that length. A message is a tree of objects: Message,
RecordDict, its records, their arrays, and the arrays' chunks. The chunks together are too large for the memory, so this
module reads an array as a head, which names its chunks. (flwr.supercore.inflatable, flwr.app.message; version 1.42.)
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

from flwr.app import ConfigRecord, MetricRecord
from google.protobuf.message import Message as ProtobufMessage

from federation.system.digests import SHA256
from models.refusal import Reason, Refusal
from pipeline.system.json_text import parse_json

MAX_HEAD_BYTES = 64 * 1024  # of every object except a chunk
CHUNK_OVERHEAD = 64  # maximum length of a chunk's own header, in bytes
NUMPY = "numpy.ndarray"
_LENGTH_DELIMITED = 2  # protobuf's wire type for bytes

_HEAD = re.compile(rb"([A-Za-z]{1,20}) ([0-9a-f,]*) (0|[1-9][0-9]{0,9})\x00")
Names = Mapping[str, str]


@dataclass(frozen=True)
class Parsed:
    """One parsed object."""

    kind: str
    children: tuple[str, ...]
    body: bytes


@dataclass(frozen=True)
class ArrayHead:
    """An array without its data. `chunks`: the ids of its pieces in order; equal pieces share an id."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[str, ...]


ReadChunk = Callable[[str], bytes]  # returns an ArrayChunk by its id; raises KeyError or OSError if it is missing


@dataclass(frozen=True)
class Arrays:
    """Arrays by record and name, and the function that reads their chunks."""

    heads: Mapping[str, Mapping[str, ArrayHead]]
    read: ReadChunk


@dataclass(frozen=True)
class Content:
    """A message's records by name, without array data. `ids`: the ids of all objects of the message."""

    arrays: Mapping[str, Mapping[str, ArrayHead]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    ids: frozenset[str] = frozenset()

    def chunks(self) -> list[str]:
        """Return the ids of all chunks, without duplicates."""
        heads = [head for record in self.arrays.values() for head in record.values()]
        return list(dict.fromkeys(chunk for head in heads for chunk in head.chunks))


def object_id(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parse(content: bytes) -> Parsed:
    """Parse exactly one whole object. Raises ValueError for anything else."""
    found = _HEAD.match(content)
    if not found:
        raise ValueError("the object has no valid header")
    children = tuple(found[2].decode().split(",")) if found[2] else ()
    if not all(SHA256.fullmatch(child) for child in children):
        raise ValueError("the id of a child is not a SHA-256")
    if len(content) - found.end() != int(found[3]):
        raise ValueError("the body has another length than its header states")
    return Parsed(found[1].decode(), children, content[found.end() :])


def compose(kind: str, children: Sequence[str], body: bytes) -> bytes:
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


def compose_names(kind: str, names: Names) -> bytes:
    """Compose a RecordDict or an ArrayRecord, which maps names to children."""
    return compose(kind, list(dict.fromkeys(names.values())), json.dumps(dict(names)).encode())


def compose_array(head: ArrayHead) -> bytes:
    unique = list(dict.fromkeys(head.chunks))
    place = {chunk: number for number, chunk in enumerate(unique)}
    body = {
        "dtype": head.dtype,
        "shape": head.shape,
        "stype": NUMPY,
        "arraychunk_ids": [place[chunk] for chunk in head.chunks],
    }
    return compose("Array", unique, json.dumps(body).encode())


def chunk_body(content: bytes) -> memoryview:
    """Return the data of an ArrayChunk whose header is exactly what Flower writes. Raises ValueError otherwise."""
    divider = content.find(b"\x00", 0, CHUNK_OVERHEAD)
    body = memoryview(content)[divider + 1 :]
    if content[: divider + 1] != f"ArrayChunk  {len(body)}".encode() + b"\x00":
        raise ValueError("not the chunk of an array")
    return body


def with_content(message: ProtobufMessage, content: bytes) -> BytesIO:
    """Serialise the message with `content` in its field `object_content`, copying `content` once.

    Protobuf itself would hold a large content four times. A field may come last whatever its number is
    (protobuf.dev, Encoding, "Field Order").
    """
    field = message.DESCRIPTOR.fields_by_name["object_content"]
    body = BytesIO()
    for part in (message.SerializeToString(), _varint(field.number << 3 | _LENGTH_DELIMITED), _varint(len(content))):
        body.write(part)
    body.write(content)
    body.seek(0)
    return body


def _varint(number: int) -> bytes:
    """Encode a number as a protobuf varint: seven bits per byte, the lowest first."""
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def read_content(root: str, objects: Mapping[str, bytes], damaged: Reason) -> Content:
    """Return the records of the message `root`. `objects`: all its objects except the chunks, by id.

    Raises Refusal with the reason `damaged` for anything that is not a message with content.
    """
    try:
        return _read_content(root, objects)
    except Exception as error:  # whatever a parser raises on hostile bytes, they are not a message
        raise Refusal(damaged, private=f"{type(error).__name__}: {error}") from error


def _read_content(root: str, objects: Mapping[str, bytes]) -> Content:
    message = parse(objects[root])
    if message.kind != "Message" or len(message.children) != 1:
        raise ValueError("not a message with content")
    arrays: dict[str, Mapping[str, ArrayHead]] = {}
    metrics: dict[str, Mapping[str, Any]] = {}
    configs: dict[str, Mapping[str, Any]] = {}
    ids = {root, message.children[0]}
    for name, record in _read_names(objects[message.children[0]], "RecordDict").items():
        content = objects[record]
        kind = parse(content).kind
        ids.add(record)
        if kind == "ArrayRecord":
            heads = _read_names(content, kind)
            arrays[name] = {key: _read_array(objects[id]) for key, id in heads.items()}
            ids.update(heads.values(), *(head.chunks for head in arrays[name].values()))
        elif kind == "MetricRecord":
            metrics[name] = _read_values(content, kind)
        elif kind == "ConfigRecord":
            configs[name] = _read_values(content, kind)
        else:
            raise ValueError("a child is not a record")
    return Content(arrays, metrics, configs, frozenset(ids))


def _read_names(content: bytes, kind: str) -> dict[str, str]:
    parsed = parse(content)
    names = parse_json(parsed.body)
    if parsed.kind != kind or not isinstance(names, dict) or set(names.values()) != set(parsed.children):
        raise ValueError(f"not a valid {kind}")
    return names


def _read_array(content: bytes) -> ArrayHead:
    parsed = parse(content)
    body = parse_json(parsed.body)
    if parsed.kind != "Array" or set(body) != {"dtype", "shape", "stype", "arraychunk_ids"} or body["stype"] != NUMPY:
        raise ValueError("not a numpy array")
    places = body["arraychunk_ids"]
    if any(type(number) is not int or number < 0 for number in [*body["shape"], *places]):
        raise ValueError("a shape or index is not a valid number")
    if set(places) != set(range(len(parsed.children))):
        raise ValueError("the chunks do not match the array")
    return ArrayHead(body["dtype"], tuple(body["shape"]), tuple(parsed.children[place] for place in places))


def _read_values(content: bytes, kind: str) -> dict[str, Any]:
    record: type[ConfigRecord] | type[MetricRecord] = MetricRecord if kind == "MetricRecord" else ConfigRecord
    if parse(content).children:
        raise ValueError("a record of values has children")
    return dict(record.inflate(content))
