"""Aggregating replies stored on disk gives the same model as in memory, with bounded memory use."""

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from federation.coordinator.eager_grid import EagerGrid
from federation.coordinator.wire_grid import Wire
from federation.protocol.reply_validation import decode, encode, update_norm
from federation.strategy import aggregation
from federation.strategy.aggregation import Aggregation
from federation.strategy.flower_strategies import OPTIONS, build_strategy, is_robust
from federation.strategy.guarded import GuardedStrategy, RoundRules
from federation.strategy.reply_files import Filed, file_reply, spool
from tests.helpers.fake_grid import FakeGrid, honest, honest_answer, over_the_wire

SITES = 7
CHOSEN: dict[str, dict[str, float]] = {
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.7},
    "FedTrimmedAvg": {"beta": 0.25},
    "Krum": {"num_malicious_nodes": 2},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
}
Arrays = Mapping[str, np.ndarray]


def model(seed: int) -> dict[str, np.ndarray]:
    """Arrays of several shapes with unsorted names. Their sizes are not multiples of 8, the part size of the tests."""
    draw = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"weights": (33,), "a": (4, 5, 2), "scale": ()}
    return {name: np.asarray(draw.normal(size=shape), np.float32) for name, shape in shapes.items()}


def updates(origin: Arrays, seed: int) -> list[dict[str, np.ndarray]]:
    """The arrays that the sites send. Site 3 is an outlier."""
    moved = [model(100 * seed + site) for site in range(SITES)]
    return [
        {name: np.asarray(origin[name] + (1 + 9 * (site == 3)) * each[name] / 10, np.float32) for name in origin}
        for site, each in enumerate(moved)
    ]


def reply(arrays: Arrays, examples: int = 10) -> Message:
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    content = RecordDict({"arrays": encode(arrays), "metrics": MetricRecord({"num-examples": examples})})
    return over_the_wire(Message(content, reply_to=asked))


def begin(inner: FedAvg, origin: Arrays) -> None:
    """Give a strategy the model sent to the sites, as a round does."""
    grid: Any = FakeGrid({site: honest(site) for site in range(1, 1 + SITES)})
    list(inner.configure_train(1, encode(origin), ConfigRecord(), grid))


def in_memory(inner: FedAvg, number: int, sent: list[dict[str, np.ndarray]], weights: list[int], origin: Arrays):
    """One round as Flower computes it, with all replies in memory."""
    zero = {name: array.astype(np.float64) if is_robust(inner) else 0 for name, array in origin.items()}
    replies = [reply({k: a - zero[k] for k, a in each.items()}, w) for each, w in zip(sent, weights, strict=True)]
    record, _ = inner.aggregate_train(number, replies)
    return {name: np.asarray(array + zero[name], np.float32) for name, array in decode(record).items()}


def filed(folder: Path, sent: list[dict[str, np.ndarray]], origin: Arrays) -> list[Filed]:
    folder.mkdir(exist_ok=True)
    groups = {"arrays": origin, "buffers": {}}
    return [file_reply(reply(each), folder / str(site), groups) for site, each in enumerate(sent)]


@pytest.fixture
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "PART_NUMBERS", 1)
    monkeypatch.setattr(aggregation, "LEAST_NUMBERS", 8)


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "CenteredClip"])  # not a Flower strategy
def test_aggregating_from_disk_equals_aggregating_in_memory_bit_for_bit(name, tmp_path):
    weights = [10, 35, 20, 7, 50, 12, 90]
    one, other = (build_strategy(name, CHOSEN.get(name, {})) for _ in range(2))
    before = after = model(0)
    for number in range(1, 4):  # several rounds, so that the strategy's state is compared too
        begin(one, before)
        begin(other, after)
        before = in_memory(one, number, updates(before, number), weights, before)
        replies = filed(tmp_path, updates(after, number), after)
        after = Aggregation(other, number, replies, weights, after).run()
        assert {key: (a.dtype, a.shape) for key, a in after.items()} == {
            key: (a.dtype, a.shape) for key, a in before.items()
        }
        for key in before:
            np.testing.assert_array_equal(after[key], before[key], err_msg=f"{key} in round {number}")
    assert not np.array_equal(after["weights"], model(0)["weights"])


