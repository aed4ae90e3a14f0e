"""The guarded strategy on Flower records, with synthetic sites of which some send invalid replies."""

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from federation.protocol.batch_norm import combine, split
from federation.protocol.metric_allowlist import Figure
from federation.protocol.reply_validation import NO_HEAD, LedgerHead, decode, encode, update_norm
from federation.strategy import checkpoint
from federation.strategy import guarded as guarded_module
from federation.strategy.flower_strategies import OPTIONS, build_strategy, strategy_state
from federation.strategy.guarded import GuardedStrategy, RoundRules, StartState
from federation.strategy.round_report import RoundReport
from models.refusal import Refusal
from tests.helpers.fake_grid import FakeGrid, honest, honest_answer
from tests.helpers.module_time import set_time

ARRAYS = {
    "z.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3),
    "a.bias": np.zeros(3, np.float32),
    "scale": np.asarray(1.5, np.float32),
}
BUFFERS = {
    "n.running_mean": np.zeros(3, np.float32),
    "n.running_var": np.ones(3, np.float32),
    "n.num_batches_tracked": np.asarray(0),
}
LOSS = {"loss": Figure(0, 1000, "train")}
# Options for strategies whose defaults disable their specific behaviour.
CHOSEN = {
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.7},
    "FedTrimmedAvg": {"beta": 0.25},
    "FedProx": {"proximal_mu": 0.1},
    "MultiKrum": {"num_nodes_to_select": 3},
}


RULES = RoundRules(quorum=2, metrics=LOSS, max_examples=1000, wait_s=0.0)
START = StartState(buffers=BUFFERS)


def guarded(
    name: str = "FedAvg",
    options: dict[str, float] | None = None,
    *,
    start: StartState = START,
    heads: dict[int, LedgerHead] | None = None,
    **rules,
) -> GuardedStrategy:
    """A guarded strategy with RULES; keyword arguments override single rules."""
    inner = build_strategy(name, CHOSEN.get(name, {}) if options is None else options)
    return GuardedStrategy(inner, replace(RULES, **rules), start, heads=heads)


def run(guard: GuardedStrategy, grid: FakeGrid, rounds: int = 1, arrays=None) -> list[RoundReport]:
    reports: list[RoundReport] = []
    guard.on_round = reports.append
    initial = ArrayRecord({name: Array(value) for name, value in (arrays or ARRAYS).items()})  # unsorted names
    guard.start(grid, initial, num_rounds=rounds)
    return reports


