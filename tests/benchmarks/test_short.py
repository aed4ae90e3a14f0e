"""The short form of the benchmarks tells a ratio that has become worse, in either direction, and no other."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules are a folder of scripts, found only from there."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(
    ("target", "committed", "now", "is_kept"),
    [
        ("at most 1.05", 1.02, 1.1, True),
        ("at most 1.05", 1.02, 1.6, False),
        ("at most 1.05", 1.02, 0.2, True),
        ("at least 0.8", 1.4, 1.0, True),
        ("at least 0.8", 1.4, 0.3, False),  # as it was before headers were compared
        ("at least 0.8", 1.4, 9.0, True),
    ],
)
def test_worse_in_the_direction_of_the_goal(target: str, committed: float, now: float, is_kept: bool):
    from common import Figure
    from short import hold

    figure = Figure("ours", "theirs", "s", [now], [1.0], target)
    (held,) = hold([figure], [{"name": "ours", "against": "theirs", "unit": "s", "ratio": committed}])
    assert held.is_kept == is_kept
    assert ("WORSE" in str(held)) != is_kept


@pytest.mark.usefixtures("benchmarks")
def test_a_figure_without_a_goal_is_not_held_and_one_never_committed_is_told():
    from common import Figure
    from short import hold

    assert hold([Figure("ours", "theirs", "s", [9.0], [1.0])], []) == []
    with pytest.raises(LookupError):
        hold([Figure("ours", "theirs", "s", [9.0], [1.0], "at most 1")], [])
