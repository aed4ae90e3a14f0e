"""The guarded strategy: any of Flower's, with what Flower leaves open.

Flower aggregates whatever arrives: one bad reply poisons the model or ends the run, one lost site can leave a
round to a single hospital or block it for good, batch-norm buffers are treated as weights, and nothing is
saved. The wrapper here validates each reply, demands a quorum, combines buffers apart, reports each round,
and lets the optimiser's state be saved and restored. The aggregation itself stays Flower's.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from federation import reasons
from federation.buffers import combine
from federation.flower_strategies import restore_strategy, strategy_state
from federation.replies import EXAMPLES, Expected, decode, encode, outliers, refusal_code, update_norm
from models.refusal import Refusal

log = logging.getLogger(__name__)

POLL_S = 1.0


@dataclass(frozen=True)
class RoundReport:
    """What happened in one round.

    `sampled` and `valid` are node ids; `refused` gives the code for each node that was asked and did not
    count. `metrics` are those of each valid reply (with the number of examples), `aggregated` those of all,
    weighted by examples; empty if the round was lost. `bytes_up` and `bytes_down` count the arrays alone, all
    sites together.
    """

    round: int
    sampled: tuple[int, ...]
    valid: tuple[int, ...]
    refused: Mapping[int, str]
    metrics: Mapping[int, Mapping[str, float]]
    aggregated: Mapping[str, float]
    lost: bool
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class _Roster:
    """The nodes that were there when the round began; all that a strategy asks of a grid.

    Flower's own sampling waits for nodes without end; on a fixed list it cannot.
    """

    node_ids: Sequence[int]

    def get_node_ids(self) -> Sequence[int]:
        return self.node_ids


class GuardedStrategy(Strategy):
    """Wraps a strategy (see `flower_strategies`) and guards it.

    Run it with `start`, giving the trainable tensors alone as `initial_arrays`.
    `quorum`: least number of valid replies for a round to count. `metrics`: names that a reply may bring.
    `max_examples`: cap on the weight that a site may claim. `buffers`: the model's batch-norm buffers, if
    any. `norm_factor`: how many times the median update a site's may measure. `max_lost_rounds`: lost rounds
    in a row that are borne. `wait_s`: how long to wait for a quorum of nodes before a round. To resume, give
    `first_round` and the saved `memory` (see `strategy_state`). `on_round` gets each round's report, lost
    rounds' too.

    After each round `arrays` and `buffers` are the global model, `aggregated_rounds` and `lost_rounds` the
    count. Evaluation is not a message of its own: a site evaluates the model it gets before it trains.
    """

    def __init__(
        self,
        inner: FedAvg,
        *,
        quorum: int,
        metrics: Iterable[str],
        max_examples: int,
        buffers: Mapping[str, NDArray] | None = None,
        norm_factor: float = 10.0,
        max_lost_rounds: int = 2,
        wait_s: float = 600.0,
        first_round: int = 1,
        memory: Mapping[str, NDArray] | None = None,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        # All nodes of the roster are asked, and waiting for enough of them is done here.
        inner.fraction_train, inner.min_train_nodes, inner.min_available_nodes = 1.0, 1, 1
        inner.fraction_evaluate, inner.min_evaluate_nodes = 0.0, 0
        restore_strategy(inner, memory or {})
        self.inner = inner
        self.quorum = quorum
        self.metrics = frozenset(metrics)
        self.max_examples = max_examples
        self.norm_factor = norm_factor
        self.max_lost_rounds = max_lost_rounds
        self.wait_s = wait_s
        self.first_round = first_round
        self.on_round = on_round
        self.arrays: dict[str, NDArray] = {}
        self.buffers: dict[str, NDArray] = dict(buffers or {})
        self.aggregated_rounds = 0
        self.lost_rounds = 0
        self._lost_in_a_row = 0
        self._sampled: tuple[int, ...] = ()
        self._bytes_down = 0
        self._began_s = 0.0

    def summary(self) -> None:
        """Log the settings of the strategy within."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round, each with the trainable `arrays`, the `buffers` if any, and the `config`.

        Raises `Refusal` E_QUORUM if too few nodes are there within `wait_s`.
        """
        roster = cast(Grid, _Roster(self._wait_for_quorum(grid)))
        self._began_s = time.monotonic()
        self.arrays = decode(arrays)
        number = self.first_round - 1 + server_round
        messages = list(self.inner.configure_train(number, encode(self.arrays), config, roster))
        if self.buffers:
            buffers = encode(self.buffers)
            for message in messages:
                message.content["buffers"] = buffers
        self._sampled = tuple(sorted(message.metadata.dst_node_id for message in messages))
        self._bytes_down = sum(_array_bytes(message) for message in messages)
        return messages

    def _wait_for_quorum(self, grid: Grid) -> list[int]:
        deadline_s = time.monotonic() + self.wait_s
        while len(node_ids := list(grid.get_node_ids())) < self.quorum:
            if time.monotonic() >= deadline_s:
                raise Refusal(reasons.QUORUM, quorum=self.quorum, present=len(node_ids))
            time.sleep(POLL_S)
        return node_ids

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The new model and its metrics, or (None, None) if the round is lost and the model stays.

        Raises `Refusal` E_QUORUM after more than `max_lost_rounds` lost rounds in a row.
        """
        number = self.first_round - 1 + server_round
        replies = list(replies)
        bytes_up = sum(_array_bytes(reply) for reply in replies)
        valid, refused = self._sift(replies)
        metrics = {site: _metrics(reply) for site, reply in valid.items()}
        outcome = self._aggregate(number, valid) if len(valid) >= self.quorum else None
        self._count(lost=outcome is None)
        report = RoundReport(
            round=number,
            sampled=self._sampled,
            valid=tuple(valid),
            refused=refused,
            metrics=metrics,
            aggregated=dict(cast(Mapping[str, float], outcome)) if outcome is not None else {},
            lost=outcome is None,
            seconds=time.monotonic() - self._began_s,
            bytes_up=bytes_up,
            bytes_down=self._bytes_down,
        )
        if self.on_round:
            self.on_round(report)
        if self._lost_in_a_row > self.max_lost_rounds:
            raise Refusal(reasons.QUORUM, quorum=self.quorum, present=len(valid))
        return (None, None) if outcome is None else (encode(self.arrays), outcome)

    def _sift(self, replies: Sequence[Message]) -> tuple[dict[int, Message], dict[int, str]]:
        """Valid replies by node, and the code for each node that was asked and does not count.

        Sorted by node id, so that sums do not depend on who answered first. An answer from a node that was
        not asked counts for nothing; the server's own errors for a lost node come as such.
        """
        answers: dict[int, list[Message]] = defaultdict(list)
        for reply in replies:
            answers[reply.metadata.src_node_id].append(reply)
        expected = Expected(self.arrays, self.buffers, self.metrics, self.max_examples)
        codes = {site: refusal_code(answers[site], expected) for site in self._sampled}
        valid = {site: answers[site][0] for site, code in codes.items() if code is None}
        refused = {site: code for site, code in codes.items() if code is not None}
        for name, current in (("arrays", self.arrays), ("buffers", self.buffers)):
            norms = {site: update_norm(_tensors(reply, name), current) for site, reply in valid.items()}
            for site in outliers(norms, self.norm_factor):
                refused[site] = reasons.UPDATE_NORM.code
        for site, code in sorted(refused.items()):
            log.warning("node %d does not count in this round: %s", site, code)
        return {site: reply for site, reply in valid.items() if site not in refused}, refused

    def _aggregate(self, number: int, valid: Mapping[int, Message]) -> MetricRecord | None:
        """Take the replies into the model; None, with nothing changed, if no finite model comes of it."""
        sites = [_tensors(reply, "buffers") for reply in valid.values()]
        figures = [_metrics(reply) for reply in valid.values()]
        weights = [int(figure[EXAMPLES]) for figure in figures]
        for reply, weight in zip(valid.values(), weights, strict=True):
            arrays = encode(_tensors(reply, "arrays"))  # in our order
            reply.content = RecordDict({"arrays": arrays, "metrics": MetricRecord({EXAMPLES: weight})})
        memory = strategy_state(self.inner)
        with np.errstate(all="ignore"):  # what overflows is caught below
            record, accepted = self.inner.aggregate_train(number, list(valid.values()))
            # Some strategies compute in float64; the model keeps its own dtypes.
            new = {
                name: value.astype(self.arrays[name].dtype) for name, value in decode(record or ArrayRecord()).items()
            }
        if accepted is None or not _finite(new, strategy_state(self.inner)):
            restore_strategy(self.inner, memory)
            return None
        self.arrays = new
        self.buffers = combine(sites, weights) if self.buffers else {}
        return MetricRecord(dict(weighted_means(figures)))

    def _count(self, *, lost: bool) -> None:
        self.lost_rounds += lost
        self.aggregated_rounds += not lost
        self._lost_in_a_row = self._lost_in_a_row + 1 if lost else 0

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: see the class."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing: see the class."""
        return None


def weighted_means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the sites that gave it, weighted by their examples.

    A mean of AUROCs is that and no more: it is not the AUROC of all patients together.
    """
    names = sorted({name for figure in figures for name in figure} - {EXAMPLES})
    means = {}
    for name in names:
        having = [figure for figure in figures if name in figure]
        total = sum(figure[EXAMPLES] for figure in having)
        means[name] = sum(figure[name] * figure[EXAMPLES] for figure in having) / total
    return means


def _tensors(message: Message, name: str) -> dict[str, NDArray]:
    record = message.content.array_records.get(name)
    return decode(record) if record else {}


def _metrics(reply: Message) -> dict[str, float]:
    return dict(cast(Mapping[str, float], reply.content.metric_records["metrics"]))


def _finite(*groups: Mapping[str, NDArray]) -> bool:
    return all(np.isfinite(array).all() for group in groups for array in group.values())


def _array_bytes(message: Message) -> int:
    if not message.has_content():
        return 0
    records = message.content.array_records.values()
    return sum(len(array.data) for record in records for array in record.values())
