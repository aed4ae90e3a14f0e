"""Tests of synthetic bodies: label maps agree with the anatomy and with the HU."""

import numpy as np
import pytest
from scipy import ndimage

from models.lung_segmenter import Region, Tissue
from pipeline.phantom.body.abdomen import DIFFICULT
from pipeline.phantom.body.frame import draw_frame
from pipeline.phantom.body.sample import PLAIN, Sample, Variety, compose, draw_sample

SEEDS = range(40, 52)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [draw_sample(np.random.default_rng(seed)) for seed in SEEDS]


def lungs_of(sample: Sample) -> np.ndarray:
    return np.isin(sample.regions, (Region.RIGHT_LUNG, Region.LEFT_LUNG))


def test_same_seed_gives_the_same_body() -> None:
    first, second, other = (draw_sample(np.random.default_rng(seed), step_mm=8.0) for seed in (3, 3, 4))
    assert np.array_equal(first.hu, second.hu)
    assert np.array_equal(first.regions, second.regions)
    assert np.array_equal(first.tissues, second.tissues)
    assert not np.array_equal(first.regions[:20, :28, :38], other.regions[:20, :28, :38])


@pytest.mark.slow
def test_lungs_have_the_size_and_sides_of_an_adult(samples: list[Sample]) -> None:
    for sample in samples:
        sizes = {side: np.count_nonzero(sample.regions == side) * 0.064 for side in (1, 2)}
        assert all(150 < size < 4500 for size in sizes.values()), sizes
        right, left = (np.argwhere(sample.regions == side).mean(axis=0)[2] for side in (1, 2))
        assert left - right > 15  # columns run to the patient's left


@pytest.mark.slow
def test_aerated_lung_is_dark_and_dense_lung_is_not(samples: list[Sample]) -> None:
    for sample in samples:
        inside = ndimage.binary_erosion(lungs_of(sample))
        aerated = sample.hu[inside & (sample.tissues == Tissue.PARENCHYMA)]
        assert np.median(aerated) < -650
        solid = ndimage.binary_erosion(inside & (sample.tissues == Tissue.CONSOLIDATION))
        if np.count_nonzero(solid) > 50:
            assert -150 < np.median(sample.hu[solid]) < 150


@pytest.mark.slow
def test_bowel_gas_has_the_density_of_air_and_is_not_lung(samples: list[Sample]) -> None:
    seen = 0
    for sample in samples:
        gas = ndimage.binary_erosion(sample.regions == Region.BOWEL_GAS)
        seen += bool(gas.any())
        if np.count_nonzero(gas) > 50:
            assert np.percentile(sample.hu[gas], 25) < -700  # in some bodies the gas is mixed with stool
    assert seen > len(samples) / 2


@pytest.mark.slow
def test_tissues_are_inside_the_lungs(samples: list[Sample]) -> None:
    for sample in samples:
        assert not sample.tissues[~lungs_of(sample)].any()
        assert sample.hu.min() >= -1024
        assert sample.hu.max() <= 3071
        assert not np.isnan(sample.hu).any()
        assert all(size % 8 == 0 for size in sample.hu.shape)


@pytest.mark.slow
def test_every_label_occurs(samples: list[Sample]) -> None:
    regions = set().union(*(np.unique(sample.regions).tolist() for sample in samples))
    tissues = set().union(*(np.unique(sample.tissues).tolist() for sample in samples))
    assert regions == set(Region)
    assert tissues == set(Tissue)


@pytest.mark.slow
def test_difficult_bodies_have_gas_close_to_the_right_lung() -> None:
    difficult = [draw_sample(np.random.default_rng(seed), step_mm=8.0, gas=DIFFICULT) for seed in SEEDS]
    usual = [draw_sample(np.random.default_rng(seed), step_mm=8.0) for seed in SEEDS]

    def beside(sample: Sample) -> int:
        near = ndimage.binary_dilation(sample.regions == Region.RIGHT_LUNG, iterations=2)
        return int(np.count_nonzero(near & (sample.regions == Region.BOWEL_GAS)))

    assert sum(map(beside, difficult)) > 4 * sum(map(beside, usual))