def assert_same(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# --- one bad site ------------------------------------------------------------------------------------------


def changed(change) -> object:
    """A site that applies `change` to its honest reply."""

    def site(message: Message):
        content = honest_answer(3, message)
        change(content)
        return [content]

    return site


def on_arrays(function, record: str = "arrays"):
    def change(content: RecordDict):
        content[record] = encode(function(decode(content.array_records[record])))

    return changed(change)


def on_metrics(**metrics):
    def change(content: RecordDict):
        content["metrics"] = MetricRecord({**content.metric_records["metrics"], **metrics})

    return changed(change)


def replaced(name: str, value, record: str = "arrays"):
    return on_arrays(lambda arrays: arrays | {name: value}, record)


def poke(value: float):
    def function(arrays):
        arrays["z.weight"][2, 1] = value
        return arrays

    return on_arrays(function)


def times(factor: float, record: str = "arrays", only: str = ""):
    return on_arrays(
        lambda arrays: {
            name: np.asarray(array * factor, array.dtype) if only in name else array for name, array in arrays.items()
        },
        record,
    )


BAD_SITES = {
    "one NaN": (poke(math.nan), "E_REPLY_NOT_FINITE"),
    "one Inf": (poke(math.inf), "E_REPLY_NOT_FINITE"),
    "wrong shape": (replaced("z.weight", np.ones((5, 3), np.float32)), "E_REPLY_SHAPE"),
    "broadcastable row": (replaced("z.weight", np.full((1, 3), 7, np.float32)), "E_REPLY_SHAPE"),
    "broadcastable scalar": (replaced("z.weight", np.float32(7)), "E_REPLY_SHAPE"),
    "float64": (replaced("a.bias", np.zeros(3)), "E_REPLY_SHAPE"),
    "missing key": (on_arrays(lambda a: {k: a[k] for k in ("scale", "a.bias")}), "E_REPLY_KEYS"),
    "extra key": (replaced("pixels", np.zeros(512, np.int16)), "E_REPLY_KEYS"),
    "negative variance": (times(-1, "buffers", "running_var"), "E_REPLY_VARIANCE"),
    "1e9 examples": (on_metrics(**{"num-examples": 10**9}), "E_REPLY_EXAMPLES"),
    "-600 examples": (on_metrics(**{"num-examples": -600}), "E_REPLY_EXAMPLES"),
    "NaN examples": (on_metrics(**{"num-examples": math.nan}), "E_REPLY_EXAMPLES"),
    "0 examples": (on_metrics(**{"num-examples": 0}), "E_REPLY_EXAMPLES"),
    "NaN metric": (on_metrics(loss=math.nan), "E_REPLY_METRICS"),
    "metric out of range": (on_metrics(loss=-0.1), "E_REPLY_METRICS"),
    "extra metric": (on_metrics(secret=1.0), "E_REPLY_METRICS"),
    "list metric": (on_metrics(loss=[0.1, 0.2]), "E_REPLY_METRICS"),
    "extra record": (changed(lambda c: c.update(row=ConfigRecord({"pcr": "1"}))), "E_REPLY_RECORDS"),
    "error": (lambda _: [Error(2, "boom DOE^JOHN from hospital 1")], "E_SITE_FAILED"),
    "coded error": (lambda _: [Error(2, "E_TOO_FEW: DOE^JOHN is alone")], "E_TOO_FEW"),
    "silence": (lambda _: [], "E_SITE_MISSING"),
    "two answers": (lambda m: [honest_answer(3, m)] * 2, "E_REPLY_TWICE"),
}
HONEST = (2, 4, 5, 8)


def with_bad(site) -> FakeGrid:
    return FakeGrid({number: honest(number) for number in HONEST} | {3: site})


def only_honest() -> FakeGrid:
    return FakeGrid({number: honest(number) for number in HONEST})


@pytest.mark.parametrize("fault", BAD_SITES)
def test_aggregate_is_the_mean_of_the_honest_replies(fault):
    site, code = BAD_SITES[fault]
    guard, grid = guarded(), with_bad(site)
    (report,) = run(guard, grid)

    answers = {number: honest_answer(number, grid.sent[0]) for number in HONEST}
    weights = [answers[number].metric_records["metrics"]["num-examples"] for number in HONEST]
    for name, before in ARRAYS.items():
        values = [decode(answers[number].array_records["arrays"])[name] for number in HONEST]
        mean = np.average(np.stack(values), axis=0, weights=weights)
        np.testing.assert_allclose(guard.arrays[name], mean, rtol=2e-6, atol=1e-7)
        assert guard.arrays[name].dtype == before.dtype
    losses = [answers[number].metric_records["metrics"]["loss"] for number in HONEST]
    assert report.aggregated["loss"] == pytest.approx(np.average(losses, weights=weights))
    assert report.refused == {3: code}
    assert report.valid == HONEST
    assert report.sampled == (2, 3, 4, 5, 8)
    assert set(report.metrics) == set(HONEST)
    assert not report.lost


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("fault", ["one NaN", "broadcastable row", "NaN examples", "extra metric"])
def test_refused_site_has_no_effect_with_any_strategy(name, fault):
    bad, good = guarded(name), guarded(name)
    reports = run(bad, with_bad(BAD_SITES[fault][0]), rounds=2)
    run(good, only_honest(), rounds=2)
    assert_same(bad.arrays, good.arrays)
    assert_same(bad.buffers, good.buffers)
    assert [set(report.refused) for report in reports] == [{3}, {3}]  # and sampled again in each round
    assert not np.array_equal(good.arrays["z.weight"], ARRAYS["z.weight"])


def test_error_text_of_a_site_is_never_logged_or_reported(caplog, capfd):
    """Flower logs error texts. The guarded strategy removes them first, because they may name a patient."""
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, logger="flwr"):
        (report,) = run(guarded(), with_bad(BAD_SITES["error"][0]))
    printed = capfd.readouterr()
    assert "node 3 does not count in this round: E_SITE_FAILED" in caplog.text
    assert "DOE" not in caplog.text + repr(report) + printed.out + printed.err


def test_superlink_error_for_a_lost_node_counts_its_site_as_missing():
    """This error has the node id of the SuperLink as its source. The site counts as missing and the round continues."""
    guard = guarded()
    grid = only_honest()
    messages = list(guard.configure_train(1, encode(ARRAYS), ConfigRecord(), grid))
    replies = list(grid.send_and_receive(messages[1:]))
    replies.append(Message(Error(5, "Node Unavailable"), reply_to=messages[0]))
    replies[-1].metadata.__dict__["_src_node_id"] = 1
    reports: list[RoundReport] = []
    guard.on_round = reports.append
    assert guard.aggregate_train(1, replies)[0] is not None
    assert reports[0].refused == {messages[0].metadata.dst_node_id: "E_SITE_MISSING"}
    assert len(reports[0].valid) == 3


