"""Masked rounds in groups at the coordinator, over HTTP with nine hospitals: median, dropouts, garbage, resuming."""

import os
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from federation.coordinator.accepted_model import SHRINK
from federation.coordinator.masked_groups import MaskedGroups
from federation.coordinator.masked_strategy import MaskedStrategy
from federation.coordinator.masked_study import MaskedStudy
from federation.protocol.flat_weights import BATCH_NORM, WEIGHTS
from federation.protocol.masked_replies import FIGURES
from federation.protocol.metric_allowlist import FIGURES as ALL
from federation.secure_aggregation.ballots import WORSE
from federation.secure_aggregation.fixed_point import WIDE_WORDS
from federation.secure_aggregation.group_median import Moments
from federation.secure_aggregation.groups import groups_of
from federation.secure_aggregation.keys import Identity
from federation.secure_aggregation.roster import Member, Roster
from federation.secure_aggregation.store import Store
from federation.strategy.flower_strategies import build_strategy
from federation.strategy.guarded import RoundRules, StartState
from federation.strategy.round_report import RoundReport
from models.refusal import Refusal
from tests.federation.coordinator import test_masked_strategy as one_sum
from tests.federation.coordinator.test_masked_strategy import (
    BUFFERS,
    MODEL,
    RUN,
    STUDY,
    Hospitals,
    changes,
    moments,
    run,
)

NAMES = {node: f"hospital-{node}" for node in range(1, 10)}
PATIENTS = {node: 20 + 7 * node for node in NAMES}
MEMORY = Path("/dev/shm")
MEAN, VARIANCE = list(BUFFERS)[:2]
SHIFT = 10_000_000  # of each word: the mean is then about half as long as a single update may be


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(one_sum, "NAMES", NAMES)
    monkeypatch.setattr(one_sum, "PATIENTS", PATIENTS)
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        (Path(folder) / "server").mkdir()
        yield Path(folder)


@dataclass
class Nine(Hospitals):
    """Nine hospitals in three groups. `garbage`: nodes whose changed gateway spoils its reply, by what of it.

    `garbage_in`: the rounds in which it does so; none: in all.
    """

    count: int = 9
    garbage: Mapping[int, str] = field(default_factory=dict)
    garbage_in: Collection[int] = ()

    def __post_init__(self) -> None:
        self.identities = {node: Identity.kept(self.folder / f"key-{node}") for node in NAMES}
        members = tuple(Member(name=NAMES[node], key=key.public) for node, key in self.identities.items())
        self.everybody = Roster(members=members)
        self.stores = {node: Store(self.folder / f"s{node}", self.folder / f"w{node}") for node in NAMES}
        by_name = {name: node for node, name in NAMES.items()}
        self.groups = [[by_name[name] for name in group.by_name] for group in groups_of(self.everybody, 3)]

    def roster_for(self, node: int) -> Roster:
        """The list with which a gateway takes part: its own group."""
        return next(group for group in groups_of(self.everybody, 3) if NAMES[node] in group.by_name)

    def masked_reply(self, node: int, message: Message) -> tuple[NDArray, Callable[[], None]]:
        words, finish = super().masked_reply(node, message)
        number = int(str(message.content.config_records["config"]["server-round"]))
        if node in self.garbage and (not self.garbage_in or number in self.garbage_in):
            rng, start = np.random.default_rng(node), len(words) - MODEL[WEIGHTS].size
            start = 0 if self.garbage[node] == "all" else start
            added = rng.integers(0, 2**32, size=len(words) - start, dtype=np.uint32)
            words = words.copy()
            words[start:] += np.uint32(SHIFT) if self.garbage[node] == "shift" else added
        return words, finish


def strategy_of(
    hospitals: Nine, reports: list[RoundReport], inner: FedAvg | None = None, **start: Any
) -> MaskedStrategy:
    study = MaskedStudy(
        run=RUN,
        study=STUDY,
        roster=hospitals.everybody,
        patients=2 * sum(PATIENTS.values()),
        folder=hospitals.folder / "masked",
        names=NAMES,
        round_seconds=60.0,
        server_folder=hospitals.folder / "server",
        groups=3,
    )
    rules = RoundRules(quorum=3, metrics=ALL["train"], max_examples=1000, wait_s=1)
    state = StartState(buffers=BUFFERS, **start)
    return MaskedStrategy(inner or FedAvg(), rules, state, masked=study, on_round=reports.append)