@pytest.mark.slow
def test_solid_foci_are_added_to_ill_bodies_alone() -> None:
    pairs = [
        [draw_sample(np.random.default_rng(seed), step_mm=8.0, variety=Variety(solid=solid)) for solid in (0.0, 1.0)]
        for seed in SEEDS
    ]
    is_same = [np.array_equal(usual.hu, other.hu) for usual, other in pairs]
    assert any(is_same) and not all(is_same)
    usual, other = (sum(np.count_nonzero(pair[k].tissues == Tissue.CONSOLIDATION) for pair in pairs) for k in (0, 1))
    assert other > 1.3 * usual


@pytest.mark.slow
def test_muscles_replace_fat_outside_the_chest_and_change_no_label() -> None:
    for seed in SEEDS[:3]:
        rngs = (np.random.default_rng(seed) for _ in range(2))
        frames = [draw_frame((72, 72, 96), 4.0, (0.0, 0.0, 0.0), rng) for rng in rngs]
        plain, strong = (
            compose(frame, np.random.default_rng(seed), variety=variety)
            for frame, variety in zip(frames, (PLAIN, Variety(muscles=1.0)), strict=True)
        )
        assert np.array_equal(plain.regions, strong.regions)
        assert np.array_equal(plain.tissues, strong.tissues)
        changed = plain.hu != strong.hu
        assert changed.sum() > 2000
        assert np.median(plain.hu[changed]) < -70 and 25 < np.median(strong.hu[changed]) < 75
        assert not (changed & lungs_of(plain)).any()


@pytest.mark.slow
def test_tubes_make_the_trachea_dense_and_change_no_label() -> None:
    frames = [draw_frame((72, 72, 96), 4.0, (0.0, 0.0, 0.0), np.random.default_rng(3)) for _ in range(2)]
    plain, ventilated = (
        compose(frame, np.random.default_rng(3), variety=variety)
        for frame, variety in zip(frames, (PLAIN, Variety(tubes=1.0)), strict=True)
    )
    assert np.array_equal(plain.regions, ventilated.regions)
    changed = plain.hu != ventilated.hu
    assert np.median(plain.hu[changed & (plain.regions == Region.AIRWAY)]) < -940
    assert np.median(ventilated.hu[changed & (plain.regions == Region.AIRWAY)]) > -900
    assert not (changed & lungs_of(plain)).any()


@pytest.mark.slow
def test_wide_aorta_takes_the_place_of_lung_on_the_left_alone() -> None:
    frames = [draw_frame((64, 72, 88), 4.0, (-60.0, 0.0, 0.0), np.random.default_rng(2)) for _ in range(2)]
    plain, wide = (
        compose(frame, np.random.default_rng(2), variety=variety)
        for frame, variety in zip(frames, (PLAIN, Variety(aorta=1.0)), strict=True)
    )
    lost = lungs_of(plain) & (wide.regions == Region.MEDIASTINUM)
    assert np.count_nonzero(lost & (plain.regions == Region.LEFT_LUNG)) * 0.064 > 20
    assert np.count_nonzero(lost & (plain.regions == Region.RIGHT_LUNG)) * 0.064 < 1


