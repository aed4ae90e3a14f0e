"""Change one chosen place: of a protobuf message (by its descriptors), of JSON, or of bytes."""

import json
import math
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.fuzz.gateway.choices import Choices

# Represents data that may not leave a hospital. Every text that a mutation inserts contains it.
CANARY = "SMITHxJOHN"

_INTEGERS = [0, 1, -1, 2, 7, 42, 127, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]
_DOUBLES = [0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 1e-300, 3600.0]
_TEXTS = [
    CANARY,
    "",
    ".",
    f"train.{CANARY}",
    "train.",
    f"\0{CANARY}",
    f"{CANARY}\n\x1b[2J",
    "../../" + CANARY,
    "é\u202e" + CANARY,
    CANARY * 30,
    CANARY * 3000,
    "a" * 64,
    "A" * 64,
    "0" * 63,
    "train",
    "train.head",
    "evaluate.test",
    "evaluate.assign",
    "query.handshake",
    "system",
    "NaN",
]
_JSON = [
    *(None, True, False, 0, -1, 1.5, 2**31, 2**64, 10**400, math.nan, math.inf, "", CANARY, "0", "float32", "object"),
    *([], {}, [[]], [0], [-1], {"": 0}, {CANARY: CANARY}),
]
_MAX_PLACES = 400
_MAX_DEPTH = 8


def change_bytes(content: bytes, choices: Choices) -> bytes:
    """Return the content with one place changed."""
    place = choices.below(len(content) + 1)
    before, after = content[:place], content[place:]
    changed = (
        lambda: before + bytes(byte ^ (choices.byte() or 1) for byte in after[:1]) + after[1:],
        lambda: before + choices.take(1 + choices.below(8)) + after,
        lambda: before,
        lambda: before + after[1 + choices.below(16) :],
        lambda: content + content,
        lambda: before + b"\xff" * (1 + choices.below(12)) + b"\x01" + after,  # a huge number: a length, or a value
        lambda: choices.take(choices.below(40)),
    )
    return choices.pick(changed)()


def change_json(content: bytes, choices: Choices) -> bytes:
    """Return the JSON text with one value or one name changed. Content that is not JSON is changed as bytes."""
    try:
        value = json.loads(content)
    except ValueError:
        return change_bytes(content, choices)
    if choices.chance(12):
        return b"[" * 20_000
    if choices.chance(12):
        return content.replace(b"{", b'{"' + CANARY.encode() + b'":0,', 1)
    return json.dumps(_changed(value, choices)).encode()


def _changed(value: Any, choices: Choices, depth: int = 0) -> Any:
    is_whole = depth == _MAX_DEPTH or not value or choices.chance(5)
    if isinstance(value, dict) and not is_whole:
        name = choices.pick(list(value))
        changed = (
            lambda: {key: each for key, each in value.items() if key != name},
            lambda: {choices.pick(_TEXTS) if key == name else key: each for key, each in value.items()},
            lambda: {**value, choices.pick(_TEXTS): value[name]},
            lambda: {**value, name: _changed(value[name], choices, depth + 1)},
        )
        return choices.pick(changed)()
    if isinstance(value, list) and not is_whole:
        place = choices.below(len(value))
        before, after = value[:place], value[place + 1 :]
        altered = (
            lambda: before + after,
            lambda: value * choices.pick([2, 3, 1000]),
            lambda: [*before, _changed(value[place], choices, depth + 1), *after],
        )
        return choices.pick(altered)()
    return choices.pick(_JSON)


def change_message(message: Message, choices: Choices) -> None:
    """Change one field of a protobuf message or of a message inside it."""
    places = _places(message)
    if not places or choices.chance(20):
        message.MergeFromString(b"\xfa\x3e\x0a" + CANARY.encode())  # field 1007, which no message has
        return
    owner, field = choices.pick(places)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _change_map(owner, field, choices)
    elif field.is_repeated:
        _change_list(owner, field, choices)
    elif field.message_type is not None:
        if owner.HasField(field.name) and choices.below(2) == 0:
            owner.ClearField(field.name)
        else:
            getattr(owner, field.name).SetInParent()
    else:
        setattr(owner, field.name, _value(field, choices))


def _places(message: Message) -> list[tuple[Message, FieldDescriptor]]:
    """Return each field of the message and of those inside it, set or not, up to a limit."""
    found: list[tuple[Message, FieldDescriptor]] = []
    level = [message]
    for _ in range(_MAX_DEPTH):
        inner: list[Message] = []
        for each in level:
            for field in each.DESCRIPTOR.fields:
                found.append((each, field))
                inner += _messages(each, field)
        level = inner[:_MAX_PLACES]
        if len(found) > _MAX_PLACES:
            break
    return found[:_MAX_PLACES]


def _messages(owner: Message, field: FieldDescriptor) -> list[Message]:
    if field.message_type is None or field.message_type.GetOptions().map_entry:
        return []
    if field.is_repeated:
        return list(getattr(owner, field.name))
    return [getattr(owner, field.name)] if owner.HasField(field.name) else []


def _change_list(owner: Message, field: FieldDescriptor, choices: Choices) -> None:
    values, kind = getattr(owner, field.name), choices.below(4)
    if kind == 0 and values:
        del values[choices.below(len(values))]
    elif kind == 1 and values:
        values.extend(list(values) * choices.pick([1, 3, 50]))
    elif field.message_type is not None:
        if kind == 2 and values:
            values.append(values[choices.below(len(values))])
        else:
            change_message(values.add(), choices)
    elif values and kind == 2:
        values[choices.below(len(values))] = _value(field, choices)
    else:
        values.append(_value(field, choices))


def _change_map(owner: Message, field: FieldDescriptor, choices: Choices) -> None:
    entries = getattr(owner, field.name)
    fields = field.message_type.fields_by_name
    keys = list(entries)
    key = choices.pick(keys) if keys and choices.below(3) else _value(fields["key"], choices)
    if choices.chance(4) and key in entries:
        del entries[key]
    elif fields["value"].message_type is not None:
        change_message(entries[key], choices)
    else:
        entries[key] = _value(fields["value"], choices)


def _value(field: FieldDescriptor, choices: Choices) -> Any:
    """Return an extreme value of the field's type."""
    kind = field.cpp_type
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return choices.pick(_DOUBLES)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return bool(choices.below(2))
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = choices.pick(_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return choices.pick([0, 1, 2, 2**31 - 1])
    number = choices.pick(_INTEGERS)
    bits = 64 if kind in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64) else 32
    is_unsigned = kind in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_UINT32)
    number &= 2**bits - 1
    return number if is_unsigned or number < 2 ** (bits - 1) else number - 2**bits