def group_means(groups: list[list[int]], weights: NDArray) -> NDArray:
    """Each group's mean change, weighted by patients."""
    return np.stack(
        [
            np.average([changes(n, weights).astype(float) for n in group], axis=0, weights=[PATIENTS[n] for n in group])
            for group in groups
        ]
    )


def moments_of(group: list[int]) -> tuple[NDArray, NDArray]:
    weights = [PATIENTS[n] for n in group]
    means, variances = (np.stack([moments(n)[kind] for n in group]) for kind in (0, 1))
    mean = np.average(means, axis=0, weights=weights)
    return mean, np.average(variances + means**2, axis=0, weights=weights) - mean**2


def moved(weights: NDArray, means: NDArray) -> NDArray:
    return weights + np.median(means, axis=0).astype(np.float32)


def others(hospitals: Nine, node: int) -> tuple[list[list[int]], list[int]]:
    """The groups without the one of this node, and that one."""
    own = next(group for group in hospitals.groups if node in group)
    return [group for group in hospitals.groups if group != own], own


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM"])
def test_model_is_the_median_of_the_groups_plaintext_means(folder: Path, name: str) -> None:
    hospitals, reports = Nine(folder), list[RoundReport]()
    strategy = strategy_of(hospitals, reports, build_strategy(name, {}))
    run(strategy, hospitals, 2)
    assert hospitals.problems == []
    weights, velocity = MODEL[WEIGHTS], np.zeros_like(MODEL[WEIGHTS])
    momentum = 0.0 if name == "FedAvg" else build_strategy(name, {}).server_momentum  # type: ignore[attr-defined]
    for _ in range(2):
        velocity = momentum * velocity + moved(weights, group_means(hospitals.groups, weights)) - weights
        weights = weights + velocity
    np.testing.assert_allclose(strategy.arrays[WEIGHTS], weights, atol=2e-6)
    pooled = [moments_of(group) for group in hospitals.groups]
    np.testing.assert_allclose(strategy.buffers[MEAN], np.median([mean for mean, _ in pooled], axis=0), atol=1e-5)
    np.testing.assert_allclose(strategy.buffers[VARIANCE], np.median([var for _, var in pooled], axis=0), atol=1e-5)
    assert strategy.buffers[BATCH_NORM + "num_batches_tracked"].tolist() == [2, 2]
    expected = np.average([0.1 * node for node in NAMES], weights=list(PATIENTS.values()))
    for report in reports:
        assert not report.lost and report.valid == tuple(NAMES)
        assert report.aggregated == pytest.approx(dict.fromkeys(FIGURES, expected), rel=1e-4)
    assert not list((folder / "masked").glob("group-*/*")), "nothing is kept when the model has moved"


def test_missing_hospital_loses_only_its_group(folder: Path) -> None:
    """The group then counts as one that changes nothing."""
    hospitals, reports = Nine(folder, silent={1: {5}}), list[RoundReport]()
    strategy = strategy_of(hospitals, reports)
    run(strategy, hospitals, 1)
    rest, lost = others(hospitals, 5)
    still = np.zeros_like(MODEL[WEIGHTS])
    expected = moved(MODEL[WEIGHTS], np.stack([*group_means(rest, MODEL[WEIGHTS]), still]))
    np.testing.assert_allclose(strategy.arrays[WEIGHTS], expected, atol=1e-6)
    assert reports[0].valid == tuple(sorted(node for group in rest for node in group))
    assert set(reports[0].refused) == set(lost)


@pytest.mark.parametrize("what", ["all", "weights", "shift"])
def test_garbage_of_one_hospital_does_not_move_the_model_beyond_the_other_groups(folder: Path, what: str) -> None:
    hospitals, reports = Nine(folder, garbage={4: what}), list[RoundReport]()
    strategy = strategy_of(hospitals, reports)
    run(strategy, hospitals, 1)
    assert hospitals.problems == [] and not reports[0].lost
    rest, _ = others(hospitals, 4)
    known = group_means(rest, MODEL[WEIGHTS])
    if what == "shift":
        assert reports[0].valid == tuple(NAMES), "such a sum could be honest"
    else:
        assert reports[0].valid == tuple(sorted(node for group in rest for node in group))
        known = np.vstack([known, np.zeros_like(known[:1])])
    change = strategy.arrays[WEIGHTS].astype(float) - MODEL[WEIGHTS]
    assert (change >= known.min(axis=0) - 1e-6).all() and (change <= known.max(axis=0) + 1e-6).all()


