"""The short benchmark run reports a ratio only if it became worse in the direction of its goal."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the benchmarks folder on `sys.path`: it is a folder of scripts, not a package."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(
    ("target", "committed", "now", "is_kept"),
    [
        ("at most 1.05", 1.02, 1.1, True),
        ("at most 1.05", 1.02, 1.6, False),
        ("at most 1.05", 1.02, 0.2, True),
        ("at least 0.8", 1.4, 1.0, True),
        ("at least 0.8", 1.4, 0.3, False),  # the ratio before headers were compared
        ("at least 0.8", 1.4, 9.0, True),
    ],
)
def test_ratio_is_worse_only_in_the_direction_of_its_goal(target: str, committed: float, now: float, is_kept: bool):
    from common import Figure
    from short import hold

    figure = Figure("ours", "theirs", "s", [now], [1.0], target)
    (held,) = hold([figure], [{"name": "ours", "against": "theirs", "unit": "s", "ratio": committed}])
    assert held.is_kept == is_kept
    assert ("WORSE" in str(held)) != is_kept


@pytest.mark.usefixtures("benchmarks")
def test_figure_without_goal_is_skipped_and_uncommitted_figure_raises():
    from common import Figure
    from short import hold

    assert hold([Figure("ours", "theirs", "s", [9.0], [1.0])], []) == []
    with pytest.raises(LookupError):
        hold([Figure("ours", "theirs", "s", [9.0], [1.0], "at most 1")], [])
