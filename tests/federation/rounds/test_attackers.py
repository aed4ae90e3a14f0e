"""One attacker among five sites that really train: what each does to the model under each strategy.

A small network with batch norm learns a synthetic task at five sites that differ somewhat. The figure is the AUROC on
patients of none of them. Two things are asked: with a robust strategy the study ends, stays finite and loses at most
0.03 of AUROC to any attacker; and without one the same attackers do harm, or the first would say nothing.
"""

import copy
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from sklearn.metrics import roc_auc_score

from federation.allowed import Figure
from federation.rounds.flower_strategies import build_strategy
from federation.rounds.packing import Arrays, pack, unpack
from federation.rounds.replies import decode, encode
from federation.rounds.reports import RoundReport
from federation.rounds.strategy import GuardedStrategy
from tests.federation.rounds.fake_grid import FakeGrid

ROUNDS = 4
HOSTILE = 3  # the attacker's place among the sites
FEATURES, PATIENTS, HELD_OUT = 12, 240, 2000
LOSS = {"loss": Figure(0, 1000, "train")}
MOST_LOST = 0.03
Hostile = Callable[[Message, RecordDict], RecordDict]


# --- the task ----------------------------------------------------------------------------------------------


@functools.cache
def patients(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of one site's patients, shifted and scaled as its scanner does, and who of them is severe."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=draw)
    logit = 2.0 * x[:, 0] + 1.5 * x[:, 1] * x[:, 2] + x[:, 3]
    severe = (torch.rand(count, generator=draw) < torch.sigmoid(logit)).float()
    return x * (0.9 + 0.05 * (seed % 5)) + 0.1 * (seed % 3), severe


torch.manual_seed(0)
FRESH = torch.nn.Sequential(
    torch.nn.Linear(FEATURES, 24), torch.nn.BatchNorm1d(24), torch.nn.ReLU(), torch.nn.Linear(24, 1)
)


def loaded(arrays: Arrays, buffers: Arrays) -> torch.nn.Module:
    net = copy.deepcopy(FRESH)
    unpack(net, arrays, buffers)
    return net


def trained(message: Message, number: int, *, flip: bool = False) -> RecordDict:
    """A site's reply after some steps on all its own patients; `flip`: with every label turned over."""
    records = message.content.array_records
    net = loaded(decode(records["arrays"]), decode(records["buffers"]))
    x, severe = patients(number, PATIENTS)
    severe = 1 - severe if flip else severe
    optimiser = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9)
    net.train()
    for _ in range(8):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], severe)
        loss.backward()
        optimiser.step()
    arrays, buffers = pack(net)
    metrics = MetricRecord({"loss": loss.item(), "num-examples": PATIENTS})
    return RecordDict({"arrays": encode(arrays), "buffers": encode(buffers), "metrics": metrics})


def held_out_auroc(arrays: Arrays, buffers: Arrays) -> float:
    """On patients of a site that trains nowhere."""
    net = loaded(arrays, buffers).eval()
    x, severe = patients(1000, HELD_OUT)
    with torch.no_grad():
        return float(roc_auc_score(severe.numpy(), net(x)[:, 0].numpy()))


# --- the attackers -----------------------------------------------------------------------------------------


def on(record: str, change: Callable[[np.ndarray, np.ndarray], np.ndarray], only: str = "") -> Hostile:
    """Turns the honest tensors of a record into others, given what came in."""

    def hostile(message: Message, honest: RecordDict) -> RecordDict:
        before = decode(message.content.array_records[record])
        after = decode(honest.array_records[record])
        honest[record] = encode(
            {k: np.asarray(change(v, before[k]), v.dtype) if only in k else v for k, v in after.items()}
        )
        return honest

    return hostile


def update_times(factor: float) -> Hostile:
    return on("arrays", lambda after, before: before + factor * (after - before))


def metrics(**changes: Any) -> Hostile:
    def hostile(message: Message, honest: RecordDict) -> RecordDict:
        honest["metrics"] = MetricRecord({**honest.metric_records["metrics"], **changes})
        return honest

    return hostile


