"""`EagerGrid` polls for replies frequently and yields each one. Tested on an in-memory grid."""

import threading
from types import SimpleNamespace

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.superlink.grid import http_grid

from federation.coordinator import eager_grid as grids
from federation.coordinator.eager_grid import AT_ONCE, EagerGrid, PartOfGrid
from federation.flower import grid as flower_grid
from federation.flower.pauses import LONGEST_PAUSE_S
from tests.helpers.module_time import set_time


class Clock:
    """A clock that advances only in `sleep` or when a test sets it.

    All code that measures the time of a reply reads it: the monotonic clock of a machine starts from 0 as the machine
    does, so a deadline of this clock is not always past on that one.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        for module in (grids, flower_grid, inflatable_utils):
            set_time(monkeypatch, module, monotonic=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now_s += seconds


class Lists:
    """Grid with a reply to each message from time `at`. `log` records the order of calls."""

    def __init__(self, clock: Clock, at: dict[str, float]) -> None:
        self.clock, self.at = clock, at
        self.log: list[str] = []
        self.asked: list[int] = []

    def get_node_ids(self):
        return iter([1, 2, 3])

    def push_messages(self, messages):
        self.log += [f"push {message}" for message in messages]
        return [f"id of {message}" for message in messages]

    def pull_messages(self, ids):
        self.asked.append(len(ids))
        there = [each for each in ids if self.at[each.removeprefix("id of ")] <= self.clock.now_s]
        self.log += [f"pull {each}" for each in there]
        return [SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=each)) for each in there]


class Halves(Lists):
    """Grid on which the parts of the reply to "half" never arrive; Flower's pauses advance the clock."""

    def __init__(self, clock: Clock, at: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(clock, at)

        class Event(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                clock.sleep(timeout or 0.0)
                return self.is_set()

        monkeypatch.setattr(inflatable_utils, "threading", SimpleNamespace(Event=Event, Lock=threading.Lock))

    def pull_messages(self, ids):
        if "id of half" in ids:
            with pytest.raises(inflatable_utils.ObjectPullError):
                http_grid.pull_objects(["part"], self.lacks)
        return super().pull_messages(ids)

    @staticmethod
    def lacks(part: str) -> bytes:
        raise inflatable_utils.ObjectUnavailableError(part)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def ids(replies) -> list[str]:
    return [reply.metadata.reply_to_message_id for reply in replies]


def test_all_replies_are_collected_once(clock):
    grid = Lists(clock, {"a": 0, "b": 7, "c": 3})
    assert ids(EagerGrid(grid).send_and_receive(["a", "b", "c"], timeout=10)) == ["id of a", "id of c", "id of b"]
    assert clock.now_s == 7
    assert grid.log[:3] == ["push a", "push b", "push c"]


def test_missing_replies_are_awaited_until_the_timeout(clock):
    grid = Lists(clock, {"a": 0, "b": 11, "c": 3})
    assert ids(EagerGrid(grid).send_and_receive(["a", "b", "c"], timeout=10)) == ["id of a", "id of c"]
    assert clock.now_s == pytest.approx(10)


def test_replies_are_awaited_without_limit_if_no_timeout_is_set(clock):
    grid = Lists(clock, {"a": 10_000})
    assert ids(EagerGrid(grid).send_and_receive(["a"])) == ["id of a"]


def test_messages_are_sent_before_the_first_pull(clock):
    grid = Lists(clock, {"a": 0})
    EagerGrid(grid).send_and_receive(["a"])
    assert grid.log == ["push a"]


def test_messages_are_created_and_sent_one_by_one(clock):
    grid = Lists(clock, {"a": 0, "b": 0})

    def messages():
        for name in ("a", "b"):
            grid.log.append(f"make {name}")
            yield name

    EagerGrid(grid).send_and_receive(messages())
    assert grid.log == ["make a", "push a", "make b", "push b"]


def test_few_replies_are_pulled_before_they_are_yielded(clock):
    many = [f"m{number}" for number in range(50)]
    grid = Lists(clock, dict.fromkeys(many, 0.0))
    for count, _ in enumerate(EagerGrid(grid).send_and_receive(many), start=1):
        assert sum(line.startswith("pull") for line in grid.log) < count + AT_ONCE
    assert count == 50
    assert max(grid.asked) == AT_ONCE


def test_replies_received_in_time_are_yielded_despite_slow_processing(clock):
    many = [f"m{number}" for number in range(20)]
    grid = Lists(clock, dict.fromkeys(many, 1.0))
    replies = EagerGrid(grid).send_and_receive(many, timeout=2)
    taken = 0
    for _ in replies:
        clock.now_s += 30
        taken += 1
    assert taken == 20


@pytest.mark.parametrize("timeout_s", [2, 3600])
def test_site_that_sends_half_a_reply_cannot_hold_up_the_round(clock, monkeypatch, timeout_s):
    """Attack: a site announces a reply, and never sends a part of it."""
    others = {f"m{number}": 1.0 for number in range(3)}
    grid = Halves(clock, {"half": 0.0} | others, monkeypatch)
    replies = EagerGrid(grid).send_and_receive(["half", *others], timeout=timeout_s)
    assert sorted(ids(replies)) == sorted(f"id of {each}" for each in ["half", *others])
    assert clock.now_s < timeout_s + 2 * LONGEST_PAUSE_S


def test_polling_rate_is_bounded_for_many_sites(clock):
    """The time that the server spends on polling is bounded."""
    many = [f"m{number}" for number in range(1000)]
    grid = Lists(clock, dict.fromkeys(many, 100.0))
    list(EagerGrid(grid).send_and_receive(many, timeout=90))
    assert len(grid.asked) <= 90 * grids.LOOKS_PER_S + 2 * 1000 / AT_ONCE  # plus the first and the last poll


def test_part_of_a_grid_sends_and_receives(clock):
    part = PartOfGrid(EagerGrid(Lists(clock, {"a": 0})), frozenset({2, 9}))
    assert part.get_node_ids() == [2]
    assert ids(part.send_and_receive(["a"])) == ["id of a"]
