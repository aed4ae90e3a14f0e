"""Tests of reply validation. The faults are those that corrupt or end a run with Flower's own aggregation."""

import io
import math
import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from federation.protocol.error_codes import code_in
from federation.protocol.metric_allowlist import Figure
from federation.protocol.reply_validation import (
    NO_HEAD,
    Expected,
    LedgerHead,
    encode,
    figures,
    ledger_head,
    length,
    longest,
    refusal_code,
    sift,
    update_norm,
    validate,
)
from tests.helpers.fake_grid import over_the_wire

ARRAYS = {"a.weight": np.ones((4, 3), np.float32), "b.bias": np.zeros(3, np.float32)}
BUFFERS = {
    "n.running_mean": np.zeros(3, np.float32),
    "n.running_var": np.ones(3, np.float32),
    "n.num_batches_tracked": np.asarray(4),
}
RANGES = {"loss": Figure(0, 1000, "train"), "auroc": Figure(0, 1, "validation")}
EXPECTED = Expected(ARRAYS, BUFFERS, RANGES, max_examples=1000)
METRICS = {"loss": 0.5, "auroc": 1, "num-examples": 1000}


def answer(content: RecordDict | Error) -> Message:
    ask = Message(RecordDict({"config": ConfigRecord()}), dst_node_id=7, message_type="train")
    if isinstance(content, Error):
        return Message(content, reply_to=ask)
    return over_the_wire(Message(content, reply_to=ask))


def records(*, arrays=None, buffers=None, metrics=None) -> RecordDict:
    return RecordDict(
        {
            "arrays": encode(ARRAYS | (arrays or {})),
            "buffers": encode(BUFFERS | (buffers or {})),
            "metrics": MetricRecord(METRICS | (metrics or {})),
        }
    )


def code(content: RecordDict) -> str | None:
    reason = validate(answer(content), EXPECTED)
    return reason.code if reason else None


def without(content: RecordDict, record: str, key: str | None = None) -> RecordDict:
    if key is None:
        del content[record]
    else:
        del content[record][key]
    return content


def with_array(array: Array, record: str = "arrays", name: str = "a.weight") -> RecordDict:
    content = records()
    content.array_records[record][name] = array
    return content


def labelled(data: bytes, like: np.ndarray = ARRAYS["a.weight"]) -> Array:
    """Arbitrary bytes labelled as a valid array."""
    return Array(dtype=str(like.dtype), shape=like.shape, stype="numpy.ndarray", data=data)


def npy(array: np.ndarray) -> bytes:
    return Array(array).data


