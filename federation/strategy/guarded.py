"""The guarded strategy: wraps one of `flower_strategies` and adds the checks that Flower lacks.

Flower aggregates any reply. One bad reply can destroy the model or end the run. One lost site can leave a round to a
single hospital or block it forever. Batch-norm buffers are treated as weights, and nothing is saved. This wrapper
validates each reply, clips its update, caps its weight, requires a quorum, combines buffers separately, reports each
round, and lets the optimiser's state be saved and restored. The wrapped strategy does the aggregation.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from numpy.typing import NDArray

from federation.protocol import reasons as protocol_reasons
from federation.protocol.batch_norm import combine, combine_by_median
from federation.protocol.metric_allowlist import EXAMPLES, Figure
from federation.protocol.pooled_figures import weighted_means
from federation.protocol.reply_validation import (
    NO_HEAD,
    Expected,
    LedgerHead,
    decode,
    encode,
    length,
    longest,
    shows_itself,
    sift,
)
from federation.strategy import reasons
from federation.strategy.aggregation import Aggregation
from federation.strategy.flower_strategies import (
    is_robust,
    least_replies,
    remaining_hostile,
    restore_strategy,
    strategy_state,
)
from federation.strategy.reply_files import TEMPORARY, Filed, file_reply, spool
from federation.strategy.round_report import RoundReport
from federation.strategy.sampling import Choose, everybody
from models.refusal import Reason, Refusal

log = logging.getLogger(__name__)

POLL_S = 1.0


@dataclass(frozen=True)
class _Roster:
    """A fixed list of nodes for a round, in place of a grid; a strategy uses only this method of a grid.

    Flower's own sampling can wait for nodes forever; with a fixed list it cannot.
    """

    node_ids: Sequence[int]

    def get_node_ids(self) -> Sequence[int]:
        return self.node_ids


@dataclass(frozen=True, kw_only=True)
class RoundRules:
    """When a round counts, and which replies count in it.

    `quorum`: least number of valid replies for a round to count; the strategy itself may need more (`least_replies`).
    `metrics`: figures that a reply may contain. `max_examples`: a reply that claims more is refused. `enrolled`: how
    many patients a node was enrolled with; a reply that claims more counts with that number. `norm_factor`: an update
    longer than this many low median lengths is clipped to that length; weights and buffers are clipped separately.
    `max_lost_rounds`: how many consecutive lost rounds are tolerated. `wait_s`: how long to wait before a round for
    enough nodes. `choose`: selects which connected nodes a round samples.
    """

    quorum: int
    metrics: Mapping[str, Figure]
    max_examples: int
    enrolled: Mapping[int, int] = field(default_factory=dict)
    norm_factor: float = 2.0
    max_lost_rounds: int = 2
    wait_s: float = 600.0
    choose: Choose = everybody


@dataclass(frozen=True, kw_only=True)
class StartState:
    """What training starts from, besides the weights: the model's batch-norm `buffers`, if any.

    To resume, give also the number of the next round and the saved memory of the optimiser (see `strategy_state`).
    `accepted`: what `GuardedStrategy.accepted` was, for a study whose hospitals judge the models.
    """

    buffers: Mapping[str, NDArray] = field(default_factory=dict)
    first_round: int = 1
    memory: Mapping[str, NDArray] = field(default_factory=dict)
    accepted: Mapping[str, NDArray] = field(default_factory=dict)


class GuardedStrategy(Strategy):
    """Wraps a strategy (see `flower_strategies`) and guards it.

    Run it with `start`; `initial_arrays` must be the trainable tensors only.
    `heads`: the ledger heads that nodes last reported, updated in place. `folder`: where a round's replies are stored
    until they are summed (see `reply_files`). `on_round`: receives each round's report, also of lost rounds.

    After each round, `arrays` and `buffers` are the global model, `aggregated_rounds` and `lost_rounds` the counts, and
    `heads` the last reported ledger heads, which the next messages send back to the nodes.
    There is no separate evaluation message: a site evaluates the model that it receives before it trains.
    """

    def __init__(
        self,
        inner: FedAvg,
        rules: RoundRules,
        start: StartState | None = None,
        *,
        heads: dict[int, LedgerHead] | None = None,
        folder: Path | None = None,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> None:
        start = start or StartState()
        # All nodes of the roster are asked: this class itself waits for enough nodes and samples them.
        inner.fraction_train, inner.min_train_nodes, inner.min_available_nodes = 1.0, 1, 1
        inner.fraction_evaluate, inner.min_evaluate_nodes = 0.0, 0
        restore_strategy(inner, start.memory)
        self.inner = inner
        self.is_robust = is_robust(inner)
        self.rules = rules
        self.needed = max(rules.quorum, least_replies(inner))
        self.first_round = start.first_round
        self.heads = {} if heads is None else heads
        self.folder = folder
        self.on_round = on_round
        self.arrays: dict[str, NDArray] = {}
        self.buffers: dict[str, NDArray] = dict(start.buffers)
        self.accepted: Mapping[str, NDArray] = start.accepted  # the last accepted model; empty if nobody judges models
        self.aggregated_rounds = 0
        self.lost_rounds = 0
        self._lost_in_a_row = 0
        self._sampled: tuple[int, ...] = ()
        self._began_s = 0.0

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Serve what sites ask besides Flower's messages while the block runs; here nothing."""
        yield

    def finish_begun(self, arrays: Mapping[str, NDArray]) -> None:
        """Finish a round that an earlier process had begun with the model `arrays`; here none can be finished."""

    def summary(self) -> None:
        """Log the settings of the wrapped strategy."""
        self.inner.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of a round, each with the trainable `arrays`, the `buffers` if any, and its own `config`.

        Raises `Refusal` E_QUORUM if too few nodes are connected within `wait_s`.
        """
        number = self.first_round - 1 + server_round
        nodes = self.rules.choose(number, self._wait_for_quorum(grid))
        self._began_s = time.monotonic()
        self.arrays = decode(arrays)
        messages = self._messages(number, nodes, config)
        buffers = {"buffers": encode(self.buffers)} if self.buffers else {}
        for message in messages:
            head = self.heads.get(message.metadata.dst_node_id, NO_HEAD)
            config = ConfigRecord({**message.content.config_records["config"], **head.config()})
            message.content = RecordDict({"arrays": message.content["arrays"], **buffers, "config": config})
        self._sampled = tuple(sorted(message.metadata.dst_node_id for message in messages))
        return messages

    def _messages(self, number: int, nodes: Sequence[int], config: ConfigRecord) -> list[Message]:
        """Let the wrapped strategy begin a round with these nodes; return its messages."""
        return list(self.inner.configure_train(number, encode(self.arrays), config, cast(Grid, _Roster(nodes))))

    def _wait_for_quorum(self, grid: Grid) -> list[int]:
        deadline_s = time.monotonic() + self.rules.wait_s
        while len(node_ids := list(grid.get_node_ids())) < self.needed:
            if time.monotonic() >= deadline_s:
                raise Refusal(reasons.QUORUM, quorum=self.needed, present=len(node_ids))
            time.sleep(POLL_S)
        return node_ids

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the new model and its metrics, or (None, None) if the round is lost and the model unchanged.

        Raises `Refusal` after more than `max_lost_rounds` consecutive lost rounds, with the reason of the last one:
        E_QUORUM, E_STRATEGY_REPLIES, E_MODEL_NOT_FINITE.
        """
        number = self.first_round - 1 + server_round
        with spool(self.folder) as folder:
            valid, refused, heads = self._sift(_one_by_one(replies), folder)
            metrics = {site: self._capped(site, reply.figures) for site, reply in valid.items()}
            shown = sum(map(shows_itself, refused.values()))
            outcome = self._aggregate(number, valid, metrics, shown)
        self.heads |= heads
        reason, summed = outcome if isinstance(outcome, Reason) else None, self._summed_figures(number)
        self._count(lost=reason is not None)
        report = RoundReport(
            round=number,
            sampled=self._sampled,
            valid=tuple(sorted(valid)),
            refused=refused,
            metrics=metrics,
            capped=tuple(site for site, reply in valid.items() if metrics[site] != reply.figures),
            clipped=tuple(sorted(site for site, reply in valid.items() if reply.scales)),
            aggregated={} if isinstance(outcome, Reason) else {**outcome, **summed},
            lost_for=reason.code if reason else None,
            ledger=heads,
            seconds=time.monotonic() - self._began_s,
        )
        if self.on_round:
            self.on_round(report)
        if reason and self._lost_in_a_row > self.rules.max_lost_rounds:
            needed = least_replies(self.inner, shown=shown)
            raise Refusal(reason, quorum=self.rules.quorum, needed=needed, present=len(valid))
        return (None, None) if reason else (encode(self.arrays), MetricRecord(dict(report.aggregated)))

    def _sift(
        self, replies: Iterable[Message], folder: Path
    ) -> tuple[dict[int, Filed], dict[int, str], dict[int, LedgerHead]]:
        """Return valid replies by node, the code of each asked node that does not count, and the ledgers' heads.

        Replies are sorted by their content, so that sums depend neither on who replied first nor on Flower's random
        node ids: the same updates give the same model, bit for bit.
        """
        model = {"arrays": self.arrays, "buffers": self.buffers}
        expected = Expected(self.arrays, self.buffers, self.rules.metrics, self.rules.max_examples)

        def keep(reply: Message) -> Filed:
            return file_reply(reply, folder / f"{reply.metadata.src_node_id}{TEMPORARY}", model)

        sifted = sift(replies, self._sampled, expected, self.heads, keep)
        endless = {site for site, reply in sifted.valid.items() if not np.isfinite(list(reply.norms.values())).all()}
        refused = sifted.refused | dict.fromkeys(endless, protocol_reasons.UPDATE_NORM.code)
        for site, code in sorted(refused.items()):
            log.warning("node %d does not count in this round: %s", site, code)
        valid = self._clipped({site: reply for site, reply in sifted.valid.items() if site not in endless})
        return dict(sorted(valid.items(), key=lambda item: item[1].order)), refused, sifted.heads

    def _clipped(self, valid: Mapping[int, Filed]) -> dict[int, Filed]:
        """Scale the replies so that each moves the model by at most the round's limit."""
        scales: dict[int, dict[str, float]] = {site: {} for site in valid}
        for record, current in (("arrays", self.arrays), ("buffers", self.buffers)):
            norms = {site: reply.norms[record] for site, reply in valid.items()}
            bound = longest(norms.values(), self.rules.norm_factor, model_norm=length(current))
            for site, norm in norms.items():
                if norm > bound:
                    scales[site][record] = bound / norm
        return {site: replace(reply, scales=scales[site]) for site, reply in valid.items()}

    def _capped(self, site: int, figure: Mapping[str, float]) -> dict[str, float]:
        """Return a reply's figures, with at most the number of examples that the site was enrolled with."""
        return {**figure, EXAMPLES: min(figure[EXAMPLES], self.rules.enrolled.get(site, self.rules.max_examples))}

    def _aggregate(
        self, number: int, valid: Mapping[int, Filed], metrics: Mapping[int, Mapping[str, float]], shown: int
    ) -> dict[str, float] | Reason:
        """Aggregate the replies into the model; if no model can result, return the reason and change nothing."""
        if len(valid) < self.rules.quorum:
            return reasons.QUORUM
        if len(valid) < least_replies(self.inner, shown=shown):
            return reasons.STRATEGY_REPLIES
        replies, weights = list(valid.values()), [figure[EXAMPLES] for figure in metrics.values()]
        aggregation = Aggregation(self.inner, number, replies, [int(weight) for weight in weights], self.arrays)
        memory = strategy_state(self.inner)
        apart = remaining_hostile(self.inner, shown=shown, valid=len(valid))
        with np.errstate(all="ignore"), apart:  # overflows are detected below
            new = aggregation.run()
        if new is None or not _finite(new, strategy_state(self.inner)):
            restore_strategy(self.inner, memory)
            return protocol_reasons.MODEL_NOT_FINITE
        self.arrays = new
        if self.buffers:
            sites = [reply.arrays("buffers", self.buffers) for reply in replies]
            self.buffers = combine_by_median(sites) if self.is_robust else combine(sites, weights)
        return weighted_means(list(metrics.values()))

    def _summed_figures(self, number: int) -> Mapping[str, float]:
        """Return the round's figures that no site sends on its own; here there are none."""
        return {}

    def _count(self, *, lost: bool) -> None:
        self.lost_rounds += lost
        self.aggregated_rounds += not lost
        self._lost_in_a_row = self._lost_in_a_row + 1 if lost else 0

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return nothing: see the class."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: see the class."""
        return None


def _one_by_one(replies: Iterable[Message]) -> Iterator[Message]:
    """Yield each reply, and empty it before the next one is requested.

    Flower's views of a message's records refer to themselves, so their memory would only be freed by the garbage
    collector.
    """
    for reply in replies:
        yield reply
        for record in reply.content.values() if reply.has_content() else ():
            record.clear()
        del reply


def _finite(*groups: Mapping[str, NDArray]) -> bool:
    return all(np.isfinite(array).all() for group in groups for array in group.values())
