"""Only allowed content leaves the site: checks of 10,000 replies, some valid, the others with one fault each."""

from collections import Counter
from dataclasses import replace

import flwr.app.message.array as flower_array
import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from federation.gateway import schema as gateway_schema
from federation.gateway.flower_objects import Arrays, object_id, read_content
from federation.gateway.reasons import REPLY_DAMAGED
from federation.gateway.reply import compose_records, compose_reply
from federation.gateway.reply_checks import Values, check_reply
from federation.ledger.chain import Head
from federation.protocol.flat_weights import WEIGHTS
from federation.protocol.metric_allowlist import EXAMPLES_OF, Kind
from models.refusal import Refusal
from pipeline.training.privacy_budget import PrivateRound
from tests.federation.gateway.messages import (
    ABOUT,
    ALL,
    COUNTER,
    KINDS,
    PATIENTS,
    Case,
    message,
    objects_of,
    record_of,
    spoils_for,
    task,
)

MESSAGES = 10_000
# Flower's chunk size and smaller ones, so that small arrays have several chunks. Some sizes split a value in two.
CHUNKS = (5 * 2**20, 192, 150, 131)


def judge(case: Case) -> Values:
    root, objects = case.objects()
    content = read_content(root, objects, REPLY_DAMAGED)
    return check_reply(content, objects.__getitem__, case.rules())


def refused_for(case: Case) -> str:
    """The error code with which the reply is refused, or "" if it passes."""
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


@pytest.mark.slow
def test_valid_replies_pass_and_spoilt_replies_are_refused(cut_into: object) -> None:
    """No valid reply of 10,000 is refused. No spoilt reply passes."""
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
    assert set(seen) == {"", *ALL}
    assert min(seen.values()) > 3


def _case(kind: Kind) -> Case:
    """A valid reply of this kind, for a model with buffers."""
    seed = next(seed for seed in range(100) if task(seed)[0].buffers and task(seed)[0].head_from)
    return Case.of(kind, *task(seed), np.random.default_rng(seed), seed)


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("kind", KINDS)
def test_accepted_reply_arrives_bit_identical_with_the_ledger_head(cut_into: object, size: int, kind: Kind) -> None:
    cut_into(size)  # type: ignore[operator]
    case = _case(kind)
    root, objects = case.objects()
    content = read_content(root, objects, REPLY_DAMAGED)
    values = check_reply(content, objects.__getitem__, case.rules())
    asked = message(case.content(), reply_to_message_id="", group_id="3", src_node_id=1, dst_node_id=42)
    records = compose_records(content, values)
    outgoing = compose_reply(asked, records, Head(5, "b" * 64))

    sent = {id: outgoing.objects.get(id) or objects[id] for id in _ids(outgoing.tree)}
    assert all(object_id(part) == id for id, part in sent.items())
    arrived = inflate_object_from_contents(outgoing.tree.object_id, dict(sent))
    assert arrived.object_id == outgoing.tree.object_id == outgoing.message.metadata.message_id
    told = {name: dict(record) for name, record in arrived.content.items() if name not in case.out}  # type: ignore[attr-defined]
    about = {"site": ABOUT} if kind == "query.handshake" else {"metrics": case.metrics}
    assert told == {"ledger": {"head": "b" * 64, "lines": 5}, **about}
    assert set(arrived.content) == {*case.out, *told}  # type: ignore[attr-defined]
    for record, arrays in case.out.items():
        for name, array in arrays.items():
            assert arrived.content.array_records[record][name].numpy().tobytes() == array.tobytes()  # type: ignore[attr-defined]
    metadata = arrived.metadata  # type: ignore[attr-defined]
    assert (metadata.src_node_id, metadata.dst_node_id, metadata.group_id) == (42, 1, "3")
    assert metadata.reply_to_message_id == asked.metadata.message_id
    assert records.digest not in sent  # the ledger line holds the digest of the records without the ledger record


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_reply_of_another_kind_is_refused(kind: Kind, other: Kind) -> None:
    case = _case(kind)
    case.metrics = {name: value for name, value in case.metrics.items() if name == "num-examples"}
    rules = replace(case.rules(), kind=other)
    same = {
        "evaluate.calibrate": {"evaluate.test", "evaluate.assign"},  # without metrics all three are identical
        "evaluate.test": {"evaluate.calibrate", "evaluate.assign"},
        "evaluate.assign": {"evaluate.calibrate", "evaluate.test"},
    }
    case.metrics |= {"num-examples": PATIENTS.of_split.get(EXAMPLES_OF.get(other, ""), 0)} if case.metrics else {}
    root, objects = case.objects()
    content = read_content(root, objects, REPLY_DAMAGED)
    if kind == other or other in same.get(kind, ()):
        check_reply(content, objects.__getitem__, rules)
        return
    with pytest.raises(Refusal) as refused:
        check_reply(content, objects.__getitem__, rules)
    assert refused.value.code in ("E_REPLY_RECORDS", "E_REPLY_HEAD", "E_REPLY_COUNTER")