def npz(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


def npy_claiming(shape: str) -> bytes:
    """A valid file whose header claims another shape. The header has the same length."""
    data = npy(np.zeros((4, 3), np.float32))
    return data.replace(b"(4, 3), }      ", f"{shape}, }}".encode().ljust(15))


def test_valid_reply_is_accepted():
    assert code(records()) is None


def test_model_without_buffers_expects_no_buffers_in_the_reply():
    expected = Expected(ARRAYS, {}, EXPECTED.metrics, 1000)
    assert validate(answer(without(records(), "buffers")), expected) is None
    assert validate(answer(records()), expected).code == "E_REPLY_RECORDS"


def test_figure_may_be_missing():
    assert code(without(records(), "metrics", "auroc")) is None


def test_unusual_but_valid_values_are_accepted():
    assert code(records(buffers={"n.running_var": np.zeros(3, np.float32)})) is None
    assert code(records(arrays={"a.weight": np.asfortranarray(ARRAYS["a.weight"])})) is None
    assert code(records(metrics={"loss": 1000.0, "auroc": 0, "num-examples": 1})) is None


def row_of(value: float) -> np.ndarray:
    return np.asarray([0, value, 0], np.float32)


FAULTS = {
    "no buffers": (lambda: without(records(), "buffers"), "E_REPLY_RECORDS"),
    "no metrics": (lambda: without(records(), "metrics"), "E_REPLY_RECORDS"),
    "extra record": (
        lambda: RecordDict({**records(), "row": ConfigRecord({"pcr": "1"})}),
        "E_REPLY_RECORDS",
    ),
    "record of another kind": (
        lambda: RecordDict({**records(), "arrays": MetricRecord({"x": 1})}),
        "E_REPLY_RECORDS",
    ),
    "missing key": (lambda: without(records(), "arrays", "b.bias"), "E_REPLY_KEYS"),
    "extra key": (lambda: records(arrays={"pixels": np.zeros(9, np.int16)}), "E_REPLY_KEYS"),
    "missing buffer": (lambda: without(records(), "buffers", "n.running_var"), "E_REPLY_KEYS"),
    "wrong shape": (lambda: records(arrays={"a.weight": np.ones((5, 3), np.float32)}), "E_REPLY_SHAPE"),
    "broadcastable row": (lambda: records(arrays={"a.weight": np.ones((1, 3), np.float32)}), "E_REPLY_SHAPE"),
    "broadcastable scalar": (lambda: records(arrays={"a.weight": np.float32(7)}), "E_REPLY_SHAPE"),
    "wider dtype": (lambda: records(arrays={"b.bias": np.zeros(3)}), "E_REPLY_SHAPE"),
    "other byte order": (lambda: records(arrays={"b.bias": np.zeros(3, ">f4")}), "E_REPLY_SHAPE"),
    "counter as float": (
        lambda: records(buffers={"n.num_batches_tracked": np.asarray(4.0)}),
        "E_REPLY_SHAPE",
    ),
    "label and bytes differ in shape": (
        lambda: with_array(labelled(npy(np.ones((1, 3), np.float32)))),
        "E_REPLY_SHAPE",
    ),
    "label and bytes differ in dtype": (lambda: with_array(labelled(npy(np.ones((4, 3))))), "E_REPLY_SHAPE"),
    "a label that lies": (
        lambda: with_array(Array("float32", (1, 3), "numpy.ndarray", npy(ARRAYS["a.weight"]))),
        "E_REPLY_SHAPE",
    ),
    "no array at all": (lambda: with_array(labelled(b"PATIENT^NAME")), "E_REPLY_SHAPE"),
    "empty": (lambda: with_array(labelled(b"")), "E_REPLY_SHAPE"),
    "cut short": (lambda: with_array(labelled(npy(ARRAYS["a.weight"])[:-1])), "E_REPLY_SHAPE"),
    "pickle": (lambda: with_array(labelled(pickle.dumps(ARRAYS["a.weight"]))), "E_REPLY_SHAPE"),
    "zip": (lambda: with_array(labelled(npz(ARRAYS["a.weight"]))), "E_REPLY_SHAPE"),
    "claims more than memory": (lambda: with_array(labelled(npy_claiming("(4, 9999999)"))), "E_REPLY_SHAPE"),
    "other serialiser": (
        lambda: with_array(Array(dtype="float32", shape=(4, 3), stype="torch", data=b"")),
        "E_REPLY_SHAPE",
    ),
    "one NaN": (lambda: records(arrays={"b.bias": row_of(math.nan)}), "E_REPLY_NOT_FINITE"),
    "one Inf": (lambda: records(arrays={"b.bias": row_of(-math.inf)}), "E_REPLY_NOT_FINITE"),
    "NaN in a buffer": (lambda: records(buffers={"n.running_mean": row_of(math.nan)}), "E_REPLY_NOT_FINITE"),
    "negative variance": (lambda: records(buffers={"n.running_var": row_of(-1e-9)}), "E_REPLY_VARIANCE"),
    "extra metric": (lambda: records(metrics={"PATIENT^NAME": 1.0}), "E_REPLY_METRICS"),
    "list metric": (lambda: records(metrics={"loss": [0.1, 0.2]}), "E_REPLY_METRICS"),
    "metric below its range": (lambda: records(metrics={"loss": -1e-9}), "E_REPLY_METRICS"),
    "metric above its range": (lambda: records(metrics={"auroc": 1.001}), "E_REPLY_METRICS"),
    "NaN metric": (lambda: records(metrics={"loss": math.nan}), "E_REPLY_METRICS"),
    "Inf metric": (lambda: records(metrics={"auroc": math.inf}), "E_REPLY_METRICS"),
    "no examples": (lambda: without(records(), "metrics", "num-examples"), "E_REPLY_EXAMPLES"),
    "1e9 examples": (lambda: records(metrics={"num-examples": 10**9}), "E_REPLY_EXAMPLES"),
    "one example too many": (lambda: records(metrics={"num-examples": 1001}), "E_REPLY_EXAMPLES"),
    "-600 examples": (lambda: records(metrics={"num-examples": -600}), "E_REPLY_EXAMPLES"),
    "0 examples": (lambda: records(metrics={"num-examples": 0}), "E_REPLY_EXAMPLES"),
    "NaN examples": (lambda: records(metrics={"num-examples": math.nan}), "E_REPLY_EXAMPLES"),
    "fractional examples": (lambda: records(metrics={"num-examples": 10.5}), "E_REPLY_EXAMPLES"),
    "list of examples": (lambda: records(metrics={"num-examples": [10]}), "E_REPLY_EXAMPLES"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_refused_with_its_code(fault):
    content, expected_code = FAULTS[fault]
    assert code(content()) == expected_code


def test_forged_shape_is_read_from_the_header():
    """The fault above is only useful if its header is valid up to the shape."""
    with pytest.raises(ValueError, match="EOF"):
        np.load(io.BytesIO(npy_claiming("(4, 9999999)")), allow_pickle=False)


def test_missing_and_duplicate_replies_are_refused():
    assert sift([], [7], EXPECTED, {}, figures).refused == {7: "E_SITE_MISSING"}
    once = sift([answer(records())], [7], EXPECTED, {}, figures)
    assert (list(once.valid), once.refused) == ([7], {})
    for often in (2, 3):
        twice = sift([answer(records())] * often, [7], EXPECTED, {}, figures)
        assert (twice.valid, twice.refused) == ({}, {7: "E_REPLY_TWICE"})


@pytest.mark.parametrize(
    ("text", "passed_on"),
    [
        ("E_TOO_FEW", "E_TOO_FEW"),
        ("E_TOO_FEW: 3 patients, one of them DOE^JOHN", "E_TOO_FEW"),
        ("E_TOO_FEW_PATIENTS\nTraceback", "E_TOO_FEW_PATIENTS"),
        ("W_TILT", "E_SITE_FAILED"),  # a warning, not a failure
        ("E_DOE_JOHN", "E_SITE_FAILED"),
        ("E_TOO_FEW_PATIENTS_DOE_JOHN", "E_SITE_FAILED"),
        ("<class 'ValueError'>: cannot read /data/DOE^JOHN", "E_SITE_FAILED"),
        ("see E_TOO_FEW", "E_SITE_FAILED"),
        (" E_TOO_FEW", "E_SITE_FAILED"),
        ("E_1234567", "E_SITE_FAILED"),
        ("E_DOE^JOHN", "E_SITE_FAILED"),
        ("E_DOE_19600101", "E_SITE_FAILED"),
        ("E_" + "A" * 41, "E_SITE_FAILED"),
        ("e_too_few", "E_SITE_FAILED"),
        ("", "E_SITE_FAILED"),
        (None, "E_SITE_FAILED"),
    ],
)
def test_only_the_code_of_an_error_is_passed_on(text, passed_on):
    assert code_in(text) == passed_on
    assert refusal_code(answer(Error(2, text)), EXPECTED) == passed_on


def test_validate_refuses_an_error_message():
    assert validate(answer(Error(2, "E_TOO_FEW")), EXPECTED).code == "E_SITE_FAILED"


def test_update_norm_excludes_counters():
    old = {"w": np.zeros((2, 2), np.float32), "n.num_batches_tracked": np.asarray(0)}
    new = {"w": np.asarray([[3, 0], [0, 4]], np.float32), "n.num_batches_tracked": np.asarray(10**6)}
    assert update_norm(new, old) == 5.0


def test_update_norm_does_not_overflow_in_single_precision():
    huge = np.full(4, 3e38, np.float32)
    assert update_norm({"w": huge}, {"w": -huge}) == pytest.approx(4 * 3e38, rel=1e-6)


@pytest.mark.parametrize(
    ("norms", "bound"),
    [
        ([1.0, 1.2, 9.9], 2.4),
        ([1.0, 1.2, 1e6, 1e6], 2.4),  # the plain median would be 5e5
        ([1.0, 99.0], 2.0),  # with two sites, the smaller norm decides: neither may replace the model
        ([0.0, 1.0], 0.0),
        ([150.0, 160.0], 200.0),  # both are too large for a model of norm 100
        ([150.0, 160.0, 170.0], 320.0),
        ([1e6], 200.0),
        ([0.0, 0.0, 5.0], 0.0),
        ([], 200.0),
    ],
)
def test_update_length_limit_uses_the_median_and_the_model_norm(norms, bound):
    assert longest(norms, 2.0, model_norm=100.0) == bound


def test_zero_model_sets_no_limit():
    assert longest([5.0], 2.0, model_norm=0.0) == 10.0
    assert longest([], 2.0, model_norm=0.0) == math.inf


def test_length_excludes_counters():
    assert length({"w": np.asarray([3, 4], np.float32), "n.num_batches_tracked": np.asarray(10**6)}) == 5.0
    assert length({}) == 0.0


# --- ledger heads ------------------------------------------------------------------------------------------

HEAD = LedgerHead("0a" * 32, 17)


def with_head(**record) -> RecordDict:
    content = {"head": HEAD.head, "lines": HEAD.lines} | record
    return RecordDict({**records(), "ledger": ConfigRecord({k: v for k, v in content.items() if v is not None})})


def test_reply_may_contain_the_ledger_head():
    assert code(with_head()) is None
    assert ledger_head(answer(with_head())) == HEAD
    assert ledger_head(answer(records())) == NO_HEAD
    assert ledger_head(answer(Error(2, "E_TOO_FEW"))) == NO_HEAD


@pytest.mark.parametrize(
    "record",
    [
        {"head": None},
        {"lines": None},
        {"name": "DOE^JOHN"},
        {"head": "0A" * 32},
        {"head": "0a" * 31},
        {"head": "0a" * 32 + "\n"},
        {"head": b"0a" * 32},
        {"head": ["0a" * 32]},
        {"lines": 0},
        {"lines": -1},
        {"lines": 17.0},
        {"lines": True},
        {"lines": [17]},
    ],
)
def test_malformed_ledger_head_is_refused(record):
    assert code(with_head(**record)) == "E_REPLY_LEDGER"
    assert ledger_head(answer(with_head(**record))) is None


def test_ledger_record_of_another_type_is_refused():
    assert code(RecordDict({**records(), "ledger": MetricRecord({"lines": 1})})) == "E_REPLY_LEDGER"


@pytest.mark.parametrize(
    ("last", "now", "expected_code"),
    [
        (NO_HEAD, HEAD, None),
        (HEAD, HEAD, None),
        (HEAD, LedgerHead("0b" * 32, 18), None),
        (HEAD, LedgerHead("0b" * 32, 17), "E_REPLY_LEDGER_CUT"),  # same length, other content
        (HEAD, LedgerHead("0b" * 32, 16), "E_REPLY_LEDGER_CUT"),
        (HEAD, NO_HEAD, "E_REPLY_LEDGER_CUT"),
        (NO_HEAD, NO_HEAD, None),
    ],
)
def test_ledger_that_does_not_grow_is_refused(last, now, expected_code):
    content = records() if now == NO_HEAD else with_head(head=now.head, lines=now.lines)
    assert refusal_code(answer(content), EXPECTED, last) == expected_code


def test_sift_keeps_heads_of_single_replies_with_a_growing_ledger():
    def from_node(node: int, content) -> Message:
        reply = answer(content)
        reply.metadata.__dict__["_src_node_id"] = node
        return reply

    replies = [
        from_node(5, with_head()),
        from_node(1, with_head()),
        from_node(2, with_head()),
        from_node(2, with_head()),
        from_node(3, with_head(lines=1)),
        from_node(9, with_head()),  # this node was not sampled
    ]
    sifted = sift(replies, [1, 2, 3, 4, 5], EXPECTED, {3: HEAD}, keep=figures)
    assert list(sifted.valid) == [1, 5]
    assert sifted.refused == {2: "E_REPLY_TWICE", 3: "E_REPLY_LEDGER_CUT", 4: "E_SITE_MISSING"}
    assert sifted.heads == {1: HEAD, 5: HEAD}


def test_reply_may_consist_of_figures_only():
    """In the final evaluation, sites return no arrays."""
    expected = Expected({}, {}, RANGES, 1000)
    reply = answer(RecordDict({"metrics": MetricRecord(METRICS)}))
    assert validate(reply, expected) is None
    assert figures(reply) == {"loss": 0.5, "auroc": 1.0, "num-examples": 1000.0}
    assert validate(answer(records()), expected).code == "E_REPLY_RECORDS"


def test_encode_sorts_by_name():
    assert list(encode({"b": np.ones(1), "a": np.ones(1)})) == ["a", "b"]
    assert isinstance(encode({}), ArrayRecord)


MOMENTS = {name: np.ones(5, np.float32) for name in ("mean", "variance")}
EMBEDDED = Expected({}, {}, {}, max_examples=1000, moments=MOMENTS)


def embedded(**changed: np.ndarray | None) -> str | None:
    """The refusal code for moments with changed or missing arrays."""
    moments = {name: array for name, array in (MOMENTS | changed).items() if array is not None}
    content = RecordDict({"moments": encode(moments), "metrics": MetricRecord({"num-examples": 30})})
    reason = validate(answer(content), EMBEDDED)
    return reason.code if reason else None


def test_embedding_moments_must_be_finite_and_of_the_expected_shape():
    assert embedded() is None
    assert embedded(mean=-MOMENTS["mean"], variance=np.zeros(5, np.float32)) is None
    assert embedded(variance=-MOMENTS["variance"]) == "E_REPLY_VARIANCE"
    assert embedded(mean=np.full(5, np.nan, np.float32)) == "E_REPLY_NOT_FINITE"
    assert embedded(mean=np.ones(6, np.float32)) == "E_REPLY_SHAPE"
    assert embedded(mean=np.ones(5)) == "E_REPLY_SHAPE"
    assert embedded(mean=None) == "E_REPLY_KEYS"
    assert embedded(patient=np.ones(5, np.float32)) == "E_REPLY_KEYS"
    assert validate(answer(records()), EMBEDDED).code == "E_REPLY_RECORDS"
