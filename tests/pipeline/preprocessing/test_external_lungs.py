"""Tests of a hospital's own lung mask in preprocessing: same tensor as with the segmenter's lungs, or a refusal."""

import numpy as np
import pytest

from models.lung_segmenter import Region, Tissue
from models.refusal import Refusal
from pipeline.imaging.lung_mask import BOTH, LEFT, RIGHT, LungMask
from pipeline.imaging.volume import Volume
from pipeline.phantom.anatomy import Grid
from pipeline.preprocessing.external_lungs import agreement_with_threshold, regions_from
from pipeline.preprocessing.golden_volume import golden_digest, golden_mask, golden_volume
from pipeline.preprocessing.lesion_burden import EXTERNAL_MASK, burden
from pipeline.preprocessing.lung_regions import LungRegions, dice
from pipeline.preprocessing.preprocess import mask_of, prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from tests.helpers import phantoms

GRID = Grid((70, 90, 90), (4.0, 4.0, 4.0))
EXTERNAL = Preprocessing(method=3)


@pytest.fixture(scope="module")
def volume() -> Volume:
    return phantoms.volume(phantoms.thorax(GRID).hu, GRID)


@pytest.fixture(scope="module")
def truth(volume: Volume) -> LungMask:
    """The phantom's true lungs; columns run to the patient's left."""
    lungs = phantoms.thorax(GRID).lungs
    sides = np.where(np.arange(GRID.shape[2]) < GRID.shape[2] / 2, RIGHT, LEFT)
    return LungMask((lungs * sides).astype(np.uint8), volume.affine)


def moved(mask: LungMask, *mm: float) -> LungMask:
    affine = mask.affine.copy()
    affine[:3, 3] += mm
    return LungMask(mask.labels, affine)


def test_mask_of_the_segmenter_gives_the_tensor_of_the_segmenter(volume: Volume) -> None:
    by_segmenter = prepare(volume, Preprocessing(method=8))
    assert by_segmenter.found is not None
    labels = by_segmenter.found.regions * by_segmenter.lungs
    mask = LungMask(labels.astype(np.uint8), by_segmenter.affine)
    by_mask = prepare(volume, EXTERNAL, mask)
    assert by_mask.digest == by_segmenter.digest
    assert np.array_equal(by_mask.lungs, by_segmenter.lungs)
    assert by_mask.found is None


def test_mask_on_another_grid_is_resampled_to_the_working_grid(volume: Volume, truth: LungMask) -> None:
    """The true lungs, upside down and on voxels of 2 x 8 x 4 mm."""
    labels = np.repeat(truth.labels, 2, axis=0)[::-1, ::2]
    affine = truth.affine @ np.diag([-0.5, 2.0, 1.0, 1.0])
    affine[:3, 3] = (truth.affine @ [len(truth.labels) - 0.75, 0, 0, 1])[:3]
    prepared = prepare(volume, EXTERNAL, LungMask(np.ascontiguousarray(labels), affine))
    assert dice(prepared.lungs, truth.labels > 0) > 0.97


def test_lungs_without_sides_are_divided_at_the_middle_of_the_body(volume: Volume, truth: LungMask) -> None:
    both = LungMask((truth.labels > 0) * np.uint8(BOTH), truth.affine)
    found = mask_of(prepare(volume, EXTERNAL, both), both)
    assert found is not None
    assert np.count_nonzero(found != truth.labels) < 0.01 * np.count_nonzero(found)


def test_missing_mask_is_refused(volume: Volume) -> None:
    with pytest.raises(Refusal) as refused:
        prepare(volume, EXTERNAL)
    assert refused.value.code == "E_MASK_MISSING"


def test_other_methods_do_not_use_the_mask(volume: Volume, truth: LungMask) -> None:
    assert prepare(volume, Preprocessing(), truth).digest == prepare(volume, Preprocessing()).digest


@pytest.mark.parametrize(
    ("shift_mm", "code"),
    [((0, 0, 0), None), ((0, 0, 500), "E_MASK_GRID"), ((150, 0, 0), "E_MASK_GRID"), ((0, 130, 0), "E_MASK_GRID")],
)
def test_mask_outside_the_scan_is_refused(
    volume: Volume, truth: LungMask, shift_mm: tuple[float, ...], code: str | None
) -> None:
    if code is None:
        assert prepare(volume, EXTERNAL, moved(truth, *shift_mm)).lungs_ml == pytest.approx(truth.ml, rel=0.01)
        return
    with pytest.raises(Refusal) as refused:
        prepare(volume, EXTERNAL, moved(truth, *shift_mm))
    assert refused.value.code == code