@pytest.mark.parametrize("name", OPTIONS)
def test_node_ids_and_order_of_replies_and_tensors_do_not_matter(name):
    def backwards(number):
        def site(message: Message):
            content = honest_answer(number, message)
            record = content.array_records["arrays"]
            content["arrays"] = ArrayRecord(dict(reversed(record.items())))
            return [content]

        return site

    one, other = guarded(name), guarded(name)
    run(one, only_honest(), rounds=3)
    run(other, FakeGrid({18: honest(8), 40: backwards(2), 25: honest(5), 31: backwards(4)}), rounds=3)
    assert_same(one.arrays, other.arrays)
    assert_same(one.buffers, other.buffers)


# --- quorum, lost rounds, waiting --------------------------------------------------------------------------


def flaky(number: int, absent_in: set[int]):
    def site(message: Message):
        absent = message.content.config_records["config"]["server-round"] in absent_in
        return [] if absent else [honest_answer(number, message)]

    return site


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_round_below_the_quorum_is_lost_and_changes_no_state(name):
    """Round 2 has one valid reply of the two needed: the model and the strategy's state do not change."""
    guard = guarded(name)
    snapshots = []

    def on_round(report):
        snapshots.append((report, guard.arrays, guard.buffers, strategy_state(guard.inner)))

    guard.on_round = on_round
    guard.start(FakeGrid({1: honest(1), 2: flaky(2, {2})}), encode(ARRAYS), num_rounds=3)
    (first, *before), (second, *after), (third, *_) = snapshots
    assert [first.lost, second.lost, third.lost] == [False, True, False]
    assert [first.lost_for, second.lost_for] == [None, "E_QUORUM"]
    assert second.valid == (1,)
    assert second.aggregated == {}
    for one, other in zip(before, after, strict=True):
        assert_same(one, other)
    assert (guard.aggregated_rounds, guard.lost_rounds) == (2, 1)


def test_too_many_consecutive_lost_rounds_end_the_study():
    guard = guarded(max_lost_rounds=1)
    reports: list[RoundReport] = []
    guard.on_round = reports.append
    with pytest.raises(Refusal) as refused:
        guard.start(FakeGrid({1: honest(1), 2: flaky(2, {2, 4, 5, 6})}), encode(ARRAYS), num_rounds=9)
    assert refused.value.code == "E_QUORUM"
    assert [report.lost for report in reports] == [False, True, False, True, True]  # the last round is reported too
    assert (guard.aggregated_rounds, guard.lost_rounds) == (2, 3)


def test_single_reply_is_never_aggregated_below_the_quorum():
    guard = guarded(quorum=2, max_lost_rounds=5)
    run(guard, FakeGrid({1: honest(1), 2: lambda _: []}), rounds=2)
    assert_same(guard.arrays, ARRAYS)
    assert guard.aggregated_rounds == 0


class Clock:
    """A fake clock that advances only in `sleep`."""

    def __init__(self, monkeypatch):
        self.now_s = 0.0
        self.on_sleep = lambda: None
        set_time(monkeypatch, guarded_module, monotonic=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float):
        self.now_s += seconds
        self.on_sleep()


def test_waiting_for_nodes_ends_at_its_deadline(monkeypatch):
    clock = Clock(monkeypatch)
    with pytest.raises(Refusal) as refused:
        run(guarded(wait_s=30.0), FakeGrid({1: honest(1)}))
    assert refused.value.code == "E_QUORUM"
    assert refused.value.numbers == {"quorum": 2, "present": 1}
    assert clock.now_s == pytest.approx(30.0, abs=guarded_module.POLL_S)


def test_node_that_connects_before_the_deadline_takes_part(monkeypatch):
    clock, grid = Clock(monkeypatch), FakeGrid({1: honest(1)})
    clock.on_sleep = lambda: grid.sites.update({2: honest(2)}) if clock.now_s >= 5 else None
    (report,) = run(guarded(wait_s=30.0), grid)
    assert report.valid == (1, 2)
    assert clock.now_s == 5


