"""The figure of join windows: counts in steps of the site's minimum; no small count is shown or can be derived."""

import base64
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.doctor.figure import CURVES, draw, points
from pipeline.records.join import JoinRules
from pipeline.records.join_sensitivity import Variant


def variant(positive: int, negative: int, undecided: int, rule: str = "positive_to_days", days: int = 2) -> Variant:
    return Variant(rule, days, positive, negative, undecided)


def svg(uri: str) -> str:
    assert uri.startswith("data:image/svg+xml;base64,")
    return base64.b64decode(uri.partition(",")[2]).decode()


def test_counts_are_drawn_in_steps_and_small_counts_are_omitted() -> None:
    (point,) = points([variant(57, 9, 114)], 10, CURVES)
    assert point == {"positive": 50, "negative": None, "undecided": 110}


def test_curves_hidden_in_the_waterfall_are_not_drawn() -> None:
    (point,) = points([variant(57, 40, 114)], 10, ["positive"])
    assert point == {"positive": 50, "negative": None, "undecided": None}


def test_window_that_reveals_a_small_count_is_omitted() -> None:
    """50 and 40 stand for at most 59 and 49. With a total of 117, the rest can then only be 9."""
    assert points([variant(59, 49, 9)], 10, CURVES) == [dict.fromkeys(CURVES)]
    assert points([variant(55, 43, 9)], 10, CURVES) != [dict.fromkeys(CURVES)]


@given(st.lists(st.builds(variant, st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)), max_size=5))
def test_no_small_count_can_be_derived_at_any_window(variants: list[Variant]) -> None:
    for each, point in zip(variants, points(variants, 10, CURVES), strict=True):
        counts = [each.positive, each.negative, each.undecided]
        drawn = [point[curve] for curve in CURVES]
        for count, value in zip(counts, drawn, strict=True):
            assert value is None or (value % 10 == 0 and value <= count < value + 10)
        if all(value is None for value in drawn):
            continue
        possible = [
            {c for c in range(10) if _fits(sum(counts) - c, [drawn[j] for j in range(3) if j != i])}
            for i in range(3)
            if drawn[i] is None and (counts[i] or i < 2)
        ]
        assert all(len(values) >= 5 for values in possible)


def _fits(rest: int, others: Sequence[int | None]) -> bool:
    """Whether two other counts can add up to `rest`, given their drawn values."""
    return sum(value or 0 for value in others) <= rest <= sum((value or 0) + 9 for value in others)


def test_figure_is_reproducible_without_date_or_external_links() -> None:
    variants = [variant(57, 40, 14, "positive_from_days", day) for day in range(-14, 1)]
    first, second = (draw(variants, JoinRules(), 10, CURVES) for _ in range(2))
    assert first == second
    text = svg(first)
    assert "<dc:date>" not in text
    assert "http" not in re.sub(r'"http://(www\.w3\.org|creativecommons\.org|purl\.org)[^"]*"', "", text)


def test_figure_does_not_encode_suppressed_counts() -> None:
    """Sites that differ only in suppressed counts get the same figure."""
    one = draw([variant(51, 40, 120, days=day) for day in range(8)], JoinRules(), 10, CURVES)
    other = draw([variant(58, 49, 121, days=day) for day in range(8)], JoinRules(), 10, CURVES)
    assert one == other


@pytest.mark.parametrize("variants", [[], [variant(3, 4, 5)]])
def test_no_figure_without_counts_to_draw(variants: list[Variant]) -> None:
    assert draw(variants, JoinRules(), 10, CURVES) == ""
