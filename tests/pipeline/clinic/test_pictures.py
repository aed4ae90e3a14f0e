"""Tests of the pictures of an answer: volumes in patient coordinates, and slices in the correct orientation."""

import gzip
import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.refusal import Refusal
from pipeline.clinic import pictures
from pipeline.clinic.pictures import (
    IMAGE,
    LABELS,
    LUNGS,
    OPACITIES,
    SALIENCY,
    planes,
    read_volume,
    slice_png,
    write_pictures,
)
from pipeline.imaging.volume import Volume
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from pipeline.scoring.colormap import CONTOUR_RGB, OPACITY_RGB
from pipeline.scoring.score import Score
from tests.helpers.descriptions import description
from tests.helpers.lungs import burden_of

SPACING_MM = (2.5, 3.0, 2.0)  # slices, rows, columns
SHAPE = (100, 80, 160)
LESION_RAS_MM = np.array([55.0, 20.0, 40.0])  # in the right lung, anterior and superior to its centre
SMALLEST_WINDOW_GREY = 20


def body() -> Volume:
    """Two lungs in a body, with a dense ball in the right lung.

    Slices increase towards the head, rows towards the back, columns towards the patient's left.
    """
    # Positive towards the head, the back and the left.
    z, y, x = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING_MM, strict=True)), indexing="ij", sparse=True
    )
    hu = np.where((x / 150) ** 2 + (y / 105) ** 2 < 1, 40.0, -1000.0) + 0 * z
    for centre_mm in (-65.0, 65.0):
        hu[((x - centre_mm) / 52) ** 2 + (y / 70) ** 2 + (z / 95) ** 2 < 1] = -850.0
    right, front, up = LESION_RAS_MM
    hu[(x + right) ** 2 + (y + front) ** 2 + (z - up) ** 2 < 15**2] = 60.0
    up_mm, back_mm, left_mm = SPACING_MM
    affine = np.array([[0, 0, -left_mm, 0], [0, -back_mm, 0, 0], [up_mm, 0, 0, 0], [0, 0, 0, 1.0]])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return Volume(hu.astype(np.int16), affine)


