"""Nothing leaves but what is named: ten thousand replies, in order and spoilt in every way that came to mind."""

from collections import Counter

import flwr.app.message.array as flower_array
import numpy as np
import pytest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from federation.gateway import schema as gateway_schema
from federation.gateway.objects import object_id, read_content
from federation.gateway.outbound import check_reply
from federation.gateway.reply import compose_records, compose_reply
from federation.ledger.chain import Head
from federation.reasons import REPLY_DAMAGED
from federation.rounds.packing import WEIGHTS
from models.refusal import Refusal
from tests.federation.gateway.messages import ANY, BUFFERS, TRAIN, Case, message, spoils_for

MESSAGES = 10_000
# As Flower cuts arrays, but so small that these arrays have several chunks too; some share a value between two.
CHUNKS = (5 * 2**20, 192, 150, 131)


def judge(case: Case) -> dict[str, float]:
    root, objects = case.objects()
    content = read_content(root, objects, REPLY_DAMAGED)
    return check_reply(content, objects.__getitem__, case.rules())


def refused_for(case: Case) -> str:
    """The code for which it is refused; "" if it passes."""
    try:
        judge(case)
    except Refusal as refusal:
        return refusal.code
    return ""


@pytest.fixture
def cut_into(monkeypatch: pytest.MonkeyPatch) -> object:
    def set_size(size: int) -> None:
        monkeypatch.setattr(flower_array, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", size)
        monkeypatch.setattr(gateway_schema, "CHUNK_BYTES", size)

    return set_size


def test_ten_thousand_replies(cut_into: object) -> None:
    """None that is in order is refused, none that is spoilt passes."""
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    for seed in range(MESSAGES):
        cut_into(CHUNKS[seed % len(CHUNKS)])  # type: ignore[operator]
        case = Case.random(seed)
        name = ""
        if case.rng.random() < 0.5:
            spoils = spoils_for(case)
            name = str(case.rng.choice(list(spoils)))
            spoils[name](case)
        seen[name] += 1
        code = refused_for(case)
        if bool(code) != bool(name):
            wrong.append(f"{seed}: {name or 'in order'}: {code or 'passed'}")
    assert not wrong, wrong[:20]
    assert set(seen) == {"", *ANY, *TRAIN, *BUFFERS}
    assert min(seen.values()) > 20


@pytest.mark.parametrize("size", CHUNKS)
def test_what_passes_arrives_to_the_bit_with_the_ledgers_head(cut_into: object, size: int) -> None:
    cut_into(size)  # type: ignore[operator]
    case = next(case for seed in range(100) if (case := Case.random(seed)).out and case.schema.buffers)
    root, objects = case.objects()
    content = read_content(root, objects, REPLY_DAMAGED)
    figures = check_reply(content, objects.__getitem__, case.rules())
    task = message(case.content(), reply_to_message_id="", group_id="3", src_node_id=1, dst_node_id=42)
    records = compose_records(content, figures)
    outgoing = compose_reply(task, records, Head(5, "b" * 64))

    sent = {id: outgoing.objects.get(id) or objects[id] for id in _ids(outgoing.tree)}
    assert all(object_id(part) == id for id, part in sent.items())
    arrived = inflate_object_from_contents(outgoing.tree.object_id, dict(sent))
    assert arrived.object_id == outgoing.tree.object_id == outgoing.message.metadata.message_id
    assert {name: dict(record) for name, record in arrived.content.metric_records.items()} == {"metrics": figures}  # type: ignore[attr-defined]
    assert dict(arrived.content.config_records["ledger"]) == {"head": "b" * 64, "lines": 5}  # type: ignore[attr-defined]
    for record, arrays in case.out.items():
        for name, array in arrays.items():
            assert arrived.content.array_records[record][name].numpy().tobytes() == array.tobytes()  # type: ignore[attr-defined]
    metadata = arrived.metadata  # type: ignore[attr-defined]
    assert (metadata.src_node_id, metadata.dst_node_id, metadata.group_id) == (42, 1, "3")
    assert metadata.reply_to_message_id == task.metadata.message_id
    assert records.digest not in sent  # the ledger's line tells of the records without the ledger's own


def _ids(tree: object) -> list[str]:
    return [node.object_id for node in iterate_object_tree(tree)]  # type: ignore[arg-type]


def _train_case() -> Case:
    return next(case for seed in range(100) if (case := Case.random(seed)).out and case.schema.buffers)


def _refuses(root: str, objects: dict[str, bytes], case: Case) -> str:
    with pytest.raises(Refusal) as refused:
        check_reply(read_content(root, objects, REPLY_DAMAGED), objects.__getitem__, case.rules())
    return refused.value.code


def _head(objects: dict[str, bytes], kind: str) -> str:
    return next(id for id, content in objects.items() if content.startswith(f"{kind} ".encode()))


@pytest.mark.parametrize("kind", ["Message", "RecordDict", "ArrayRecord", "Array", "MetricRecord", "ArrayChunk"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content + b" ",
        lambda content: b"\xff" * len(content),
        lambda content: b"ConfigRecord  0\x00",
        lambda content: content.replace(b"\x00", b"", 1),
        lambda content: b"A" * 40 + content,
        lambda content: b"RecordDict  2\x00{}",
        lambda content: b"RecordDict  2\x00[]",
        lambda content: b"Array  2\x00{}",
        lambda content: b"Array " + b"a" * 64 + b" 4\x00null",
    ],
)
def test_damaged_objects_are_refused(kind: str, damage: object) -> None:
    case = _train_case()
    root, objects = case.objects()
    id = _head(objects, kind)
    objects[id] = damage(objects[id])  # type: ignore[operator]
    assert _refuses(root, objects, case).startswith("E_REPLY_")


@pytest.mark.parametrize("kind", ["RecordDict", "ArrayRecord", "Array", "MetricRecord", "ArrayChunk"])
def test_missing_objects_are_refused(kind: str) -> None:
    case = _train_case()
    root, objects = case.objects()
    del objects[_head(objects, kind)]
    assert _refuses(root, objects, case) == "E_REPLY_DAMAGED"


def test_a_message_within_a_message_is_refused() -> None:
    from federation.gateway.objects import compose, compose_names

    case = _train_case()
    root, objects = case.objects()
    inner = _head(objects, "RecordDict")
    outer = compose_names("RecordDict", {"metrics": inner})
    body = objects[root].partition(b"\x00")[2]
    wrapped = compose("Message", [object_id(outer)], body)
    objects |= {object_id(outer): outer, object_id(wrapped): wrapped}
    assert _refuses(object_id(wrapped), objects, case) == "E_REPLY_DAMAGED"


def test_a_large_model_needs_little_memory_to_be_judged() -> None:
    """Values are looked at some at a time, whatever the chunks are."""
    from flwr.app import RecordDict

    from federation.gateway.outbound import _PIECE, pieces
    from federation.gateway.schema import ArraySpec
    from tests.federation.gateway.messages import objects_of, record_of

    array = np.arange(3_000_000, dtype=np.float32)
    reply = message(RecordDict({"arrays": record_of({WEIGHTS: array})}))
    objects = objects_of(reply)
    head = read_content(reply.object_id, objects, REPLY_DAMAGED).arrays["arrays"][WEIGHTS]
    parts = list(pieces(head, ArraySpec("float32", array.size), objects.__getitem__))
    assert max(map(len, parts)) <= _PIECE
    assert np.array_equal(np.concatenate(parts), array)
