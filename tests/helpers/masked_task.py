"""The small study of `toy_task` with masked rounds: the coordinator's strategy, the words and the gateways' votes.

The strategy, the groups and their median, the replies as words, clipping and votes are the product's own. Only the
masks are left out, because they cancel in the sum. `test_hostile_hospital.py` and `benchmarks/vote.py` use it.
"""

import copy
import hashlib
import os
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
from federation.coordinator.masked_groups import Group, MaskedGroups, settings_of_group
from federation.coordinator.masked_strategy import MaskedStrategy
from federation.coordinator.masked_study import MaskedStudy
from federation.gateway.model_votes import ModelVotes
from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS, pack
from federation.protocol.metric_allowlist import FIGURES
from federation.protocol.patient_counts import Patients
from federation.protocol.reply_validation import LedgerHead, encode
from federation.secure_aggregation.ballots import NO_VOTE, NOT_WORSE, Answer, Ballot
from federation.secure_aggregation.fixed_point import Words, narrow_scale
from federation.secure_aggregation.groups import groups_of
from federation.secure_aggregation.messages import Header
from federation.secure_aggregation.reply_vector import Reply, Settings, vector
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.update_checks import clip_factor
from federation.strategy.flower_strategies import build_strategy
from federation.strategy.guarded import RoundRules, StartState
from federation.strategy.round_report import RoundReport
from models.refusal import Refusal
from tests.helpers.toy_task import Hospital, Model, fresh, model_in, patients, scores, train

MEMORY = Path("/dev/shm")  # files in it are flushed at once
VALIDATION = 40  # patients of each hospital
HOSTILE = ("reversed update", "noise", "inner product, 4 times", "label flip", "label flip, at the bound")
_AS_LONG_AS_IT_IS = ("inner product, 4 times", "label flip")  # if the gateway clips, these may be shorter
_NEARLY = 0.999  # of the longest; leaves a margin for rounding


@dataclass(frozen=True)
class HostileHospitals:
    """The hospitals at `places` (1, 2, ...), which know all replies and work together from `begins` to `ends`.

    `attack`: one of HOSTILE, or "" for their honest updates. `clips`: whether their gateways are unchanged; if not, the
    first of them in each sum chooses its mean, as long as the server accepts it. `answer`: their votes, also in the
    round after. `spoils`: the rounds in which words of `spoilers` (none: of all) make their sum senseless, so that it
    is not used.
    """

    attack: str
    places: tuple[int, ...]
    begins: int = 1
    ends: int = 10**6
    clips: bool = True
    answer: Answer = NOT_WORSE
    spoils: tuple[int, ...] = ()
    spoilers: tuple[int, ...] = ()

    def is_active(self, number: int) -> bool:
        return self.begins <= number <= self.ends


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
    is_revealed: bool = False

    @property
    def replies(self) -> int:
        return len(self.sites)

    def upload(self, site: str, words: Words) -> None:
        self.total = words if self.total is None else self.total + words
        self.sites.append(site)

    def unmask(self, seconds: float) -> tuple[Words, tuple[str, ...]]:
        assert self.total is not None
        self.may_be_revealed = self.is_revealed = True
        return self.total, tuple(self.sites)

    def left(self, site: str) -> None:
        """Nobody waits here."""

    def forget(self) -> None:
        """Nothing is stored."""


class SummedStrategy(MaskedStrategy):
    """The masked strategy with replies that are already words. `words`: of the round, by node."""

    words: Mapping[int, Words] = {}
    settings: Mapping[int, Settings] = {}  # of the sum that each node is in

    def _opened(self, header: Header, settings: Settings) -> Any:
        if not self.masked.groups:
            self.settings = dict.fromkeys(self.masked.names, settings)
            return SumRound()
        groups = [Group(roster, settings_of_group(settings, roster), cast(Any, SumRound())) for roster in self._rosters]
        by_name = {name: group.settings for group in groups for name in group.roster.by_name}
        self.settings = {node: by_name[name] for node, name in self.masked.names.items()}
        return MaskedGroups(groups, len(groups), self._moments(), number=header.round)

    def _take(self, replies: Iterable[Message]) -> tuple[dict[int, str], dict[int, LedgerHead]]:
        assert self.current is not None
        for node, words in self.words.items():
            self.current.upload(self.masked.names[node], words)
        return {}, {}