def test_swapped_sides_are_refused(volume: Volume, truth: LungMask) -> None:
    labels = truth.labels
    exchanged = np.where(labels == RIGHT, LEFT, np.where(labels == LEFT, RIGHT, 0)).astype(np.uint8)
    with pytest.raises(Refusal) as refused:
        prepare(volume, EXTERNAL, LungMask(exchanged, truth.affine))
    assert refused.value.code == "E_MASK_SIDES"


@pytest.mark.parametrize(("part", "code"), [(0.02, "E_NO_LUNGS"), (0.2, "E_NOT_A_WHOLE_CHEST")])
def test_part_of_the_lungs_is_refused(volume: Volume, truth: LungMask, part: float, code: str) -> None:
    heights = np.flatnonzero(truth.labels.any(axis=(1, 2)))
    labels = truth.labels.copy()
    labels[heights[0] + max(1, round(part * len(heights))) :] = 0
    with pytest.raises(Refusal) as refused:
        prepare(volume, EXTERNAL, LungMask(labels, truth.affine))
    assert refused.value.code == code


def test_air_outside_the_patient_is_refused(volume: Volume, truth: LungMask) -> None:
    outside = np.zeros_like(truth.labels)
    outside[:, :12] = np.where(np.arange(GRID.shape[2]) < GRID.shape[2] / 2, RIGHT, LEFT)
    with pytest.raises(Refusal) as refused:
        prepare(volume, EXTERNAL, LungMask(outside, truth.affine))
    assert refused.value.code == "E_NO_LUNGS"


def test_shifted_mask_disagrees_with_the_threshold(volume: Volume, truth: LungMask) -> None:
    agreements = []
    for shift_mm in (0, 40):
        prepared = prepare(volume, EXTERNAL, moved(truth, shift_mm, 0, 0))
        agreements.append(agreement_with_threshold(prepared.image_hu, prepared.lungs, prepared.spacing_mm))
    assert agreements[0] > 0.95 and agreements[1] < 0.8


def test_method_name_and_number_give_the_same_settings() -> None:
    for word, number in {"threshold": 1, "external": 3, "segmenter": 8}.items():
        settings = Preprocessing.model_validate({"method": word})
        assert settings.method == number
        assert settings_digest(settings) == settings_digest(Preprocessing.model_validate({"method": number}))
    for wrong in ("other", 2, 4, 5, 6, 7, 9, 0, ["external"]):
        with pytest.raises(ValueError):
            Preprocessing.model_validate({"method": wrong})


def test_settings_digests_equal_those_of_earlier_releases() -> None:
    assert settings_digest(Preprocessing(method=1)) == "0ea60248d3c05328"
    assert settings_digest(Preprocessing()) == "00f96a02a08dce23"


def test_golden_volume_has_its_own_mask() -> None:
    assert golden_digest(EXTERNAL) == golden_digest(EXTERNAL) != golden_digest(Preprocessing())
    prepared = prepare(golden_volume(), EXTERNAL, golden_mask())
    assert prepared.lungs_ml == pytest.approx(golden_mask().ml, rel=0.01)


def test_lesion_burden_counts_segmenter_tissue_inside_the_mask() -> None:
    regions, tissues = np.zeros((5, 9, 12), np.uint8), np.zeros((5, 9, 12), np.uint8)
    regions[:, 1:8, 1:5] = Region.RIGHT_LUNG
    regions[:, 1:8, 7:11] = Region.LEFT_LUNG
    regions[2, 4, 5] = Region.AIRWAY
    tissues[2, 4, 3] = Tissue.VESSEL
    sides = np.zeros((5, 9, 12), np.uint8)
    sides[:, 1:8, 1:7] = RIGHT  # two more columns
    sides[:, 3:8, 7:11] = LEFT  # two rows fewer
    found = regions_from(sides, LungRegions.of_labels(regions, tissues))
    assert np.array_equal(found.lungs, sides > 0)
    assert (found.tissues[2, 4, 3], found.tissues[2, 4, 5]) == (Tissue.VESSEL, Tissue.AIRWAY)
    assert not found.regions[:, 1:3, 7:11].any()
    hu = np.full((5, 9, 12), -500, np.float32)
    measured = burden(hu, LungRegions.of_labels(regions, tissues), 4.0, sides)
    assert measured.to_json()["lungs_from"] == measured.lungs_from == EXTERNAL_MASK
    assert measured.opacities[2, 5, 4] == 1
    assert measured.opacities[2, 4, 3] == measured.opacities[2, 4, 5] == 0