CODES = {
    ("evaluate.embed", "no moments"): "E_REPLY_RECORDS",
    ("evaluate.embed", "a mean missing"): "E_REPLY_KEYS",
    ("evaluate.embed", "an embedding besides"): "E_REPLY_KEYS",
    ("evaluate.embed", "a negative variance of features"): "E_REPLY_VARIANCE",
    ("evaluate.embed", "NaN among the features"): "E_REPLY_NOT_FINITE",
    ("evaluate.embed", "no looks"): "E_REPLY_RECORDS",
    ("evaluate.embed", "a negative variance of looks"): "E_REPLY_VARIANCE",
    ("evaluate.embed", "NaN among the looks"): "E_REPLY_NOT_FINITE",
    ("evaluate.embed", "looks of each patient"): "E_REPLY_SHAPE",
    ("evaluate.embed", "infinity among the features"): "E_REPLY_NOT_FINITE",
    ("evaluate.embed", "one feature more"): "E_REPLY_SHAPE",
    ("evaluate.embed", "wider features"): "E_REPLY_SHAPE",
    ("evaluate.embed", "features of each patient"): "E_REPLY_SHAPE",
    ("evaluate.embed", "moments of few patients"): "E_REPLY_EXAMPLES",
    ("evaluate.embed", "NaN as a figure"): "E_REPLY_METRICS",
    ("train.head", "another weight than the head's"): "E_REPLY_HEAD",
    ("train", "a counter one step behind"): "E_REPLY_COUNTER",
    ("train", "a mean that no layer makes"): "E_REPLY_BUFFERS",
    ("train", "a variance that no layer makes"): "E_REPLY_BUFFERS",
    ("train", "a variance that fell too far"): "E_REPLY_BUFFERS",
    ("train", "an identifier as a mean"): "E_REPLY_BUFFERS",
    ("evaluate.embed", "digits beyond those of a mean"): "E_REPLY_DIGITS",
    ("evaluate.embed", "digits beyond those of a variance"): "E_REPLY_DIGITS",
    ("evaluate.embed", "a mean beyond its range"): "E_REPLY_DIGITS",
    ("evaluate.embed", "a variance next to nothing"): "E_REPLY_DIGITS",
    ("evaluate.embed", "a zero with a sign"): "E_REPLY_DIGITS",
    ("query.handshake", "an identifier as a hash"): "E_HANDSHAKE",
    ("query.handshake", "another golden volume"): "E_HANDSHAKE",
    ("evaluate.test", "a prevalence that is none"): "E_REPLY_METRICS",
    ("evaluate.test", "an interval of no figure"): "E_REPLY_METRICS",
    ("evaluate.test", "half an interval"): "E_REPLY_METRICS",
    ("evaluate.test", "fewer examples than patients"): "E_REPLY_EXAMPLES",
    ("train.head", "a buffer that moved"): "E_REPLY_HEAD",
    ("train.head", "a counter that went on"): "E_REPLY_HEAD",
    ("train.head", "NaN"): "E_REPLY_NOT_FINITE",
    ("train.head", "a step too far"): "E_REPLY_UPDATE",
    ("query.handshake", "another version"): "E_HANDSHAKE",
    ("query.handshake", "the band of other sites"): "E_HANDSHAKE",
    ("query.handshake", "the band of a site with fewer"): "E_HANDSHAKE",
    ("query.handshake", "a hash in capitals"): "E_HANDSHAKE",
    ("query.handshake", "a key more"): "E_HANDSHAKE",
    ("query.handshake", "no answer"): "E_REPLY_RECORDS",
    ("query.handshake", "figures besides"): "E_REPLY_RECORDS",
    ("evaluate.assign", "a site that cannot be"): "E_REPLY_METRICS",
    ("evaluate.assign", "more than all patients"): "E_REPLY_METRICS",
    ("evaluate.test", "a subgroup of few patients"): "E_REPLY_PATIENTS",
    ("evaluate.test", "a histogram against the policy"): "E_REPLY_METRICS",
    ("evaluate.calibrate", "what the site is, unasked"): "E_REPLY_RECORDS",
    ("evaluate.calibrate", "a distance against the policy"): "E_REPLY_METRICS",
    ("evaluate.calibrate", "a variance that no fit has"): "E_REPLY_METRICS",
}


@pytest.mark.parametrize(("kind", "spoil"), CODES, ids=str)
def test_each_fault_has_its_error_code(kind: Kind, spoil: str) -> None:
    case = _case(kind)
    assert refused_for(case) == ""
    spoils_for(case)[spoil](case)
    assert refused_for(case) == CODES[kind, spoil]


