"""What others may see: no small count follows from what is shown, and as little as possible is hidden."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from pipeline.cohort.attrition import Count
from pipeline.doctor.suppression import hidden, leaks, rounded, shown, shown_of, within

SIZES = st.sampled_from([1, 1, 1, 2, 3, 5, 8, 9, 9, 10, 11, 15, 18, 20, 40, 80])


def tree(*parts: Count | int, key: str = "root") -> Count:
    """A sum; numbers are counts that fall out at a rule."""
    made = tuple(part if isinstance(part, Count) else Count(f"{key}.{i}", "", part) for i, part in enumerate(parts))
    return Count(key, "", sum(part.count for part in made), made, stays=True)


def leaf(key: str, count: int) -> Count:
    return Count(key, "", count, stays=True)


def test_nothing_is_hidden_where_nothing_is_small() -> None:
    assert hidden(tree(12, 40, leaf("rest", 90)), 10) == set()


def test_what_would_follow_by_subtraction_takes_another_with_it() -> None:
    assert hidden(tree(3, leaf("rest", 90)), 10) == {"root.0", "root"}, "the sum goes before what is left"


def test_several_small_counts_may_hide_each_other() -> None:
    assert hidden(tree(5, 5, leaf("rest", 90)), 10) == {"root.0", "root.1"}


def test_several_small_counts_may_tell_each_other_too() -> None:
    """9 and 9 make 18, and nothing else under 10 does; 1 and 1 make 2, and no listed count is 0."""
    for small in (9, 1):
        assert "root" in hidden(tree(small, small, leaf("rest", 90)), 10)


def test_zero_is_small_where_it_is_listed() -> None:
    assert hidden(tree(leaf("positive", 0), leaf("negative", 30)), 10) == {"positive", "root"}


def test_a_chain_keeps_its_last_and_most_useful_count() -> None:
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
    """What follows for each small count from all that is shown, by integer programming."""
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
def test_no_small_count_follows_from_what_is_shown(root: Count, minimum: int) -> None:
    unseen = hidden(root, minimum)
    assert all(count.key in unseen for _, count in root.walk() if count.count < minimum)
    for least, most in reader_ranges(root, unseen, minimum).values():
        assert most - least >= (minimum - 1) // 2


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 12))
def test_of_a_part_nothing_small_is_told_nor_of_the_rest(count: int, rest: int, minimum: int) -> None:
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
def test_how_counts_are_written(count: int, is_hidden: bool, text: str) -> None:
    assert shown(count, 10, is_hidden=is_hidden) == text


@pytest.mark.parametrize(("count", "drawn"), [(0, None), (9, None), (10, 10), (19, 10), (20, 20), (107, 100)])
def test_a_figure_shows_steps(count: int, drawn: int | None) -> None:
    assert rounded(count, 10) == drawn


def test_what_is_known_of_a_part() -> None:
    assert within((20, 20), [(1, 9), (15, 15), (0, 9)], 0) == (1, 5)
    assert leaks((1, 4), 10)
    assert not leaks((1, 5), 10)
    assert not leaks((10, 10), 10), "it is not small"
