"""Centred clipping: the mean of its paper on whole models, part by part on disk."""

import statistics
from typing import Any

import numpy as np
import pytest

from federation.strategy import aggregation
from federation.strategy.aggregation import Aggregation
from federation.strategy.centered_clip import CenteredClip
from federation.strategy.flower_strategies import build_strategy
from tests.federation.strategy.test_aggregation import Arrays, filed, model, updates
from tests.helpers.hostile_sites import ATTACKS, hostile
from tests.helpers.toy_task import auroc, hospitals, play

WEIGHTS = [10, 35, 20, 7, 50, 12, 90]


def built(**options: float) -> CenteredClip:
    strategy = build_strategy("CenteredClip", options)
    assert isinstance(strategy, CenteredClip)
    return strategy


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([arrays[name].reshape(-1).astype(np.float64) for name in sorted(arrays)])


def by_the_formula(sent: np.ndarray, weights: list[int], factor: float, steps: int) -> np.ndarray:
    """The formula on whole models in memory."""
    capped = np.minimum(weights, statistics.median_low(weights))
    centre = np.zeros(sent.shape[1])
    for _ in range(steps):
        distances = [float(np.linalg.norm(x - centre)) for x in sent]
        radius = factor * statistics.median_low(distances)
        clipped = [(x - centre) * min(1, radius / d) for x, d in zip(sent, distances, strict=True)]
        centre = centre + capped @ np.stack(clipped) / capped.sum()
    return centre


@pytest.mark.parametrize(("factor", "steps"), [(1.0, 3), (0.5, 5), (2.0, 1)])
def test_a_round_is_that_of_the_formula(tmp_path, monkeypatch, factor, steps):
    monkeypatch.setattr(aggregation, "PART_NUMBERS", 1)
    monkeypatch.setattr(aggregation, "LEAST_NUMBERS", 8)
    before = model(0)
    sent = updates(before, 1)
    strategy = built(clip_factor=factor, iterations=float(steps))
    after = Aggregation(strategy, 1, filed(tmp_path, sent, before), WEIGHTS, before).run()
    assert after is not None
    moved = by_the_formula(np.stack([flat(s) - flat(before) for s in sent]), WEIGHTS, factor, steps)
    np.testing.assert_allclose(flat(after), flat(before) + moved, rtol=1e-5, atol=1e-6)
    assert {name: (a.dtype, a.shape) for name, a in after.items()} == {
        name: (a.dtype, a.shape) for name, a in before.items()
    }


def moved_by(sent: Any, weights: Any = None, **options: float) -> np.ndarray:
    points = np.asarray(sent, float)
    moved: np.ndarray = built(**options).shares(points, weights or [1] * len(points)) @ points
    return moved


def test_sites_that_agree_are_followed():
    np.testing.assert_allclose(moved_by([(3, 4)] * 3), (3, 4), atol=1e-9)


def test_how_far_a_hostile_site_is_does_not_matter():
    near = [(1.0, 0.1), (1.0, -0.1), (0.9, 0.0), (1.1, 0.0)]
    honest = moved_by(near)
    for far in (1e2, 1e9):
        assert np.linalg.norm(moved_by([*near, (-far, 0.0)]) - honest) < 0.25


def test_a_large_site_weighs_no_more_than_the_median_one():
    sent = [(1.0, 0.0), (1.0, 0.1), (0.0, 1.0)]
    np.testing.assert_array_equal(moved_by(sent, [10, 10, 1000]), moved_by(sent, [10, 10, 10]))
    assert not np.allclose(moved_by(sent, [10, 10, 1]), moved_by(sent, [10, 10, 10]))


def test_updates_without_a_distance_make_no_trouble():
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(moved_by([(0.0, 0.0)] * 3), (0, 0))
        np.testing.assert_array_equal(moved_by([(0.0, 0.0), (0.0, 0.0), (5.0, 0.0)]), (0, 0))


def test_one_of_two_holds_the_model_still_and_does_not_turn_it_around():
    np.testing.assert_allclose(moved_by([(1.0, 2.0), (-1e6, -2e6)]), (0, 0), atol=1e-9)
    np.testing.assert_allclose(moved_by([(1.0, 2.0), (0.0, 0.0)]), (0, 0), atol=1e-9)


def test_one_reply_alone_is_the_model():
    np.testing.assert_allclose(moved_by([(1.0, 2.0)]), (1, 2))


def test_with_a_hostile_site_rounds_of_two_are_no_defence_and_harm_less_than_a_mean():
    """The third site is silent from round 3 on. Told of in docs/reliability.md: only a quorum of three helps."""
    at = hospitals("alike", 3)
    bad = hostile(ATTACKS["label flip, at the bound"], at[1])
    figures = {}
    for strategy in ("FedAvg", "CenteredClip"):
        trained = play(strategy, {}, at, hostile=bad, place=2, rounds=8, absent=lambda n: (3,) if n > 2 else ())
        figures[strategy] = auroc(trained.model)
        assert not any(report.lost for report in trained.reports)
    assert 0.8 > figures["CenteredClip"] > figures["FedAvg"] + 0.1


def test_a_study_of_two_sites_runs():
    assert auroc(play("CenteredClip", {}, hospitals("alike", 2)).model) > 0.8