def test_changed_sign_of_a_zero_weight_is_refused() -> None:
    """A numeric comparison does not find it, and each zero weight could carry one bit a round."""
    case = _case("train.head")
    weights = case.weights.copy()
    weights[0], case.weights[0] = 0.0, -0.0
    came = message(
        RecordDict({**{n: record_of(a) for n, a in case.came_in.items()}, "arrays": record_of({WEIGHTS: weights})})
    )
    objects = objects_of(came)
    heads = read_content(came.object_id, objects, REPLY_DAMAGED).arrays
    root, reply = case.objects()
    rules = replace(case.rules(), came_in=Arrays(heads, objects.__getitem__))
    with pytest.raises(Refusal) as refused:
        check_reply(read_content(root, reply, REPLY_DAMAGED), reply.__getitem__, rules)
    assert refused.value.code == "E_REPLY_HEAD"


def test_batch_counter_must_increase_by_the_steps_of_the_round() -> None:
    case = _case("train")
    case.schema = replace(case.schema, local_steps=500)
    for steps in (499, 500, 501, 0):
        case.out["buffers"][COUNTER] = case.came_in["buffers"][COUNTER] + steps
        assert refused_for(case) == ("" if steps == 500 else "E_REPLY_COUNTER")


@pytest.mark.parametrize(
    ("kind", "name", "is_told"),
    [
        ("train", "train_loss", False),
        ("train", "auroc_severe", True),
        ("evaluate.test", "auroc_severe", True),
        ("evaluate.test", "auroc_severe_age_sex", False),  # fitted to the training patients
        ("evaluate.test", "auroc_severe_tags", False),  # computed from all patients
        ("evaluate.calibrate", "slope_severe", True),
    ],
)
def test_private_study_sends_no_metrics_of_training_patients(kind: Kind, name: str, is_told: bool) -> None:
    case = _case(kind)
    case.metrics = {name: 0.5, "num-examples": case.metrics["num-examples"]}
    assert refused_for(case) == ""
    case.schema = replace(case.schema, private_round=PrivateRound(1.0, 0.1, 10, 1e-5))
    assert refused_for(case) == ("" if is_told else "E_REPLY_METRICS")


def test_lowest_bits_of_weights_are_not_checked() -> None:
    """docs/one-reply.md states that the gateway does not limit these bits."""
    case = Case.of("train", *task(0), np.random.default_rng(0), 0)
    assert case.weights.dtype == np.float32
    hidden = np.frombuffer((b"BERGQVIST^SYLVI" * 1000)[: case.weights.size], np.uint8)
    words = case.weights.view(np.uint32)
    words[:] = words & ~np.uint32(255) | hidden
    assert refused_for(case) == ""


def _ids(tree: object) -> list[str]:
    return [node.object_id for node in iterate_object_tree(tree)]  # type: ignore[arg-type]


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
    case = _case("train")
    root, objects = case.objects()
    id = _head(objects, kind)
    objects[id] = damage(objects[id])  # type: ignore[operator]
    assert _refuses(root, objects, case).startswith("E_REPLY_")


@pytest.mark.parametrize("kind", ["RecordDict", "ArrayRecord", "Array", "MetricRecord", "ArrayChunk"])
def test_missing_objects_are_refused(kind: str) -> None:
    case = _case("train")
    root, objects = case.objects()
    del objects[_head(objects, kind)]
    assert _refuses(root, objects, case) == "E_REPLY_DAMAGED"


def test_nested_message_is_refused() -> None:
    from federation.gateway.flower_objects import compose, compose_names

    case = _case("train")
    root, objects = case.objects()
    inner = _head(objects, "RecordDict")
    outer = compose_names("RecordDict", {"metrics": inner})
    body = objects[root].partition(b"\x00")[2]
    wrapped = compose("Message", [object_id(outer)], body)
    objects |= {object_id(outer): outer, object_id(wrapped): wrapped}
    assert _refuses(object_id(wrapped), objects, case) == "E_REPLY_DAMAGED"


def test_large_model_is_checked_in_small_pieces() -> None:
    """The gateway reads at most PIECE_LENGTH values at a time, whatever the size of the chunks."""
    from federation.gateway.reply_checks import PIECE_LENGTH, pieces
    from federation.gateway.schema import ArraySpec

    array = np.arange(3_000_000, dtype=np.float32)
    reply = message(RecordDict({"arrays": record_of({WEIGHTS: array})}))
    objects = objects_of(reply)
    head = read_content(reply.object_id, objects, REPLY_DAMAGED).arrays["arrays"][WEIGHTS]
    parts = list(pieces(head, ArraySpec("float32", array.size), objects.__getitem__))
    assert max(map(len, parts)) <= PIECE_LENGTH
    assert np.array_equal(np.concatenate(parts), array)
