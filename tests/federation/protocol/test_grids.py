"""Tests of rounding figures to grids: rounding is idempotent and gives at most `points` values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.protocol.grids import MAX_PARTS, Digits, Grid, Ladder, Shares, Step, Threes, parts_of
from federation.protocol.metric_allowlist import FIGURES, Figure

DIGITS = [Digits(3, 0.1), Digits(3, 1), Digits(4, 0.1), Digits(4, 1e-4, "infinity"), Digits(4, 1e-4, "zero")]
RANGED = {
    (figure.grid, figure.low, figure.high)
    for table in FIGURES.values()
    for figure in table.values()
    if not isinstance(figure.grid, Threes)  # the gateway computes its values
}


def on(grid: Grid, value: float, toward: str = "nearest") -> float:
    if isinstance(grid, Shares):
        return grid.rounded(value, 3 * MAX_PARTS, toward)  # type: ignore[arg-type]
    return grid.rounded(value) if isinstance(grid, Digits | Ladder) else grid.rounded(value, toward)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grid", "value", "expected"),
    [
        (Digits(3, 0.1), 0.123456, 0.123),
        (Digits(3, 0.1), 0.0123456, 0.012),
        (Digits(3, 0.1), 12.3456, 12.3),
        (Digits(3, 0.1), 999.6, 1000.0),
        (Digits(3, 0.1), -0.0004, 0.0),
        (Digits(4, 1e-4, "infinity"), 0.00012345, 0.0001235),
        (Digits(4, 1e-4, "zero"), -0.0123456, -0.01234),
        (Step(0.01), 0.666666666667, 0.67),
    ],
)
def test_value_is_rounded_to_the_grid(grid: Grid, value: float, expected: float) -> None:
    assert on(grid, value) == expected


@given(st.sampled_from(DIGITS), st.floats(-1000, 1000))
def test_rounding_to_digits_is_idempotent(grid: Digits, value: float) -> None:
    once = grid.rounded(value)
    assert grid.rounded(once) == once
    assert abs(once - value) <= 10.0 ** (1 - grid.digits) * max(abs(value), grid.least)


@given(st.integers(0, 2000), st.floats(0, 1), st.sampled_from(["nearest", "down", "up"]))
def test_rounding_of_shares_is_idempotent(patients: int, value: float, toward: str) -> None:
    once = Shares().rounded(value, patients, toward)  # type: ignore[arg-type]
    assert 0 <= once <= 1
    assert all(Shares().rounded(once, patients, again) == once for again in ("nearest", "down", "up"))  # type: ignore[arg-type]
    if toward != "nearest":
        assert (once <= value + 1e-9) if toward == "down" else (once >= value - 1e-9)


@pytest.mark.parametrize("patients", [*range(1, 60), 299, 300, 301, 5000])
def test_step_of_a_share_covers_at_least_three_patients(patients: int) -> None:
    """Two patients are needed for a certain step. A single patient changes it in at most one of three cases."""
    parts = parts_of(patients)
    assert parts == 1 or 1 / parts >= 3 / patients
    counts = [Shares().rounded(count / patients, patients) for count in range(patients + 1)]
    told = [counts.count(value) for value in dict.fromkeys(counts)]
    assert counts == sorted(counts)
    assert min(told[1:-1], default=3) >= 2  # the first and last value cover half a step
    assert len(told) <= parts + 1 <= MAX_PARTS + 1


@pytest.mark.parametrize("ranged", sorted(RANGED - {each for each in RANGED if each[0] is None}, key=repr), ids=repr)
def test_number_of_rounded_values_is_at_most_points(ranged: tuple[Grid, float, float]) -> None:
    grid, low, high = ranged
    fine = np.linspace(low, high, 3_001)
    small = np.concatenate([sign * np.geomspace(1e-7, high, 3_001) for sign in (-1, 1)])
    values = np.concatenate([fine, small[(small >= low) & (small <= high)]]).tolist()
    seen = {on(grid, value) for value in values}
    assert all(low <= value <= high for value in seen)
    assert len(seen) <= grid.points(low, high)


@pytest.mark.parametrize(
    ("grid", "low", "high", "points"),
    [
        (Step(0.01), 0, 1, 101),
        (Step(0.01), -1, 1, 201),
        (Shares(), 0, 1, 101),
        (Digits(1, 1), 0, 100, 1 + 9 + 9 + 1),  # 0 to 9, 10 to 90, 100
        (Digits(1, 1), -100, 100, 2 * 19 + 1),
        (Digits(2, 0.1), 0, 1, 101),
        (Digits(1, 0.1), 0, 0.3, 4),
        (Ladder(), -100, 100, 51),
        (Ladder(), -0.1, 0.1, 1),
    ],
)
def test_points_counts_the_grid_values(grid: Grid, low: float, high: float, points: int) -> None:
    assert grid.points(low, high) == points


def test_every_figure_from_an_app_has_a_grid() -> None:
    without = {name for table in FIGURES.values() for name, figure in table.items() if figure.grid is None}
    assert {name for name in without if not name.startswith("count_")} == {"epsilon"}
    assert Figure(0, 1, "test").grid is None
    assert math.isclose(1 / parts_of(300), 0.01)
