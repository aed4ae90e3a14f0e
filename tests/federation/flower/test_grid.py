import threading
import time
from types import SimpleNamespace

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.superlink.grid import http_grid

from federation.flower.grid import missing_parts
from federation.flower.pauses import LONGEST_PAUSE_S


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses that Flower makes between its attempts; they take no time here."""
    pauses: list[float] = []

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return self.is_set()

    monkeypatch.setattr(inflatable_utils, "threading", SimpleNamespace(Event=Event, Lock=threading.Lock))
    return pauses


def fetch(after_attempts: int, wait_s: float | None = None) -> dict[str, bytes]:
    missing = ["part"] * after_attempts

    def pull(_: str) -> bytes:
        if missing:
            raise inflatable_utils.ObjectUnavailableError(missing.pop())
        return b"content"

    with missing_parts(None if wait_s is None else time.monotonic() + wait_s):
        return http_grid.pull_objects(["part"], pull)


def test_part_that_arrives_soon_is_fetched_within_a_second(pauses_s: list[float]) -> None:
    assert fetch(after_attempts=3) == {"part": b"content"}
    assert len(pauses_s) == 3
    assert sum(pauses_s) < 1.0


def test_pauses_for_a_slow_node_become_longer_but_not_without_limit(pauses_s: list[float]) -> None:
    assert fetch(after_attempts=30) == {"part": b"content"}
    assert pauses_s[9] > 5 * pauses_s[0]
    assert max(pauses_s) <= 1.2 * LONGEST_PAUSE_S  # Flower varies each by up to a fifth


def test_node_with_a_slow_line_may_take_as_long_as_with_flower_alone(pauses_s: list[float]) -> None:
    assert fetch(after_attempts=2500) == {"part": b"content"}
    assert sum(pauses_s) > 500 * 0.9 * 10 - 100  # Flower's attempts and longest pause, which it varies


@pytest.mark.parametrize("wait_s", [0.0, -1.0])
def test_reply_with_a_missing_part_is_given_up_after_the_wait(pauses_s: list[float], wait_s: float) -> None:
    with pytest.raises(inflatable_utils.ObjectPullError):
        fetch(after_attempts=1, wait_s=wait_s)
    assert pauses_s == []
    assert fetch(after_attempts=0, wait_s=wait_s) == {"part": b"content"}


def test_other_code_of_the_process_waits_as_flower_does() -> None:
    flowers = http_grid.pull_objects
    with missing_parts(time.monotonic() + 1.0):
        assert http_grid.pull_objects is not flowers
    assert http_grid.pull_objects is flowers
