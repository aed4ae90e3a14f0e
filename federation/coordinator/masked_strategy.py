"""The guarded strategy of a study with secure aggregation: it learns the sum of the updates, and no single one.

The strategy below it receives the mean as one reply, so any strategy that begins with a weighted mean works unchanged.
In a study with groups, it receives the median over the groups' means.
What a sum cannot show is left to each hospital's gateway: whether an update is finite, dense and not too long, and
whether the model is much worse than before on its validation patients. If most hospitals say so, the study goes back to
the last model that they accepted (`accepted_model`).
"""

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from federation.coordinator import reasons
from federation.coordinator.accepted_model import Accepted, shrink
from federation.coordinator.masked_groups import MaskedGroups
from federation.coordinator.masked_round import MaskedRound
from federation.coordinator.masked_service import MaskedService
from federation.coordinator.masked_study import TRAINING_SHARE, MaskedStudy, take, watch
from federation.gateway import reasons as gateway_reasons
from federation.gateway.first_model import model_digest, write_chunks
from federation.protocol import reasons as protocol_reasons
from federation.protocol.batch_norm import MEAN, VARIANCE, is_counter
from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS
from federation.protocol.masked_replies import FIGURES
from federation.protocol.metric_allowlist import EPSILON, EXAMPLES
from federation.protocol.reply_validation import LedgerHead, encode, length
from federation.secure_aggregation.ballots import Votes
from federation.secure_aggregation.group_median import Moments
from federation.secure_aggregation.groups import groups_of
from federation.secure_aggregation.messages import NOTHING, TRAIN, Header
from federation.secure_aggregation.reply_vector import Mean, Settings, mean_of
from federation.secure_aggregation.roster import Roster
from federation.secure_aggregation.server_round import ServerRound
from federation.strategy.flower_strategies import restore_strategy, strategy_state
from federation.strategy.guarded import GuardedStrategy
from federation.strategy.round_report import RoundReport
from models.refusal import Refusal

LONGEST = 3.0  # how many lengths of the last mean update a hospital's update may have
LONGEST_FIRST = 1.0  # before the first sum: lengths of the model


