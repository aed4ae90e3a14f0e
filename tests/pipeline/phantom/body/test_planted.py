"""Tests of planted pneumonia: it fills exactly the requested share, at locations typical of its cause."""

import numpy as np
import pytest

from pipeline.phantom.body.disease import Lung
from pipeline.phantom.body.frame import Frame, draw_frame
from pipeline.phantom.body.planted import Kind, plant


def lung(seed: int = 1) -> tuple[Frame, Lung]:
    """Two ellipsoids in a bent frame; the depth is approximately that of an ellipsoid."""
    frame = draw_frame((48, 48, 64), 5.0, (-30.0, 0.0, 0.0), np.random.default_rng(seed))
    radius = {side: frame.ellipsoid((-30, 0, side * 75), (100, 85, 60)) for side in (-1, 1)}
    nearest = np.minimum(radius[-1], radius[1])
    empty = np.zeros(frame.shape, np.float32)
    sides = {side: field < 1 for side, field in radius.items()}
    depth = np.clip(70 * (1 - nearest), 0, None)
    return frame, Lung(empty - 850, empty.copy(), empty.copy(), sides, np.full_like(empty, np.nan), depth)


@pytest.mark.parametrize("kind", ["covid", "other"])
@pytest.mark.parametrize(("load", "consolidated"), [(0.02, 0.5), (0.15, 0.0), (0.3, 0.3), (0.6, 0.6)])
def test_requested_shares_are_diseased_and_consolidated(kind: Kind, load: float, consolidated: float) -> None:
    frame, ill = lung()
    plant(ill, frame, kind, np.random.default_rng(2), load=load, consolidated=consolidated)
    both = ill.both
    assert (ill.ground_glass + ill.consolidation)[both].mean() == pytest.approx(load, abs=1e-3)
    assert ill.consolidation[both].mean() == pytest.approx(consolidated * load, abs=1e-3)
    assert not (ill.ground_glass + ill.consolidation)[~both].any()
    for share in (ill.ground_glass, ill.consolidation):
        assert share.min() >= -1e-6 and share.max() <= 1 + 1e-6


@pytest.mark.slow
def test_covid_is_bilateral_and_subpleural_and_other_pneumonia_mostly_unilateral() -> None:
    depths: dict[str, list[float]] = {"covid": [], "other": []}
    smaller: dict[str, list[float]] = {"covid": [], "other": []}
    kinds: tuple[Kind, ...] = ("covid", "other")
    for seed in range(6):
        for kind in kinds:
            frame, ill = lung(seed)
            plant(ill, frame, kind, np.random.default_rng(seed), load=0.1, consolidated=0.2)
            share = ill.ground_glass + ill.consolidation
            depths[kind].append((share * ill.depth_mm).sum() / share.sum())
            sides = [share[ill.lungs[side]].sum() / share.sum() for side in (-1, 1)]
            smaller[kind].append(min(sides))
    assert np.mean(depths["covid"]) < np.mean(depths["other"]) - 3
    assert np.median(smaller["covid"]) > 0.1 > np.median(smaller["other"])
