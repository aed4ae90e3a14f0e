"""Tests of reading one DICOM series, synthetic or real."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom import uid as uids
from pydicom.encaps import encapsulate

from models.refusal import Refusal
from pipeline.imaging.ct_slice import decode_slice, inspect_slice
from pipeline.imaging.discovery import find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from tests.helpers.dicom_files import PATIENT_ID, SUPINE, body, ct_slice, save, write_series
from tests.helpers.nrrd import read_nrrd


def read(folder: Path) -> Volume:
    (series,), findings = find_series(folder)
    assert findings == []
    return read_series(series)


def refusal(folder: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(folder)
    assert PATIENT_ID not in str(caught.value)
    assert str(folder) not in str(caught.value)
    return caught.value


# --- reading a valid series -------------------------------------------------------------------------------

HALF = math.sqrt(0.5)
TEN_DEGREES = (math.cos(math.radians(10)), math.sin(math.radians(10)))
POSITIONS = {
    "supine": SUPINE,
    "prone": (-1, 0, 0, 0, -1, 0),
    "upside down rows": (1, 0, 0, 0, -1, 0),
    "mirrored rows": (-1, 0, 0, 0, 1, 0),
    "lying on the right side": (0, 1, 0, -1, 0, 0),
    "turned by 45 degrees": (HALF, HALF, 0, -HALF, HALF, 0),
    "10 degrees from axial": (1, 0, 0, 0, *TEN_DEGREES),
}


def ramp(ras_mm: np.ndarray) -> np.ndarray:
    """Synthetic HU that change along each axis, so that a value identifies its position."""
    return ras_mm @ np.array([3.0, 5.0, -7.0]) + 100.0


@pytest.mark.parametrize("orientation", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("feet_first", [False, True])
def test_voxels_keep_their_scanned_positions(tmp_path, orientation, feet_first):
    shape, spacing_mm, origin_mm = (21, 5, 7), (2.5, 1.5, 0.75), np.array([-9.0, 4.0, 13.0])
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    step_mm = np.cross(row, column) * (-spacing_mm[0] if feet_first else spacing_mm[0])
    k, r, c = np.indices(shape)[..., None]
    lps_mm = origin_mm + k * step_mm + r * column * spacing_mm[1] + c * row * spacing_mm[2]
    names = [f"{number}.dcm" for number in random.Random(7).sample(range(100), shape[0])]
    write_series(
        tmp_path,
        ramp(lps_mm * [-1, -1, 1]),
        spacing_mm=spacing_mm,
        origin_mm=origin_mm,
        orientation=orientation,
        step_mm=step_mm,
        names=names,
    )
    volume = read(tmp_path)
    voxels = np.stack([*np.indices(volume.hu.shape), np.ones(volume.hu.shape)], axis=-1)
    expected = ramp((voxels @ volume.affine.T)[..., :3])
    assert np.abs(volume.hu - expected).max() <= 0.51  # stored as integers
    assert volume.affine[2, 0] > 0  # slice 0 is the most caudal
    assert volume.spacing_mm == pytest.approx(spacing_mm)
    assert volume.flags == ()


OBLIQUE = np.array([[0.9961, -0.0601, 0.0638], [0.0669, 0.9914, -0.1125]])  # about 8 degrees from axial


@pytest.mark.parametrize("decimals", [3, 4, 6])
@pytest.mark.parametrize("longer", [0.995, 1, 1.005])
def test_orientation_with_rounded_numbers_is_read(tmp_path, decimals, longer):
    row = OBLIQUE[0] / np.linalg.norm(OBLIQUE[0])
    column = OBLIQUE[1] - (OBLIQUE[1] @ row) * row
    column /= np.linalg.norm(column)
    written = (np.array([*row, *column]) * longer).round(decimals)
    write_series(tmp_path, body(24), spacing_mm=(2, 1.5, 0.75), orientation=written, step_mm=np.cross(row, column) * 2)
    volume = read(tmp_path)
    assert volume.spacing_mm == pytest.approx((2, 1.5, 0.75), abs=1e-4)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert abs(axes[:, 1] @ axes[:, 2]) < 1e-9
    assert np.allclose(axes[:, 1:].T * [-1, -1, 1], [column, row], atol=0.002)
    assert volume.flags == ()


def test_values_are_clipped_to_int16_hu(tmp_path):
    hu = body()
    hu[0, 0, 0], hu[0, 0, 1] = -1500, 9000
    write_series(tmp_path, hu)
    volume = read(tmp_path)
    assert volume.hu.dtype == np.int16
    assert np.array_equal(volume.hu, hu.clip(-1024, 3071))


def with_metal(voxels: int, metal_hu: int = 30_000) -> np.ndarray:
    """A body of 123,000 voxels, with metal in so many of them."""
    hu = body(30, 64, 64)
    rows, columns = np.divmod(np.arange(voxels), 40)
    hu[10, 10 + rows, 10 + columns] = metal_hu
    return hu


def on_extended_scale(ds: Dataset, _: int) -> None:
    """Store steps of 10 HU."""
    stored = np.frombuffer(ds.PixelData, np.int16) // 10
    ds.PixelData, ds.RescaleSlope = stored.tobytes(), 10


@pytest.mark.parametrize("edit", [None, on_extended_scale])
@pytest.mark.parametrize("metal_hu", [10_001, 20_000, 32_000])
def test_metal_on_an_extended_scale_is_clipped(tmp_path, edit, metal_hu):
    hu = with_metal(100, metal_hu)
    write_series(tmp_path, hu, edit=edit)
    volume = read(tmp_path)
    assert (volume.hu == 3071).sum() == 100
    assert np.abs(volume.hu - hu.clip(-1024, 3071)).max() < (10 if edit else 1)


@pytest.mark.parametrize("edit", [None, on_extended_scale])
def test_many_voxels_that_are_too_bright_are_refused(tmp_path, edit):
    write_series(tmp_path, with_metal(200), edit=edit)
    assert refusal(tmp_path).code == "E_HU_RANGE"


@pytest.mark.parametrize("slope", [3, 5, 10])
def test_wrong_slope_is_refused_even_if_few_voxels_are_too_bright(tmp_path, slope):
    """The intercept is right, so air is right too, as is the share of the brightest voxels."""

    def scaled(ds: Dataset, _: int) -> None:
        stored = np.frombuffer(ds.PixelData, np.int16) + np.int16(1024)
        ds.PixelData, ds.RescaleSlope, ds.RescaleIntercept = stored.tobytes(), slope, -1024

    write_series(tmp_path, with_metal(100, 3071) - 60, edit=scaled)
    assert refusal(tmp_path).code == "E_HU_RANGE"


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize("slope", [1.0, 0.5])
@pytest.mark.parametrize("intercept", [0.0, -1024.0, 1000.0, 40_000.0, -1024.25])
@pytest.mark.parametrize("syntax", [uids.ExplicitVRLittleEndian, uids.ExplicitVRBigEndian])
def test_stored_values_become_integer_hu_without_overflow(tmp_path, kind, slope, intercept, syntax):
    ends = np.iinfo(kind)
    stored = np.random.default_rng(2).integers(ends.min, ends.max + 1, (16, 12)).astype(kind)
    stored[0, :2] = ends.min, ends.max
    slice_ = ct_slice(stored, position_mm=(0, 0, 0), RescaleSlope=slope, RescaleIntercept=intercept)
    slice_.BitsAllocated = slice_.BitsStored = ends.bits
    slice_.HighBit, slice_.PixelRepresentation = ends.bits - 1, int(ends.min < 0)
    order = "<" if syntax.is_little_endian else ">"
    slice_["PixelData"].VR = "OB" if ends.bits == 8 else "OW"
    slice_.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    save(slice_, tmp_path / "1.dcm", transfer_syntax=syntax)
    exact = np.rint((stored.astype(np.float64) * slope + intercept).astype(np.float32))
    assert np.array_equal(decode_slice(inspect_slice(tmp_path / "1.dcm")), exact.clip(-(2**15), 2**15 - 1))


def test_each_slice_uses_its_own_rescale(tmp_path):
    def rescale(ds: Dataset, index: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 2.0, -5.0 * index

    hu = body()
    write_series(tmp_path, hu // 2, edit=rescale)
    expected = hu // 2 * 2 - 5.0 * np.arange(len(hu))[:, None, None]
    assert np.array_equal(read(tmp_path).hu, expected.clip(-1024, 3071))


def test_rescale_does_not_overflow(tmp_path):
    hu = body()
    hu[0, 0, 0] = 4000

    def enlarge(ds: Dataset, index: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 20.0, -40_000.0

    write_series(tmp_path, (hu + 40_000) // 20, edit=enlarge)
    assert read(tmp_path).hu.max() == 3071


def set_padding(value, limit=None, vr="SS"):
    def edit(ds: Dataset, index: int) -> None:
        ds.add_new("PixelPaddingValue", vr, value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", vr, limit)

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        set_padding(-2000),
        set_padding(63536, vr="US"),
        set_padding(-2010, -1990),
        set_padding(-1990, -2010),
    ],
    ids=["same sign", "as unsigned", "range", "range the other way round"],
)
def test_declared_padding_becomes_air(tmp_path, edit):
    hu = body()
    hu[:, 0] = -2000
    write_series(tmp_path, hu, edit=edit)
    volume = read(tmp_path)
    assert (volume.hu[:, 0] == -1024).all()
    assert (volume.hu[:, 1] == -1000).all()
    assert volume.flags == ()


def test_undeclared_padding_becomes_air_and_is_flagged(tmp_path):
    hu = body()
    hu[:, 0] = -3024
    write_series(tmp_path, hu)
    volume = read(tmp_path)
    assert (volume.hu[:, 0] == -1024).all()
    assert volume.flags == ("W_PADDING",)


def test_unused_high_bits_are_ignored(tmp_path):
    def mark_high_bits(ds: Dataset, index: int) -> None:
        stored = np.frombuffer(ds.PixelData, np.uint16) + 1024
        ds.PixelData = (stored | 0xA000).astype(np.uint16).tobytes()  # older files embed overlays in these bits
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation, ds.RescaleIntercept = 12, 11, 0, -1024

    write_series(tmp_path, body(), edit=mark_high_bits)
    assert np.array_equal(read(tmp_path).hu, body())


@pytest.mark.parametrize(
    "syntax",
    [
        *(uids.ImplicitVRLittleEndian, uids.DeflatedExplicitVRLittleEndian),
        *(uids.RLELossless, uids.JPEG2000Lossless, uids.JPEGLSLossless),
    ],
    ids=lambda syntax: syntax.name,
)
def test_lossless_encodings_keep_pixel_values(tmp_path, syntax):
    hu = body(rows=70, columns=50)
    write_series(tmp_path, hu, transfer_syntax=syntax)
    volume = read(tmp_path)
    assert np.array_equal(volume.hu, hu)
    assert volume.flags == ()


def attributes(**values):
    def edit(ds: Dataset, index: int) -> None:
        for keyword, value in values.items():
            setattr(ds, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "flags"),
    [
        (attributes(Modality=""), ("W_MODALITY_EMPTY",)),
        (attributes(LossyImageCompression="01"), ("W_LOSSY",)),
        (
            attributes(LossyImageCompression="01", ImageType=["DERIVED", "PRIMARY", "AXIAL"]),
            ("W_LOSSY",),
        ),
        (attributes(ContrastBolusAgent="APPLIED"), ("W_CONTRAST",)),
        (attributes(ContrastBolusAgent="NONE"), ()),
        (attributes(SliceThickness=6.0), ("W_THICK",)),
        (attributes(SliceThickness=""), ()),
        (attributes(SOPClassUID=""), ()),
        (attributes(HighBit=""), ()),
        (attributes(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]), ()),
        (attributes(ImageType=["DERIVED", "PRIMARY", "AXIAL"]), ("W_DERIVED",)),
        (attributes(ImageType=None), ("W_IMAGE_TYPE",)),
        (attributes(ImageType=["ORIGINAL", "PRIMARY", "OTHER"]), ("W_IMAGE_TYPE",)),
    ],
)
def test_attributes_set_flags(tmp_path, edit, flags):
    write_series(tmp_path, body(), edit=edit)
    assert read(tmp_path).flags == flags


def test_large_slice_spacing_is_flagged(tmp_path):
    write_series(tmp_path, body(), spacing_mm=(7.5, 1, 1))
    assert read(tmp_path).flags == ("W_THICK",)


def test_identical_copies_are_dropped_and_flagged(tmp_path):
    hu = body()
    write_series(tmp_path, hu)
    save(ct_slice(hu[5], position_mm=(0, 0, 10)), tmp_path / "0-copy.dcm")
    volume = read(tmp_path)
    assert np.array_equal(volume.hu, hu)
    assert volume.flags == ("W_DUPLICATE_SLICE",)


def test_positions_rounded_to_one_decimal_are_accepted(tmp_path):
    def round_position(ds: Dataset, index: int) -> None:
        ds.ImagePositionPatient = [0, 0, round(1.25 * index, 1)]

    write_series(tmp_path, body(), edit=round_position)
    assert read(tmp_path).spacing_mm[0] == pytest.approx(1.25, abs=0.01)


# --- refusals ---------------------------------------------------------------------------------------------


def at(index: int, **values):
    """Set attributes of one slice only."""

    def edit(ds: Dataset, number: int) -> None:
        if number == index:
            attributes(**values)(ds, number)

    return edit


def without(*keywords):
    def edit(ds: Dataset, index: int) -> None:
        for keyword in keywords:
            delattr(ds, keyword)

    return edit


REFUSED = {
    "mr": ("E_MODALITY", attributes(Modality="MR", SOPClassUID=uids.MRImageStorage)),
    "sr": ("E_MODALITY", attributes(Modality="SR", SOPClassUID=uids.XRayRadiationDoseSRStorage)),
    "no modality, no ct class": ("E_MODALITY", attributes(Modality="", SOPClassUID=uids.MRImageStorage)),
    "mr modality, ct class": ("E_MODALITY_MISMATCH", attributes(Modality="MR")),
    "ct modality, mr class": ("E_MODALITY_MISMATCH", attributes(SOPClassUID=uids.MRImageStorage)),
    "enhanced": ("E_MULTIFRAME", attributes(SOPClassUID=uids.EnhancedCTImageStorage)),
    "two frames": ("E_MULTIFRAME", attributes(NumberOfFrames=2)),
    "localizer": ("E_LOCALIZER", attributes(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "localizer among slices": ("E_LOCALIZER", at(3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
    "derived, no axial slices": ("E_NOT_AXIAL", attributes(ImageType=["DERIVED", "PRIMARY", "OTHER"])),
    "secondary, derived": ("E_NOT_AXIAL", attributes(ImageType=["DERIVED", "SECONDARY", "AXIAL"])),
    "secondary, sagittal": (
        "E_NOT_AXIAL",
        attributes(ImageType=["ORIGINAL", "SECONDARY", "AXIAL"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
    ),
    "mpr": ("E_NOT_AXIAL", attributes(ImageType=["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 MPR"])),
    "dose report": ("E_NOT_AXIAL", attributes(SOPClassUID=uids.SecondaryCaptureImageStorage)),
    "maximum intensity": ("E_NOT_AXIAL", attributes(ImageType=["DERIVED", "PRIMARY", "AXIAL", "MIP"])),
    "no image type, sagittal": (
        "E_NOT_AXIAL",
        lambda ds, index: (
            without("ImageType")(ds, index),
            setattr(ds, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]),
        ),
    ),
    "no image type, no orientation": ("E_NOT_AXIAL", without("ImageType", "ImageOrientationPatient")),
    "burned in": ("E_BURNED_IN", attributes(BurnedInAnnotation="YES")),
    "no position": ("E_GEOMETRY", without("ImagePositionPatient")),
    "one position missing": ("E_GEOMETRY", at(7, ImagePositionPatient=None)),
    "position with two numbers": ("E_GEOMETRY", attributes(ImagePositionPatient=[0, 0])),
    "position nan": ("E_GEOMETRY", at(2, ImagePositionPatient=[0, float("nan"), 0])),
    "position absurd": ("E_GEOMETRY", at(2, ImagePositionPatient=[0, 0, 1e300])),
    "no orientation": ("E_GEOMETRY", without("ImageOrientationPatient")),
    "orientation not square": ("E_GEOMETRY", attributes(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
    "orientation of zeros": ("E_GEOMETRY", attributes(ImageOrientationPatient=[0, 0, 0, 0, 0, 0])),
    "orientation too short": ("E_GEOMETRY", attributes(ImageOrientationPatient=[0.98, 0, 0, 0, 1, 0])),
    "orientation too long": ("E_GEOMETRY", attributes(ImageOrientationPatient=[1, 0, 0, 0, 1.02, 0])),
    "orientation no right angle": ("E_GEOMETRY", attributes(ImageOrientationPatient=[1, 0.004, 0, 0, 1, 0])),
    "orientation nan": ("E_GEOMETRY", attributes(ImageOrientationPatient=[1, 0, 0, 0, float("nan"), 0])),
    "no pixel spacing": ("E_GEOMETRY", without("PixelSpacing")),
    "pixel spacing zero": ("E_SPACING", attributes(PixelSpacing=[0, 1])),
    "pixel spacing negative": ("E_SPACING", attributes(PixelSpacing=[1, -1])),
    "pixel spacing nan": ("E_SPACING", attributes(PixelSpacing=[float("nan"), 1])),
    "pixel spacing infinite": ("E_SPACING", attributes(PixelSpacing=[1, float("inf")])),
    "mixed orientation": ("E_MIXED_GEOMETRY", at(4, ImageOrientationPatient=[0, 1, 0, -1, 0, 0])),
    "mixed pixel spacing": ("E_MIXED_GEOMETRY", at(4, PixelSpacing=[1.1, 1])),
    "mixed size": ("E_MIXED_GEOMETRY", at(4, Rows=12, Columns=16)),
    "sagittal": ("E_OBLIQUE", attributes(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])),
    "moved slice": ("E_TILT", at(4, ImagePositionPatient=[3, 0, 8])),
    "missing rescale slope": ("E_RESCALE", without("RescaleSlope")),
    "missing rescale intercept": ("E_RESCALE", without("RescaleIntercept")),
    "rescale slope zero": ("E_RESCALE", at(3, RescaleSlope=0)),
    "rescale slope nan": ("E_RESCALE", attributes(RescaleSlope=float("nan"))),
    "rescale slope huge": ("E_RESCALE", attributes(RescaleSlope=1e6)),
    "rescale intercept nan": ("E_RESCALE", attributes(RescaleIntercept=float("nan"))),
    "not hounsfield": ("E_RESCALE", attributes(RescaleType="Z_EFF")),
    "too bright": ("E_HU_RANGE", attributes(RescaleIntercept=12_000)),
    "below air": ("E_HU_RANGE", attributes(RescaleIntercept=-3000)),
    "one value": ("E_EMPTY_VOLUME", attributes(PixelData=bytes(16 * 12 * 2))),
    "all air": ("E_EMPTY_VOLUME", attributes(RescaleIntercept=-800)),
    "inverted": ("E_PIXEL", attributes(PhotometricInterpretation="MONOCHROME1")),
    "colour": ("E_PIXEL", attributes(SamplesPerPixel=3, PhotometricInterpretation="RGB")),
    "no rows": ("E_PIXEL", without("Rows")),
    "zero rows": ("E_PIXEL", attributes(Rows=0)),
    "32 bits": ("E_PIXEL", attributes(BitsAllocated=32)),
    "more bits stored than allocated": ("E_PIXEL", attributes(BitsStored=17, HighBit=16)),
    "shifted bits": ("E_PIXEL", attributes(BitsStored=12, HighBit=15)),
    "padding like tissue": ("E_PIXEL", set_padding(40)),
    "padding that cannot be stored": (
        "E_PIXEL",
        lambda ds, index: (attributes(BitsStored=12, HighBit=11)(ds, index), set_padding(-3000)(ds, index)),
    ),
    "absurd size": ("E_DIMENSIONS", attributes(Rows=65535, Columns=65535)),
    "short pixels": ("E_TRUNCATED", at(9, PixelData=bytes(16 * 12 * 2 - 2))),
    "no pixels": ("E_TRUNCATED", without("PixelData")),
}


@pytest.mark.parametrize(("code", "edit"), REFUSED.values(), ids=REFUSED)
def test_invalid_series_is_refused(tmp_path, code, edit):
    write_series(tmp_path, body(), edit=edit)
    refused = refusal(tmp_path)
    assert refused.code == code
    assert refused.remedy


def test_unmodified_series_is_read(tmp_path):
    """The synthetic series itself is valid, so each refusal above is caused by its own change."""
    write_series(tmp_path, body())
    assert np.array_equal(read(tmp_path).hu, body())


def test_missing_slices_are_refused(tmp_path):
    paths = write_series(tmp_path, body())
    paths[5].unlink()
    paths[12].unlink()
    paths[13].unlink()
    expected = {"gaps": 2, "usual_mm": 2.0, "largest_mm": 6.0, "missing": 3, "after": "5, 11"}
    assert refusal(tmp_path).numbers == expected


def test_unevenly_spaced_slices_are_refused(tmp_path):
    write_series(tmp_path, body(), edit=at(5, ImagePositionPatient=[0, 0, 10.3]))
    assert refusal(tmp_path).code == "E_SLICE_GAP"


def test_different_images_at_one_position_are_refused(tmp_path):
    """Also refused if both have the same SOP Instance UID: one is damaged, and the reader cannot know which."""
    hu = body()
    write_series(tmp_path, hu, edit=attributes(SOPInstanceUID="2.25.1"))
    save(ct_slice(hu[6], position_mm=(0, 0, 10), SOPInstanceUID="2.25.1"), tmp_path / "copy.dcm")
    refused = refusal(tmp_path)
    assert (refused.code, refused.numbers) == ("E_DUPLICATE_SLICE", {"duplicates": 1})


def test_centre_that_moves_is_refused(tmp_path):
    """The upper half of the slices lies 3 mm beside the lower one."""
    write_series(
        tmp_path, body(), edit=lambda ds, index: setattr(ds, "ImagePositionPatient", [3 * (index > 9), 0, 2 * index])
    )
    refused = refusal(tmp_path)
    assert (refused.code, refused.numbers) == ("E_TILT", {"jump_mm": 3.0, "degrees": 0.0})


@pytest.mark.parametrize("degrees", [-25, 5, 15])
@pytest.mark.parametrize("feet_first", [False, True])
def test_slices_of_a_tilted_gantry_are_moved_to_their_true_places(tmp_path, degrees, feet_first):
    """HU that change along each axis identify the place of each voxel; the table moves along the body."""
    angle = math.radians(degrees)
    tilted = (1, 0, 0, 0, math.cos(angle), -math.sin(angle))
    column, step_mm = np.array(tilted[3:]), np.array([0, 0, -2.0 if feet_first else 2.0])
    k, r, c = np.indices((40, 48, 20))[..., None]
    lps_mm = k * step_mm + r * column * 1.5 + c * np.array([0.8, 0, 0])
    write_series(tmp_path, ramp(lps_mm * [-1, -1, 1]), spacing_mm=(2, 1.5, 0.8), orientation=tilted, step_mm=step_mm)
    volume = read(tmp_path)
    assert volume.flags == ("W_TILT",)
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert volume.spacing_mm == pytest.approx((2 * math.cos(angle), 1.5, 0.8))
    voxels = np.stack([*np.indices(volume.hu.shape), np.ones(volume.hu.shape)], axis=-1)
    expected = ramp((voxels @ volume.affine.T)[..., :3]).clip(-1024, None)
    # Pixels beside the edges of the slices are half air; all others have the value of their place.
    is_right = np.abs(volume.hu - expected) <= 1.01
    assert is_right.sum() >= 40 * 46 * 18
    assert is_right[20].sum() >= 46 * 18
    assert (volume.hu <= expected + 1.01).all()


def test_seam_between_two_bodies_is_flagged(tmp_path):
    """Two scans with the same identifiers and positions that fit; the body of one is wider than that of the other."""
    hu = body(30, 64, 64)
    hu[15:, :, :20] = 40
    write_series(tmp_path, hu)
    assert read(tmp_path).flags == ("W_SEAM",)


def test_slices_that_all_differ_have_no_seam(tmp_path):
    hu = body(30, 64, 64)
    hu[::2, :, :20] = 40
    write_series(tmp_path, hu)
    assert read(tmp_path).flags == ()


def test_small_tilt_is_left_in_the_affine(tmp_path):
    write_series(tmp_path, body(), step_mm=(0, 0.02, 2))
    volume = read(tmp_path)
    assert volume.flags == ()
    assert volume.affine[1, 0] == pytest.approx(-0.02)


@pytest.mark.parametrize(
    "values",
    [
        {"PatientSex": "M"},
        {"PatientAge": "041Y"},
        {"StudyDate": "20210305"},
        {"DeviceSerialNumber": "77"},
        {"FrameOfReferenceUID": "2.25.2"},
        {"Manufacturer": "OTHER", "PatientBirthDate": "19600101"},
    ],
    ids=lambda values: next(iter(values)),
)
@pytest.mark.parametrize("is_stacked", [True, False], ids=["stacked", "interleaved"])
def test_scans_of_two_patients_with_the_same_identifiers_are_refused(tmp_path, values, is_stacked):
    usual = {"DeviceSerialNumber": "76", "FrameOfReferenceUID": "2.25.1", "PatientBirthDate": "19570101"}

    def edit(ds: Dataset, index: int) -> None:
        attributes(**usual)(ds, index)
        if index >= 12 if is_stacked else index % 2:
            attributes(**values)(ds, index)

    write_series(tmp_path, body(), edit=edit)
    refused = refusal(tmp_path)
    assert refused.code == "E_SEVERAL_SCANS"
    assert set(str(refused.numbers["attributes"]).split(", ")) == set(values)


@pytest.mark.parametrize(
    "edit",
    [
        lambda ds, index: setattr(ds, "FrameOfReferenceUID", f"2.25.{index}"),  # as some de-identification makes them
        lambda ds, index: setattr(ds, "PatientSex", "F" if index % 2 else ""),
    ],
    ids=["a frame of reference for each file", "absent in some"],
)
def test_attributes_that_tell_nothing_are_ignored(tmp_path, edit):
    write_series(tmp_path, body(), edit=edit)
    assert read(tmp_path).flags == ()


@pytest.mark.parametrize(
    ("blank", "code"), [({9}, "E_BLANK_SLICES"), ({3, 9}, "E_BLANK_SLICES"), ({0, 23}, ""), ({22, 23}, "")]
)
def test_slice_that_shows_nothing_is_refused_between_others(tmp_path, blank, code):
    """It is a lost image. At an end it is padding, as in scans that were resampled."""
    hu = body()
    for index in blank:
        hu[index] = -1000
    write_series(tmp_path, hu)
    if code:
        refused = refusal(tmp_path)
        assert (refused.code, refused.numbers) == (code, {"blank": len(blank)})
    else:
        assert read(tmp_path).hu.shape[0] == 24


RECORDINGS = {
    "TemporalPositionIdentifier": ("1", "2"),
    "AcquisitionNumber": ("3", "4"),
    "KVP": ("80", "120"),
    "ConvolutionKernel": ("B30f", "B70f"),
}


@pytest.mark.parametrize("keyword", RECORDINGS)
def test_two_recordings_that_lie_between_each_other_are_refused(tmp_path, keyword):
    """As breathing in and out, exported as one series; the slices of one lie half a step above those of the other."""
    write_series(tmp_path, body(), edit=lambda ds, index: setattr(ds, keyword, RECORDINGS[keyword][index % 2]))
    refused = refusal(tmp_path)
    assert (refused.code, refused.numbers) == ("E_SEVERAL_SCANS", {"attributes": keyword})


@pytest.mark.parametrize("keyword", RECORDINGS)
@pytest.mark.parametrize(
    "number",
    [lambda index: int(index >= 10), lambda index: index // 3, lambda index: index, lambda index: int(index == 7)],
    ids=["in two parts", "step by step", "a value for each slice", "one slice differs"],
)
def test_a_recording_in_parts_is_one_scan(tmp_path, keyword, number):
    first, second = RECORDINGS[keyword]
    values = [first, second, *map(str, range(5, 30))]
    write_series(tmp_path, body(), edit=lambda ds, index: setattr(ds, keyword, values[number(index)]))
    assert read(tmp_path).hu.shape[0] == 24


@pytest.mark.parametrize(
    ("spacing_mm", "location_mm", "outcome"),
    [
        (2.0, 2.0, ()),
        (None, None, ()),
        (4.0, 4.0, "E_POSITIONS"),  # the positions were halved
        (4.0, 2.0, ("W_POSITIONS",)),
        (None, 4.0, ("W_POSITIONS",)),
        (4.0, None, ("W_POSITIONS",)),
        (1.0, 1.0, ("W_POSITIONS",)),  # doubled: a smaller SpacingBetweenSlices may be the gap
        (0.0, -2.0, ()),  # contiguous slices from the head to the feet
        (-1.0, 2.0, ()),  # overlapping slices
    ],
)
def test_positions_are_compared_with_what_headers_say(tmp_path, spacing_mm, location_mm, outcome):
    def edit(ds: Dataset, index: int) -> None:
        ds.SliceThickness = 4.0  # slices often overlap: not a sign
        if spacing_mm is not None:
            ds.SpacingBetweenSlices = spacing_mm
        if location_mm is not None:
            ds.SliceLocation = location_mm * index - 7

    write_series(tmp_path, body(), edit=edit)
    if isinstance(outcome, str):
        refused = refusal(tmp_path)
        assert (refused.code, refused.numbers) == (outcome, {"apart_mm": 2.0, "stated_mm": 4.0})
    else:
        assert read(tmp_path).flags == outcome


def test_slices_too_far_apart_are_refused(tmp_path):
    write_series(tmp_path, body(), spacing_mm=(12, 1, 1))
    refused = refusal(tmp_path)
    assert (refused.code, refused.numbers["spacing_mm"]) == ("E_SPACING", 12.0)


@pytest.mark.parametrize("slices", [1, 2, 19])
def test_too_few_slices_are_refused(tmp_path, slices):
    write_series(tmp_path, body(slices=slices))
    refused = refusal(tmp_path)
    assert (refused.code, refused.numbers["slices"]) == ("E_TOO_FEW", slices)


def test_unknown_transfer_syntax_is_refused(tmp_path):
    paths = write_series(tmp_path, body())
    ds = dcmread(paths[3])
    ds.file_meta.TransferSyntaxUID = uids.MPEG2MPML
    ds.PixelData = encapsulate([ds.PixelData])
    ds["PixelData"].is_undefined_length = True
    ds.save_as(paths[3])
    assert refusal(tmp_path).code == "E_TRANSFER_SYNTAX"


@pytest.mark.parametrize("syntax", [uids.JPEG2000Lossless, uids.JPEGLSLossless, uids.RLELossless])
@pytest.mark.parametrize("lost", [0.3, 0.9])
def test_truncated_compressed_pixels_are_refused_not_padded(tmp_path, syntax, lost):
    paths = write_series(tmp_path, np.random.default_rng(1).normal(0, 99, (20, 64, 64)), transfer_syntax=syntax)
    size = paths[3].stat().st_size
    whole = paths[3].read_bytes()
    paths[3].write_bytes(whole[: int(size * (1 - 0.5 * lost))])
    assert refusal(tmp_path).code == "E_TRUNCATED"
    ds = dcmread(paths[4])
    frame = ds.PixelData[16:]  # without the empty offset table and the item header
    ds.PixelData = encapsulate([frame[: int(len(frame) * (1 - lost))]])
    ds.save_as(paths[4])
    paths[3].write_bytes(whole)
    assert refusal(tmp_path).code in {"E_TRUNCATED", "E_DECODE"}


def test_damaged_compressed_pixels_are_refused(tmp_path):
    paths = write_series(tmp_path, body(rows=70, columns=50), transfer_syntax=uids.JPEG2000Lossless)
    ds = dcmread(paths[3])
    ds.PixelData = encapsulate([b"\xff\x4f" + b"CANARY" * 20 + b"\xff\xd9"])
    ds.save_as(paths[3])
    assert refusal(tmp_path).code == "E_DECODE"


@pytest.mark.parametrize("cut", [140, 300, 700, 1000])
def test_truncated_files_are_refused(tmp_path, cut):
    paths = write_series(tmp_path, body())
    paths[3].write_bytes(paths[3].read_bytes()[:cut])
    series, _ = find_series(tmp_path)
    codes = set()
    for each in series:
        with pytest.raises(Refusal) as caught:
            read_series(each)
        codes.add(caught.value.code)
    assert codes


# --- arbitrary input --------------------------------------------------------------------------------------


def read_or_refuse(folder: Path) -> None:
    """For any folder, reading gives valid volumes or refusals with codes, never another exception."""
    series, findings = find_series(folder)
    assert all(finding.reason.refuses for finding in findings)
    for each in series:
        try:
            volume = read_series(each)
        except Refusal as refused:
            assert refused.code.startswith("E_")
            assert str(refused)
        else:
            assert np.isfinite(volume.hu).all()
            assert np.isfinite(volume.affine).all()
            assert -1024 <= volume.hu.min() < volume.hu.max() <= 3071
            assert 0 < min(volume.spacing_mm) <= max(volume.spacing_mm) <= 10


EXTRA = {
    **{"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990, "NumberOfFrames": 1, "RescaleType": "HU"},
    **{"BurnedInAnnotation": "NO", "LossyImageCompression": "00", "ContrastBolusAgent": "NONE"},
}
KEYWORDS = [each.keyword for each in ct_slice([[0, 1], [2, 3]], position_mm=(0, 0, 0), **EXTRA)]
JUNK = st.one_of(
    st.sampled_from([b"", b"NaN", b"inf", b"-1", b"0", b"1e400", b"\\", b"1\\2\\3", b"\0", b"\xff\xfe"]),
    st.binary(max_size=12),
    st.floats().map(lambda number: str(number).encode()),
)
VRS = st.sampled_from([b"DS", b"IS", b"CS", b"UI", b"US", b"SS", b"FD", b"LO", b"ZZ", b"\0\0"])


@pytest.fixture(scope="module")
def whole_series(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("whole")
    return write_series(folder, body(slices=20, rows=8, columns=8), edit=attributes(**EXTRA))


def replace_elements(path: Path, changes: dict[str, tuple[bytes, bytes] | None]) -> None:
    """Give elements another VR and value (bytes that pydicom would not write), or remove them (None)."""
    content, ds = path.read_bytes(), dcmread(path)
    places = {keyword: ds.get_item(keyword) for keyword in changes}
    for keyword, place in sorted(places.items(), key=lambda item: -item[1].value_tell):
        end = place.value_tell + place.length
        start = place.value_tell - (12 if place.VR in ("OW", "OB", "UN") else 8)
        new = b""
        if changes[keyword] is not None:
            vr, value = changes[keyword]
            value += b" " * (len(value) % 2)
            new = content[start : start + 4] + vr + len(value).to_bytes(2, "little") + value
        content = content[:start] + new + content[end:]
    path.write_bytes(content)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.dictionaries(st.sampled_from(KEYWORDS), st.none() | st.tuples(VRS, JUNK), min_size=1, max_size=3),
    everywhere=st.booleans(),
)
def test_any_change_of_elements_gives_volume_or_refusal(whole_series, changes, everywhere):
    touched = whole_series if everywhere else whole_series[2:3]
    originals = [path.read_bytes() for path in touched]
    try:
        for path in touched:
            replace_elements(path, changes)
        read_or_refuse(whole_series[0].parent)
    finally:
        for path, original in zip(touched, originals, strict=True):
            path.write_bytes(original)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), min_size=1, max_size=6),
    kept=st.floats(0, 1) | st.just(1.0),
)
def test_any_change_of_bytes_gives_volume_or_refusal(whole_series, changes, kept):
    path = whole_series[3]
    original = path.read_bytes()
    mutated = bytearray(original)
    for place, junk in changes:
        start = 132 + int(place * (len(mutated) - 136))
        mutated[start : start + len(junk)] = junk
    path.write_bytes(mutated[: int(kept * len(mutated))])
    try:
        read_or_refuse(path.parent)
    finally:
        path.write_bytes(original)


# --- real data --------------------------------------------------------------------------------------------


def test_real_thorax_lungs_match_expert_mask(real_data):
    volume = read(real_data / "real-thorax-64" / "ct-64Dicom")
    assert volume.hu.shape == (79, 64, 64)
    assert volume.flags == ()
    assert -600 < volume.hu.mean() < -300
    labels, origin, spacing = read_nrrd(real_data / "real-thorax-64" / "lm-64.nrrd")
    z, y, x = np.nonzero(labels)
    ras = (origin + np.stack([x, y, z], axis=1) * spacing) * [-1, -1, 1]
    voxels = np.linalg.solve(volume.affine, np.column_stack([ras, np.ones(len(ras))]).T)[:3]
    assert np.abs(voxels - np.rint(voxels)).max() < 0.01
    is_lung = np.zeros(volume.hu.shape, dtype=bool)
    is_lung[tuple(np.rint(voxels).astype(int))] = True
    assert np.median(volume.hu[is_lung]) < -750
    assert (volume.hu[is_lung] < -400).mean() > 0.85
    assert volume.affine[2, 0] > 0


def test_real_abdomen_with_overlapping_slices_is_read(real_data):
    volume = read(real_data / "abdomen-ct" / "example_ct_dicom")
    assert volume.hu.shape == (20, 512, 512)
    assert volume.spacing_mm == pytest.approx((2.0, 0.9765625, 0.9765625))
    assert volume.flags == ("W_CONTRAST",)


def test_real_lossless_codecs_decode_bit_exactly(real_data):
    folder = real_data / "awkward-dicom" / "cornerstone-chest-slice"
    expected = dcmread(folder / "CTImage.dcm").pixel_array.astype(np.float32) - 1024
    lossless = [
        path
        for path in sorted(folder.glob("CTImage*.dcm"))
        if not path.name.endswith((".91.dcm", ".81.dcm", ".50.dcm", ".51.dcm", ".53.dcm", ".55.dcm"))
    ]
    assert len(lossless) == 10
    for path in lossless:
        assert np.array_equal(decode_slice(inspect_slice(path)), expected), path.name


@pytest.mark.parametrize("syntax", ["91", "81", "50", "51"])
def test_real_lossy_codecs_are_close_and_flagged(real_data, syntax):
    folder = real_data / "awkward-dicom" / "cornerstone-chest-slice"
    expected = dcmread(folder / "CTImage.dcm").pixel_array.astype(np.float32) - 1024
    (path,) = folder.glob(f"CTImage*.4.{syntax}.dcm")
    header = inspect_slice(path)
    assert header.flags == ("W_LOSSY",)
    assert np.abs(decode_slice(header) - expected).mean() < 20  # .50 keeps 8 bits: steps of 32 HU


@pytest.mark.parametrize(
    ("syntax", "name"),
    [("53", "JPEG Spectral Selection, Non-Hierarchical"), ("55", "JPEG Full Progression, Non-Hierarchical")],
)
def test_real_unsupported_codecs_are_refused_with_their_names(real_data, syntax, name):
    folder = real_data / "awkward-dicom" / "cornerstone-chest-slice"
    (path,) = folder.glob(f"CTImage*.4.{syntax}.dcm")
    with pytest.raises(Refusal) as caught:
        inspect_slice(path)
    assert caught.value.code == "E_TRANSFER_SYNTAX"
    assert name in caught.value.says


@pytest.mark.parametrize(
    ("folder", "code"),
    [
        ("dcm_qa_ct/GE_gantry_tilt_variable_spacing", "E_TOO_FEW"),
        ("dcm_qa_ct/Philips_localizer", "E_LOCALIZER"),
        ("dcm_qa_ct/I10", "E_NOT_AXIAL"),
        ("dicom2nifti-failing/gantrytilting", "E_TOO_FEW"),
        ("dicom2nifti-failing/notavolume", "E_DUPLICATE_SLICE"),
        ("dicom2nifti-failing/sliceincrement/001", "E_SLICE_GAP"),
        ("dicom2nifti-failing/sliceincrement/002", "E_SLICE_GAP"),
        ("lungmask", "E_TOO_FEW"),
        ("pydicom-data/eCT_Supplemental.dcm", "E_NOT_AXIAL"),
        ("pydicom-data/emri_small_jpeg_2k_lossless_too_short.dcm", "E_MODALITY"),
        ("cornerstone-chest-slice/no-pixel-data.dcm", "E_MODALITY"),
    ],
)
def test_real_awkward_series_get_the_expected_refusal(real_data, folder, code):
    assert refusal(real_data / "awkward-dicom" / folder).code == code


def test_real_slices_without_modality_are_flagged(real_data):
    header = inspect_slice(real_data / "awkward-dicom" / "lungmask" / "0.dcm")
    assert header.flags == ("W_MODALITY_EMPTY",)
    assert decode_slice(header).min() == -2048


def test_real_files_and_folders_raise_only_refusals(real_data):
    top = real_data / "awkward-dicom"
    for place in sorted(top.rglob("*")):
        read_or_refuse(place)