def test_node_that_disconnects_during_round_setup_does_not_block(monkeypatch):
    """Flower's own sampling would wait for the node without a time limit."""
    Clock(monkeypatch).on_sleep = lambda: pytest.fail("nothing is to be waited for")

    class Leaving(FakeGrid):
        asked = 0

        def get_node_ids(self):
            self.asked += 1
            return [1, 2, 3] if self.asked == 1 else []

    (report,) = run(guarded(quorum=3), Leaving({1: honest(1), 2: honest(2), 3: honest(3)}))
    assert report.valid == (1, 2, 3)


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_optimiser_overflow_loses_the_round_but_keeps_the_optimiser_state(name, monkeypatch):
    """All three sites send huge finite updates, so none is an outlier, but the optimiser's step is infinite."""
    monkeypatch.setitem(CHOSEN, "FedAvgM", {"server_momentum": 0.9, "server_learning_rate": 2.5})

    def huge_in_round_2(number: int):
        def site(message: Message):
            content = honest_answer(number, message)
            if message.content.config_records["config"]["server-round"] == 2:
                content["arrays"] = encode({k: np.full_like(v, 3e38) for k, v in ARRAYS.items()})
            return [content]

        return site

    guard, calm = guarded(name), guarded(name)
    reports = run(guard, FakeGrid({number: huge_in_round_2(number) for number in (1, 2, 3)}), rounds=3)
    run(calm, FakeGrid({number: flaky(number, {2}) for number in (1, 2, 3)}), rounds=3)
    assert [report.lost_for for report in reports] == [None, "E_MODEL_NOT_FINITE", None]
    assert_same(guard.arrays, calm.arrays)
    assert_same(strategy_state(guard.inner), strategy_state(calm.inner))


# --- two sites, without a majority --------------------------------------------------------------------------


def alone_with(bad):
    return FakeGrid({1: honest(1), 3: bad})


@pytest.mark.parametrize("factor", [2.0, 1e6, -100.0, -1e30])
@pytest.mark.parametrize("record", ["arrays", "buffers"])
def test_longer_of_two_updates_is_clipped_to_twice_the_shorter(factor, record):
    """If both updates are far too long, the limit is twice the norm of the model."""
    moved = update_times(factor * 10, record)
    guard = guarded(quorum=1)
    (report,) = run(guard, alone_with(moved))
    assert (report.refused, report.clipped) == ({}, (3,))
    (before, after) = (ARRAYS, guard.arrays) if record == "arrays" else (BUFFERS, guard.buffers)
    alone = decode(honest_answer(1, only_first(alone_with(honest(3)))).array_records[record])
    if record == "arrays":
        assert update_norm(after, before) <= 1.01 * (0.5 + 0.5 * 2) * update_norm(alone, before)
    else:
        assert update_norm(after, before) <= 4 * update_norm(alone, before)


def test_tiny_update_of_one_of_two_sites_clips_but_never_refuses_the_other():
    """Such a site can stop the model from moving. The report lists the other site as clipped; no site is refused."""

    def lazy(message: Message):
        content = honest_answer(3, message)
        content["arrays"] = message.content.array_records["arrays"]
        return [content]

    reports = run(guarded(), alone_with(lazy), rounds=3)
    assert [report.refused for report in reports] == [{}, {}, {}]
    assert [report.clipped for report in reports] == [(1,), (1,), (1,)]


# --- updates that are only too long ------------------------------------------------------------------------


def update_times(factor: float, record: str = "arrays"):
    """An honest update scaled by `factor`. In buffers, only moments are scaled and variances stay non-negative."""

    def change(content: RecordDict):
        before = ARRAYS if record == "arrays" else BUFFERS
        after = decode(content.array_records[record])
        for name in after:
            if name.endswith("num_batches_tracked"):
                continue
            moved = before[name] + factor * (after[name].astype(np.float64) - before[name])
            after[name] = np.asarray(np.maximum(moved, 0) if name.endswith("running_var") else moved, np.float32)
        content[record] = encode(after)

    return changed(change)


@pytest.mark.parametrize("factor", [10.0, 1e6, -1e6, 1e30])
@pytest.mark.parametrize("record", ["arrays", "buffers"])
def test_too_long_update_is_clipped_to_twice_the_median_norm(factor, record):
    """Its direction is kept. The mean includes the honest replies and the clipped one; the report lists the site."""
    guard = guarded()
    grid = with_bad(update_times(factor, record))
    (report,) = run(guard, grid)
    assert (report.refused, report.clipped, report.valid) == ({}, (3,), (2, 3, 4, 5, 8))
    current = ARRAYS if record == "arrays" else BUFFERS
    answers = {n: honest_answer(n, grid.sent[0]) for n in HONEST}
    sent = decode(update_times(factor, record)(grid.sent[0])[0].array_records[record])
    norms = sorted(update_norm(decode(each.array_records[record]), current) for each in answers.values())
    share = 2 * norms[2] / update_norm(sent, current)  # low median of five norms; the hostile one is the largest
    if record == "arrays":
        replies = [decode(each.array_records[record]) for each in answers.values()]
        replies.append({k: v + share * (sent[k].astype(np.float64) - v) for k, v in ARRAYS.items()})
        weights = [*(each.metric_records["metrics"]["num-examples"] for each in answers.values()), 50]
        for name in ARRAYS:
            mean = np.average([each[name] for each in replies], axis=0, weights=weights)
            np.testing.assert_allclose(guard.arrays[name], mean, rtol=1e-5, atol=1e-6)
    else:
        assert np.abs(guard.buffers["n.running_mean"]).max() < 2 * norms[2]
        assert (guard.buffers["n.running_var"] >= 0).all()
        assert guard.buffers["n.num_batches_tracked"] == 3


