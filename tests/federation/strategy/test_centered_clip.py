"""Centred clipping: reading replies from disk in parts gives the mean that its paper defines on whole models."""

import statistics
from typing import Any

import numpy as np
import pytest

from federation.strategy import aggregation
from federation.strategy.aggregation import Aggregation
from federation.strategy.centered_clip import CenteredClip
from federation.strategy.flower_strategies import build_strategy
from tests.federation.strategy.test_aggregation import SITES, Arrays, filed, model, updates
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
    """The formula of the paper on whole models in memory."""
    capped = np.minimum(weights, statistics.median_low(weights))
    centre = np.zeros(sent.shape[1])
    for _ in range(steps):
        distances = [float(np.linalg.norm(x - centre)) for x in sent]
        radius = factor * statistics.median_low(distances)
        clipped = [(x - centre) * min(1, radius / d) for x, d in zip(sent, distances, strict=True)]
        centre = centre + capped @ np.stack(clipped) / capped.sum()
    return centre


@pytest.mark.parametrize(("factor", "steps"), [(1.0, 3), (0.5, 5), (2.0, 1)])
def test_round_equals_the_formula_of_the_paper(tmp_path, monkeypatch, factor, steps):
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


def test_update_that_is_far_too_long_does_not_hide_the_distances_of_the_others(tmp_path):
    before = {"weights": np.zeros(50, np.float32)}
    sent = [{"weights": np.asarray(draw, np.float32)} for draw in np.random.default_rng(1).normal(size=(SITES, 50))]
    sent[2]["weights"] *= np.float32(1e12)
    sent[5] = sent[4]
    strategy = built(clip_factor=0.5)
    after = Aggregation(strategy, 1, filed(tmp_path, sent, before), WEIGHTS, before).run()
    assert after is not None
    expected = by_the_formula(np.stack([flat(each) for each in sent]), WEIGHTS, 0.5, steps=3)
    np.testing.assert_allclose(after["weights"], expected, rtol=1e-5, atol=1e-6)


def moved_by(sent: Any, weights: Any = None, **options: float) -> np.ndarray:
    points = np.asarray(sent, float)
    moved: np.ndarray = built(**options).shares(points, weights or [1] * len(points)) @ points
    return moved


def test_identical_updates_are_applied_unchanged():
    np.testing.assert_allclose(moved_by([(3, 4)] * 3), (3, 4), atol=1e-9)


def test_distance_of_a_hostile_site_has_bounded_effect():
    near = [(1.0, 0.1), (1.0, -0.1), (0.9, 0.0), (1.1, 0.0)]
    honest = moved_by(near)
    for far in (1e2, 1e9):
        assert np.linalg.norm(moved_by([*near, (-far, 0.0)]) - honest) < 0.25


def test_site_weight_is_capped_at_the_median_weight():
    sent = [(1.0, 0.0), (1.0, 0.1), (0.0, 1.0)]
    np.testing.assert_array_equal(moved_by(sent, [10, 10, 1000]), moved_by(sent, [10, 10, 10]))
    assert not np.allclose(moved_by(sent, [10, 10, 1]), moved_by(sent, [10, 10, 10]))


def test_zero_distance_updates_raise_no_floating_point_error():
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(moved_by([(0.0, 0.0)] * 3), (0, 0))
        np.testing.assert_array_equal(moved_by([(0.0, 0.0), (0.0, 0.0), (5.0, 0.0)]), (0, 0))


def test_one_of_two_sites_can_stop_the_model_but_not_reverse_it():
    np.testing.assert_allclose(moved_by([(1.0, 2.0), (-1e6, -2e6)]), (0, 0), atol=1e-9)
    np.testing.assert_allclose(moved_by([(1.0, 2.0), (0.0, 0.0)]), (0, 0), atol=1e-9)


def test_single_reply_is_applied_unchanged():
    np.testing.assert_allclose(moved_by([(1.0, 2.0)]), (1, 2))


def test_two_site_rounds_with_an_attacker_are_unsafe_but_better_than_fedavg():
    """Site 3 stops replying from round 3 on. Only a quorum of three helps, see docs/reliability.md."""
    at = hospitals("alike", 3)
    bad = hostile(ATTACKS["label flip, at the bound"], at[1])
    figures = {}
    for strategy in ("FedAvg", "CenteredClip"):
        trained = play(strategy, {}, at, hostile=bad, place=2, rounds=8, absent=lambda n: (3,) if n > 2 else ())
        figures[strategy] = auroc(trained.model)
        assert not any(report.lost for report in trained.reports)
    assert 0.8 > figures["CenteredClip"] > figures["FedAvg"] + 0.1


def test_study_with_two_sites_learns():
    assert auroc(play("CenteredClip", {}, hospitals("alike", 2)).model) > 0.8
