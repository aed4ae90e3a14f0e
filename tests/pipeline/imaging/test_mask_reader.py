"""Tests of reading a hospital's lung masks: NIfTI and DICOM SEG, in any orientation, and malicious files."""

import gzip
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from models.refusal import Refusal
from pipeline.imaging.discovery import Series, find_series
from pipeline.imaging.lung_mask import BOTH, LEFT, RIGHT, LungMask
from pipeline.imaging.mask_reader import read_lung_mask
from pipeline.imaging.segmentation import referenced_series
from pipeline.imaging.series_reader import read_series
from tests.helpers.dicom_files import PATIENT_ID, SERIES_UID, body, write_series
from tests.helpers.lung_masks import (
    LEFT_LUNG,
    LIVER,
    LUNG,
    RIGHT_LUNG,
    TO_THE_LEFT,
    TO_THE_RIGHT,
    write_nifti,
    write_segmentation,
)
from tests.helpers.scan_list import series as made_up

SHAPE = (24, 15, 13)  # slices, rows, columns; no multiple of eight
SPACING_MM = (2.0, 1.5, 1.0)
ORIGIN_MM = (-6.0, -10.0, 100.0)
FRAME = "2.25.1618033988749894"
SOME = made_up()


def blocks() -> tuple[np.ndarray, np.ndarray]:
    """Right and left lung with different size and height; columns run to the patient's left."""
    right, left = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    right[4:20, 3:9, 1:5] = True
    left[6:18, 4:12, 8:12] = True
    left[9:11] = False  # two slices without a voxel
    return right, left


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Series:
    folder = tmp_path_factory.mktemp("scan")

    def with_frame(image: Dataset, _: int) -> None:
        image.FrameOfReferenceUID = FRAME

    write_series(folder, body(*SHAPE), spacing_mm=SPACING_MM, origin_mm=ORIGIN_MM, edit=with_frame)
    (series,), _ = find_series(folder)
    return series


def refusal(path: Path, series: Series = SOME) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_lung_mask(path, series)
    for secret in (str(path.parent), path.name, PATIENT_ID, SERIES_UID, "CANARY"):
        assert secret not in str(caught.value) + caught.value.remedy
    return caught.value


def code(path: Path, series: Series = SOME) -> str:
    return refusal(path, series).code


# --- NIfTI ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SPL", "AIR"])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_nifti_mask_keeps_its_position_in_any_orientation(tmp_path: Path, axes: str, kind: type) -> None:
    right, left = blocks()
    labels = (right * RIGHT + left * LEFT).astype(kind)
    affine = np.array([[0, 0, -1.0, 6], [0, -1.5, 0, 10], [2.0, 0, 0, 100], [0, 0, 0, 1]])
    mask = read_lung_mask(write_nifti(tmp_path / "a.nii.gz", labels, affine, axes), SOME)
    assert np.array_equal(mask.on(SHAPE, affine), labels)
    assert mask.ml == pytest.approx(np.count_nonzero(labels) * 3 / 1000)


def test_mask_with_one_label_does_not_separate_lungs(tmp_path: Path) -> None:
    right, left = blocks()
    mask = read_lung_mask(write_nifti(tmp_path / "a.nii", (right | left).astype(np.uint8), np.eye(4)), SOME)
    assert set(np.unique(mask.labels)) == {0, BOTH}


def test_scaled_values_are_used_as_labels(tmp_path: Path) -> None:
    right, left = blocks()
    path = write_nifti(tmp_path / "a.nii", (right * 2 + left * 4).astype(np.uint8), np.eye(4))
    path.write_bytes(packed(112, "2f", 0.5, 0)(path.read_bytes()))
    assert np.array_equal(read_lung_mask(path, SOME).on(SHAPE, np.eye(4)), right * 1 + left * 2)


def test_coarse_mask_is_resampled_to_nearest_label() -> None:
    coarse = np.zeros((3, 3, 3), np.uint8)
    coarse[1, 1, 1] = RIGHT
    fine = LungMask(coarse, np.diag([4.0, 4.0, 4.0, 1.0])).on((12, 12, 12), np.eye(4))
    assert np.argwhere(fine).min(axis=0).tolist() == [2, 2, 2]
    assert np.argwhere(fine).max(axis=0).tolist() == [5, 5, 5]