@pytest.mark.parametrize("name", OPTIONS)
def test_norm_of_a_clipped_update_does_not_matter_with_any_strategy(name):
    one, other = guarded(name), guarded(name)
    run(one, with_bad(update_times(1e3)), rounds=1)
    run(other, with_bad(update_times(1e6)), rounds=1)
    for key in ARRAYS:
        np.testing.assert_allclose(one.arrays[key], other.arrays[key], rtol=1e-3, atol=1e-4)


def test_similar_honest_sites_are_not_clipped():
    (report,) = run(guarded(), only_honest())
    assert report.clipped == ()


def test_update_with_infinite_norm_is_refused():
    """In double precision, a finite update can have an infinite norm."""
    arrays = {"w": np.zeros(4)}

    def site(value: float):
        metrics = MetricRecord({"loss": 0.5, "num-examples": 10})
        return lambda _: [RecordDict({"arrays": encode({"w": np.full(4, value)}), "metrics": metrics})]

    guard = guarded(start=StartState(), max_examples=10)
    (report,) = run(guard, FakeGrid({1: site(1.0), 2: site(1.1), 3: site(1e300)}), arrays=arrays)
    assert (report.refused, report.clipped) == ({3: "E_UPDATE_NORM"}, ())
    assert guard.arrays["w"].max() < 1.2


# --- weights -----------------------------------------------------------------------------------------------


def test_site_weight_is_capped_at_its_enrolled_patients():
    """Site 3 reports 900 patients and is enrolled with 40; site 4 reports 60 and is enrolled with 70."""
    guard, grid = guarded(enrolled={3: 40, 4: 70}), with_bad(on_metrics(**{"num-examples": 900}))
    (report,) = run(guard, grid)
    assert report.capped == (3,)
    assert report.refused == {}
    assert {site: figure["num-examples"] for site, figure in report.metrics.items()} == {
        2: 40,
        3: 40,
        4: 60,
        5: 70,
        8: 100,
    }
    honest_weight = guarded()
    run(honest_weight, with_bad(on_metrics(**{"num-examples": 40})))
    assert_same(guard.arrays, honest_weight.arrays)
    assert_same(guard.buffers, honest_weight.buffers)
    assert report.aggregated["loss"] == pytest.approx(
        sum(f["loss"] * f["num-examples"] for f in report.metrics.values())
        / sum(f["num-examples"] for f in report.metrics.values())
    )


def test_site_without_enrolled_number_has_the_general_limit():
    (report,) = run(guarded(enrolled={4: 70}), with_bad(on_metrics(**{"num-examples": 1000})))
    assert (report.capped, report.refused) == ((), {})


# --- robust strategies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [("Krum", {"num_malicious_nodes": 1}, 5), ("FedTrimmedAvg", {"beta": 0.2}, 5), ("FedMedian", {}, 3)],
)
def test_robust_round_is_lost_with_too_few_valid_replies(name, options, needed):
    guard = guarded(name, options)
    one_too_few = {number: honest(number) for number in range(1, needed)}
    first, second = run(guard, FakeGrid(one_too_few | {needed: flaky(needed, {2})}), rounds=2)
    assert (first.lost_for, second.lost_for) == (None, "E_STRATEGY_REPLIES")
    assert len(second.valid) == needed - 1 >= RULES.quorum
    assert second.aggregated == {}


@pytest.mark.parametrize(
    ("name", "options", "sites"),
    [
        ("Krum", {"num_malicious_nodes": 1}, 5),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 4}, 5),
        ("FedTrimmedAvg", {"beta": 0.2}, 5),
        ("Bulyan", {"num_malicious_nodes": 1}, 7),
    ],
)
def test_refused_hostile_site_does_not_lose_the_round(name, options, sites):
    """Otherwise one NaN per round would end the study. A missing site does not count as a detected hostile site."""

    def with_last(site):
        (report,) = run(guarded(name, options), FakeGrid({n: honest(n) for n in range(1, sites)} | {sites: site}))
        return report

    assert with_last(poke(math.nan)).lost_for is None
    assert with_last(times(1e6)).lost_for is None
    assert with_last(lambda _: []).lost_for == "E_STRATEGY_REPLIES"
    assert with_last(lambda _: [Error(2, "E_TOO_FEW")]).lost_for == "E_STRATEGY_REPLIES"


