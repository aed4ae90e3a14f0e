"""The small study of `toy_task` with masked rounds: the coordinator's strategy, the words and the gateways' votes.

The strategy, the replies as words, clipping and votes are the product's own. Only the masks are left out, because they
cancel in the sum. `test_hostile_hospital.py` and `benchmarks/vote.py` use it.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from federation.coordinator.accepted_model import Accepted
from federation.coordinator.masked_strategy import MaskedStrategy, MaskedStudy
from federation.gateway.model_votes import ModelVotes
from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS, pack
from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.reply_validation import LedgerHead, encode
from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, Answer, Ballot
from federation.secure_aggregation.fixed_point import Words, narrow_scale
from federation.secure_aggregation.messages import Header
from federation.secure_aggregation.reply_vector import Reply, Settings, vector
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.update_checks import clip_factor
from federation.strategy.flower_strategies import build_strategy
from federation.strategy.guarded import RoundRules, StartState
from federation.strategy.round_report import RoundReport
from models.refusal import Refusal
from tests.helpers.toy_task import Hospital, Model, fresh, model_in, patients, scores, train

VALIDATION = 40  # patients of each hospital
HOSTILE = ("reversed update", "noise", "inner product, 4 times", "label flip", "label flip, at the bound")
_AS_LONG_AS_IT_IS = ("inner product, 4 times", "label flip")  # if the gateway clips, these may be shorter
_NEARLY = 0.999  # of the longest; leaves a margin for rounding


@dataclass(frozen=True)
class HostileHospital:
    """The hospital at `place` (1, 2, ...), which knows all replies, in its rounds from `begins` to `ends`.

    `attack`: one of HOSTILE, or "" for its honest update. `clips`: whether its gateway is unchanged; if not, it chooses
    the mean, as long as the server accepts it. `answer`: its vote.
    """

    attack: str
    place: int
    begins: int = 1
    ends: int = 10**6
    clips: bool = True
    answer: Answer = NOT_WORSE


class Outcome(NamedTuple):
    """The model that is released, the reports of the rounds, and the code with which the study ended early, or ""."""

    model: Model
    reports: tuple[RoundReport, ...]
    stopped: str


@dataclass
class SumRound:
    """A round without masks: the words are added as they come."""

    total: Words | None = None
    sites: list[str] = field(default_factory=list)
    may_be_revealed: bool = False

    def upload(self, site: str, words: Words) -> None:
        self.total = words if self.total is None else self.total + words
        self.sites.append(site)

    def unmask(self, seconds: float) -> tuple[Words, tuple[str, ...]]:
        assert self.total is not None
        self.may_be_revealed = True
        return self.total, tuple(self.sites)

    def left(self, site: str) -> None:
        """Nobody waits here."""

    def forget(self) -> None:
        """Nothing is stored."""


class SummedStrategy(MaskedStrategy):
    """The masked strategy with replies that are already words. `words`: of the round, by node."""

    words: Mapping[int, Words] = {}
    settings: Settings

    def _opened(self, header: Header, settings: Settings) -> Any:
        self.settings = settings
        return SumRound()

    def _take(self, replies: Iterable[Message]) -> tuple[dict[int, str], dict[int, LedgerHead]]:
        assert self.current is not None
        for node, words in self.words.items():
            self.current.upload(self.masked.names[node], words)
        return {}, {}


class Hospitals:
    """The hospitals, as the grid of the strategy. `folder`: for their votes. `votes`: whether they vote."""

    strategy: SummedStrategy

    def __init__(self, at: Sequence[Hospital], hostile: HostileHospital | None, folder: Path, *, votes: bool) -> None:
        self.at, self.hostile, self.is_voting = at, hostile, votes
        self.votes = {node: ModelVotes(folder / f"votes-{node}") for node in self.get_node_ids()}

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.at) + 1))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        for message in list(messages)[:1]:  # all hospitals get the same
            number = int(str(message.content.config_records["config"]["server-round"]))
            self._work(number, model_in(message.content))
        return []

    def _work(self, number: int, before: Model) -> None:
        after = {node: train(before, self.at[node - 1])[0] for node in self.get_node_ids()}
        changes = {node: _changes(before, model) for node, model in after.items()}
        words = {
            node: self._vector(node, after[node], changes[node], self._clip(changes[node]), self._vote(node, before))
            for node in after
        }
        at = self.hostile
        if at is not None and at.begins <= number <= at.ends:
            if at.attack:
                words[at.place] = self._hostile(at, before, after[at.place], changes)
            else:
                mine = changes[at.place]
                words[at.place] = self._vector(at.place, after[at.place], mine, self._clip(mine), at.answer)
        self.strategy.words = words

    def _clip(self, changes: NDArray) -> float:
        settings = self.strategy.settings
        return clip_factor([changes], longest=settings.longest, weights=settings.weights)

    def _vote(self, node: int, model: Model) -> Answer:
        if not self.is_voting:
            return NO_VOTE
        at = self.at[node - 1]
        x, severe = patients(replace(at, seed=at.seed + 5_000_000, patients=VALIDATION))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores(model, x).double(), severe.double())
        return self.votes[node].cast("run", str(hash(model.arrays[WEIGHTS].tobytes())), {"loss_severe": loss.item()})

    def _vector(self, node: int, after: Model, changes: NDArray, scale: float, answer: Answer) -> Words:
        moments = [after.buffers[BATCH_NORM + name] for name in ("running_mean", "running_var")]
        ballot = Ballot.drawn(answer)
        reply = Reply(self.at[node - 1].patients, {}, moments[0], moments[1], [changes], scale, ballot)
        return np.concatenate(list(vector(reply, self.strategy.settings)))

    # --- the hostile hospital -----------------------------------------------------------------------------

    def _hostile(self, at: HostileHospital, before: Model, honest: Model, changes: Mapping[int, NDArray]) -> Words:
        settings = self.strategy.settings
        wanted = self._wanted(at, before, changes)
        length = float(np.linalg.norm(wanted))
        longest = _NEARLY * settings.longest
        if at.clips:
            longest = min(longest, length) if at.attack in _AS_LONG_AS_IT_IS else longest
            return self._vector(at.place, honest, longest * wanted / length, 1.0, at.answer)
        sizes = {node: each.patients for node, each in enumerate(self.at, start=1)}
        others = sum(sizes[node] * self._clip(each) * each for node, each in changes.items() if node != at.place)
        update = (longest * wanted / length * sum(sizes.values()) - others) / sizes[at.place]
        words = self._vector(at.place, honest, np.zeros(settings.weights), 1.0, at.answer)
        units = update * settings.share(sizes[at.place]) * narrow_scale(settings.limit, settings.sites)
        words[-settings.weights :] = np.rint(units).astype(np.int64).astype(np.uint32)  # no weight is cut off
        return words

    def _wanted(self, at: HostileHospital, before: Model, changes: Mapping[int, NDArray]) -> NDArray:
        """The direction in which it wants to move the model, and the length of the attack as published."""
        here = self.at[at.place - 1]
        if at.attack == "reversed update":
            return -changes[at.place]
        if at.attack == "noise":
            return np.random.default_rng(here.seed).standard_normal(changes[at.place].size)
        if at.attack == "inner product, 4 times":
            return -4 * np.mean([each for node, each in changes.items() if node != at.place], axis=0)
        x, severe = patients(here)
        return _changes(before, train(before, here, (x, 1 - severe))[0])


def _changes(before: Model, after: Model) -> NDArray:
    return np.asarray(after.arrays[WEIGHTS], np.float64) - before.arrays[WEIGHTS]


def play_masked(
    at: Sequence[Hospital],
    hostile: HostileHospital | None = None,
    *,
    votes: bool = True,
    seed: int = 0,
    rounds: int = 9,
) -> Outcome:
    """Run a whole masked study with FedAvg. The last round only judges."""
    arrays, buffers = pack(copy.deepcopy(fresh(seed)))
    reports: list[RoundReport] = []
    names = {node: f"hospital-{node:03}" for node in range(1, len(at) + 1)}
    keys = {name: node.to_bytes(32, "big") for node, name in names.items()}
    stopped = ""
    with TemporaryDirectory() as folder:
        grid = Hospitals(at, hostile, Path(folder), votes=votes)
        masked = MaskedStudy(
            run="run",
            study="a" * 64,
            roster=Roster(members=tuple(Member(name=name, key=key) for name, key in keys.items())),
            patients=sum(each.patients for each in at),
            folder=Path(folder) / "masked",
            names=names,
            round_seconds=60.0,
            server_folder=Path(folder),
        )
        rules = RoundRules(quorum=3, metrics=FIGURES["train"], max_examples=100_000, wait_s=1)
        start = StartState(buffers=buffers)
        inner = build_strategy("FedAvg", {})
        strategy = SummedStrategy(inner, rules, start, masked=masked, on_round=reports.append)
        grid.strategy = strategy
        try:
            strategy.start(grid=cast(Grid, grid), initial_arrays=encode(arrays), num_rounds=rounds)
        except Refusal as refusal:
            stopped = refusal.code
    released = Accepted.read(strategy.accepted)
    assert released is not None
    return Outcome(Model(released.arrays, released.buffers), tuple(reports), stopped)
