"""Tests of float16 transfer: rounding errors, refused replies, and the weights that both ends see."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from federation.coordinator.wire_grid import Wire
from federation.protocol.half_precision import HALF, UPDATE, changes, rounded
from federation.protocol.reply_validation import Expected, decode, encode, refusal_code
from models.refusal import Refusal
from tests.helpers.fake_grid import FakeGrid

WEIGHTS = np.random.default_rng(1).normal(scale=0.05, size=5000).astype(np.float32)
MODEL = {"weights": WEIGHTS}
FIGURES = MetricRecord({"num-examples": 20})
RELATIVE, SMALLEST = 2.0**-11, 2.0**-24  # float16: half a unit in the last of 11 bits; smallest number


def step(size: float, number: int = 0) -> np.ndarray:
    """The change of the weights by one round of training."""
    return np.random.default_rng([7, number]).normal(scale=size, size=WEIGHTS.size).astype(np.float32)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_change_arrives_with_only_its_own_rounding_error(size: float) -> None:
    sent = rounded(MODEL, HALF)
    moved = step(size)
    arrived = changes({"weights": sent["weights"].astype(np.float32) + moved}, sent)
    (change,) = arrived.values()
    assert (list(arrived), change.dtype) == ([UPDATE + "weights"], np.float16)
    off = np.abs(change - moved)
    # The bound has two terms: rounding of the change, and float32 rounding of weight plus change.
    assert (off <= RELATIVE * np.abs(moved) + SMALLEST / 2 + 2.0**-24 * np.abs(WEIGHTS).max()).all()


def test_steps_smaller_than_the_rounding_of_weights_accumulate() -> None:
    """Fifty rounds, each with 1/30 of the float16 spacing of most weights. Rounded weights would lose these steps."""
    held, stuck, small = WEIGHTS, WEIGHTS, np.float32(1e-6)
    for _ in range(50):
        sent = rounded({"weights": held}, HALF)
        back = changes({"weights": sent["weights"].astype(np.float32) + small}, sent)
        held = held + back[UPDATE + "weights"].astype(np.float32)
        stuck = (stuck + small).astype(np.float16).astype(np.float32)
    way = 50 * float(small)
    assert float((held - WEIGHTS).mean()) == pytest.approx(way, rel=0.05)
    assert float((stuck - WEIGHTS).mean()) < 0.2 * way


def test_unchanged_weights_give_exact_zeros() -> None:
    sent = rounded({"weights": np.array([0.3, -0.3, 0.0, -0.0], np.float32)}, HALF)
    (change,) = changes({"weights": sent["weights"].astype(np.float32)}, sent).values()
    assert change.tobytes() == bytes(8)


def test_float32_weights_are_not_rounded() -> None:
    assert rounded(MODEL, "float32")["weights"] is WEIGHTS


def test_weights_beyond_half_precision_are_not_sent() -> None:
    with pytest.raises(Refusal) as refused:
        rounded({"weights": np.array([70_000.0], np.float32)}, HALF)
    assert refused.value.code == "E_MODEL_NOT_FINITE"


# --- round trip -------------------------------------------------------------------------------------------


Answers = Callable[[ArrayRecord], ArrayRecord]


def ask(answer: Answers, precision: str = HALF, *, nodes: int = 2) -> tuple[FakeGrid, Wire, list[Message]]:
    """Send the model to each node. Returns the replies as the server sees them."""

    def site(message: Message) -> list[Any]:
        return [RecordDict({"arrays": answer(message.content.array_records["arrays"]), "metrics": FIGURES})]

    grid = FakeGrid(dict.fromkeys(range(1, nodes + 1), site))
    wire = Wire(cast(Any, grid), precision)  # type: ignore[arg-type]
    model, config = encode(MODEL), ConfigRecord({"server-round": 1})
    messages = [
        Message(RecordDict({"arrays": model, "config": config}), dst_node_id=node, message_type="train")
        for node in grid.get_node_ids()
    ]
    return grid, wire, list(wire.send_and_receive(messages))


def trained(record: ArrayRecord) -> ArrayRecord:
    came = decode(record)
    return encode(changes({"weights": came["weights"].astype(np.float32) + step(1e-3)}, came))


def test_sites_receive_float16_and_the_server_adds_to_float32() -> None:
    grid, wire, replies = ask(trained)
    for message in grid.sent:
        (came,) = decode(message.content.array_records["arrays"]).values()
        assert came.tobytes() == WEIGHTS.astype(np.float16).tobytes()
        assert message.content.config_records["config"]["server-round"] == 1
    (change,) = decode(trained(encode(rounded(MODEL, HALF)))).values()
    for reply in replies:
        (weights,) = decode(reply.content.array_records["arrays"]).values()
        assert np.array_equal(weights, WEIGHTS + change.astype(np.float32)), "added to the unrounded weights"
        assert code_of(reply) is None
    half = 2 * len(WEIGHTS) * 2
    assert (wire.bytes_down, wire.bytes_up) == (pytest.approx(half, abs=500), pytest.approx(half, abs=500))


def test_single_precision_messages_are_unchanged() -> None:
    grid, wire, replies = ask(lambda record: record, "float32")
    for message in (*grid.sent, *replies):
        (weights,) = decode(message.content.array_records["arrays"]).values()
        assert weights.tobytes() == WEIGHTS.tobytes()
    assert wire.bytes_down == wire.bytes_up > 2 * WEIGHTS.nbytes


def code_of(reply: Message) -> str | None:
    return refusal_code(reply, Expected(MODEL, {}, {}, 100))


def zeros(dtype: type = np.float16, size: int = WEIGHTS.size, name: str = UPDATE + "weights") -> dict[str, np.ndarray]:
    return {name: np.zeros(size, dtype)}


def lying() -> ArrayRecord:
    """An array labelled float16 with float32 bytes."""
    data = Array(np.zeros(WEIGHTS.size, np.float32)).data
    return ArrayRecord({UPDATE + "weights": Array("float16", WEIGHTS.shape, "numpy.ndarray", data)})


WRONG: dict[str, tuple[Answers, str]] = {
    "whole weights": (lambda _: encode(MODEL), "E_REPLY_KEYS"),
    "weights in half precision": (lambda record: record, "E_REPLY_KEYS"),
    "changes in single precision": (lambda _: encode(zeros(np.float32)), "E_REPLY_KEYS"),
    "changes of another length": (lambda _: encode(zeros(size=1)), "E_REPLY_KEYS"),
    "another name": (lambda _: encode(zeros(name="update.bias")), "E_REPLY_KEYS"),
    "an array more": (lambda _: encode({**zeros(), "weights": WEIGHTS}), "E_REPLY_KEYS"),
    "no array": (lambda _: encode({}), "E_REPLY_KEYS"),
    "another type than its label's": (lambda _: lying(), "E_REPLY_KEYS"),
    "infinite changes": (
        lambda _: encode({UPDATE + "weights": np.full(WEIGHTS.size, np.inf, np.float16)}),
        "E_REPLY_NOT_FINITE",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_reply_other_than_float16_changes_is_refused(wrong: str) -> None:
    answer, code = WRONG[wrong]
    _, _, replies = ask(answer, nodes=1)
    assert [code_of(reply) for reply in replies] == [code]


def test_full_weights_are_accepted_only_in_single_precision() -> None:
    """The study's precision decides whether the same reply is valid."""
    (reply,) = ask(lambda _: encode(MODEL), "float32", nodes=1)[2]
    assert code_of(reply) is None
    (reply,) = ask(trained, "float32", nodes=1)[2]
    assert code_of(reply) == "E_REPLY_KEYS"
