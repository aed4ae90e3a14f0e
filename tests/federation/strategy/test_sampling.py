"""Sampling of sites per round: reproducible from name and seed, independent of the other connected sites."""

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


def test_draw_depends_only_on_seed_purpose_and_names() -> None:
    renumbered = {node * 7919: name for node, name in reversed(NAMES.items())}
    assert drawn(3) == drawn(3, names=renumbered)
    assert len({frozenset(drawn(what, seed=seed)) for what in (1, 2, "compared") for seed in (1, 2)}) == 6


def test_absent_site_does_not_remove_others_from_the_draw() -> None:
    away = sorted(drawn(5))[0]
    left = {node: name for node, name in NAMES.items() if name != away}
    assert drawn(5, names=left) > drawn(5) - {away}


def test_sites_are_drawn_equally_often() -> None:
    rounds = 500
    times = Counter(name for number in range(rounds) for name in drawn(number))
    # Binomial, 500 draws with probability 0.2: mean 100, standard deviation 9.
    assert set(times) == set(NAMES.values())
    assert sum(times.values()) == rounds * 20
    assert np.std(list(times.values())) == pytest.approx(9, abs=2.5)


@pytest.mark.parametrize("count", [0, 100, 1000])
def test_all_sites_are_sampled_if_the_count_is_zero_or_large_enough(count: int) -> None:
    assert drawn(1, count) == set(NAMES.values())
    assert everybody(1, list(NAMES)) == list(NAMES)


def test_resumed_study_samples_the_same_sites_as_an_uninterrupted_one() -> None:
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
