"""The median over sums of groups equals numpy's, and stays between honest groups whatever a spoilt one sends."""

import numpy as np
import pytest
from numpy.typing import NDArray

from federation.secure_aggregation import group_median
from federation.secure_aggregation.fixed_point import to_narrow
from federation.secure_aggregation.group_median import GroupSum, Moments, least_groups, median_of
from federation.secure_aggregation.reply_vector import Mean, Reply, Settings, mean_of, vector
from models.refusal import Refusal

WEIGHTS, CHANNELS = 500, 4
BEFORE = Moments(np.full(CHANNELS, 0.5), np.full(CHANNELS, 1.5))
SETTINGS = Settings(weights=WEIGHTS, channels=CHANNELS, figures=("auroc", "loss"), patients=900, longest=2.0, sites=3)


def group(number: int) -> GroupSum:
    rng = np.random.default_rng(number)
    replies = [
        Reply(
            patients=int(rng.integers(20, 100)),
            figures={"loss": float(rng.uniform())} | ({"auroc": 0.1 * number} if number != 1 else {}),
            means=rng.normal(size=CHANNELS),
            variances=rng.uniform(0.5, 2, size=CHANNELS),
            changes=[rng.normal(scale=0.01, size=WEIGHTS)],
        )
        for _ in range(3)
    ]
    total = np.sum([np.concatenate(list(vector(reply, SETTINGS))) for reply in replies], axis=0, dtype=np.uint32)
    return GroupSum(total, SETTINGS, tuple(f"h-{number}-{n}" for n in range(3)))


def plain(sums: list[GroupSum]) -> list[Mean]:
    return [mean_of(each.total, each.settings, 3) for each in sums]


def rows(sums: list[GroupSum], what: str) -> NDArray:
    return np.stack([getattr(mean, what) for mean in plain(sums)])


@pytest.fixture(autouse=True)
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_median, "PIECE_WEIGHTS", 64)


@pytest.mark.parametrize("count", [3, 5])
def test_median_is_that_of_numpy(count: int) -> None:
    sums = [group(number) for number in range(1, count + 1)]
    found = median_of(sums, count, BEFORE)
    for what in ("changes", "means", "variances"):
        np.testing.assert_array_equal(getattr(found, what), np.median(rows(sums, what), axis=0))
    means = plain(sums)
    assert found.patients == sum(mean.patients for mean in means)
    assert found.length == pytest.approx(float(np.median([mean.length for mean in means])))
    weights = [mean.patients for mean in means]
    assert found.figures["loss"] == pytest.approx(np.average([m.figures["loss"] for m in means], weights=weights))
    known = [mean for mean in means if "auroc" in mean.figures]
    assert len(known) == count - 1
    expected = np.average([m.figures["auroc"] for m in known], weights=[m.patients for m in known])
    assert found.figures["auroc"] == pytest.approx(expected)


def test_group_without_a_sum_counts_as_no_change() -> None:
    sums = [group(1), group(2)]
    found = median_of(sums, 3, BEFORE)
    np.testing.assert_array_equal(found.changes, np.median([*rows(sums, "changes"), np.zeros(WEIGHTS)], axis=0))
    np.testing.assert_array_equal(found.means, np.median([*rows(sums, "means"), BEFORE.means], axis=0))
    np.testing.assert_array_equal(found.variances, np.median([*rows(sums, "variances"), BEFORE.variances], axis=0))
    assert found.length == min(mean.length for mean in plain(sums))


@pytest.mark.parametrize(("count", "needed"), [(3, 2), (5, 3), (7, 4), (33, 17)])
def test_half_of_the_groups_are_not_enough(count: int, needed: int) -> None:
    assert least_groups(count) == needed
    with pytest.raises(Refusal, match="E_SECAGG_GROUPS"):
        median_of([group(n) for n in range(1, needed)], count, BEFORE)


def spoilt(each: GroupSum, seed: int) -> GroupSum:
    """A sum to which a hospital with a changed gateway has added words of its choice.

    Random words everywhere, or only for weights; or such that the mean is reversed, and as long as is allowed.
    """
    rng = np.random.default_rng(seed)
    total, cut = each.total.copy(), SETTINGS.words - SETTINGS.weights
    if seed % 3 < 2:
        start = cut if seed % 3 else 0
        total[start:] += rng.integers(0, 2**32, size=total.size - start, dtype=np.uint32)
    else:
        mean = each.mean(0, WEIGHTS)
        wanted = -mean.changes / mean.length * 0.99 * SETTINGS.longest * mean.patients / SETTINGS.patients
        total[cut:] = to_narrow(wanted, limit=SETTINGS.limit, share=1.0, sites=3)
    return GroupSum(total, each.settings, each.names)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("lost", [0, 1])
def test_spoilt_group_does_not_move_the_model_beyond_the_others(seed: int, lost: int) -> None:
    """With a lost group, or a sum that cannot be used, the others include "no change"."""
    honest, bad = [group(number) for number in range(2, 4 - lost)], spoilt(group(1), seed)
    assert (bad.length is None) == (seed % 3 < 2)
    try:
        found = median_of([bad, *honest], 3, BEFORE)
    except Refusal as refusal:  # its shares are senseless, and one sum of three is too few
        assert (refusal.code, lost) == ("E_SECAGG_GROUPS", 1)
        return
    for what, still in (("changes", np.zeros(WEIGHTS)), ("means", BEFORE.means), ("variances", BEFORE.variances)):
        known = np.vstack([rows(honest, what), still]) if lost or bad.length is None else rows(honest, what)
        assert (getattr(found, what) >= known.min(axis=0)).all()
        assert (getattr(found, what) <= known.max(axis=0)).all()