def test_rotated_grid_is_resampled_correctly() -> None:
    """A ball on a rotated grid of 2 mm keeps its position in the body on an upright grid of 1 mm."""
    turned = np.eye(4)
    turned[:2, :2] = 2 * np.array([[0.8, -0.6], [0.6, 0.8]])
    turned[2, 2], turned[:3, 3] = 2, (5, -7, 3)
    ball = np.linalg.norm(np.indices((30, 30, 30)).T - [12, 16, 14], axis=-1).T < 6
    mask = LungMask(ball.astype(np.uint8), turned)
    upright = np.eye(4)
    upright[:3, 3] = -40
    found = mask.on((100, 100, 100), upright)
    centre = upright @ [*np.argwhere(found).mean(axis=0), 1.0]
    assert centre == pytest.approx(turned @ [12, 16, 14, 1.0], abs=0.6)
    assert found.sum() / 1000 == pytest.approx(mask.ml, rel=0.02)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([0, 0], "E_MASK_EMPTY"), ([3, 1], "E_MASK_LABELS"), ([2, 0], "E_MASK_LABELS"), ([1.5, 1], "E_MASK_LABELS")],
)
def test_values_that_are_not_lung_labels_are_refused(tmp_path: Path, labels: list[float], expected: str) -> None:
    values = np.zeros(SHAPE, np.float32)
    values[3:9, 3:9, 3:9], values[12:15, 3:9, 3:9] = labels
    assert code(write_nifti(tmp_path / f"{PATIENT_ID}.nii.gz", values, np.eye(4))) == expected


def packed(offset: int, form: str, *values: float) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into(f"<{form}", changed, offset, *values)
        return bytes(changed)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content[:-300],
        lambda content: content[:200],
        lambda content: b"",
        lambda content: b"\x80\x04cposix\nsystem\n" + content,
        packed(40, "8h", 3, 32000, 32000, 32000, 1, 1, 1, 1),
        packed(40, "8h", 4, 13, 15, 12, 2, 1, 1, 1),
        packed(70, "h", 128),
        packed(252, "2h", 0, 0),
        packed(280, "f", float("nan")),
        packed(280, "12f", *[0.0] * 12),
        packed(280, "12f", *[1e6, 0, 0, 0, 0, 1e6, 0, 0, 0, 0, 1e6, 0]),
    ],
    ids=["short", "header", "nothing", "pickle", "huge", "4D", "colour", "no axes", "NaN", "flat", "kilometres"],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_and_malicious_files_are_refused(tmp_path: Path, suffix: str, edit: Callable[[bytes], bytes]) -> None:
    right, left = blocks()
    path = write_nifti(tmp_path / "a.nii", (right + left * 2).astype(np.uint8), np.diag([2.0, 1.0, 1.0, 1.0]))
    content = edit(path.read_bytes())
    target = tmp_path / f"{PATIENT_ID}{suffix}"
    target.write_bytes(gzip.compress(content) if suffix == ".nii.gz" else content)
    assert code(target) == "E_MASK_FILE"


def test_file_that_is_not_a_mask_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "text.dcm").write_text("CANARY")
    (tmp_path / "damaged.nii.gz").write_bytes(b"CANARY")
    (tmp_path / "image.mha").write_bytes(b"CANARY")
    for name in ("pipe.nii", "text.dcm", "damaged.nii.gz", "image.mha", "absent.nii.gz", "."):
        assert code(tmp_path / name) == "E_MASK_FILE"


# --- DICOM segmentations ----------------------------------------------------------------------------------


def halves() -> dict[Any, np.ndarray]:
    right, left = blocks()
    return {(LIVER,): right | left, (LEFT_LUNG,): left, (RIGHT_LUNG,): right}


def test_segmentation_is_placed_on_the_voxels_of_its_scan(scan: Series, tmp_path: Path) -> None:
    path = write_segmentation(tmp_path / "a.dcm", scan.files, halves())
    right, left = blocks()
    found = read_lung_mask(path, scan).on(SHAPE, read_series(scan).affine)
    assert np.array_equal(found, right * RIGHT + left * LEFT)
    assert referenced_series(path) == (SERIES_UID,)
    assert referenced_series(scan.files[0]) == ()


