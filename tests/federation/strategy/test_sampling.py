"""Which sites a round asks: drawn by name and seed, the same again whoever else is there."""

from collections import Counter

import numpy as np
import pytest

from federation.strategy.guarded import StartState
from federation.strategy.sampling import draw, everybody
from tests.federation.strategy.test_guarded import guarded, run
from tests.helpers.fake_grid import FakeGrid, honest

NAMES = {node: f"h-{node:03d}" for node in range(1, 101)}


def drawn(what: int | str, count: int = 20, *, seed: int = 1, names: dict[int, str] = NAMES) -> set[str]:
    return {names[node] for node in draw(names, names.__getitem__, count, seed=seed, what=what)}


def test_a_draw_depends_on_seed_purpose_and_names_and_on_nothing_else() -> None:
    renumbered = {node * 7919: name for node, name in reversed(NAMES.items())}
    assert drawn(3) == drawn(3, names=renumbered)
    assert len({frozenset(drawn(what, seed=seed)) for what in (1, 2, "compared") for seed in (1, 2)}) == 6


def test_a_site_that_is_away_changes_nobody_elses_place() -> None:
    away = sorted(drawn(5))[0]
    left = {node: name for node, name in NAMES.items() if name != away}
    assert drawn(5, names=left) > drawn(5) - {away}


def test_each_site_is_drawn_about_as_often_as_any_other() -> None:
    rounds = 500
    times = Counter(name for number in range(rounds) for name in drawn(number))
    # Binomial with 500 draws of a chance of 0.2: mean 100, deviation 9.
    assert set(times) == set(NAMES.values())
    assert sum(times.values()) == rounds * 20
    assert np.std(list(times.values())) == pytest.approx(9, abs=2.5)


@pytest.mark.parametrize("count", [0, 100, 1000])
def test_all_are_asked_where_there_are_no_more(count: int) -> None:
    assert drawn(1, count) == set(NAMES.values())
    assert everybody(1, list(NAMES)) == list(NAMES)


def test_a_round_asks_whom_it_would_have_asked_without_the_halt() -> None:
    def choose(number: int, nodes: object) -> list[int]:
        return draw(NAMES, NAMES.__getitem__, 4, seed=1, what=number)

    grid = FakeGrid({node: honest(node % 5) for node in NAMES})
    whole = run(guarded(choose=choose), grid, rounds=3)
    first = guarded(choose=choose)
    cut = run(first, grid, rounds=2)
    again = guarded(start=StartState(buffers=first.buffers, first_round=3), choose=choose)
    cut += run(again, grid, rounds=1, arrays=first.arrays)
    assert [report.sampled for report in cut] == [report.sampled for report in whole]
    assert [len(report.sampled) for report in whole] == [4, 4, 4]
    assert len({report.sampled for report in whole}) == 3