@dataclass(frozen=True)
class _Outcome:
    """What became of a round's sum. `present`: the nodes in the sum. `undone`: rounds whose steps were taken back."""

    present: tuple[int, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    votes: Votes | None = None
    lost: Refusal | None = None
    undone: tuple[int, ...] = ()


class MaskedStrategy(GuardedStrategy):
    """A `GuardedStrategy` whose replies are masked. `current`: the round that gateways ask about."""

    def __init__(self, *arguments: Any, masked: MaskedStudy, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.masked = masked
        self.rules = replace(self.rules, choose=self._on_roster)
        self.current: MaskedRound | MaskedGroups | None = None
        self._accepted = Accepted.read(self.accepted)
        self._epsilon: dict[str, float] = {}

    def _on_roster(self, number: int, nodes: Sequence[int]) -> list[int]:
        """Choose all nodes of hospitals on the roster."""
        return self.masked.on_roster(nodes)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Answer the gateways of the hospitals while the block runs."""
        with MaskedService(self.masked.server_folder, lambda: self.current):
            yield

    def finish_begun(self, arrays: Mapping[str, NDArray]) -> None:
        """Unmask the sum of a round that a killed server had begun: its model is never summed again.

        Raises Refusal: E_SECAGG_TOO_FEW if too few hospitals are there, E_SECAGG_SHARES.
        """
        self._begin_with(arrays)
        if (begun := self._begun()) is None:
            return
        self.current, number = begun
        self._began_s = time.monotonic()
        self._messages(number, list(self.masked.names), ConfigRecord())  # sets the strategy's weights
        self._settings = Settings.model_validate(self.masked.noted()["settings"])
        self._epsilon = self.masked.noted().get("epsilon", {})
        self._sampled = tuple(sorted(self.masked.names))
        self._conclude(number, {}, {}, seconds=self.masked.round_seconds)
        self.first_round = number + 1

    def _begun(self) -> tuple[MaskedRound | MaskedGroups, int] | None:
        """Return a round that must be finished, with its number. Raises Refusal E_SECAGG_MESSAGE, OSError."""
        folder, noted = self.masked.folder, self.masked.noted()
        if self.masked.groups:
            if "settings" not in noted:
                return None
            settings, before = Settings.model_validate(noted["settings"]), self._moments()
            groups = MaskedGroups.resumed(self._rosters, self._model_digest(), settings, folder, before=before)
            return (groups, groups.number) if groups else None
        if (begun := ServerRound.resumed(folder)) is None:
            return None
        if begun.confirmations is None or begun.header.round < self.first_round:
            begun.forget()  # nobody has revealed a share, or the checkpoint was written before the end
            return None
        return MaskedRound(begun.header, None, lambda _: begun, (), seconds=0.0, server=begun), begun.header.round

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a masked round, and return the messages of the round. Raises Refusal as the base class does."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._begin_with(self.arrays)
        number = self.first_round - 1 + server_round
        settings = Settings(
            weights=self.arrays[WEIGHTS].size,
            channels=self._moments().means.size,
            figures=FIGURES,
            patients=self.masked.patients,
            longest=self._longest(),
            sites=len(self.masked.roster.members),
        )
        header = self.masked.next_header(
            number, kind=TRAIN, model=self._model_digest(), asked=NOTHING, settings=settings.digest
        )
        self._settings = settings
        self.masked.note(settings=settings.model_dump(mode="json"))
        self.current = current = self._opened(header, settings)
        watch(current, lambda: self.current is current, self._asked, grid)
        return messages

    def _begin_with(self, arrays: Mapping[str, NDArray]) -> None:
        """Begin a round with these weights. A study's first model is accepted without a vote."""
        self.arrays = dict(arrays)
        if self._accepted is None:
            self._keep(Accepted(self.arrays, self.buffers, strategy_state(self.inner)))

    def _opened(self, header: Header, settings: Settings) -> MaskedRound | MaskedGroups:
        """Return the attempt at a round, in which the sampled hospitals are expected."""
        masked, quorum = self.masked, self.rules.quorum
        names, seconds = self._asked.values(), TRAINING_SHARE * masked.round_seconds
        if masked.groups:
            return MaskedGroups.opened(
                self._rosters,
                header,
                settings,
                names,
                masked.folder,
                before=self._moments(),
                seconds=seconds,
                quorum=quorum,
            )

        def make(header: Header) -> ServerRound:
            return ServerRound(masked.roster, header, masked.folder, words=settings.words)

        return MaskedRound(header, settings, make, names, seconds=seconds, quorum=quorum)

    @property
    def _rosters(self) -> tuple[Roster, ...]:
        return groups_of(self.masked.roster, self.masked.groups)

    def _model_digest(self) -> str:
        """Return the digest of the model that is sent, as the hospitals' gateways compute it."""
        return model_digest(
            write_chunks({"arrays": self.arrays, **({"buffers": self.buffers} if self.buffers else {})})
        )

    def _moments(self) -> Moments:
        """Return the batch-norm moments of the model; arrays of length 0 if it has none."""
        means, variances = (self.buffers.get(BATCH_NORM + kind, np.zeros(0)) for kind in (MEAN, VARIANCE))
        return Moments(means.astype(np.float64), variances.astype(np.float64))

    @property
    def _asked(self) -> dict[int, str]:
        """The names of the nodes that the round asks."""
        return {node: self.masked.names[node] for node in self._sampled}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next model, and the mean figures unless the round is lost.

        Raises Refusal after more than `max_lost_rounds` consecutive lost rounds, with the reason of the last one.
        """
        refused, heads = self._take(replies)
        return self._conclude(self.first_round - 1 + server_round, refused, heads, seconds=self.masked.last_seconds)

    def _conclude(
        self,
        number: int,
        refused: Mapping[int, str],
        heads: Mapping[int, LedgerHead],
        *,
        seconds: float,
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Unmask the round's sum and move the model. Raises Refusal if the sum may have been revealed in part."""
        outcome = self._use_sum(number, refused, seconds)
        lost = outcome.lost
        assert self.current is not None and self._accepted is not None
        self.heads |= heads
        self._count(lost=lost is not None, undone=len(outcome.undone))
        epsilon = {node: self._epsilon.get(self.masked.names[node]) for node in outcome.present}
        report = RoundReport(
            round=number,
            sampled=self._sampled,
            valid=outcome.present,
            refused=dict(refused),
            metrics={node: {EPSILON: value} for node, value in epsilon.items() if value is not None},
            capped=(),
            clipped=(),
            aggregated=dict(outcome.figures),
            lost_for=lost.code if lost else None,
            ledger=dict(heads),
            seconds=time.monotonic() - self._began_s,
            votes=asdict(outcome.votes) if outcome.votes else {},
            undone=outcome.undone,
            unjudged=self._accepted.unjudged,
        )
        if self.on_round:
            self.on_round(report)
        if lost is None or outcome.present or self.current.may_be_revealed:
            self.current.forget()  # `on_round` has saved the model that comes next
        self.current = None
        if lost and self._lost_in_a_row > self.rules.max_lost_rounds:
            raise lost
        return encode(self.arrays), None if lost else MetricRecord(dict(report.aggregated))

    def _take(self, replies: Iterable[Message]) -> tuple[dict[int, str], dict[int, LedgerHead]]:
        """Add the masked replies to the sum; return the code of each other node, and ledger heads."""
        assert self.current is not None
        self._epsilon = {}
        epsilon = self._epsilon if self.masked.is_private else None
        taken = take(replies, self.current, self._asked, self._settings.words, self.heads, epsilon)
        self.masked.note(epsilon=self._epsilon)
        return taken

    def _use_sum(self, number: int, refused: Mapping[int, str], seconds: float) -> _Outcome:
        """Unmask the sum, and move the model on or back."""
        assert self.current is not None and self._accepted is not None
        try:
            mean, total = None, np.zeros(0, np.uint32)
            if isinstance(self.current, MaskedGroups):
                mean, names = self.current.mean(seconds)
            else:
                total, names = self.current.unmask(seconds)
        except Refusal as refusal:
            # Hospitals that have revealed shares train this model no more: the sum must be finished after a resume.
            if self.current.may_be_revealed:
                raise
            return self._without_sum(refusal, refused)
        present = self._nodes_of(names)
        try:
            mean = mean or mean_of(total, self._settings, len(names))
        except Refusal as refusal:
            self._shrink()
            return _Outcome(present, lost=refusal)
        if mean.votes.is_rejected:
            voters = mean.votes.worse + mean.votes.not_worse
            rejected = Refusal(reasons.MODEL_REJECTED, worse=mean.votes.worse, voters=voters)
            return _Outcome(present, votes=mean.votes, lost=rejected, undone=self._go_back())
        self._accept()
        figures = self._apply(number, mean)
        if figures is None:
            self._shrink()
            return _Outcome(present, votes=mean.votes, lost=Refusal(protocol_reasons.MODEL_NOT_FINITE))
        return _Outcome(present, figures, mean.votes)

    def _without_sum(self, refusal: Refusal, refused: Mapping[int, str]) -> _Outcome:
        """Go back if most hospitals refuse the model as too far, and on with almost the same one if the groups' sums
        were revealed in vain.
        """
        assert self._accepted is not None
        if isinstance(self.current, MaskedGroups) and self.current.is_spoilt:
            self._shrink()
            return _Outcome(self._nodes_of(self.current.names), lost=refusal)
        too_far = sum(code == gateway_reasons.MODEL_DRIFT.code for code in refused.values())
        if 2 * too_far <= len(self._sampled) or not self._accepted.unjudged:
            return _Outcome(lost=refusal)
        return _Outcome(lost=Refusal(gateway_reasons.MODEL_DRIFT), undone=self._go_back())

    def _nodes_of(self, names: Collection[str]) -> tuple[int, ...]:
        return tuple(sorted(node for node in self._sampled if self.masked.names[node] in names))

    # --- the accepted model -------------------------------------------------------------------------------

    def _keep(self, accepted: Accepted) -> None:
        self._accepted, self.accepted = accepted, accepted.tensors()

    def _accept(self) -> None:
        """The hospitals accept the model that the round began with."""
        assert self._accepted is not None
        if self._accepted.unjudged:
            self._lost_in_a_row = 0
        self._keep(
            Accepted(self.arrays, self.buffers, strategy_state(self.inner), self.masked.noted().get("length", 0.0))
        )

    def _shrink(self) -> None:
        """Go on with almost the same model, because a sum of its updates was revealed and is not used."""
        assert self._accepted is not None
        self._keep(self._accepted.shrunk_once_more())
        self.arrays = shrink(self.arrays, self.masked.fixed)
        restore_strategy(self.inner, strategy_state(self.inner))  # it may hold the weights

    def _go_back(self) -> tuple[int, ...]:
        """Go back to almost the accepted model; return the rounds whose steps are taken back."""
        assert self._accepted is not None
        undone, accepted = self._accepted.unjudged, replace(self._accepted.shrunk_once_more(), unjudged=())
        self._keep(accepted)
        self.arrays = shrink(accepted.arrays, self.masked.fixed, accepted.shrunk)
        # Counters never go down: gateways refuse a model whose counters do.
        counters = {name: array for name, array in self.buffers.items() if is_counter(name)}
        self.buffers = {**accepted.buffers, **counters}
        restore_strategy(self.inner, accepted.memory)
        self.masked.note(length=accepted.length)
        return undone

    def _count(self, *, lost: bool, undone: int = 0) -> None:
        """Count a round. One that was taken back counts as lost, and only an accepted step ends a row of lost ones."""
        self.lost_rounds += lost + undone
        self.aggregated_rounds += (not lost) - undone
        self._lost_in_a_row += lost + undone

    def _apply(self, number: int, mean: Mean) -> dict[str, float] | None:
        """Move the model by the strategy's step; return the mean figures, or None and change nothing if it is not
        finite.
        """
        weights = self.arrays[WEIGHTS]
        moved = {WEIGHTS: (weights + mean.changes).astype(weights.dtype)}
        content = RecordDict({"arrays": encode(moved), "metrics": MetricRecord({EXAMPLES: mean.patients})})
        memory = strategy_state(self.inner)
        with np.errstate(all="ignore"):
            record = self.inner.aggregate_train(number, [Message(content, dst_node_id=1, message_type="train")])[0]
        new = None if record is None else record[WEIGHTS].numpy().astype(weights.dtype)
        if new is None or not np.isfinite(new).all():
            restore_strategy(self.inner, memory)
            return None
        self.arrays = {WEIGHTS: new}
        self.buffers = {name: self._buffer(name, array, mean) for name, array in self.buffers.items()}
        assert self._accepted is not None
        self._keep(replace(self._accepted, unjudged=(number,)))
        self.masked.note(length=mean.length)
        return dict(mean.figures)

    @staticmethod
    def _buffer(name: str, before: NDArray, mean: Mean) -> NDArray:
        """Return a pooled batch-norm buffer. The largest counter is no sum; it counts rounds here."""
        if is_counter(name):
            return np.asarray(before + 1, before.dtype)
        return (mean.variances if name == BATCH_NORM + VARIANCE else mean.means).astype(before.dtype)

    def _longest(self) -> float:
        """Return the length of the longest update that a hospital may send.

        The noise of differential privacy has no common direction: the mean over n hospitals is shorter by a factor of
        the root of n than their updates. Without regard to that they would be shortened more in every round.
        """
        last = self.masked.noted().get("length", 0.0)
        factor = LONGEST * math.sqrt(len(self.masked.roster.members)) if self.masked.is_private else LONGEST
        return factor * last if last > 0 else LONGEST_FIRST * length(self.arrays)