class Hospitals:
    """The hospitals, as the grid of the strategy. `groups`: of nodes whose replies are summed. `folder`: for votes.

    `votes`: whether they vote. `validation`: patients of each who judge. `by_auroc`: by the
    AUROC too, and not only by the loss.
    """

    strategy: SummedStrategy

    def __init__(
        self,
        at: Sequence[Hospital],
        hostile: HostileHospitals | None,
        folder: Path,
        *,
        groups: Sequence[Sequence[int]],
        votes: bool,
        validation: int,
        by_auroc: bool,
    ) -> None:
        self.at, self.hostile, self.is_voting, self.by_auroc = at, hostile, votes, by_auroc
        self.groups, self.validation = groups, validation
        self.votes = {node: ModelVotes(folder / f"votes-{node}") for node in self.get_node_ids()}

    def get_node_ids(self) -> list[int]:
        return list(range(1, len(self.at) + 1))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        for message in list(messages)[:1]:  # all hospitals get the same
            number = int(str(message.content.config_records["config"]["server-round"]))
            self._work(number, model_in(message.content))
        return []

    def _work(self, number: int, before: Model) -> None:
        after = {node: _trained(before, self.at[node - 1]) for node in self.get_node_ids()}
        changes = {node: _changes(before, each) for node, each in after.items()}
        at, words = self.hostile, {}
        for node, model in after.items():
            is_hostile = at is not None and node in at.places and at.begins <= number <= at.ends + 1
            answer = at.answer if at is not None and is_hostile else self._vote(node, before)
            words[node] = self._vector(node, model, changes[node], self._clip(node, changes[node]), answer)
        if at is not None and at.attack and at.is_active(number):
            self._attack(at, before, changes, words)
        if at is not None and number in at.spoils:
            for node in at.spoilers or at.places:
                words[node] = words[node] + np.uint32(2**31)
        self.strategy.words = words

    def _clip(self, node: int, changes: NDArray) -> float:
        settings = self.strategy.settings[node]
        return clip_factor([changes], longest=settings.longest, weights=settings.weights)

    def _vote(self, node: int, model: Model) -> Answer:
        if not self.is_voting:
            return NO_VOTE
        at = self.at[node - 1]
        x, severe = patients(replace(at, seed=at.seed + 5_000_000, patients=self.validation))
        logits, positives = scores(model, x).double(), int(severe.sum())
        figures = {"loss_severe": torch.nn.functional.binary_cross_entropy_with_logits(logits, severe.double()).item()}
        classes = {("validation", "severe", True): positives, ("validation", "severe", False): len(severe) - positives}
        if self.by_auroc and min(classes.values()):
            above = logits[severe == 1][:, None] - logits[severe == 0]
            figures["auroc_severe"] = float(((above > 0).double() + 0.5 * (above == 0)).mean())
        digest = str(hash(model.arrays[WEIGHTS].tobytes()))
        return self.votes[node].cast("run", digest, figures, Patients(with_value=classes))

    def _vector(self, node: int, after: Model, changes: NDArray, scale: float, answer: Answer) -> Words:
        moments = [after.buffers[BATCH_NORM + name] for name in ("running_mean", "running_var")]
        ballot = Ballot.drawn(answer)
        reply = Reply(self.at[node - 1].patients, {}, moments[0], moments[1], [changes], scale, ballot)
        return np.concatenate(list(vector(reply, self.strategy.settings[node])))

    # --- the hostile hospitals ----------------------------------------------------------------------------

    def _first_of_each_sum(self, at: HostileHospitals) -> list[int]:
        return [min(set(group) & set(at.places)) for group in self.groups if set(group) & set(at.places)]

    def _attack(
        self, at: HostileHospitals, before: Model, changes: Mapping[int, NDArray], words: dict[int, Words]
    ) -> None:
        """Put hostile changes into the words of the hostile hospitals, and leave their ballots and moments."""
        for node in at.places if at.clips else self._first_of_each_sum(at):
            # With changed gateways all go the way of the first one, or they would cancel.
            wanted = self._wanted(at, node if at.clips else at.places[0], before, changes)
            settings = self.strategy.settings[node]
            update = self._clipped(at, wanted, settings) if at.clips else self._chosen(node, wanted, changes)
            units = update * settings.share(self.at[node - 1].patients) * narrow_scale(settings.limit, settings.sites)
            words[node] = words[node].copy()
            words[node][-settings.weights :] = np.rint(units).astype(np.int64).astype(np.uint32)  # no weight is cut off

    @staticmethod
    def _clipped(at: HostileHospitals, wanted: NDArray, settings: Settings) -> NDArray:
        """What an unchanged gateway lets pass."""
        length, longest = float(np.linalg.norm(wanted)), _NEARLY * settings.longest
        longest = min(longest, length) if at.attack in _AS_LONG_AS_IT_IS else longest
        return np.clip(longest * wanted / length, -settings.limit, settings.limit)

    def _chosen(self, node: int, wanted: NDArray, changes: Mapping[int, NDArray]) -> NDArray:
        """The update with which the mean of the node's sum goes the wanted way, as long as the server accepts it."""
        (group,) = [group for group in self.groups if node in group]
        sizes = {member: self.at[member - 1].patients for member in group}
        mean = _NEARLY * self.strategy.settings[node].longest * wanted / float(np.linalg.norm(wanted))
        others = sum(sizes[n] * self._clip(n, changes[n]) * changes[n] for n in group if n != node)
        return np.asarray((mean * sum(sizes.values()) - others) / sizes[node])

    def _wanted(self, at: HostileHospitals, node: int, before: Model, changes: Mapping[int, NDArray]) -> NDArray:
        """The direction in which it wants to move the model, and the length of the attack as published."""
        here = self.at[node - 1]
        if at.attack == "reversed update":
            return -changes[node]
        if at.attack == "noise":
            return np.random.default_rng(here.seed).standard_normal(changes[node].size)
        if at.attack == "inner product, 4 times":
            return -4 * np.mean([each for other, each in changes.items() if other not in at.places], axis=0)
        x, severe = patients(here)
        return _changes(before, train(before, here, (x, 1 - severe))[0])