def test_second_outlier_is_still_trimmed_after_one_reply_is_refused():
    """One of five replies is refused; the outlier among the other four is trimmed too."""

    def wild(message: Message):
        content = honest_answer(2, message)
        content["arrays"] = encode(ARRAYS | {"scale": ARRAYS["scale"] + np.float32(3)})
        return [content]

    guard = guarded("FedTrimmedAvg", {"beta": 0.2})
    (report,) = run(guard, FakeGrid({1: poke(math.nan), 2: wild} | {n: honest(n) for n in (4, 5, 8)}))
    assert report.refused == {1: "E_REPLY_NOT_FINITE"}
    assert report.valid == (2, 4, 5, 8)
    assert abs(guard.arrays["scale"] - ARRAYS["scale"]) < 0.3  # the mean of the four would move by about 0.75


def test_study_ended_by_the_strategys_minimum_reports_that_reason():
    guard = guarded("FedMedian", max_lost_rounds=0)
    with pytest.raises(Refusal) as refused:
        run(guard, FakeGrid({1: honest(1), 2: honest(2), 3: lambda _: []}))
    assert refused.value.code == "E_STRATEGY_REPLIES"
    assert "needs 3 valid replies in a round and has 2" in refused.value.says


def test_krum_distinguishes_small_updates_of_large_weights():
    """With weights 1000 times larger than the updates, float32 distances between weights are rounding noise."""
    large = {"w": np.random.default_rng(0).normal(scale=100, size=4000).astype(np.float32)}

    def moved_by(number: int, scale: float):
        def site(message: Message):
            draw = np.random.default_rng(number)
            arrays = {
                k: (v + draw.normal(0.01, scale, v.shape)).astype(np.float32)
                for k, v in decode(message.content.array_records["arrays"]).items()
            }
            metrics = MetricRecord({"loss": 0.5, "num-examples": 10})
            return [RecordDict({"arrays": encode(arrays), "metrics": metrics})]

        return site

    sites = {number: moved_by(number, 0.002) for number in (2, 3, 4, 5)}
    for hostile in (1, 6):  # first or last among the replies
        guard = guarded("Krum", {"num_malicious_nodes": 1}, start=StartState(), quorum=5, max_examples=10)
        run(guard, FakeGrid(sites | {hostile: moved_by(hostile, 0.02)}), arrays=large)
        assert np.std(guard.arrays["w"] - large["w"]) < 0.01


@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg", "Krum", "Bulyan"])
@pytest.mark.parametrize("moment", ["running_mean", "running_var"])
def test_robust_strategy_limits_the_effect_of_one_site_on_buffers(name, moment):
    """The attack stays within the norm bound; its batch counter is near the end of the integer range."""

    def hostile(buffers):
        key = f"n.{moment}"
        return buffers | {
            key: buffers[key] + np.float32(0.5),
            "n.num_batches_tracked": np.asarray(2**62),
        }

    guard, mean = guarded(name), guarded("FedAvg")
    (report,) = run(guard, with_bad(on_arrays(hostile, "buffers")))
    run(mean, with_bad(on_arrays(hostile, "buffers")))
    assert report.refused == {}
    others = [decode(honest_answer(n, only_first(with_bad(honest(3)))).array_records["buffers"]) for n in HONEST]
    low, high = (edge([o[f"n.{moment}"] for o in others], axis=0) for edge in (np.min, np.max))
    spread = combine(others, [1] * len(others))["n.running_var"] if moment == "running_var" else high
    assert (guard.buffers[f"n.{moment}"] >= low).all()
    assert (guard.buffers[f"n.{moment}"] <= np.maximum(high, spread)).all()
    assert guard.buffers["n.num_batches_tracked"] == 3
    assert mean.buffers["n.num_batches_tracked"] == 2**62  # control: a mean strategy accepts the value


def only_first(grid: FakeGrid) -> Message:
    run(guarded(), grid)
    return grid.sent[0]


# --- the sites' ledgers ------------------------------------------------------------------------------------


def head_of(lines: int) -> LedgerHead:
    return LedgerHead(f"{lines:064x}", lines)


def with_ledger(number: int, lines):
    """A site whose gateway reports a ledger of `lines(round)` lines; None: no ledger record."""

    def site(message: Message):
        content = honest_answer(number, message)
        count = lines(message.content.config_records["config"]["server-round"])
        if count is not None:
            head = head_of(count)
            content["ledger"] = ConfigRecord({"head": head.head, "lines": head.lines})
        return [content]

    return site


def told(message: Message) -> LedgerHead:
    config = message.content.config_records["config"]
    return LedgerHead(config["ledger-head"], config["ledger-lines"])