def test_round_with_too_few_groups_is_lost_and_reveals_nothing(folder: Path) -> None:
    hospitals = Nine(folder)
    hospitals.silent = {1: {group[0] for group in hospitals.groups[:2]}}
    reports: list[RoundReport] = []
    strategy = strategy_of(hospitals, reports)
    run(strategy, hospitals, 2)
    assert [report.lost_for for report in reports] == ["E_SECAGG_GROUPS", None]
    expected = moved(MODEL[WEIGHTS], group_means(hospitals.groups, MODEL[WEIGHTS]))
    np.testing.assert_allclose(strategy.arrays[WEIGHTS], expected, atol=1e-6)


@pytest.mark.slow
def test_sum_that_one_group_revealed_in_a_lost_round_is_used_in_the_next(folder: Path) -> None:
    """Its hospitals train this model no more. The server is another process in the second round."""
    hospitals = Nine(folder)
    first, *rest = hospitals.groups
    hospitals.stop_before = {node: "confirm" for group in rest for node in group}
    reports: list[RoundReport] = []
    strategy = strategy_of(hospitals, reports)
    strategy.masked.__dict__["last_seconds"] = 6.0
    run(strategy, hospitals, 1)
    assert [report.lost_for for report in reports] == ["E_SECAGG_GROUPS"]
    np.testing.assert_array_equal(strategy.arrays[WEIGHTS], MODEL[WEIGHTS])
    assert all(isinstance(problem, TimeoutError) for problem in hospitals.problems), hospitals.problems

    hospitals.stop_before, hospitals.problems = {}, []
    again = strategy_of(hospitals, reports, first_round=2)
    again.finish_begun(MODEL)
    assert len(reports) == 1, "one sum of three is not enough to finish the round"
    run(again, hospitals, 1)
    expected = moved(MODEL[WEIGHTS], group_means(hospitals.groups, MODEL[WEIGHTS]))
    np.testing.assert_allclose(again.arrays[WEIGHTS], expected, atol=1e-6)
    assert reports[1].valid == tuple(NAMES)
    refused = [str(problem) for problem in hospitals.problems]
    assert len(refused) == len(first) and all("E_SECAGG_MODEL_USED" in text for text in refused)


def finish(hospitals: Nine, strategy: MaskedStrategy) -> None:
    """Let a new server finish what a killed one had begun, with the hospitals' gateways."""
    with strategy.serving():
        threads = [
            threading.Thread(
                target=lambda node=node, known=known: [do() for _, do in hospitals.last_steps(node, *known)]
            )
            for node, known in hospitals.rounds.items()
        ]
        for thread in threads:
            thread.start()
        strategy.finish_begun(MODEL)
        for thread in threads:
            thread.join(60)


@pytest.mark.slow
def test_sums_that_a_killed_server_left_are_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_sum.until_signed(monkeypatch)
    hospitals = Nine(folder, stop_before=dict.fromkeys(NAMES, "reveal"))
    strategy = strategy_of(hospitals, [])
    strategy.masked.__dict__["last_seconds"] = 6.0
    with pytest.raises(Refusal, match="E_SECAGG_GROUPS"):
        run(strategy, hospitals, 1)
    hospitals.stop_before = {}
    reports: list[RoundReport] = []
    again = strategy_of(hospitals, reports)
    finish(hospitals, again)
    expected = moved(MODEL[WEIGHTS], group_means(hospitals.groups, MODEL[WEIGHTS]))
    np.testing.assert_allclose(again.arrays[WEIGHTS], expected, atol=1e-6)
    assert (again.first_round, reports[0].round, reports[0].lost) == (2, 1, False)
    later = strategy_of(hospitals, reports, first_round=2)
    later.finish_begun(again.arrays)
    assert len(reports) == 1, "there is nothing left to finish"