def alive_numbers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At each read: how many numbers read from disk are still referenced."""
    read, seen, counts = Filed.row, [], []

    def counted(self: Filed, record: str, name: str, part: slice = slice(None)) -> np.ndarray:
        row = read(self, record, name, part)
        seen.append(weakref.ref(row))
        counts.append(sum(array.size for ref in seen if (array := ref()) is not None))
        return row

    monkeypatch.setattr(Filed, "row", counted)
    return counts


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "MultiKrum"])
def test_at_most_two_largest_tensors_are_in_memory_at_once(name, tmp_path, monkeypatch):
    monkeypatch.setattr(aggregation, "PART_NUMBERS", 1)
    monkeypatch.setattr(aggregation, "LEAST_NUMBERS", 1)
    origin = model(0)
    inner = build_strategy(name, {"num_nodes_to_select": 5} if name == "MultiKrum" else {})
    replies = filed(tmp_path, updates(origin, 1) * 4, origin)
    begin(inner, origin)
    counts = alive_numbers(monkeypatch)
    Aggregation(inner, 1, replies, [1] * len(replies), origin).run()
    largest = max(array.size for array in origin.values())
    assert largest <= max(counts) <= 2 * largest  # of 28 sites


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg", "Bulyan", "CenteredClip"])
def test_robust_strategy_holds_one_part_per_site_in_memory(name, tmp_path, monkeypatch):
    origin = model(0)
    replies = filed(tmp_path, updates(origin, 1), origin)
    counts = alive_numbers(monkeypatch)
    Aggregation(build_strategy(name, CHOSEN.get(name, {})), 1, replies, [1] * SITES, origin).run()
    assert 0 < max(counts) <= SITES * 8


# --- releasing replies as they arrive ----------------------------------------------------------------------


class OneByOne(FakeGrid):
    """Creates each reply on demand. `alive` records how many earlier replies were still referenced at that time."""

    def __init__(self, sites: int) -> None:
        super().__init__({site: honest(site) for site in range(1, 1 + sites)})
        self.alive: list[int] = []

    def send_and_receive(self, messages, *, timeout=None) -> Iterator[Message]:
        asked, made = [over_the_wire(message) for message in messages], []

        def make(message: Message) -> Message:
            self.alive.append(sum(ref() is not None for ref in made))
            answer = over_the_wire(Message(honest_answer(message.metadata.dst_node_id, message), reply_to=message))
            made.append(weakref.ref(answer.content.array_records["arrays"]["weights"]))
            return answer

        return map(make, asked)


def guarded(name: str, folder: Path | None = None) -> GuardedStrategy:
    rules = RoundRules(quorum=2, metrics=FIGURES, max_examples=1000, wait_s=0.0)
    return GuardedStrategy(build_strategy(name, CHOSEN.get(name, {})), rules, folder=folder)


class _Range:
    low, high = 0.0, 1.0


FIGURES: Any = {"loss": _Range()}


@pytest.mark.parametrize("name", ["FedAvg", "FedMedian", "Krum"])
def test_reply_is_released_before_the_next_is_fetched(name, tmp_path):
    guard, grid = guarded(name, folder=tmp_path), OneByOne(20)
    guard.start(grid, encode(model(0)), num_rounds=1)
    assert guard.aggregated_rounds == 1
    assert grid.alive == [0] * 20


def test_refused_reply_is_released_too(tmp_path):
    """The reply is in full precision, but the study requires half precision."""
    guard, grid = guarded("FedAvg", folder=tmp_path), OneByOne(5)
    wire: Any = Wire(cast(EagerGrid, grid), "float16")
    guard.start(wire, encode(model(0)), num_rounds=1)
    assert guard.lost_rounds == 1
    assert grid.alive == [0] * 5


def test_alive_counter_detects_replies_that_are_kept():
    guard, grid = guarded("FedAvg"), OneByOne(5)
    messages = guard.configure_train(1, encode(model(0)), ConfigRecord(), grid)
    guard.aggregate_train(1, list(grid.send_and_receive(messages)))
    assert grid.alive == [0, 1, 2, 3, 4]


def test_reply_files_are_deleted_after_the_round(tmp_path):
    killed = tmp_path / "replies-of-a-killed-process"
    killed.mkdir()
    (killed / "7").write_bytes(b"weights")
    (tmp_path / "round-000001.safetensors").touch()
    seen = []
    guard = guarded("FedAvg", folder=tmp_path)
    grid = OneByOne(3)
    make = grid.send_and_receive

    def watched(messages, **options):
        for answer in make(messages, **options):
            seen.append({path.name for path in tmp_path.glob("replies-*/*")})
            yield answer

    grid.send_and_receive = watched  # type: ignore[method-assign]
    guard.start(grid, encode(model(0)), num_rounds=1)
    assert [len(names) for names in seen] == [0, 1, 2]  # each reply is filed before the next is fetched
    assert all(name.endswith(".tmp") for name in seen[-1])  # study archives exclude these files
    assert [path.name for path in tmp_path.iterdir()] == ["round-000001.safetensors"]


def test_reply_files_are_deleted_when_the_round_fails(tmp_path):
    with pytest.raises(RuntimeError, match="cut"), spool(tmp_path) as folder:
        (folder / "7").write_bytes(b"weights")
        raise RuntimeError("cut")
    assert not list(tmp_path.iterdir())


def test_filed_reply_equals_the_received_reply(tmp_path):
    origin = model(0)
    sent = {name: np.asfortranarray(array + 1) for name, array in origin.items()}
    (kept,) = filed(tmp_path, [sent], origin)
    back = kept.arrays("arrays", origin)
    for name, array in sent.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)
    np.testing.assert_array_equal(kept.row("arrays", "a", slice(3, 9)), sent["a"].reshape(-1)[3:9])
    assert kept.norms == {"arrays": update_norm(sent, origin), "buffers": 0.0}
    assert kept.figures == {"num-examples": 10.0}


def test_clipped_reply_keeps_its_direction_in_every_way_of_reading(tmp_path):
    origin, buffers = model(0), {"running_mean": np.zeros(3, np.float32), "num_batches_tracked": np.asarray(4)}
    sent = {name: np.asarray(array + 1, np.float32) for name, array in origin.items()}
    moved = {"running_mean": np.full(3, 8, np.float32), "num_batches_tracked": np.asarray(9)}
    content = RecordDict(
        {"arrays": encode(sent), "buffers": encode(moved), "metrics": MetricRecord({"num-examples": 10})}
    )
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    whole = file_reply(Message(content, reply_to=asked), tmp_path / "7", {"arrays": origin, "buffers": buffers})
    kept = replace(whole, scales={"arrays": 0.25})
    for name, array in origin.items():
        np.testing.assert_allclose(kept.arrays("arrays", origin)[name], array + 0.25, rtol=1e-6)
    assert kept.arrays("buffers", buffers)["running_mean"].tolist() == [8, 8, 8]
    both = replace(kept, scales={"buffers": 0.5}).arrays("buffers", buffers)
    assert both["running_mean"].tolist() == [4, 4, 4]
    assert both["num_batches_tracked"] == 9
    part = kept.clipped("arrays", "a", origin["a"].reshape(-1)[3:9], slice(3, 9))
    np.testing.assert_array_equal(part, kept.arrays("arrays", origin)["a"].reshape(-1)[3:9])


@pytest.mark.usefixtures("_small_parts")
@pytest.mark.parametrize("name", OPTIONS)
def test_clipping_a_reply_equals_receiving_the_shorter_update(name, tmp_path):
    origin = model(0)
    sent = updates(origin, 1)
    shorter = list(sent)
    shorter[3] = {k: np.asarray(origin[k] + 0.125 * (sent[3][k].astype(float) - origin[k]), np.float32) for k in origin}
    long = filed(tmp_path / "long", sent, origin)
    long[3] = replace(long[3], scales={"arrays": 0.125})
    models = []
    for replies in (long, filed(tmp_path / "short", shorter, origin)):
        inner = build_strategy(name, CHOSEN.get(name, {}))
        begin(inner, origin)
        models.append(Aggregation(inner, 1, replies, [10, 35, 20, 7, 50, 12, 90], origin).run())
    for key in origin:
        np.testing.assert_array_equal(models[0][key], models[1][key], err_msg=key)
