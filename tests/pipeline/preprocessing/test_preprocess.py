"""Tests of preprocessing: the same body gives the same tensor, whatever the scanner's storage order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import LUNG_WINDOW_HU, Volume
from pipeline.phantom.anatomy import Grid
from pipeline.phantom.hospitals import HOSPITALS
from pipeline.phantom.scans import acquire
from pipeline.preprocessing.lung_regions import dice
from pipeline.preprocessing.measuring import is_flat
from pipeline.preprocessing.preprocess import AXES, orient, prepare, resample
from pipeline.preprocessing.preprocess_settings import Preprocessing, settings_digest
from tests.helpers import phantoms

SETTINGS = Preprocessing()
NORTH = HOSPITALS[0].scanner


@pytest.fixture(scope="module")
def chest() -> Volume:
    hu = acquire(phantoms.thorax(NORTH.grid).hu, NORTH, np.random.default_rng(8))
    return phantoms.volume(hu, NORTH.grid)


def correlation(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    return float(np.corrcoef(one[0].ravel().astype(float), other[0].ravel().astype(float))[0, 1])


def stored_otherwise(volume: Volume, change: Callable[[NDArray], NDArray]) -> Volume:
    """The same body with its array reoriented by `change`; the affine follows from the new positions of the corners."""
    index = np.stack(np.meshgrid(*map(np.arange, volume.hu.shape), indexing="ij"), axis=-1)
    moved = np.stack([change(index[..., axis]) for axis in range(3)], axis=-1)
    origin = moved[0, 0, 0]
    steps = [moved[1, 0, 0] - origin, moved[0, 1, 0] - origin, moved[0, 0, 1] - origin]
    move = np.eye(4)
    move[:3, :3], move[:3, 3] = np.array(steps).T, origin
    return Volume(hu=change(volume.hu), affine=volume.affine @ move)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[::-1],
        lambda a: a[:, ::-1, ::-1],
        lambda a: a[:, :, ::-1],
        lambda a: np.rot90(a, axes=(1, 2)),
        lambda a: np.rot90(a, k=3, axes=(1, 2)),
        lambda a: a.transpose(2, 0, 1),
    ],
    ids=["feet first", "half a turn", "mirrored columns", "quarter", "three quarters", "sagittal"],
)
def test_storage_order_does_not_change_the_tensor(chest: Volume, change: Callable[[NDArray], NDArray]) -> None:
    other = stored_otherwise(chest, change)
    assert not (other.hu.shape == chest.hu.shape and np.array_equal(other.hu, chest.hu))
    expected, found = prepare(chest, SETTINGS), prepare(other, SETTINGS)
    np.testing.assert_array_equal(found.tensor, expected.tensor)
    assert found.digest == expected.digest
    np.testing.assert_allclose(orient(other).affine, orient(chest).affine, atol=1e-9)


def test_mirrored_body_gives_another_digest(chest: Volume) -> None:
    """The same array mirrored, with the affine unchanged: the heart is on the right."""
    assert (
        prepare(Volume(hu=chest.hu[:, :, ::-1], affine=chest.affine), SETTINGS).digest
        != prepare(chest, SETTINGS).digest
    )


def test_oriented_axes_point_up_back_and_left(chest: Volume) -> None:
    assert AXES == ("S", "P", "L")
    upright = orient(stored_otherwise(chest, lambda a: a.transpose(2, 0, 1)[::-1, :, ::-1]))
    steps = upright.affine[:3, :3]
    assert steps[2, 0] > 0 and steps[1, 1] < 0 and steps[0, 2] < 0, "RAS: superior, posterior, left"
    assert upright.hu.flags.c_contiguous


def test_axes_at_any_angle_are_oriented_as_by_nibabel() -> None:
    """Turned and sheared grids (gantry tilt), some nearly upright: those are not given to nibabel."""
    randomness, unchanged = np.random.default_rng(5), 0
    upright = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]])
    hu = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for most in np.repeat([0.1, 0.3, 0.6, 2.0], 100):
        affine = np.eye(4)
        affine[:3, :3] = (upright + randomness.uniform(-most, most, (3, 3))) * [5.0, 0.7, 0.7]
        found = orient(Volume(hu=hu, affine=affine))
        move = ornt_transform(io_orientation(affine), axcodes2ornt(AXES))
        np.testing.assert_array_equal(found.hu, apply_orientation(hu, move))
        np.testing.assert_allclose(found.affine, affine @ inv_ornt_aff(move, hu.shape), atol=1e-9)
        unchanged += found.affine is affine
    assert 100 <= unchanged < 400


@pytest.mark.parametrize("offset_hu", [30.0, -25.0])
def test_scanner_offset_is_removed(chest: Volume, offset_hu: float) -> None:
    expected = prepare(chest, SETTINGS)
    found = prepare(replace(chest, hu=chest.hu + np.int16(offset_hu)), SETTINGS)
    assert found.shift_hu - expected.shift_hu == pytest.approx(-offset_hu, abs=1.5)
    np.testing.assert_allclose(found.image_hu + found.shift_hu, expected.image_hu + expected.shift_hu, atol=1.5)
    # Not exactly equal: a voxel more or less in the mask can move the crop by one voxel.
    assert correlation(found.tensor, expected.tensor) > 0.98
    low, high = SETTINGS.window_hu
    difference = (found.tensor[0].astype(float) - expected.tensor[0])[expected.tensor[1] == 1]
    assert abs(np.median(difference)) * (high - low) / 2 < 5, "HU"
    assert found.lungs_ml == pytest.approx(expected.lungs_ml, rel=0.02)


def test_hu_shift_is_limited(chest: Volume) -> None:
    found = prepare(replace(chest, hu=chest.hu + np.int16(150)), SETTINGS)
    assert found.shift_hu == -SETTINGS.largest_shift_hu


def test_aerated_lung_is_shifted_to_its_target_hu(chest: Volume) -> None:
    found = prepare(chest, SETTINGS)
    inside = found.image_hu[found.lungs] + found.shift_hu
    assert np.percentile(inside, 10) == pytest.approx(SETTINGS.aerated_lung_hu, abs=0.1)


def test_finer_voxels_of_the_same_scan_give_nearly_the_same_tensor(chest: Volume) -> None:
    fine = ndimage.zoom(chest.hu, 2, order=1, grid_mode=True, mode="nearest")
    affine = chest.affine.copy()
    affine[:3, :3] /= 2
    affine[:3, 3] -= affine[:3, :3].sum(axis=1) / 2
    assert correlation(prepare(Volume(fine, affine), SETTINGS).tensor, prepare(chest, SETTINGS).tensor) > 0.97


def test_same_body_on_another_grid_gives_nearly_the_same_tensor(chest: Volume) -> None:
    """With other voxels, other noise and other vessels."""
    grid = Grid((140, 190, 190), (2.1, 2.0, 2.0))
    other = phantoms.volume(phantoms.thorax(grid).hu, grid)
    one, two = prepare(other, SETTINGS), prepare(chest, SETTINGS)
    assert correlation(one.tensor, two.tensor) > 0.94  # a box that begins one voxel earlier costs 0.01
    assert one.lungs_ml == pytest.approx(two.lungs_ml, rel=0.05)


def test_tensor_has_the_format_of_the_network(chest: Volume) -> None:
    found = prepare(chest, SETTINGS)
    scan, mask = found.tensor
    assert found.tensor.shape == (2, *SETTINGS.shape)
    assert found.tensor.dtype == np.float16
    assert -1 <= scan.min() < -0.9 and 0.6 < scan.max() <= 1, "from air to bone"
    assert mask.min() == 0 and mask.max() == 1
    assert found.image_hu.shape == found.lungs.shape
    assert 0.2 < mask.mean() < 0.7, "cropped to the lungs"


def test_mask_matches_the_lungs_of_the_phantom(chest: Volume) -> None:
    true = torch.from_numpy(phantoms.thorax(NORTH.grid).lungs.astype(np.float32))
    found = prepare(chest, SETTINGS)
    expected = resample(true, found.lungs.shape).numpy() > 0.5
    assert 2 * (found.lungs & expected).sum() / (found.lungs.sum() + expected.sum()) > 0.95
    voxel_ml = np.prod(NORTH.grid.spacing_mm) / 1000
    assert found.lungs_ml == pytest.approx(float(true.sum()) * voxel_ml, rel=0.05)


def test_digest_is_reproducible_and_differs_between_scans(chest: Volume) -> None:
    expected = prepare(chest, SETTINGS).digest
    try:
        torch.set_num_threads(2)
        assert prepare(chest, SETTINGS).digest == expected
    finally:
        torch.set_num_threads(1)
    nodule = chest.hu.copy()
    nodule[28:32, 46:50, 28:32] += 300
    assert prepare(replace(chest, hu=nodule), SETTINGS).digest != expected


def test_scan_digest_detects_one_hu_in_one_voxel(chest: Volume) -> None:
    other = chest.hu.copy()
    other[10, 20, 30] += 1
    expected = prepare(chest, SETTINGS).scan_digest
    assert prepare(replace(chest, hu=chest.hu.copy()), SETTINGS).scan_digest == expected
    assert prepare(replace(chest, hu=other), SETTINGS).scan_digest != expected


def test_scan_is_not_modified(chest: Volume) -> None:
    before = chest.hu.copy()
    prepare(chest, SETTINGS)
    np.testing.assert_array_equal(chest.hu, before)


def test_each_setting_changes_the_settings_digest() -> None:
    other = {"shape": (16, 16, 16), "working_spacing_mm": 5, "margin_mm": 9, "aerated_lung_hu": -870}
    other |= {"largest_shift_hu": 50, "window_hu": (-1000, 100)}
    assert other.keys() == Preprocessing.model_fields.keys() - {"method"}
    digests = {settings_digest(Preprocessing.model_validate({key: value})) for key, value in other.items()}
    assert len(digests | {settings_digest(SETTINGS)}) == len(other) + 1
    assert settings_digest(Preprocessing(margin_mm=8)) == settings_digest(SETTINGS)


def test_resampling_averages_to_coarser_and_interpolates_to_finer_grids() -> None:
    fine = torch.arange(8.0).reshape(8, 1, 1).expand(8, 4, 4).contiguous()
    assert resample(fine, (4, 4, 4))[:, 0, 0].tolist() == [0.5, 2.5, 4.5, 6.5]
    finer = resample(fine, (16, 4, 2))
    assert finer.shape == (16, 4, 2)
    assert finer[1:-1].diff(dim=0).numpy() == pytest.approx(0.5)
    assert torch.equal(resample(fine, (8, 4, 4)), fine)


def test_real_thorax_is_accepted(real_data: Path) -> None:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    found = prepare(read_series(series), SETTINGS)
    assert found.lungs_ml == pytest.approx(4590, rel=0.05), "its label map holds 4590 mL of lung"
    assert 0.2 < found.tensor[1].mean() < 0.7


@pytest.mark.parametrize("method", [1, 8])
def test_real_abdomen_is_refused(real_data: Path, method: Literal[1, 8]) -> None:
    (series,), _ = find_series(real_data / "abdomen-ct" / "example_ct_dicom")
    with pytest.raises(Refusal) as caught:
        prepare(read_series(series), Preprocessing(method=method))
    assert caught.value.code in ("E_NO_LUNGS", "E_NOT_A_WHOLE_CHEST")


@pytest.mark.parametrize("method", [1, 8])
@pytest.mark.parametrize("kind", ["noise", "air", "tissue", "one voxel", "mr"])
def test_volume_without_a_chest_is_refused(kind: str, method: Literal[1, 8]) -> None:
    shape = (1, 1, 1) if kind == "one voxel" else NORTH.grid.shape
    hu = {
        "noise": np.random.default_rng(0).normal(-300, 400, shape),
        "air": np.full(shape, -1024.0),
        "tissue": np.full(shape, 40.0),
        "one voxel": np.full(shape, -900.0),
        "mr": phantoms.thorax(NORTH.grid).hu / 4 + 300,  # an MR labelled as CT: dark lungs, but no air in HU
    }[kind]
    with pytest.raises(Refusal) as caught:
        prepare(phantoms.volume(hu, Grid(shape, NORTH.grid.spacing_mm)), Preprocessing(method=method))
    expected = {"tissue": "E_NO_AIR", "mr": "E_NO_AIR", "one voxel": "E_FIELD_OF_VIEW"}
    codes = {expected.get(kind, "E_NO_LUNGS")}
    if (kind, method) == ("noise", 8):
        codes.add("E_NOT_A_WHOLE_CHEST")  # some of it looks like lung to the segmenter
    assert caught.value.code in codes


@pytest.mark.parametrize(
    "change", [lambda a: a, lambda a: a[::-1], lambda a: a[:, :, ::-1]], ids=["", "feet", "mirror"]
)
def test_affines_give_the_position_of_the_working_grid_and_the_tensor(
    chest: Volume, change: Callable[[NDArray], NDArray]
) -> None:
    """A dense ball in the right lung is found at its position in the body, within half a voxel.

    It is as dense as metal, which the segmenter does not count as lung: the mask of the threshold has no holes.
    """
    z, y, x = NORTH.grid.axes_mm()
    centre_ras_mm = np.array([70.0, -10.0, 20.0])
    ball = (x + centre_ras_mm[0]) ** 2 + (y + centre_ras_mm[1]) ** 2 + (z - centre_ras_mm[2]) ** 2 < 15**2
    sick = stored_otherwise(replace(chest, hu=np.where(ball, 900, chest.hu).astype(np.int16)), change)
    prepared = prepare(sick, Preprocessing(method=1))
    for image, affine in (
        (prepared.image_hu * prepared.lungs, prepared.affine),
        (prepared.tensor[0].astype(float) * (prepared.tensor[1] > 0.5), prepared.tensor_affine),
    ):
        voxel = ndimage.center_of_mass(image > 0.95 * image.max())
        assert (affine @ [*voxel, 1.0])[:3] == pytest.approx(centre_ras_mm, abs=3.0)


GRID = Grid((70, 90, 90), (4.0, 4.0, 4.0))


def test_default_method_finds_the_lungs_with_the_segmenter() -> None:
    body = phantoms.thorax(GRID)
    volume = phantoms.volume(body.hu, GRID)
    threshold, segmenter = (prepare(volume, Preprocessing(method=method)) for method in (1, 8))
    assert threshold.found is None
    assert segmenter.found is not None
    assert np.array_equal(segmenter.found.lungs, segmenter.lungs)
    assert dice(segmenter.lungs, threshold.lungs) > 0.95
    assert segmenter.tensor.shape == threshold.tensor.shape
    assert segmenter.digest != threshold.digest
    assert settings_digest(Preprocessing(method=1)) != settings_digest(Preprocessing(method=8))
    assert Preprocessing() == Preprocessing(method=8)


@pytest.mark.parametrize("earlier", [2, 4, 5, 6, 7])
def test_earlier_segmenter_is_refused_and_says_what_to_do(earlier: int) -> None:
    with pytest.raises(ValidationError, match=f"{earlier} was an earlier segmenter; 8 is today's.*ingested again"):
        Preprocessing.model_validate({"method": earlier})


@pytest.mark.parametrize(
    "window",
    [
        *[(200, -1000), (200, 200), (200, 200.5), (np.nan, 200), (-1000, np.nan), (-np.inf, 200), (-1000, np.inf)],
        *[(5000, 6000), (-1501, 200), (-1000, 3072), (0, 400), (-1400, -1000)],
    ],
)
def test_window_in_which_lungs_look_alike_is_refused(window: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="HU"):
        Preprocessing(window_hu=window)


@pytest.mark.parametrize("window", [LUNG_WINDOW_HU, (-1000, 200), (-1000, -600), (-1024, 3071), (-160, 240)])
def test_window_that_shows_lungs_is_kept(window: tuple[float, float]) -> None:
    assert Preprocessing(window_hu=window).window_hu == window


def stretched(volume: Volume, times: float, flags: tuple[str, ...] = ()) -> Volume:
    """The same slices with other distances between them."""
    affine = volume.affine.copy()
    affine[:3, 0] *= times
    return Volume(volume.hu, affine, flags)


def code_of(volume: Volume) -> str:
    with pytest.raises(Refusal) as caught:
        prepare(volume, SETTINGS)
    return caught.value.code


def test_lungs_that_are_too_tall_are_refused(chest: Volume) -> None:
    assert code_of(stretched(chest, 2.5)) == "E_PROPORTIONS"


def test_two_bodies_one_above_the_other_are_refused(chest: Volume) -> None:
    assert code_of(Volume(np.concatenate([chest.hu, chest.hu]), chest.affine)) == "E_PROPORTIONS"


def test_flat_lungs_are_refused_only_if_headers_contradict_the_positions_too(chest: Volume) -> None:
    flat = stretched(chest, 0.6)
    assert is_flat(prepare(flat, SETTINGS))
    assert not is_flat(prepare(chest, SETTINGS))
    assert code_of(stretched(chest, 0.6, ("W_POSITIONS",))) == "E_PROPORTIONS"
    prepare(replace(chest, flags=("W_POSITIONS",)), SETTINGS)


def test_values_without_air_are_refused_as_no_hu(chest: Volume) -> None:
    """The stored values of a scanner, with RescaleIntercept 0."""
    assert code_of(Volume(chest.hu.clip(-1024, 2000) + np.int16(1024), chest.affine)) == "E_NO_AIR"


def test_pixel_spacing_in_centimetres_is_refused_as_too_small(chest: Volume) -> None:
    affine = chest.affine.copy()
    affine[:3, 1:3] /= 10
    assert code_of(Volume(chest.hu, affine)) == "E_FIELD_OF_VIEW"