def test_each_site_receives_the_last_head_of_its_own_ledger():
    grid = FakeGrid({1: with_ledger(1, lambda r: 10 * r), 2: with_ledger(2, lambda r: 7 + r), 3: honest(3)})
    guard = guarded()
    reports = run(guard, grid, rounds=2)
    assert [report.ledger for report in reports] == [
        {1: head_of(10), 2: head_of(8)},
        {1: head_of(20), 2: head_of(9)},
    ]
    sent = {(m.metadata.dst_node_id, m.content.config_records["config"]["server-round"]): told(m) for m in grid.sent}
    assert sent == {
        **{(site, 1): NO_HEAD for site in (1, 2, 3)},
        **{(1, 2): head_of(10), (2, 2): head_of(8), (3, 2): NO_HEAD},
    }
    assert guard.heads == {1: head_of(20), 2: head_of(9)}
    assert all(report.valid == (1, 2, 3) for report in reports)


def test_resumed_study_sends_the_saved_ledger_heads():
    grid = FakeGrid({1: with_ledger(1, lambda r: 10 * r), 2: honest(2)})
    run(guarded(start=replace(START, first_round=3), heads={1: head_of(20)}), grid)
    assert {message.metadata.dst_node_id: told(message) for message in grid.sent} == {1: head_of(20), 2: NO_HEAD}


@pytest.mark.parametrize("lines", [lambda r: 21 - r, lambda r: 20 if r == 1 else None], ids=["shorter", "silent"])
def test_site_with_a_truncated_ledger_is_refused(lines):
    guard = guarded()
    reports = run(guard, FakeGrid({1: honest(1), 2: honest(2), 3: with_ledger(3, lines)}), rounds=3)
    assert [report.refused for report in reports] == [{}, {3: "E_REPLY_LEDGER_CUT"}, {3: "E_REPLY_LEDGER_CUT"}]
    assert guard.heads == {3: head_of(20)}  # the longest head is kept


def test_ledger_head_of_a_refused_reply_is_kept():
    """The site's ledger contains the refused reply too."""

    def diverged(message: Message):
        (content,) = with_ledger(3, lambda r: 5)(message)
        content["arrays"] = encode(decode(content.array_records["arrays"]) | {"scale": np.asarray(np.nan, np.float32)})
        return [content]

    guard = guarded()
    (report,) = run(guard, with_bad(diverged))
    assert report.refused == {3: "E_REPLY_NOT_FINITE"}
    assert guard.heads == report.ledger == {3: head_of(5)}


# --- messages and reports ----------------------------------------------------------------------------------


def test_messages_hold_model_buffers_and_round_and_strategy_gets_no_buffers():
    guard, grid = guarded("FedProx"), only_honest()
    reports = run(guard, grid, rounds=2)
    first = grid.sent[0].content
    assert set(first) == {"arrays", "buffers", "config"}
    assert_same(decode(first.array_records["arrays"]), ARRAYS)
    assert_same(decode(first.array_records["buffers"]), BUFFERS)
    assert dict(first.config_records["config"]) == {
        "server-round": 1,
        "proximal-mu": 0.1,
        "ledger-head": "",
        "ledger-lines": 0,
    }
    assert set(guard.arrays) == set(ARRAYS)
    assert [report.round for report in reports] == [1, 2]
    assert all(report.seconds > 0 for report in reports)
    # The second round starts from the first round's result, including buffers.
    assert grid.sent[-1].content.array_records["buffers"]["n.num_batches_tracked"].numpy() == 3


def test_model_without_buffers_sends_no_buffers_record():
    guard, grid = guarded(start=StartState()), only_honest()
    (report,) = run(guard, grid)
    assert set(grid.sent[0].content) == {"arrays", "config"}
    assert report.valid == HONEST
    assert guard.buffers == {}


def test_no_evaluation_messages_are_sent():
    guard, grid = guarded(), only_honest()
    run(guard, grid, rounds=2)
    assert {message.metadata.message_type for message in grid.sent} == {"train"}
    assert list(guard.configure_evaluate(1, encode(ARRAYS), ConfigRecord(), grid)) == []
    assert guard.aggregate_evaluate(1, []) is None


@pytest.mark.parametrize("name", OPTIONS)
def test_dtypes_and_shapes_of_the_model_are_kept(name):
    """FedAdam, for example, computes its new weights in float64."""
    guard = guarded(name)
    run(guard, only_honest(), rounds=2)
    for tensors, before in ((guard.arrays, ARRAYS), (guard.buffers, BUFFERS)):
        assert {key: (v.dtype, v.shape) for key, v in tensors.items()} == {
            key: (v.dtype, v.shape) for key, v in before.items()
        }