_KNOWN: dict[tuple[bytes, Hospital], Model] = {}  # studies have their first rounds in common


def _trained(before: Model, at: Hospital) -> Model:
    arrays = [*before.arrays.values(), *before.buffers.values()]
    key = (hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest(), at)
    if key not in _KNOWN:
        if len(_KNOWN) > 5000:
            _KNOWN.clear()
        _KNOWN[key] = train(before, at)[0]
    return _KNOWN[key]


def _changes(before: Model, after: Model) -> NDArray:
    return np.asarray(after.arrays[WEIGHTS], np.float64) - before.arrays[WEIGHTS]


def roster_of(count: int) -> Roster:
    """Return the approved list of so many hospitals, which says who is in which group."""
    names = {f"hospital-{node:03}": node.to_bytes(32, "big") for node in range(1, count + 1)}
    return Roster(members=tuple(Member(name=name, key=key) for name, key in names.items()))


def groups_in(count: int, groups: int) -> list[list[int]]:
    """Return the hospitals (1, 2, ...) of each of `groups` groups; 0: one group of all."""
    return [sorted(int(name[-3:]) for name in group.by_name) for group in groups_of(roster_of(count), groups)]


def play_masked(
    at: Sequence[Hospital],
    hostile: HostileHospitals | None = None,
    *,
    groups: int = 0,
    votes: bool = True,
    validation: int = VALIDATION,
    by_auroc: bool = True,
    seed: int = 0,
    rounds: int = 9,
) -> Outcome:
    """Run a whole masked study with FedAvg. The last round only judges."""
    arrays, buffers = pack(copy.deepcopy(fresh(seed)))
    reports: list[RoundReport] = []
    stopped, roster = "", roster_of(len(at))
    dealt = groups_in(len(at), groups)
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        grid = Hospitals(at, hostile, Path(folder), groups=dealt, votes=votes, validation=validation, by_auroc=by_auroc)
        masked = MaskedStudy(
            run="run",
            study="a" * 64,
            roster=roster,
            patients=sum(each.patients for each in at),
            folder=Path(folder) / "masked",
            names=dict(enumerate(sorted(roster.by_name), start=1)),
            round_seconds=60.0,
            server_folder=Path(folder),
            groups=groups,
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