def arrays(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Hostile:
    def hostile(message: Message, honest: RecordDict) -> RecordDict:
        changed = change(decode(honest.array_records["arrays"]))
        honest["arrays"] = ArrayRecord({name: Array(np.asarray(value)) for name, value in changed.items()})
        return honest

    return hostile


def label_flip(message: Message, honest: RecordDict) -> RecordDict:
    return trained(message, HOSTILE, flip=True)


def replay() -> Hostile:
    """The reply of round 1, again and again."""
    kept: list[RecordDict] = []

    def hostile(message: Message, honest: RecordDict) -> RecordDict:
        kept.append(honest)
        return kept[0]

    return hostile


def one_nan(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    tensors["weights"][7] = math.nan
    return tensors


# Each makes a new attacker, for some remember.
WELL_FORMED: dict[str, Callable[[], Hostile]] = {
    "label flip": lambda: label_flip,
    "sign flip": lambda: update_times(-1),
    "sign flip x 8": lambda: update_times(-8),  # within the bound on norms
    "sign flip x 30": lambda: update_times(-30),
    "scaling x 8": lambda: update_times(8),
    "no update": lambda: update_times(0),
    "constant weights": lambda: on("arrays", lambda after, before: np.full_like(after, 0.1)),
    "replay of round 1": replay,
    "moments shifted": lambda: on("buffers", lambda after, before: after + 0.4, only="running"),
    "label flip, 500 times the weight": lambda: lambda m, h: metrics(**{"num-examples": 60_000})(m, label_flip(m, h)),
}
MALFORMED: dict[str, Callable[[], Hostile]] = {
    "one NaN": lambda: arrays(one_nan),
    "all Inf": lambda: on("arrays", lambda after, before: np.full_like(after, math.inf)),
    "x 1e6": lambda: on("arrays", lambda after, before: after * 1e6),
    "wrong shape": lambda: arrays(lambda a: {"weights": a["weights"][:-1]}),
    "broadcastable row": lambda: arrays(lambda a: {"weights": np.full(1, 7, np.float32)}),
    "broadcastable scalar": lambda: arrays(lambda a: {"weights": np.float32(7)}),
    "missing key": lambda: arrays(lambda a: {}),
    "extra key": lambda: arrays(lambda a: a | {"pixels": np.zeros(9, np.int16)}),
    "1e9 examples": lambda: metrics(**{"num-examples": 10**9}),
    "-600 examples": lambda: metrics(**{"num-examples": -600}),
    "NaN examples": lambda: metrics(**{"num-examples": math.nan}),
    "0 examples": lambda: metrics(**{"num-examples": 0}),
    "NaN metric": lambda: metrics(loss=math.nan),
    "extra metric": lambda: metrics(secret=1.0),
}
ATTACKS = WELL_FORMED | MALFORMED

ROBUST: dict[str, dict[str, float]] = {
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.2},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
}


# --- a study -----------------------------------------------------------------------------------------------


def grid_of(sites: int, attack: str | None) -> FakeGrid:
    hostile = ATTACKS[attack]() if attack else None

    def site(number: int):
        def answer(message: Message) -> list[Any]:
            honest = trained(message, number)
            return [hostile(message, honest) if hostile and number == HOSTILE else honest]

        return answer

    return FakeGrid({number: site(number) for number in range(1, sites + 1)})


class Trained(NamedTuple):
    """AUROC of the final model, the model, and its rounds."""

    auroc: float
    weights: np.ndarray
    reports: tuple[RoundReport, ...]


@functools.cache
def study(strategy: str, attack: str | None, rounds: int = ROUNDS) -> Trained:
    """A whole study; Bulyan needs seven sites to withstand one, the others have five."""
    weights, buffers = pack(FRESH)
    reports: list[RoundReport] = []
    guard = GuardedStrategy(
        build_strategy(strategy, ROBUST.get(strategy, {})),
        quorum=3,
        metrics=LOSS,
        max_examples=100_000,
        enrolled=dict.fromkeys(range(1, 8), PATIENTS),
        buffers=buffers,
        on_round=reports.append,
    )
    guard.start(grid_of(7 if strategy == "Bulyan" else 5, attack), encode(weights), num_rounds=rounds)
    assert all(np.isfinite(array).all() for array in (*guard.arrays.values(), *guard.buffers.values()))
    return Trained(held_out_auroc(guard.arrays, guard.buffers), guard.arrays["weights"], tuple(reports))


def lost_to(strategy: str, attack: str) -> float:
    return study(strategy, None).auroc - study(strategy, attack).auroc


@pytest.mark.parametrize("strategy", ["FedAvg", *ROBUST])
def test_without_an_attacker_every_strategy_learns(strategy):
    trained = study(strategy, None)
    assert trained.auroc > 0.8
    assert all(not report.lost and not report.refused for report in trained.reports)


STRONGEST = ("label flip", "sign flip", "sign flip x 8")


@pytest.mark.parametrize(
    ("strategy", "attack"),
    [
        *(("FedMedian", attack) for attack in WELL_FORMED),
        *((name, attack) for name in ("FedTrimmedAvg", "MultiKrum") for attack in (*STRONGEST, "no update")),
        *((name, attack) for name in ("Krum", "Bulyan") for attack in STRONGEST),
    ],
)
def test_a_robust_strategy_loses_little_to_an_attacker(strategy, attack):
    assert lost_to(strategy, attack) <= MOST_LOST
    assert not any(report.lost for report in study(strategy, attack).reports)


@pytest.mark.parametrize("strategy", ROBUST)
def test_a_malformed_reply_in_every_round_costs_a_robust_strategy_little_and_no_round(strategy):
    assert lost_to(strategy, "one NaN") <= MOST_LOST
    for report in study(strategy, "one NaN").reports:
        assert report.refused == {HOSTILE: "E_REPLY_NOT_FINITE"}
        assert not report.lost


@pytest.mark.parametrize("attack", MALFORMED)
def test_every_malformed_reply_costs_the_same(attack):
    """Bit for bit: as if the site were not there, so what holds above for one of them holds for all."""
    shorter = study("FedMedian", attack, rounds=2)
    np.testing.assert_array_equal(shorter.weights, study("FedMedian", "one NaN", rounds=2).weights)
    assert [set(report.refused) for report in shorter.reports] == [{HOSTILE}] * 2
    assert not any(report.lost for report in shorter.reports)


@pytest.mark.parametrize("attack", ["sign flip x 8", "label flip, 500 times the weight"])
def test_the_attackers_do_harm_to_a_mean(attack):
    """The control: with FedAvg behind the same checks, or without the cap on weights, a study is spoilt."""
    if attack.startswith("label"):
        assert uncapped(attack) < study("FedAvg", None).auroc - 0.1
    else:
        assert lost_to("FedAvg", attack) > 0.1


def test_krum_falls_to_a_site_that_sends_nothing_new():
    """Among updates that differ more from each other than from none at all, none is the nearest to all.

    A known weakness, told of in docs/reliability.md; who selects several or takes the median does not have it.
    """
    assert lost_to("Krum", "no update") > MOST_LOST


def uncapped(attack: str) -> float:
    weights, buffers = pack(FRESH)
    guard = GuardedStrategy(build_strategy("FedAvg", {}), quorum=3, metrics=LOSS, max_examples=100_000, buffers=buffers)
    guard.start(grid_of(5, attack), encode(weights), num_rounds=ROUNDS)
    return held_out_auroc(guard.arrays, guard.buffers)


@pytest.mark.parametrize("attack", ["one NaN", "x 1e6", "missing key", "-600 examples", "broadcastable scalar"])
def test_flowers_own_fedavg_is_poisoned_or_ends(attack):
    """The other control: without the guard, on the same messages."""
    weights, buffers = pack(FRESH)

    class WithBuffers(FakeGrid):
        """Plain FedAvg takes one record of arrays: buffers are left out of what it sends and gets."""

        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            for message in messages:
                message.content["buffers"] = encode(buffers)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            for reply in replies:
                del reply.content["buffers"]
            return replies

    def result_of(sites: FakeGrid) -> np.ndarray:
        flower = build_strategy("FedAvg", {})
        result = flower.start(WithBuffers(sites.sites), encode(weights), num_rounds=1)
        return decode(result.arrays)["weights"]

    honest = result_of(grid_of(5, None))
    try:
        spoilt = result_of(grid_of(5, attack))
    except Exception as error:
        assert type(error).__name__ in ("InconsistentMessageReplies", "ZeroDivisionError", "ValueError")
        return
    assert not np.isfinite(spoilt).all() or np.abs(spoilt - honest).max() > 0.5