def score(volume: Volume, *, has_saliency: bool = True) -> Score:
    """A score whose saliency map is a small ball at the lesion."""
    prepared = prepare(volume, Preprocessing())
    voxels = np.stack([*np.indices(prepared.tensor.shape[1:]), np.ones(prepared.tensor.shape[1:])])
    places_mm = np.tensordot(prepared.tensor_affine[:3], voxels, axes=1)
    distance_mm = np.linalg.norm(places_mm - LESION_RAS_MM[:, None, None, None], axis=0)
    saliency = np.clip(1 - distance_mm / 25, 0, None).astype(np.float32)
    return Score(
        probabilities={"severe": 0.4, "pcr_positive": 0.6},
        checks=(),
        age_band="60-64",
        sex="F",
        model=description(),
        model_sha256="a1" * 32,
        hu_sha256="b2" * 32,
        seconds={"total": 0.1},
        scored_at=datetime(2021, 3, 4, 3, 15, tzinfo=UTC),
        prepared=prepared,
        volume=volume,
        burden=burden_of(prepared),
        saliency=saliency / saliency.max() if has_saliency else None,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("answer")
    write_pictures(score(body()), made)
    return made


def peak_mm(path: Path, weight: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """RAS position in mm of the centre of a volume, weighted by `weight`."""
    image = nib.load(path)
    found = weight(np.asarray(image.dataobj, dtype=float))
    centre = [np.average(each, weights=found) for each in np.indices(found.shape)]
    return (image.affine @ [*centre, 1.0])[:3]


def pixels(png: bytes) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)


def centre(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """Row and column of the centre, as fractions of the picture."""
    rows, columns = np.nonzero(mask)
    return rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]


def in_lung(volume: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the lesion: dense voxels in a box inside the right lung, away from the chest wall."""
    image = np.zeros_like(volume)
    size = volume.shape
    image[size[0] // 4 : size[0] * 2 // 5, size[1] // 3 : size[1] // 2, size[2] * 3 // 5 : size[2] * 3 // 4] = 1
    return image * (volume > 0)


def test_scan_and_saliency_have_correct_patient_coordinates(folder):
    assert np.abs(peak_mm(folder / IMAGE, in_lung) - LESION_RAS_MM).max() < 1.5
    assert np.abs(peak_mm(folder / SALIENCY, lambda v: v**3) - LESION_RAS_MM).max() < 2
    lungs_mm = peak_mm(folder / LUNGS, lambda v: v)
    assert np.abs(lungs_mm).max() < 4  # the body is centred on the origin
    assert nib.load(folder / IMAGE).get_data_dtype() == np.int16
    assert {nib.load(folder / name).get_data_dtype() for name in (LUNGS, SALIENCY)} == {np.dtype(np.uint8)}


def test_large_scan_is_downsampled_without_shifting(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_VOXELS", (40, 80, 75))
    volume = body()
    write_pictures(score(volume), tmp_path)
    image = nib.load(tmp_path / IMAGE)
    assert image.shape == (53, 80, 33)  # 3 columns and 3 slices are merged into one; the remainder is cut off
    assert np.allclose(image.header.get_zooms(), (6.0, 3.0, 7.5))
    assert np.abs(peak_mm(tmp_path / IMAGE, in_lung) - LESION_RAS_MM).max() < 2.5
    values = np.asarray(image.dataobj)
    assert (values.min(), values.max()) == (-1000, 60)


def test_the_same_scan_gives_the_same_bytes(folder, tmp_path):
    write_pictures(score(body()), tmp_path)
    for name in (IMAGE, LUNGS, SALIENCY):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("plane", pictures.PLANES)
def test_slices_are_shown_in_radiological_orientation(folder, plane):
    """Axial: anterior up, the patient's right on the left. Coronal: head up. Sagittal: anterior on the left."""
    about = planes(folder)[plane]
    plain = pixels(slice_png(folder, plane, about["start"]))
    over = pixels(slice_png(folder, plane, about["start"], "saliency"))
    heat = np.abs(over - plain).sum(axis=2) > 60
    row, column = centre(heat)
    # The lesion is right of, anterior to and above the centre.
    assert row < 0.48
    assert column < 0.48
    # The dense ball is at the same place: these pixels are bright without the overlay.
    assert plain[..., 0][heat].max() == plain.max()
    assert plain.shape == (about["rows"], about["columns"], 3)


def test_pixels_are_square(folder):
    about = planes(folder)
    extent_mm = {name: n * s for name, n, s in zip(("up", "back", "left"), SHAPE, SPACING_MM, strict=True)}
    for plane, across, down in (("axial", "left", "back"), ("coronal", "left", "up"), ("sagittal", "back", "up")):
        aspect = about[plane]["columns"] / about[plane]["rows"]
        assert aspect == pytest.approx(extent_mm[across] / extent_mm[down], rel=0.02)
    assert {plane: (each["count"], each["spacing_mm"]) for plane, each in about.items()} == {
        "axial": (SHAPE[0], SPACING_MM[0]),
        "coronal": (SHAPE[1], SPACING_MM[1]),
        "sagittal": (SHAPE[2], SPACING_MM[2]),
    }


def test_start_slice_has_the_highest_saliency_or_the_most_lung(folder, tmp_path):
    write_pictures(score(body(), has_saliency=False), tmp_path)
    image = nib.load(folder / IMAGE)
    lesion = np.linalg.inv(image.affine) @ [*LESION_RAS_MM, 1.0]
    with_map, without = ([planes(each)[p]["start"] for p in pictures.PLANES] for each in (folder, tmp_path))
    assert np.abs(np.array(with_map) - lesion[[2, 1, 0]]).max() <= 3
    assert abs(without[0] - SHAPE[0] / 2) <= 4  # the widest part of both lungs


def test_start_slice_has_the_most_dense_lung_without_a_map(folder, tmp_path):
    write_pictures(score(body(), has_saliency=False), tmp_path)
    lungs = nib.load(tmp_path / LUNGS)
    is_lung = np.asarray(lungs.dataobj) > 0
    low = int(np.argwhere(is_lung)[:, 2].min())  # the bases, where the lungs are small
    dense = np.where(np.arange(is_lung.shape[2]) < low + 8, 2 * is_lung, 0).astype(np.uint8)
    nib.save(nib.Nifti1Image(dense, lungs.affine), tmp_path / OPACITIES)
    to_image = np.linalg.inv(nib.load(tmp_path / IMAGE).affine) @ lungs.affine
    bases = [(to_image @ [0, 0, z, 1])[2] for z in (low, low + 8)]
    assert bases[0] - 1 <= planes(tmp_path)["axial"]["start"] <= bases[1] + 1
    assert bases[1] + 5 < SHAPE[0] / 2  # far from the widest part


def test_lung_contour_follows_the_lung_edge(folder):
    index = 2 * SHAPE[0] // 5  # below the lesion, and above the round lower ends, which look like gas of the bowel
    plain = pixels(slice_png(folder, "axial", index))
    drawn = pixels(slice_png(folder, "axial", index, "lungs"))
    contour = (drawn == CONTOUR_RGB).all(axis=2)
    assert contour.any()
    assert (drawn[~contour] == plain[~contour]).all()
    rows, columns = np.nonzero(contour)
    for row, column in zip(rows, columns, strict=True):
        near = plain[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5, 0]
        assert np.ptp(near) > SMALLEST_WINDOW_GREY  # both lung and chest wall are near


def test_each_window_shows_its_own_range(folder):
    index = SHAPE[0] // 2
    lung, soft, bone = (pixels(slice_png(folder, "axial", index, "none", window)) for window in pictures.WINDOWS_HU)
    assert (soft == 0).mean() > 0.1  # lungs and air are black outside the lung window
    assert (lung == 0).mean() < 0.01
    tissue = soft > 0
    assert np.median(lung[tissue]) > np.median(soft[tissue])
    assert (bone[tissue] > 0).all()


def test_any_window_is_drawn_by_its_ends_in_hu(folder):
    index = SHAPE[0] // 2
    low, high = pictures.WINDOWS_HU["soft"]
    assert slice_png(folder, "axial", index, "none", f"{low:.0f},{high:.0f}") == slice_png(
        folder, "axial", index, "none", "soft"
    )
    step = slice_png(folder, "axial", index, "none", "-400,-399")
    assert set(np.unique(pixels(step))) == {0, 255}
    for same in ("-399,-400", "-400,-400"):
        assert slice_png(folder, "axial", index, "none", same) == step


@pytest.mark.parametrize("window", ["", "brain", "100", "nan,5", "1e3,2000", "0,999999", "1,2\n", "1,2,3", "١,٢"])
def test_malformed_window_is_refused(window):
    with pytest.raises(ValueError, match="pattern"):
        pictures.window_hu(window)


def test_outlines_of_dense_voxels_leave_their_inside_visible(folder):
    at = planes(folder)["axial"]["start"]
    plain, filled, outlined = (
        pixels(slice_png(folder, "axial", at, overlay)) for overlay in ("none", "opacities", "opacity_outlines")
    )
    area, border = ((drawn != plain).any(axis=2) for drawn in (filled, outlined))
    assert border.any()
    assert (area[border]).all(), "an outline lies inside its area"
    assert border.sum() < area.sum() / 2
    colours = {tuple(colour) for colour in outlined[border].tolist()}
    assert colours <= set(OPACITY_RGB.values())


@pytest.mark.parametrize("name", [IMAGE, LABELS, LUNGS, OPACITIES, SALIENCY])
def test_damaged_picture_is_refused_and_never_shown(folder, tmp_path, name):
    """One bit on the disk is enough: gzip's checksum belongs to the last bytes, which nobody needs for the voxels."""
    path, content, whole = tmp_path / name, (folder / name).read_bytes(), read_volume(folder / name)
    for at in np.linspace(10, len(content) - 1, 40).astype(int):
        path = tmp_path / str(at) / name  # what was read is kept by its path
        path.parent.mkdir()
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            voxels, affine = read_volume(path)
        except Refusal as refusal:
            assert refusal.code == "E_PICTURE_DAMAGED"
            assert str(tmp_path) not in str(refusal)
        else:  # the bits after the last code mean nothing
            assert (voxels == whole[0]).all()
            assert (affine == whole[1]).all()
    for damaged in (b"", content[:3], content[: len(content) // 2], bytes(range(256)), gzip.compress(b"not NIfTI")):
        path.write_bytes(damaged)
        with pytest.raises(Refusal, match="E_PICTURE_DAMAGED"):
            read_volume(path)
    path.write_bytes(content)
    assert read_volume(path)[0].any()


def test_missing_picture_is_refused(folder, tmp_path):
    write_pictures(score(body(), has_saliency=False), tmp_path)
    for asked in (("axial", -1, "none"), ("axial", SHAPE[0], "none"), ("coronal", SHAPE[1], "lungs")):
        with pytest.raises(Refusal, match="E_NO_SUCH_PICTURE"):
            slice_png(folder, *asked)
    with pytest.raises(Refusal, match="E_NO_SUCH_PICTURE"):
        slice_png(tmp_path, "axial", 3, "saliency")
    with pytest.raises(Refusal, match="E_NO_SUCH_PICTURE"):
        planes(tmp_path / "absent")
