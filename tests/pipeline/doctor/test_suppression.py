"""Suppression of small counts: none can be derived from shown counts, and as few as possible are hidden."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from pipeline.cohort.attrition import Count
from pipeline.doctor.suppression import hidden, leaks, rounded, shown, shown_of, within

SIZES = st.sampled_from([1, 1, 1, 2, 3, 5, 8, 9, 9, 10, 11, 15, 18, 20, 40, 80])


def tree(*parts: Count | int, key: str = "root") -> Count:
    """A sum of counts. Numbers are counts of cases excluded by a rule."""
    made = tuple(part if isinstance(part, Count) else Count(f"{key}.{i}", "", part) for i, part in enumerate(parts))
    return Count(key, "", sum(part.count for part in made), made, stays=True)


def leaf(key: str, count: int) -> Count:
    return Count(key, "", count, stays=True)


def test_nothing_is_hidden_without_small_counts() -> None:
    assert hidden(tree(12, 40, leaf("rest", 90)), 10) == set()


def test_second_count_is_hidden_if_subtraction_reveals_the_first() -> None:
    assert hidden(tree(3, leaf("rest", 90)), 10) == {"root.0", "root"}, "the sum is hidden before the remaining count"


def test_several_small_counts_can_hide_each_other() -> None:
    assert hidden(tree(5, 5, leaf("rest", 90)), 10) == {"root.0", "root.1"}


def test_small_counts_determined_by_their_sum_hide_the_sum_too() -> None:
    """Below 10, only 9 + 9 make 18. As no listed count is 0, only 1 + 1 make 2."""
    for small in (9, 1):
        assert "root" in hidden(tree(small, small, leaf("rest", 90)), 10)


def test_listed_zero_is_a_small_count() -> None:
    assert hidden(tree(leaf("positive", 0), leaf("negative", 30)), 10) == {"positive", "root"}


def test_last_count_of_a_chain_is_shown() -> None:
    labelled = tree(leaf("positive", 60), leaf("negative", 40), key="labelled")
    patients = tree(2, labelled, key="patients")
    found = tree(1, 1, patients, key="found")
    assert hidden(found, 10) == {"found.0", "found.1", "patients.0", "found", "patients"}


@st.composite
def trees(draw: st.DrawFn, depth: int = 0, key: str = "r") -> Count:
    if depth == 2 or (depth and draw(st.booleans())):
        stays = draw(st.integers(0, 2)) == 0
        return Count(key, "", draw(SIZES | st.just(0)) if stays else draw(SIZES), stays=stays)
    parts = tuple(draw(trees(depth + 1, f"{key}.{i}")) for i in range(draw(st.integers(1, 4))))
    return Count(key, "", sum(part.count for part in parts), parts, stays=True)


def reader_ranges(root: Count, unseen: set[str], minimum: int) -> dict[str, tuple[float, float]]:
    """The range of each small count that a reader can derive from all shown counts, by integer programming."""
    leaves: list[Count] = []
    rows: list[tuple[Count, list[int]]] = []

    def collect(count: Count) -> list[int]:
        if not count.parts or count.count < minimum:
            leaves.append(count)
            return [len(leaves) - 1]
        columns = [column for part in count.parts for column in collect(part)]
        rows.append((count, columns))
        return columns

    collect(root)
    least, most = np.zeros(len(leaves)), np.full(len(leaves), 10_000.0)
    for i, count in enumerate(leaves):
        if count.key not in unseen:
            least[i] = most[i] = count.count
        elif count.count < minimum:
            least[i], most[i] = (0 if count.stays else 1), minimum - 1
        else:
            least[i] = minimum
    constraints = []
    for count, columns in rows:
        row = np.zeros(len(leaves))
        row[columns] = 1
        exact = count.key not in unseen
        constraints.append(LinearConstraint(row, count.count if exact else minimum, count.count if exact else np.inf))
    ranges = {}
    for i in [i for i, count in enumerate(leaves) if count.count < minimum]:
        aim = np.eye(len(leaves))[i]
        ends = [
            milp(sign * aim, constraints=constraints, bounds=Bounds(least, most), integrality=np.ones(len(leaves)))
            for sign in (1, -1)
        ]
        assert all(end.status == 0 for end in ends)
        ranges[leaves[i].key] = (ends[0].fun, -ends[1].fun)
    return ranges


@settings(max_examples=150, deadline=None)
@given(root=trees(), minimum=st.sampled_from([2, 3, 5, 10]))
def test_no_small_count_can_be_derived_from_shown_counts(root: Count, minimum: int) -> None:
    unseen = hidden(root, minimum)
    assert all(count.key in unseen for _, count in root.walk() if count.count < minimum)
    for least, most in reader_ranges(root, unseen, minimum).values():
        assert most - least >= (minimum - 1) // 2


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 12))
def test_shown_part_reveals_neither_a_small_count_nor_a_small_rest(count: int, rest: int, minimum: int) -> None:
    text = shown_of(count, count + rest, minimum, is_of_shown=True)
    of = count + rest
    possible = [c for c in range(of + 1) if shown_of(c, of, minimum, is_of_shown=True) == text]
    if text.isdecimal():
        assert count >= minimum and (rest == 0 or rest >= minimum)
    elif of >= minimum:
        assert len(possible) > (minimum - 1) // 2 or text == "not shown"
    assert not shown_of(count, count + rest, minimum, is_of_shown=False).isdecimal()


@pytest.mark.parametrize(
    ("count", "is_hidden", "text"), [(0, False, "<10"), (9, False, "<10"), (10, False, "10"), (10, True, "≥10")]
)
def test_text_of_a_count(count: int, is_hidden: bool, text: str) -> None:
    assert shown(count, 10, is_hidden=is_hidden) == text


@pytest.mark.parametrize(("count", "drawn"), [(0, None), (9, None), (10, 10), (19, 10), (20, 20), (107, 100)])
def test_drawn_counts_are_rounded_down_to_steps(count: int, drawn: int | None) -> None:
    assert rounded(count, 10) == drawn


def test_derivable_range_of_a_part() -> None:
    assert within((20, 20), [(1, 9), (15, 15), (0, 9)], 0) == (1, 5)
    assert leaks((1, 4), 10)
    assert not leaks((1, 5), 10)
    assert not leaks((10, 10), 10), "10 is not a small count"