def test_slice_order_and_empty_frames_have_no_effect(scan: Series, tmp_path: Path) -> None:
    upside_down = {kind: mask[::-1] for kind, mask in halves().items()}
    path = write_segmentation(tmp_path / "a.dcm", scan.files[::-1], upside_down, omit_empty_frames=False)
    right, left = blocks()
    found = read_lung_mask(path, scan).on(SHAPE, read_series(scan).affine)
    assert np.array_equal(found, right * RIGHT + left * LEFT)


@pytest.mark.parametrize(
    "kinds",
    [((LUNG, TO_THE_RIGHT), (LUNG, TO_THE_LEFT)), ((RIGHT_LUNG,), (LEFT_LUNG,))],
    ids=["modifier", "code"],
)
def test_sides_are_read_from_codes(scan: Series, tmp_path: Path, kinds: tuple[Any, Any]) -> None:
    path = write_segmentation(tmp_path / "a.dcm", scan.files, dict(zip(kinds, blocks(), strict=True)))
    assert set(np.unique(read_lung_mask(path, scan).labels)) == {0, RIGHT, LEFT}


def test_both_lungs_may_be_one_segment(scan: Series, tmp_path: Path) -> None:
    right, left = blocks()
    path = write_segmentation(tmp_path / "a.dcm", scan.files, {(LUNG,): right | left})
    assert set(np.unique(read_lung_mask(path, scan).labels)) == {0, BOTH}


@pytest.mark.parametrize("kinds", [[(LIVER,)], [(RIGHT_LUNG,)], [(LUNG, TO_THE_LEFT)]], ids=str)
def test_segmentation_without_both_lungs_is_refused(scan: Series, tmp_path: Path, kinds: list[Any]) -> None:
    path = write_segmentation(tmp_path / "a.dcm", scan.files, {kind: blocks()[0] for kind in kinds})
    assert code(path, scan) == "E_MASK_LABELS"


@pytest.mark.parametrize("kinds", [(RIGHT_LUNG, LEFT_LUNG), (LEFT_LUNG, RIGHT_LUNG)])
def test_voxel_in_the_segments_of_both_lungs_has_no_side(scan: Series, tmp_path: Path, kinds: tuple[Any, Any]) -> None:
    first, second = blocks()
    second[10, 5:7, 2:4] = True
    path = write_segmentation(tmp_path / "a.dcm", scan.files, {(kinds[0],): first, (kinds[1],): second})
    volume, mask = read_series(scan), read_lung_mask(path, scan)
    found = mask.on(volume.hu.shape, volume.affine)
    assert np.array_equal(found == BOTH, first & second) and (first & second).any()
    assert np.array_equal(found > 0, first | second)


def test_segmentation_with_a_rounded_orientation_is_read(scan: Series, tmp_path: Path) -> None:
    def rounded(dataset: Dataset) -> None:
        plane = dataset.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        plane.ImageOrientationPatient = [0.999, 0, 0, 0, 1, 0.001]

    path = write_segmentation(tmp_path / "a.dcm", scan.files, halves(), rounded)
    right, left = blocks()
    found = read_lung_mask(path, scan).on(SHAPE, read_series(scan).affine)
    assert np.array_equal(found, right * RIGHT + left * LEFT)