@pytest.mark.slow
def test_stored_sum_over_another_model_is_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_sum.until_signed(monkeypatch)
    hospitals = Nine(folder, stop_before=dict.fromkeys(NAMES, "reveal"))
    strategy = strategy_of(hospitals, [])
    strategy.masked.__dict__["last_seconds"] = 6.0
    with pytest.raises(Refusal, match="E_SECAGG_GROUPS"):
        run(strategy, hospitals, 1)
    assert len(list((folder / "masked").glob("group-*/round.json"))) == 3
    reports: list[RoundReport] = []
    later = strategy_of(hospitals, reports, first_round=2)
    later.finish_begun({WEIGHTS: MODEL[WEIGHTS] + 1})
    assert not reports and not list((folder / "masked").glob("group-*/round.json"))


def two_of_two_groups(hospitals: Nine) -> list[int]:
    return [group[0] for group in hospitals.groups[:2]]


@pytest.mark.slow
def test_sums_of_which_too_few_can_be_used_lose_the_round_and_not_the_study(folder: Path) -> None:
    """All hospitals train this model no more, so the next attempt needs another one."""
    hospitals, reports = Nine(folder), list[RoundReport]()
    hospitals.garbage, hospitals.garbage_in = dict.fromkeys(two_of_two_groups(hospitals), "all"), {1}
    strategy = strategy_of(hospitals, reports)
    run(strategy, hospitals, 2)
    assert hospitals.problems == []
    assert [report.lost_for for report in reports] == ["E_SECAGG_GROUPS", None]
    assert reports[0].valid == tuple(NAMES)
    before = MODEL[WEIGHTS] * np.float32(SHRINK)
    expected = moved(before, group_means(hospitals.groups, before))
    np.testing.assert_allclose(strategy.arrays[WEIGHTS], expected, atol=1e-6)


@pytest.mark.slow
def test_votes_of_all_groups_are_added_and_take_a_spoilt_median_back(folder: Path) -> None:
    hospitals, reports = Nine(folder), list[RoundReport]()
    hostile = two_of_two_groups(hospitals)
    hospitals.garbage, hospitals.garbage_in = dict.fromkeys(hostile, "shift"), {1}
    hospitals.answers = {2: {node: WORSE for node in NAMES if node not in hostile}}
    strategy = strategy_of(hospitals, reports)
    run(strategy, hospitals, 2)
    assert hospitals.problems == []
    means = group_means(hospitals.groups, MODEL[WEIGHTS])
    honest = moved(MODEL[WEIGHTS], means)
    assert not np.allclose(hospitals.seen[2], honest, atol=1e-3), "the median was spoilt"
    assert [report.lost_for for report in reports] == [None, "E_MODEL_REJECTED"]
    assert reports[1].votes == {"worse": 7, "not_worse": 2, "no_vote": 0} and reports[1].undone == (1,)
    np.testing.assert_array_equal(strategy.arrays[WEIGHTS], MODEL[WEIGHTS] * np.float32(SHRINK))


@pytest.mark.slow
def test_votes_in_a_sum_that_cannot_be_used_do_not_count(folder: Path) -> None:
    """A hospital with a changed gateway can silence its group, and no other one."""
    hospitals, reports = Nine(folder), list[RoundReport]()
    silenced, *rest = hospitals.groups
    hospitals.garbage, hospitals.garbage_in = {silenced[0]: "all"}, {2}
    against = [*silenced[1:], *rest[0][:2], *rest[1][:2]]
    hospitals.answers = {2: dict.fromkeys(against, WORSE)}
    run(strategy_of(hospitals, reports), hospitals, 2)
    assert reports[1].votes == {"worse": 4, "not_worse": 2, "no_vote": 0}
    assert reports[1].lost_for == "E_MODEL_REJECTED" and reports[1].undone == (1,)


def test_site_that_is_in_no_group_gets_no_answer() -> None:
    groups = MaskedGroups([], 3, Moments(np.zeros(0), np.zeros(0)))
    groups.left("stranger")
    for step in (
        lambda: groups.answer("stranger", "begin", b"{}", ""),
        lambda: groups.upload("stranger", np.zeros(WIDE_WORDS, np.uint32)),
    ):
        with pytest.raises(Refusal, match="E_SECAGG_MEMBER"):
            step()