@pytest.mark.slow
@pytest.mark.further
def test_high_arch_takes_the_place_of_lung_on_the_left_above_the_carina() -> None:
    lost_ml = {Region.LEFT_LUNG: 0.0, Region.RIGHT_LUNG: 0.0}
    for seed in SEEDS:
        frames = [draw_frame((64, 72, 88), 4.0, (-20.0, 0.0, 0.0), np.random.default_rng(seed)) for _ in range(2)]
        plain, high = (
            compose(frame, np.random.default_rng(seed), variety=variety)
            for frame, variety in zip(frames, (PLAIN, Variety(arch=1.0)), strict=True)
        )
        lost = lungs_of(plain) & (high.regions == Region.MEDIASTINUM) & (frames[0].z > 0)
        for region in lost_ml:
            lost_ml[region] += np.count_nonzero(lost & (plain.regions == region)) * 0.064
    assert lost_ml[Region.LEFT_LUNG] > 5 * len(SEEDS)
    assert lost_ml[Region.LEFT_LUNG] > 2 * lost_ml[Region.RIGHT_LUNG]


@pytest.mark.slow
def test_layer_of_fluid_takes_the_back_of_the_lungs_and_is_less_dense_than_solid_lung() -> None:
    lost_y, fluid_hu, solid_hu = [], [], []
    for seed in SEEDS:
        frames = [draw_frame((64, 72, 88), 4.0, (-60.0, 0.0, 0.0), np.random.default_rng(seed)) for _ in range(2)]
        plain, wet = (
            compose(frame, np.random.default_rng(seed), variety=variety)
            for frame, variety in zip(frames, (PLAIN, Variety(fluid=1.0)), strict=True)
        )
        fluid = lungs_of(plain) & (wet.regions == Region.BACKGROUND)
        lost_y.extend(frames[0].y[fluid])
        fluid_hu.append(np.median(wet.hu[fluid]))
        solid = lungs_of(wet) & (wet.tissues == Tissue.CONSOLIDATION)
        if solid.sum() > 50:
            solid_hu.append(np.median(wet.hu[solid]) - fluid_hu[-1])
    assert np.mean(np.array(lost_y) > 0) > 0.7
    assert min(fluid_hu) > -10 and max(fluid_hu) < 30
    assert len(solid_hu) > 3 and min(solid_hu) > 5


@pytest.mark.slow
def test_side_full_of_fluid_has_little_lung_or_none() -> None:
    removed, pressed = 0, 0
    for seed in SEEDS:
        sample = draw_sample(np.random.default_rng(seed), step_mm=8.0, variety=Variety(full_side=1.0))
        sizes = sorted(np.count_nonzero(sample.regions == side) for side in (Region.RIGHT_LUNG, Region.LEFT_LUNG))
        assert sizes[0] < 0.5 * sizes[1]
        removed, pressed = removed + (sizes[0] == 0), pressed + (sizes[0] > 0)
    assert removed >= 3 and pressed >= 3


@pytest.mark.slow
@pytest.mark.further
def test_solid_lung_keeps_its_place_and_has_little_air() -> None:
    for seed in SEEDS[:6]:
        frames = [draw_frame((64, 72, 88), 4.0, (-60.0, 0.0, 0.0), np.random.default_rng(seed)) for _ in range(2)]
        plain, solid = (
            compose(frame, np.random.default_rng(seed), variety=variety)
            for frame, variety in zip(frames, (PLAIN, Variety(solid_lung=1.0)), strict=True)
        )
        assert np.array_equal(plain.regions, solid.regions)
        shares = [
            np.mean(solid.tissues[solid.regions == side] == Tissue.CONSOLIDATION)
            for side in (Region.RIGHT_LUNG, Region.LEFT_LUNG)
        ]
        assert max(shares) > 0.35


@pytest.mark.slow
def test_turned_bodies_lie_off_the_middle() -> None:
    def off_the_middle(variety: Variety) -> float:
        samples = [draw_sample(np.random.default_rng(seed), step_mm=8.0, variety=variety) for seed in SEEDS]
        centres = [np.argwhere(lungs_of(sample))[:, 2].mean() - sample.hu.shape[2] / 2 for sample in samples]
        return float(np.std(centres))

    assert off_the_middle(Variety(turned=1.0)) > 1.5 * off_the_middle(PLAIN)