# --- resuming ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIONS)
def test_resuming_after_two_rounds_equals_four_uninterrupted_rounds(name, tmp_path):
    whole = guarded(name)
    all_reports = run(whole, only_honest(), rounds=4)

    half = guarded(name)
    run(half, only_honest(), rounds=2)
    state = checkpoint.State(
        round=2,
        arrays=half.arrays,
        buffers=half.buffers,
        memory=strategy_state(half.inner),
        history=[],
        about={},
    )
    checkpoint.save(tmp_path, state)

    loaded = checkpoint.load_latest(tmp_path).state
    start = StartState(buffers=loaded.buffers, memory=loaded.memory, first_round=loaded.round + 1)
    rest = guarded(name, start=start)
    reports = run(rest, only_honest(), rounds=2, arrays=loaded.arrays)

    assert_same(rest.arrays, whole.arrays)
    assert_same(rest.buffers, whole.buffers)
    assert_same(strategy_state(rest.inner), strategy_state(whole.inner))
    assert [report.round for report in reports] == [3, 4]
    assert [report.metrics for report in reports] == [report.metrics for report in all_reports[2:]]


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdam", "FedYogi", "FedAdagrad"])
def test_resuming_without_the_strategy_state_gives_another_model(name):
    """Control for the test above: the strategy state matters."""
    whole, half = guarded(name), guarded(name)
    run(whole, only_honest(), rounds=4)
    run(half, only_honest(), rounds=2)
    rest = guarded(name, start=StartState(buffers=half.buffers, first_round=3))
    run(rest, only_honest(), rounds=2, arrays=half.arrays)
    assert not np.array_equal(rest.arrays["z.weight"], whole.arrays["z.weight"])


# --- a real network ----------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv3d(1, 4, 3), torch.nn.BatchNorm3d(4), torch.nn.ReLU(), torch.nn.Flatten()
        )
        self.head = torch.nn.Linear(4 * 4**3, 1)

    def forward(self, x):
        return self.head(self.body(x))


def train_for_real(number: int):
    """One epoch of SGD on a site's own synthetic volumes, shifted in intensity from the other sites'."""
    generator = torch.Generator().manual_seed(number)
    volumes = torch.randn(12, 1, 6, 6, 6, generator=generator) + 3 * number
    labels = (volumes.mean(dim=(1, 2, 3, 4)) > 3 * number).float()[:, None]

    def site(message: Message):
        net = Net()
        content = message.content.array_records
        net.load_state_dict(content["arrays"].to_torch_state_dict() | content["buffers"].to_torch_state_dict())
        optimiser = torch.optim.SGD(net.parameters(), lr=0.02)
        net.train()
        for batch in range(0, 12, 4):
            optimiser.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net(volumes[batch : batch + 4]), labels[batch : batch + 4]
            )
            loss.backward()
            optimiser.step()
        arrays, buffers = split(net.state_dict())
        metrics = MetricRecord({"loss": loss.item(), "num-examples": 12})
        return [RecordDict({"arrays": ArrayRecord(arrays), "buffers": ArrayRecord(buffers), "metrics": metrics})]

    return site


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "FedYogi"])
def test_training_a_real_network_with_batch_norm(name):
    torch.manual_seed(0)
    arrays, buffers = split({name: tensor.numpy() for name, tensor in Net().state_dict().items()})
    options = {"eta": 0.01} if name != "FedAvg" else {}
    guard = guarded(name, options, start=StartState(buffers=buffers), quorum=3, max_examples=100)
    grid = FakeGrid({number: train_for_real(number) for number in (1, 2, 3)})
    reports = run(guard, grid, rounds=3, arrays=arrays)
    assert all(report.valid == (1, 2, 3) for report in reports)

    net = Net()
    tensors = {key: torch.from_numpy(value) for key, value in (guard.arrays | guard.buffers).items()}
    net.load_state_dict(tensors, strict=True)
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())
    assert net.body[1].num_batches_tracked == 9
    # The optimiser does not change buffers: they are the pooled moments of the three sites.
    replies = [train_for_real(number)(grid.sent[-1])[0] for number in (1, 2, 3)]
    sites = [decode(reply.array_records["buffers"]) for reply in replies]
    means, variances = (np.stack([s[f"body.1.running_{kind}"] for s in sites]) for kind in ("mean", "var"))
    np.testing.assert_allclose(guard.buffers["body.1.running_mean"], means.mean(axis=0), rtol=1e-5)
    pooled = variances.mean(axis=0) + means.var(axis=0)
    np.testing.assert_allclose(guard.buffers["body.1.running_var"], pooled, rtol=1e-5)
    assert (means.var(axis=0) > 0.01 * pooled).any()  # the sites differ enough for this check to be meaningful
