"""One federated training: rounds with the guarded strategy, a checkpoint after each, and early stopping.

It trains the study's own model and the models of the federation without one site.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from flwr.serverapp import Grid

from federation.coordinator.accepted_model import Accepted
from federation.coordinator.connected_sites import MAX_EXAMPLES, Sites
from federation.coordinator.masked_strategy import MaskedStrategy
from federation.coordinator.masked_study import MaskedStudy
from federation.coordinator.summed_figures import SummedFigures
from federation.protocol.first_weights import begin_network
from federation.protocol.flat_weights import Arrays, pack
from federation.protocol.half_precision import rounded
from federation.protocol.metric_allowlist import EPSILON, FIGURES
from federation.protocol.reply_validation import encode
from federation.protocol.study_config import StoppingTable, Study
from federation.strategy import checkpoint, reasons
from federation.strategy.flower_strategies import strategy_of, strategy_state
from federation.strategy.guarded import GuardedStrategy, RoundRules, StartState
from federation.strategy.round_report import RoundReport
from federation.strategy.sampling import draw
from models.refusal import Refusal

OnRound = Callable[[RoundReport, Mapping[str, Any], Path], None]


@dataclass(frozen=True)
class Model:
    """The packed tensors of a network."""

    arrays: Arrays
    buffers: Arrays


class _Enough(Exception):
    """The training stops early: further rounds are not expected to improve it."""


@dataclass
class Training:
    """The training of one model, from its last checkpoint in `folder` if there is one.

    `on_round` is called after each round with its report, its history entry and the checkpoint's file.
    `begins_from`: the folder of the release that the study starts from, if any (see `first_weights.begin_network`).
    `masked`: for a study whose replies, or at least their figures, are masked.
    """

    study: Study
    folder: Path
    run: str
    on_round: OnRound = lambda *_: None
    begins_from: Path = Path()
    masked: MaskedStudy | None = None
    state: checkpoint.State = field(init=False)
    damaged_rounds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Load the last checkpoint, or initialise the network if there is none.

        Raises Refusal: E_CHECKPOINT_DAMAGED if there are checkpoints but none is intact, and those of `begin_network`.
        """
        try:
            loaded = checkpoint.load_latest(self.folder)
            self.state, self.damaged_rounds = loaded.state, loaded.damaged_rounds
        except Refusal as refusal:
            if refusal.reason is not reasons.CHECKPOINT_NONE:
                raise
            arrays, buffers = pack(begin_network(self.study, self.begins_from))
            self.state = checkpoint.State(round=0, arrays=arrays, buffers=buffers, memory={}, history=[], about={})
        self.history: list[Mapping[str, Any]] = list(self.state.history)

    @property
    def stopped_early(self) -> bool:
        return self.state.round < self.study.study.rounds and has_stopped_rising(self.history, self.study.stopping)

    @property
    def model(self) -> Model:
        """Return the model as sent to the sites (rounded), so that they evaluate what is released.

        If the hospitals judge the models, it is the last one that they accepted.
        """
        accepted = Accepted.read(self.state.accepted)
        if accepted is not None:
            return Model(accepted.arrays, accepted.buffers)
        sent = rounded(self.state.arrays, self.study.wire.precision)
        arrays = {name: array.astype(self.state.arrays[name].dtype, copy=False) for name, array in sent.items()}
        return Model(arrays, self.state.buffers)

    def execute(self, sites: Sites) -> Model:
        """Run all remaining rounds. Raises Refusal: those of `GuardedStrategy` and `strategy_of`."""
        table = self.study.study
        if self.state.round >= table.rounds or self.stopped_early:
            return self.model
        inner = strategy_of(self.study)
        rules = RoundRules(
            quorum=table.quorum,
            metrics=FIGURES["train"],
            max_examples=MAX_EXAMPLES,
            enrolled=sites.enrolled,
            wait_s=table.wait_s,
            choose=lambda number, nodes: draw(nodes, sites.name, table.sites_per_round, seed=table.seed, what=number),
        )
        self._strategy = self._make_strategy(self.masked or sites.masked)(
            inner,
            rules,
            StartState(
                buffers=self.state.buffers,
                first_round=self.state.round + 1,
                memory=self.state.memory,
                accepted=self.state.accepted,
            ),
            heads=sites.heads,
            folder=self.folder,
            on_round=lambda report: self._keep(report, sites),
        )
        self._wire = sites.wire
        with suppress(_Enough), self._strategy.serving():
            self._strategy.finish_begun(self.state.arrays)
            if self.state.round >= table.rounds:
                return self.model
            self._strategy.start(
                grid=cast(Grid, self._wire),
                initial_arrays=encode(self.state.arrays),
                num_rounds=table.rounds - self.state.round,
                timeout=table.round_timeout_s,
            )
        return self.model

    def _make_strategy(self, masked: MaskedStudy | None) -> Callable[..., GuardedStrategy]:
        if masked is None:
            return GuardedStrategy
        return partial(MaskedStrategy if self.study.aggregation.secure else SummedFigures, masked=masked)

    def _keep(self, report: RoundReport, sites: Sites) -> None:
        """Save a round and report it. Stop the training if the metrics no longer rise."""
        report = replace(report, bytes_down=self._wire.bytes_down, bytes_up=self._wire.bytes_up)
        entry = _entry(report, sites)
        self.history.append(entry)
        strategy = self._strategy
        self.state = checkpoint.State(
            round=report.round,
            arrays=strategy.arrays,
            buffers=strategy.buffers,
            memory=strategy_state(strategy.inner),
            history=self.history,
            about={"study": self.study.study.name, "run": self.run},
            accepted=strategy.accepted,
        )
        self.on_round(report, entry, checkpoint.save(self.folder, self.state))
        if self.stopped_early:
            raise _Enough


def _entry(report: RoundReport, sites: Sites) -> dict[str, Any]:
    """Return the history entry of a round."""
    return {
        "round": report.round,
        "lost": report.lost,
        "lost_for": report.lost_for,
        "sites": sorted(map(sites.name, report.valid)),
        "refused": {sites.name(node): code for node, code in report.refused.items()},
        "capped": sorted(map(sites.name, report.capped)),
        "clipped": sorted(map(sites.name, report.clipped)),
        "ledger": sites.ledger(report.ledger),
        "epsilon": {sites.name(node): m[EPSILON] for node, m in report.metrics.items() if EPSILON in m},
        "means": dict(report.aggregated),
        "seconds": round(report.seconds, 1),
        "bytes_up": report.bytes_up,
        "bytes_down": report.bytes_down,
        "votes": dict(report.votes),
        "undone": list(report.undone),
        "unjudged": list(report.unjudged),
    }


def has_stopped_rising(history: Sequence[Mapping[str, Any]], rule: StoppingTable | None) -> bool:
    """Whether the mean validation metric of the last rounds stayed less than `least_gain` above the earlier best.

    A round reports the metric of the model that it started with. Rounds without the metric do not count.
    """
    if rule is None:
        return False
    figures = [means[rule.figure] for entry in history if rule.figure in (means := entry.get("means", {}))]
    before, last = figures[: -rule.patience_rounds], figures[-rule.patience_rounds :]
    return bool(before) and max(last) < max(before) + rule.least_gain
