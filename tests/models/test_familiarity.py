"""Familiarity: it accepts normal scans, detects unusual ones, and is built from means and variances of sites only."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from models.familiarity import (
    APPEARANCE_SIZE,
    Distances,
    Familiarity,
    Moments,
    appearance_features,
    limit,
    log_distances,
    pool_moments,
)

Scan = NDArray[np.float32]


def scan(seed: int, level: float = -0.85) -> Scan:
    """Create a synthetic scan of 16 x 20 x 20: two textured lungs of about `level`, surrounded by soft tissue."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (16, 20, 20)), indexing="ij")
    width = rng.normal(0.4, 0.02)
    mask = sum(((x - side * 0.45) / width) ** 2 + (y / 0.8) ** 2 + (z / 0.95) ** 2 < 1 for side in (-1, 1)) > 0
    texture = ndimage.gaussian_filter(rng.normal(0, 1, mask.shape), 1)
    window = np.where(mask, level + rng.normal(0, 0.03) + 0.3 * texture, 0.74 + 0.1 * texture)
    return np.stack([window.clip(-1, 1), mask]).astype(np.float32)


def looks(seeds: range, level: float = -0.85) -> NDArray[np.float32]:
    return np.array([appearance_features(scan(seed, level)) for seed in seeds])


def moments(found: NDArray[np.float32]) -> Moments:
    return Moments(found.mean(axis=0), found.var(axis=0, ddof=1), len(found))


@pytest.fixture(scope="module")
def known() -> Familiarity:
    """Familiarity built from two sites whose lungs differ slightly in density."""
    sites = [
        (looks(range(40), -0.85), looks(range(40, 60), -0.85)),
        (looks(range(60, 90), -0.8), looks(range(90, 110), -0.8)),
    ]
    mean, variance = pool_moments([moments(train) for train, _ in sites], robust=False)
    told = [log_distances(validation, mean, variance) for _, validation in sites]
    at = limit([Distances(each.mean(), each.std(ddof=1), len(each)) for each in told], robust=False)
    return Familiarity(mean=tuple(mean.tolist()), variance=tuple(variance.tolist()), limit=at, sites=2)


def in_lungs(change: Callable[[Scan, np.random.Generator], Scan]) -> Callable[[Scan, np.random.Generator], Scan]:
    def changed(good: Scan, rng: np.random.Generator) -> Scan:
        return np.stack([np.where(good[1] > 0, change(good[0], rng), good[0]), good[1]]).astype(np.float32)

    return changed


def test_normal_scans_of_every_site_are_within_the_limit(known: Familiarity) -> None:
    for level in (-0.85, -0.8):
        distances = [known.distance(each) for each in looks(range(200, 260), level)]
        assert sum(known.is_familiar(distance) for distance in distances) >= 0.98 * 60
        assert 0.5 < np.median(distances) < 1.3


@pytest.mark.parametrize(
    "spoil",
    [
        in_lungs(lambda window, rng: rng.uniform(-1, 0.2, window.shape)),
        in_lungs(lambda window, _: np.full_like(window, -0.85)),
        in_lungs(lambda window, _: -window),
        lambda good, _: np.stack([-good[0], good[1]]),
        lambda good, _: np.stack([(good[0] + 1) / 2 - 1, good[1]]),
        lambda good, _: np.stack([good[0], np.zeros_like(good[1])]),
        lambda good, _: np.stack([good[0], np.ones_like(good[1])]),
        lambda good, _: np.zeros_like(good),
    ],
    ids=["noise", "one value", "inverted lungs", "inverted window", "HU halved", "no lung", "all lung", "nothing"],
)
def test_corrupted_scans_are_beyond_the_limit(
    known: Familiarity, spoil: Callable[[Scan, np.random.Generator], Scan]
) -> None:
    rng = np.random.default_rng(5)
    for seed in range(300, 306):
        assert not known.is_familiar(known.distance(appearance_features(spoil(scan(seed), rng).astype(np.float32))))


def test_appearance_features_are_finite_and_reproducible() -> None:
    good = scan(1)
    assert appearance_features(good).shape == (APPEARANCE_SIZE,)
    assert np.array_equal(appearance_features(good), appearance_features(good.copy(order="F")))
    for empty in (np.zeros((2, 8, 8, 8), np.float32), np.ones((2, 8, 8, 8), np.float32)):
        assert np.isfinite(appearance_features(empty)).all()


def test_pooled_moments_equal_moments_of_all_patients() -> None:
    everybody = looks(range(30))
    parts = [everybody[:8], everybody[8:12], everybody[12:]]
    told = [Moments(part.mean(axis=0), part.var(axis=0), len(part)) for part in parts]
    mean, variance = pool_moments(told, robust=False)
    np.testing.assert_allclose(mean, everybody.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(variance, everybody.var(axis=0), atol=1e-6)


def test_one_outlier_site_does_not_shift_robust_moments_or_limit() -> None:
    usual = moments(looks(range(20)))
    wild = Moments(usual.mean + 1e6, usual.variance + 1e6, 100_000)
    mean, variance = pool_moments([usual, wild, usual], robust=True)
    np.testing.assert_allclose(mean, usual.mean)
    np.testing.assert_allclose(variance, usual.variance)
    told = [Distances(0.0, 0.2, 20), Distances(10, 10, 20), Distances(0.1, 0.2, 20)]
    assert limit(told, robust=True) < 3 < limit(told, robust=False) < np.inf


def test_limit_covers_99_percent_of_scans_with_80_percent_confidence() -> None:
    """Simulate 300 sites with 15 patients and normal log distances: in 80 % of them, the limit covers at least 99 %."""
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(300):
        seen = rng.normal(0, 0.2, 15)
        at = np.log(limit([Distances(seen.mean(), seen.std(ddof=1), 15)], robust=False))
        kept.append(at > 2.3263 * 0.2)
    assert np.mean(kept) == pytest.approx(0.8, abs=0.06)


def test_clothing_around_the_body_has_less_influence_than_the_lungs(known: Familiarity) -> None:
    """Compare clothing around the body, absent from the training scans, with an equal deviation in the lungs."""
    usual = appearance_features(scan(300))
    dressed = scan(300)
    dressed[0, :, 0, :] = -0.7
    worn = appearance_features(dressed)
    cloth = int(np.argmax(worn - usual))
    deviation = np.sqrt(np.array(known.variance) + 0.02 * np.median(known.variance))
    distances = []
    for where in (cloth, 5):  # 5: a feature that is a fraction of the lung voxels
        off = np.array(known.mean)
        off[where] += 15 * deviation[where]
        distances.append(known.distance(off))
    assert distances[0] < 0.7 * distances[1]
    assert known.distance(worn) > known.distance(usual)  # clothing still increases the distance


def test_nan_distance_is_not_familiar(known: Familiarity) -> None:
    assert not known.is_familiar(known.distance(np.full(APPEARANCE_SIZE, np.nan, np.float32)))


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [0.0]},
        {"variance": [-1.0] * APPEARANCE_SIZE},
        {"limit": 0.0},
        {"limit": None},
        {"limit": "inf"},
        {"more": 1},
    ],
    ids=["other looks", "negative variance", "no room", "no limit", "no end", "more"],
)
def test_invalid_familiarity_content_is_rejected(known: Familiarity, change: dict[str, object]) -> None:
    content = json.loads(known.model_dump_json())
    assert Familiarity.model_validate(content) == known
    with pytest.raises(ValidationError):
        Familiarity.model_validate(content | change)