@pytest.mark.parametrize("degrees", [-14, 0.8, 14])
@pytest.mark.parametrize("stated", ["", "table", "slices"])
def test_segmentation_of_a_tilted_gantry_is_placed_on_its_slices(tmp_path: Path, degrees: float, stated: str) -> None:
    angle = math.radians(degrees)
    orientation = (1, 0, 0, 0, math.cos(angle), -math.sin(angle))

    def with_frame(image: Dataset, _: int) -> None:
        image.FrameOfReferenceUID = FRAME

    def with_spacing(dataset: Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SpacingBetweenSlices = {"table": 2.0, "slices": round(2.0 * math.cos(angle), 5), "": None}[stated]

    hu = body(*SHAPE)
    files = write_series(
        tmp_path / "scan", hu, spacing_mm=SPACING_MM, orientation=orientation, step_mm=(0, 0, 2), edit=with_frame
    )
    (series,), _ = find_series(tmp_path / "scan")
    path = write_segmentation(tmp_path / "a.dcm", files, halves(), with_spacing)
    volume, mask = read_series(series), read_lung_mask(path, series)
    grid = volume.stored or volume
    right, left = blocks()
    assert np.array_equal(mask.on(SHAPE, grid.affine), np.where(right, RIGHT, np.where(left, LEFT, 0)))


def other_series(dataset: Dataset) -> None:
    dataset.ReferencedSeriesSequence[0].SeriesInstanceUID = "2.25.1"


def other_frame(dataset: Dataset) -> None:
    dataset.FrameOfReferenceUID = "2.25.1"


def no_reference(dataset: Dataset) -> None:
    del dataset.ReferencedSeriesSequence


@pytest.mark.parametrize("edit", [other_series, other_frame, no_reference])
def test_segmentation_of_another_scan_is_refused(
    scan: Series, tmp_path: Path, edit: Callable[[Dataset], object]
) -> None:
    assert code(write_segmentation(tmp_path / "a.dcm", scan.files, halves(), edit), scan) == "E_MASK_SERIES"


def test_scan_and_segmentation_without_frame_of_reference_do_not_match(scan: Series, tmp_path: Path) -> None:
    without = write_series(tmp_path / "scan", body(*SHAPE), spacing_mm=SPACING_MM, origin_mm=ORIGIN_MM)
    path = write_segmentation(
        tmp_path / "a.dcm", scan.files, halves(), lambda dataset: setattr(dataset, "FrameOfReferenceUID", "")
    )
    assert code(path, made_up(files=tuple(without), series_uid=SERIES_UID)) == "E_MASK_SERIES"


def test_segmentation_of_dicom_scan_is_refused_for_volume_file(scan: Series, tmp_path: Path) -> None:
    path = write_segmentation(tmp_path / "a.dcm", scan.files, halves())
    assert code(path, made_up(files=(Path("scan.nii.gz"),))) == "E_MASK_SERIES"


def without_a_description(dataset: Dataset) -> None:
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:-1]


def moved_aside(dataset: Dataset) -> None:
    frame = dataset.PerFrameFunctionalGroupsSequence[-1]
    frame.PlanePositionSequence[0].ImagePositionPatient = [50, 0, 100]


def compressed(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([b"CANARY"])
    dataset["PixelData"].is_undefined_length = True


def set_to(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


@pytest.mark.parametrize(
    "edit",
    [
        set_to("PixelData", b"\0\0"),
        set_to("NumberOfFrames", 2_000_000_000),
        set_to("NumberOfFrames", 0),
        set_to("Rows", 60_000),
        set_to("Columns", 0),
        set_to("BitsAllocated", 8),
        set_to("SegmentationType", "FRACTIONAL"),
        set_to("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"),
        set_to("SegmentSequence", []),
        set_to("SharedFunctionalGroupsSequence", []),
        compressed,
        without_a_description,
        moved_aside,
    ],
)
def test_damaged_and_malicious_segmentations_are_refused(
    scan: Series, tmp_path: Path, edit: Callable[[Dataset], object]
) -> None:
    path = write_segmentation(tmp_path / f"{PATIENT_ID}.dcm", scan.files, halves(), edit)
    assert code(path, scan) in {"E_MASK_FILE", "E_MASK_LABELS"}


def test_truncated_segmentation_is_refused(scan: Series, tmp_path: Path) -> None:
    content = write_segmentation(tmp_path / "a.dcm", scan.files, halves()).read_bytes()
    for share in (0.2, 0.5, 0.8, 0.97, 0.999):
        (tmp_path / "b.dcm").write_bytes(content[: int(share * len(content))])
        assert code(tmp_path / "b.dcm", scan) in {"E_MASK_FILE", "E_MASK_LABELS", "E_MASK_SERIES"}


def test_too_large_file_is_refused_without_reading(scan: Series, tmp_path: Path) -> None:
    path = write_segmentation(tmp_path / "a.dcm", scan.files, halves())
    shutil.copy(path, tmp_path / "b.dcm")
    os.truncate(tmp_path / "b.dcm", 2**29)
    assert code(tmp_path / "b.dcm", scan) == "E_MASK_FILE"
