"""Tests of Enhanced CT and Legacy Converted Enhanced CT: the same volume as from the series of single frames."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import generate_frames

from models.refusal import Refusal
from pipeline.imaging.discovery import Series, find_series
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from tests.helpers.dicom_files import body, write_series
from tests.helpers.enhanced import (
    dimension,
    enhanced,
    group,
    legacy_converted,
    save_frames,
    single_frames,
    split_fragments,
)

LOSSLESS = [uid.RLELossless, uid.JPEG2000Lossless, uid.JPEGLSLossless]
NATIVE = [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian]
MAKERS: list[Callable[[Sequence[Dataset]], Dataset]] = [legacy_converted, enhanced]


def rescaled(ds: Dataset, index: int) -> None:
    ds.RescaleSlope, ds.RescaleIntercept = 2.0, -5.0 * index


def noise(slices: int = 24, side: int = 64) -> np.ndarray:
    hu = np.random.default_rng(3).integers(-1000, 900, (slices, side, side)).astype(float)
    hu[:, :8] = -1000
    return hu


def found(folder: Path) -> Series:
    (series,), findings = find_series(folder)
    assert findings == []
    return series


def read(folder: Path) -> Volume:
    return read_series(found(folder))


def code(folder: Path) -> str:
    with pytest.raises(Refusal) as caught:
        read(folder)
    return caught.value.code


def assert_same(one: Volume, other: Volume) -> None:
    assert np.array_equal(one.hu, other.hu)
    assert np.allclose(one.affine, other.affine, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("syntax", NATIVE)
def test_frames_give_the_volume_of_single_frames(tmp_path, make, syntax):
    paths = write_series(tmp_path / "single", noise() // 2, edit=rescaled)
    save_frames(make(single_frames(paths)), tmp_path / "multi" / "1.dcm", syntax=syntax)
    assert_same(read(tmp_path / "multi"), read(tmp_path / "single"))


@pytest.mark.parametrize("syntax", LOSSLESS)
def test_compressed_frames_give_the_volume_of_single_frames(tmp_path, syntax):
    paths = write_series(tmp_path / "single", noise())
    save_frames(enhanced(single_frames(paths)), tmp_path / "multi" / "1.dcm", syntax=syntax)
    assert_same(read(tmp_path / "multi"), read(tmp_path / "single"))


@pytest.mark.parametrize("has_table", [True, False])
def test_frames_in_several_fragments_are_read(tmp_path, has_table):
    paths = write_series(tmp_path / "single", noise())
    path = tmp_path / "multi" / "1.dcm"
    save_frames(enhanced(single_frames(paths)), path, syntax=uid.JPEG2000Lossless)
    image = dcmread(path)
    split_fragments(image, list(generate_frames(image.PixelData, number_of_frames=24)), has_table=has_table)
    image.save_as(path)
    assert_same(read(tmp_path / "multi"), read(tmp_path / "single"))


def test_extended_offset_table_is_used(tmp_path):
    paths = write_series(tmp_path / "single", noise())
    image = enhanced(single_frames(paths))
    save_frames(image, tmp_path / "multi" / "1.dcm", syntax=uid.JPEG2000Lossless, encapsulate_ext=True)
    assert "ExtendedOffsetTable" in dcmread(tmp_path / "multi" / "1.dcm")
    assert_same(read(tmp_path / "multi"), read(tmp_path / "single"))


def several(images: Sequence[Dataset], count: int, edit: Callable[[Dataset, Dataset, int], None]) -> Dataset:
    """The same frames `count` times in one image; `edit(image, content, volume)` changes each frame's content."""
    image = enhanced([each for _ in range(count) for each in images])
    for index, own in enumerate(image.PerFrameFunctionalGroupsSequence):
        edit(image, own.FrameContentSequence[0], index // len(images))
    return image


def as_stacks(image: Dataset, content: Dataset, volume: int) -> None:
    content.StackID = str(volume + 1)


def as_times(image: Dataset, content: Dataset, volume: int) -> None:
    content.TemporalPositionIndex = volume + 1


def as_dimension(image: Dataset, content: Dataset, volume: int) -> None:
    content.DimensionIndexValues = [1, content.InStackPositionNumber, volume + 1]
    if len(image.DimensionIndexSequence) == 2:
        image.DimensionIndexSequence.append(dimension("KVP"))


@pytest.mark.parametrize(
    ("edit", "says"), [(as_stacks, "2 stacks"), (as_times, "2 temporal positions"), (as_dimension, "2 values of KVP")]
)
def test_more_than_one_volume_is_refused_with_what_was_found(tmp_path, edit, says):
    images = single_frames(write_series(tmp_path / "single", body()))
    save_frames(several(images, 2, edit), tmp_path / "multi" / "1.dcm")
    with pytest.raises(Refusal) as caught:
        read(tmp_path / "multi")
    assert (caught.value.code, caught.value.numbers) == ("E_SEVERAL_VOLUMES", {"found": says})


def test_a_dimension_that_varies_along_one_volume_is_accepted(tmp_path):
    """A scanner that moves step by step has another time for each slice."""
    paths = write_series(tmp_path / "single", body())
    image = enhanced(single_frames(paths))
    for index, own in enumerate(image.PerFrameFunctionalGroupsSequence):
        own.FrameContentSequence[0].TemporalPositionIndex = index + 1
    save_frames(image, tmp_path / "multi" / "1.dcm")
    assert_same(read(tmp_path / "multi"), read(tmp_path / "single"))


def test_temporal_positions_that_lie_between_each_other_are_refused(tmp_path):
    image = enhanced(single_frames(write_series(tmp_path / "single", body())))
    for index, own in enumerate(image.PerFrameFunctionalGroupsSequence):
        own.FrameContentSequence[0].TemporalPositionIndex = 1 + index % 2
    save_frames(image, tmp_path / "multi" / "1.dcm")
    assert code(tmp_path / "multi") == "E_SEVERAL_SCANS"


@pytest.mark.parametrize("last", ["YES", "NO"])
def test_contrast_agent_of_any_frame_is_flagged(tmp_path, last):
    image = enhanced(single_frames(write_series(tmp_path / "single", body())))
    image.ContrastBolusAgentSequence = group(CodeValue="1")
    for own in image.PerFrameFunctionalGroupsSequence:
        own.ContrastBolusUsageSequence = group(ContrastBolusAgentNumber=1, ContrastBolusAgentAdministered="YES")
    own.ContrastBolusUsageSequence[0].ContrastBolusAgentAdministered = last
    save_frames(image, tmp_path / "multi" / "1.dcm")
    assert read(tmp_path / "multi").flags == ("W_CONTRAST",)


def test_frame_that_is_a_localizer_is_refused_although_the_last_one_is_axial(tmp_path):
    """Shared groups are allowed to be contradicted by no frame; some files do it all the same."""
    image = enhanced(single_frames(write_series(tmp_path / "single", body())))
    for index, own in enumerate(image.PerFrameFunctionalGroupsSequence):
        kind = "LOCALIZER" if index == 3 else "AXIAL"
        own.CTImageFrameTypeSequence = group(FrameType=["ORIGINAL", "PRIMARY", kind, "NONE"])
    save_frames(image, tmp_path / "multi" / "1.dcm")
    assert code(tmp_path / "multi") == "E_LOCALIZER"


def test_repeated_frames_are_treated_like_repeated_slices(tmp_path):
    images = single_frames(write_series(tmp_path / "single", body()))
    save_frames(enhanced([*images, images[3]]), tmp_path / "copy" / "1.dcm")
    assert read(tmp_path / "copy").flags == ("W_DUPLICATE_SLICE",)
    other = single_frames([tmp_path / "single" / "004.dcm"])[0]
    other.ImagePositionPatient = images[3].ImagePositionPatient
    save_frames(enhanced([*images, other]), tmp_path / "other" / "1.dcm")
    assert code(tmp_path / "other") == "E_DUPLICATE_SLICE"


def test_a_series_of_several_multi_frame_images_is_one_volume(tmp_path):
    paths = write_series(tmp_path / "single", body())
    images = single_frames(paths)
    for name, part in (("1", images[:9]), ("2", images[9:])):
        image = enhanced(part)
        image.SOPInstanceUID = f"2.25.{name}"
        save_frames(image, tmp_path / "multi" / f"{name}.dcm")
    assert_same(read(tmp_path / "multi"), read(tmp_path / "single"))
    assert found(tmp_path / "multi").slices == 24


@pytest.mark.parametrize("make", MAKERS)
def test_place_of_a_frame_counts_and_not_its_order_or_number_in_the_stack(tmp_path, make):
    """Each frame has another rescale, which must stay with its pixels."""
    paths = write_series(tmp_path / "single", noise() // 2, edit=rescaled)
    images = single_frames(paths)
    order = np.random.default_rng(7).permutation(len(images))
    save_frames(make([images[index] for index in order]), tmp_path / "multi" / "1.dcm")
    assert_same(read(tmp_path / "multi"), read(tmp_path / "single"))


def test_images_of_two_sizes_in_one_series_are_refused(tmp_path):
    for name, side in (("1", 64), ("2", 48)):
        images = single_frames(write_series(tmp_path / f"single-{side}", noise(side=side)))
        image = enhanced(images[:12] if name == "1" else images[12:])
        image.SOPInstanceUID = f"2.25.{name}"
        save_frames(image, tmp_path / "multi" / f"{name}.dcm")
    assert code(tmp_path / "multi") == "E_MIXED_GEOMETRY"


def test_a_multi_frame_image_beside_single_frames_of_its_series_is_one_volume(tmp_path):
    images = single_frames(write_series(tmp_path / "single", body()))
    image = enhanced(images[:9])
    save_frames(image, tmp_path / "mixed" / "0.dcm")
    for index, single in enumerate(images[9:]):
        single.SeriesInstanceUID = image.SeriesInstanceUID
        single.save_as(tmp_path / "mixed" / f"{index + 1}.dcm")
    assert_same(read(tmp_path / "mixed"), read(tmp_path / "single"))


@pytest.mark.parametrize("make", MAKERS)
def test_series_is_described_like_one_of_single_frames(tmp_path, make):
    paths = write_series(tmp_path / "single", body())
    save_frames(make(single_frames(paths)), tmp_path / "multi" / "1.dcm")
    single, multi = found(tmp_path / "single"), found(tmp_path / "multi")
    same = ("patient_id", "study_uid", "modality", "age_years", "sex", "acquired", "has_clock", "kernel", "slices")
    assert [getattr(single, field) for field in same] == [getattr(multi, field) for field in same]


def own_groups(image: Dataset, index: int) -> Dataset:
    return image.PerFrameFunctionalGroupsSequence[index]


def drop(keyword: str) -> Callable[[Dataset], None]:
    return lambda image: delattr(image, keyword)


def frame_type(*words: str) -> Callable[[Dataset], None]:
    def edit(image: Dataset) -> None:
        image.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType = list(words)

    return edit


def shared(name: str, **attributes: Any) -> Callable[[Dataset], None]:
    return lambda image: setattr(image.SharedFunctionalGroupsSequence[0], name, group(**attributes))


def one_localizer(image: Dataset) -> None:
    own_groups(image, 5).CTImageFrameTypeSequence = group(FrameType=["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"])


REFUSED: dict[str, tuple[str, Callable[[Dataset], None]]] = {
    "no descriptions": ("E_MULTIFRAME", drop("PerFrameFunctionalGroupsSequence")),
    "a description too few": ("E_MULTIFRAME", lambda image: image.PerFrameFunctionalGroupsSequence.pop()),
    "no number of frames": ("E_MULTIFRAME", drop("NumberOfFrames")),
    "no position": ("E_GEOMETRY", lambda image: delattr(own_groups(image, 2), "PlanePositionSequence")),
    "no rescale": ("E_RESCALE", lambda image: delattr(own_groups(image, 2), "PixelValueTransformationSequence")),
    "energy map": (
        "E_RESCALE",
        lambda image: setattr(own_groups(image, 2).PixelValueTransformationSequence[0], "RescaleType", "Z_EFF"),
    ),
    "two spacings": (
        "E_MIXED_GEOMETRY",
        lambda image: setattr(own_groups(image, 2), "PixelMeasuresSequence", group(PixelSpacing=[2.0, 2.0])),
    ),
    "a localizer among the frames": ("E_LOCALIZER", one_localizer),
    "maximum intensity": (
        "E_NOT_AXIAL",
        shared(
            "CTImageFrameTypeSequence",
            FrameType=["DERIVED", "PRIMARY", "AXIAL", "NONE"],
            VolumeBasedCalculationTechnique="MAX_IP",
        ),
    ),
    "colours": (
        "E_NOT_AXIAL",
        shared(
            "CTImageFrameTypeSequence", FrameType=["ORIGINAL", "PRIMARY", "AXIAL", "NONE"], PixelPresentation="COLOR"
        ),
    ),
    "perfusion": ("E_NOT_AXIAL", frame_type("DERIVED", "PRIMARY", "PERFUSION", "RCBF")),
    "short pixels": ("E_TRUNCATED", lambda image: setattr(image, "PixelData", image.PixelData[:-400])),
    "no pixels": ("E_TRUNCATED", drop("PixelData")),
    "too many pixels": ("E_MULTIFRAME", lambda image: setattr(image, "PixelData", 2 * image.PixelData)),
    "impossible number": ("E_MULTIFRAME", lambda image: setattr(image, "NumberOfFrames", 2**31 - 1)),
}


@pytest.mark.parametrize(("expected", "edit"), REFUSED.values(), ids=REFUSED)
def test_invalid_multi_frame_image_is_refused(tmp_path, expected, edit):
    image = enhanced(single_frames(write_series(tmp_path / "single", body())))
    edit(image)
    save_frames(image, tmp_path / "multi" / "1.dcm")
    assert code(tmp_path / "multi") == expected


def test_missing_frames_are_found_like_missing_slices(tmp_path):
    images = single_frames(write_series(tmp_path / "single", body()))
    del images[7]
    save_frames(enhanced(images), tmp_path / "multi" / "1.dcm")
    assert code(tmp_path / "multi") == "E_SLICE_GAP"


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_truncated_file_is_refused(tmp_path, syntax):
    path = tmp_path / "multi" / "1.dcm"
    save_frames(enhanced(single_frames(write_series(tmp_path / "single", noise()))), path, syntax=syntax)
    path.write_bytes(path.read_bytes()[:-3000])
    assert code(tmp_path / "multi") == "E_TRUNCATED"


def test_deflated_multi_frame_image_is_refused(tmp_path):
    image = enhanced(single_frames(write_series(tmp_path / "single", body())))
    save_frames(image, tmp_path / "multi" / "1.dcm", syntax=uid.DeflatedExplicitVRLittleEndian)
    assert code(tmp_path / "multi") == "E_TRANSFER_SYNTAX"


@pytest.mark.parametrize("folder", ["real-thorax-64/ct-64Dicom", "abdomen-ct/example_ct_dicom"])
@pytest.mark.parametrize("make", MAKERS)
def test_real_series_gives_the_same_volume_after_conversion(real_data, tmp_path, folder, make):
    single = read(real_data / folder)
    images = single_frames(found(real_data / folder).files)
    save_frames(make(images), tmp_path / "1.dcm")
    assert_same(read(tmp_path), single)
