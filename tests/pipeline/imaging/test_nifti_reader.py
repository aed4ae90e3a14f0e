"""Tests of reading NIfTI and MetaImage files: synthetic files and one real thorax."""

import gzip
import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from models.refusal import Refusal
from pipeline.imaging.discovery import find_series
from pipeline.imaging.nifti_reader import find_volume_files, read_volume_file
from pipeline.imaging.readers import find_scans, read_scan
from pipeline.imaging.series_reader import read_series
from pipeline.imaging.volume import Volume
from pipeline.preprocessing.preprocess import prepare
from pipeline.preprocessing.preprocess_settings import Preprocessing
from tests.helpers.dicom_files import body, write_series
from tests.helpers.volume_images import image, save

FORMATS = ["a.nii", "a.nii.gz", "a.mha", "a.mhd"]
Edit = Callable[[bytes], bytes]


def noisy(slices: int = 24) -> np.ndarray:
    """A synthetic block of tissue with noise, which compresses poorly, as real scans do."""
    return body(slices) + np.random.default_rng(5).normal(0, 20, body(slices).shape)


def edited(folder: Path, name: str, edit: Edit, *, packed: bool = False) -> Path:
    path = save(image(noisy()), folder / name, packed=packed)
    path.write_bytes(edit(path.read_bytes()))
    return path


def refusal(path: Path) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read_volume_file(path)
    assert str(path.parent) not in str(caught.value)
    return caught.value


def replaced(old: str, new: str) -> Edit:
    """An edit of a MetaImage header."""

    def edit(content: bytes) -> bytes:
        assert content.count(old.encode()) == 1
        return content.replace(old.encode(), new.encode())

    return edit


def packed_into(offset: int, form: str, *values: float) -> Edit:
    """An edit of a NIfTI header at an offset of nifti1.h."""

    def edit(content: bytes) -> bytes:
        changed = bytearray(content)
        struct.pack_into(f"<{form}", changed, offset, *values)
        return bytes(changed)

    return edit


def by_matrix(offset: int, form: str, *values: float) -> Edit:
    """The same edit, in a file whose orientation is given by its matrix (sform) only."""
    return lambda content: packed_into(offset, form, *values)(packed_into(252, "hh", 0, 1)(content))


# --- reading a valid file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_volume_file_equals_same_dicom_series(tmp_path: Path, name: str) -> None:
    hu = np.rint(noisy())
    write_series(tmp_path / "dicom", hu, origin_mm=(-8.0, -4.0, 100.0))
    (series,), _ = find_series(tmp_path / "dicom")
    expected = read_series(series)
    read = read_volume_file(save(image(hu), tmp_path / name))
    assert np.array_equal(read.hu, expected.hu)
    assert read.hu.dtype == np.int16
    assert read.affine == pytest.approx(expected.affine)
    assert read.flags == expected.flags == ()


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
def test_compressed_metaimages_are_read(tmp_path: Path, name: str) -> None:
    packed = read_volume_file(save(image(noisy()), tmp_path / "packed" / name, packed=True))
    assert np.array_equal(packed.hu, read_volume_file(save(image(noisy()), tmp_path / name)).hu)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAI", "SPL", "PIR", "ASL"])
def test_axes_are_read_in_any_order_and_direction(tmp_path: Path, axes: str) -> None:
    expected = read_volume_file(save(image(noisy()), tmp_path / "a.mha"))
    for name in ("b.nii", "b.mha"):
        read = read_volume_file(save(sitk.DICOMOrient(image(noisy()), axes), tmp_path / name))
        assert np.array_equal(read.hu, expected.hu)
        assert read.affine == pytest.approx(expected.affine)


def test_slightly_rotated_scan_keeps_its_directions(tmp_path: Path) -> None:
    made = image(noisy())
    made.SetDirection((1, 0, 0, 0, np.cos(0.2), -np.sin(0.2), 0, np.sin(0.2), np.cos(0.2)))
    affine = read_volume_file(save(made, tmp_path / "a.nii.gz")).affine
    assert affine[:3, 0] == pytest.approx([0, 2 * np.sin(0.2), 2 * np.cos(0.2)], abs=1e-5)  # RAS


def test_values_are_scaled_clipped_and_cleared_of_padding(tmp_path: Path) -> None:
    hu = body()
    hu[:, 0] = -2048.0
    hu[5, 5, 5] = 9000.0
    volume = read_volume_file(save(image(hu), tmp_path / "a.nii.gz"))
    assert (volume.hu.min(), volume.hu.max()) == (-1024.0, 3071.0)
    assert volume.flags == ("W_PADDING",)
    halved = edited(tmp_path, "b.nii", packed_into(112, "ff", 0.5, 3.25))
    expected = np.rint(np.rint(noisy()) * 0.5 + 3.25)
    assert np.array_equal(read_volume_file(halved).hu, expected.clip(-1024, 3071))


@pytest.mark.parametrize("kind", [sitk.sitkInt16, sitk.sitkInt32, sitk.sitkFloat32, sitk.sitkFloat64])
@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_real_voxel_types_are_read(tmp_path: Path, name: str, kind: int) -> None:
    read = read_volume_file(save(sitk.Cast(image(noisy()), kind), tmp_path / name))
    assert np.array_equal(read.hu, np.rint(noisy()).clip(-1024, 3071))


def test_thick_slices_are_flagged_and_accepted(tmp_path: Path) -> None:
    assert read_volume_file(save(image(noisy(), spacing_mm=(8.0, 1, 1)), tmp_path / "a.nii.gz")).flags == ("W_THICK",)


def test_fourth_axis_of_size_one_is_dropped(tmp_path: Path) -> None:
    path = edited(tmp_path, "a.nii", packed_into(40, "5h", 4, 12, 16, 24, 1))
    assert read_volume_file(path).hu.shape == (24, 16, 12)


def test_real_thorax_gives_same_tensor_in_all_formats(real_data: Path, tmp_path: Path) -> None:
    (series,), _ = find_series(real_data / "real-thorax-64" / "ct-64Dicom")
    volume = read_series(series)
    expected = prepare(volume, Preprocessing()).tensor
    stored = image(volume.hu, spacing_mm=volume.spacing_mm)
    stored.SetOrigin(tuple(volume.affine[:3, 3] * [-1, -1, 1]))
    for name in FORMATS:
        tensor = prepare(read_volume_file(save(stored, tmp_path / name)), Preprocessing()).tensor
        assert np.array_equal(tensor, expected)


# --- refusals ---------------------------------------------------------------------------------------------

BAD_METAIMAGES = {
    "no spacing": (replaced("ElementSpacing", "Spacing"), "E_GEOMETRY"),
    "no axes": (replaced("TransformMatrix", "Matrix"), "E_GEOMETRY"),
    "no origin": (replaced("Offset", "Away"), "E_GEOMETRY"),
    "axes that fall together": (replaced("= 1 0 0 0 1 0 0 0 1", "= 1 0 0 1 0 0 0 0 1"), "E_GEOMETRY"),
    "NaN axes": (replaced("= 1 0 0 0 1 0 0 0 1", "= nan 0 0 0 1 0 0 0 1"), "E_GEOMETRY"),
    "a stack sheared too far": (replaced("= 1 0 0 0 1 0 0 0 1", "= 1 0 0 0 1 0 0 0.9 1"), "E_TILT"),
    "an origin on the moon": (replaced("Offset = -8 ", "Offset = 4e8 "), "E_GEOMETRY"),
    "negative spacing": (replaced("ElementSpacing = 1 ", "ElementSpacing = -1 "), "E_SPACING"),
    "zero spacing": (replaced("ElementSpacing = 1 ", "ElementSpacing = 0 "), "E_SPACING"),
    "NaN spacing": (replaced("ElementSpacing = 1 1 2", "ElementSpacing = 1 1 nan"), "E_GEOMETRY"),
    "spacing with a comma": (replaced("ElementSpacing = 1 1 2", "ElementSpacing = 1 1 0,7"), "E_GEOMETRY"),
    "a NaN origin": (replaced("Offset = -8 ", "Offset = nan "), "E_GEOMETRY"),
    "huge sizes": (replaced("DimSize = 12 16 24", "DimSize = 99999 99999 99999"), "E_DIMENSIONS"),
    "a negative size": (replaced("DimSize = 12 16 24", "DimSize = -12 16 24"), "E_VOLUME_FILE"),
    "no size": (replaced("DimSize = 12 16 24", "DimSize = 12 16 0"), "E_VOLUME_FILE"),
    "two sizes": (replaced("DimSize", "DimSize = 1 1 1\nDimSize"), "E_VOLUME_FILE"),
    "one slice too many": (replaced("DimSize = 12 16 24", "DimSize = 12 16 25"), "E_TRUNCATED"),
    "text for voxels": (replaced("BinaryData = True", "BinaryData = False"), "E_VOLUME_FILE"),
    "an unknown type": (replaced("MET_SHORT", "MET_LONG_LONG"), "E_VOLUME_FILE"),
    "vectors": (replaced("ElementType", "ElementNumberOfChannels = 3\nElementType"), "E_NOT_ONE_VOLUME"),
    "four axes": (replaced("NDims = 3", "NDims = 4"), "E_NOT_ONE_VOLUME"),
    "voxels on the disk": (replaced("LOCAL", "/etc/passwd"), "E_VOLUME_ELSEWHERE"),
    "voxels above": (replaced("LOCAL", "../a.raw"), "E_VOLUME_ELSEWHERE"),
    "voxels in a list": (replaced("LOCAL", "LIST\na.raw"), "E_VOLUME_ELSEWHERE"),
    "voxels in a pattern": (replaced("LOCAL", "a%03d.raw 1 24 1"), "E_VOLUME_ELSEWHERE"),
    "voxels nowhere": (replaced("LOCAL", "b.raw"), "E_VOLUME_ELSEWHERE"),
    "no header": (lambda content: b"\n" + content, "E_VOLUME_FILE"),
    "an endless header": (lambda content: b"Comment = " + b"A" * 70_000 + b"\n" + content, "E_VOLUME_FILE"),
    "a cut": (lambda content: content[:-2], "E_TRUNCATED"),
}
BAD_NIFTI = {
    "no orientation": (packed_into(252, "hh", 0, 0), "E_GEOMETRY"),
    "a NaN matrix": (packed_into(280, "f", float("nan")), "E_GEOMETRY"),
    "a NaN offset": (packed_into(268, "f", float("nan")), "E_GEOMETRY"),
    "a matrix of nothing": (by_matrix(280, "12f", *[0] * 12), "E_GEOMETRY"),
    "skew axes": (by_matrix(288, "f", 0.7), "E_GEOMETRY"),
    "negative spacing": (packed_into(84, "f", -1.0), "E_SPACING"),
    "huge sizes": (packed_into(42, "3h", 32767, 32767, 32767), "E_DIMENSIONS"),
    "a negative size": (packed_into(42, "h", -12), "E_VOLUME_FILE"),
    "several volumes": (packed_into(40, "5h", 4, 12, 16, 12, 2), "E_NOT_ONE_VOLUME"),
    "a picture": (packed_into(40, "h", 2), "E_NOT_ONE_VOLUME"),
    "colours": (packed_into(70, "hh", 128, 24), "E_NOT_ONE_VOLUME"),
    "complex numbers": (packed_into(70, "hh", 32, 64), "E_NOT_ONE_VOLUME"),
    "voxels far away": (packed_into(108, "f", 2e9), "E_VOLUME_FILE"),
    "voxels in another file": (packed_into(344, "4s", b"ni1\0"), "E_VOLUME_FILE"),
    "one slice too many": (packed_into(46, "h", 25), "E_TRUNCATED"),
    "a cut": (lambda content: content[:-2], "E_TRUNCATED"),
    "half the voxels": (lambda content: content[: len(content) // 2], "E_TRUNCATED"),
    "half a header": (lambda content: content[:300], "E_VOLUME_FILE"),
    "nothing": (lambda _: b"", "E_VOLUME_FILE"),
}


@pytest.mark.parametrize(("edit", "code"), BAD_METAIMAGES.values(), ids=BAD_METAIMAGES)
def test_invalid_metaimage_is_refused(tmp_path: Path, edit: Edit, code: str) -> None:
    assert refusal(edited(tmp_path, "a.mha", edit)).code == code


@pytest.mark.parametrize(("edit", "code"), BAD_NIFTI.values(), ids=BAD_NIFTI)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_invalid_nifti_file_is_refused(tmp_path: Path, name: str, edit: Edit, code: str) -> None:
    plain = edited(tmp_path, "plain.nii", edit).read_bytes()
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain) if name.endswith(".gz") else plain)
    assert refusal(path).code == code


def test_damaged_compressed_data_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a.mha"):
        path = save(image(noisy()), tmp_path / name, packed=True)
        whole = path.read_bytes()
        for at in random.Random(3).sample(range(len(whole) // 2, len(whole) - 8), 20):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            assert refusal(path).code in {"E_DECODE", "E_TRUNCATED", "E_VOLUME_FILE"}
        path.write_bytes(whole[: len(whole) * 3 // 4])
        assert refusal(path).code in {"E_TRUNCATED", "E_VOLUME_FILE"}


@pytest.mark.parametrize("size", ["CompressedDataSize = 4000", "Comment ="])
def test_wrong_compressed_size_is_refused(tmp_path: Path, size: str) -> None:
    path = save(image(noisy()), tmp_path / "a.mha", packed=True)
    header, _, rest = path.read_bytes().partition(b"CompressedDataSize")
    path.write_bytes(header + size.encode() + rest[rest.index(b"\n") :])
    assert refusal(path).code == "E_VOLUME_FILE"


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_decompression_bomb_is_refused_before_unpacking(tmp_path: Path, name: str) -> None:
    path = save(image(np.zeros((300, 256, 256))), tmp_path / name, packed=True)
    assert path.stat().st_size < 500_000
    assert refusal(path).code == "E_ARCHIVE_RATIO"


def test_extra_data_after_voxels_is_not_unpacked(tmp_path: Path) -> None:
    plain = save(image(noisy()), tmp_path / "plain.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(1000)))
    assert read_volume_file(tmp_path / "a.nii.gz").hu.shape == (24, 16, 12)
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(plain + bytes(2**22)))
    assert refusal(tmp_path / "b.nii.gz").code == "E_VOLUME_FILE"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinite_voxels_are_refused(tmp_path: Path, value: float) -> None:
    made = sitk.Cast(image(noisy()), sitk.sitkFloat32)
    made[3, 3, 3] = value
    for name in FORMATS:
        assert refusal(save(made, tmp_path / name)).code == "E_NOT_A_NUMBER"
    assert refusal(save(made, tmp_path / "packed.mha", packed=True)).code == "E_NOT_A_NUMBER"


@pytest.mark.parametrize(
    ("hu", "code"),
    [
        (noisy() + 1024, "E_HU_RANGE"),  # stored without the rescale intercept
        (np.clip((noisy() + 1000) / 1100 * 255, 0, 255), "E_HU_RANGE"),  # an 8-bit image of a display window
        (noisy() * 20, "E_HU_RANGE"),
        (np.full((24, 16, 12), -1000.0), "E_EMPTY_VOLUME"),
        (noisy(12), "E_TOO_FEW"),
    ],
    ids=["shifted", "windowed", "scaled", "air", "too few"],
)
def test_values_that_are_not_ct_in_hu_are_refused(tmp_path: Path, hu: np.ndarray, code: str) -> None:
    assert refusal(save(image(hu), tmp_path / "a.mha")).code == code


def test_oblique_stack_is_refused(tmp_path: Path) -> None:
    made = image(noisy())
    made.SetDirection((1, 0, 0, 0, np.cos(0.7), -np.sin(0.7), 0, np.sin(0.7), np.cos(0.7)))
    assert refusal(save(made, tmp_path / "a.mha")).code == "E_OBLIQUE"


def placed(path: Path, *, by_sform: tuple[float, float, float], steps: float = 1.0, codes: tuple[int, int]) -> Path:
    """Write a NIfTI file whose sform is moved by so many mm, and whose pixdim is `steps` times the right one."""
    save(image(body()), path)
    made = nib.load(path, mmap=False)
    made.get_fdata()  # before the file is written again
    moved = made.affine.copy()
    moved[:3, 3] += by_sform
    made.set_qform(made.affine, code=codes[0])
    made.set_sform(moved, code=codes[1])
    made.header["pixdim"][1:4] *= steps
    nib.save(made, path)
    return path


@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (1, 4), (4, 2), (2, 1)])
@pytest.mark.parametrize("moved", [(12.0, 0.0, 0.0), (0.0, 8.0, 0.0), (0.0, 0.0, 1.0)])
def test_file_that_places_its_voxels_in_two_ways_is_refused(
    codes: tuple[int, int], moved: tuple[float, float, float], tmp_path: Path
) -> None:
    """SimpleITK and nibabel would read different places, so that a mask of the scan would lie beside it."""
    assert refusal(placed(tmp_path / "scan.nii.gz", by_sform=moved, codes=codes)).code == "E_GEOMETRY"


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (1, 2)])
def test_file_with_one_or_two_equal_descriptions_of_its_axes_is_read(codes: tuple[int, int], tmp_path: Path) -> None:
    path = placed(tmp_path / "scan.nii", by_sform=(0.0, 0.0, 0.0), codes=codes)
    assert np.allclose(
        read_volume_file(path).affine, read_volume_file(save(image(body()), tmp_path / "same.nii")).affine
    )


@pytest.mark.parametrize("steps", [0.9, 1.1])
def test_spacing_that_contradicts_the_axes_is_refused(steps: float, tmp_path: Path) -> None:
    assert refusal(placed(tmp_path / "scan.nii", by_sform=(0, 0, 0), steps=steps, codes=(0, 2))).code == "E_GEOMETRY"


@pytest.mark.parametrize("name", FORMATS)
def test_random_bytes_named_as_volume_file_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(random.Random(1).randbytes(5000))
    assert refusal(tmp_path / name).code == "E_VOLUME_FILE"
    assert refusal(tmp_path / "absent.nii").code == "E_VOLUME_FILE"


def test_random_header_damage_gives_volume_or_refusal(tmp_path: Path) -> None:
    rng = random.Random(11)
    sources = [save(image(noisy()), tmp_path / "whole" / name) for name in FORMATS[:3]]
    for number in range(300):
        source = sources[number % 3]
        content = bytearray(source.read_bytes())
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(min(352, len(content)))] = rng.randrange(256)
        path = tmp_path / source.name
        path.write_bytes(content)
        with suppress(Refusal):
            assert isinstance(read_volume_file(path), Volume)
        find_volume_files(path)


# --- finding volume files ---------------------------------------------------------------------------------


def test_file_name_is_the_patient_id(tmp_path: Path) -> None:
    save(image(noisy(), PatientAge="035Y", PatientSex="F"), tmp_path / "deep" / "0042.mha")
    save(image(noisy(), PatientAge="old", PatientSex="?"), tmp_path / "0043.mha")
    save(image(noisy()), tmp_path / "0044.nii.gz")
    save(image(noisy()), tmp_path / "0045.MHD")
    (tmp_path / "._0046.nii.gz").write_bytes(b"what a Mac leaves behind")
    found, findings = find_volume_files(tmp_path)
    assert [(s.patient_id, s.age_years, s.sex, s.acquired) for s in found] == [
        ("0043", None, None, None),
        ("0044", None, None, None),
        ("0045", None, None, None),
        ("0042", 35.0, "F", None),
    ]
    assert findings == []
    assert len({s.fingerprint for s in found}) == len({s.series_uid for s in found}) == 4


def test_two_files_with_one_name_are_not_merged(tmp_path: Path) -> None:
    for name in ("ward/1.nii", "clinic/1.mha", "2.mha"):
        save(image(noisy()), tmp_path / name)
    found, findings = find_volume_files(tmp_path)
    assert [s.patient_id for s in found] == ["2"]
    assert [(f.reason.code, f.patient_id) for f in findings] == [("E_VOLUME_NAME", "1")] * 2


def test_unreadable_header_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "1.mha").write_bytes(b"nothing")
    edited(tmp_path, "2.mha", replaced("LOCAL", "../3.raw"))
    found, findings = find_volume_files(tmp_path)
    assert found == []
    assert [f.reason.code for f in findings] == ["E_VOLUME_FILE", "E_VOLUME_ELSEWHERE"]


def test_fingerprint_depends_on_voxel_file_of_split_image(tmp_path: Path) -> None:
    save(image(noisy()), tmp_path / "1.mhd")
    (before,), _ = find_volume_files(tmp_path)
    os.utime(tmp_path / "1.raw", ns=(1, 1))
    (after,), _ = find_volume_files(tmp_path)
    assert before.fingerprint != after.fingerprint
    assert replace(before, fingerprint=after.fingerprint) == after


def test_symlinks_are_followed(tmp_path: Path) -> None:
    """A symlink to a header is followed even if the voxel file is beside the header, not beside the link."""
    save(image(noisy()), tmp_path / "data" / "1.mhd")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "1.mhd").symlink_to(tmp_path / "data" / "1.mhd")
    (found,), findings = find_volume_files(tmp_path / "site")
    assert findings == []
    assert np.array_equal(read_scan(found).hu, read_volume_file(tmp_path / "data" / "1.mhd").hu)
    (tmp_path / "data" / "1.raw").rename(tmp_path / "data" / "2.raw")
    (tmp_path / "data" / "1.raw").symlink_to(tmp_path / "data" / "2.raw")
    assert refusal(tmp_path / "data" / "1.mhd").code == "E_VOLUME_ELSEWHERE"


def test_scans_of_all_formats_are_found_and_read(tmp_path: Path) -> None:
    write_series(tmp_path / "dicom", noisy())
    for name in ("1.mhd", "2.nii.gz"):
        save(image(noisy()), tmp_path / "volumes" / name)
    found, findings = find_scans(tmp_path)
    assert findings == []
    assert [len(s.files) for s in found] == [24, 1, 1]
    dicom, *volumes = [read_scan(s).hu for s in found]
    assert all(np.array_equal(hu, dicom) for hu in volumes)
    named, _ = find_scans([*(tmp_path / "dicom").iterdir(), tmp_path / "volumes" / "2.nii.gz"])
    assert [s.patient_id for s in named] == [found[0].patient_id, "2"]


def test_symlink_to_parent_folder_does_not_loop(tmp_path: Path) -> None:
    save(image(noisy()), tmp_path / "site" / "1.nii")
    write_series(tmp_path / "elsewhere", body())
    (tmp_path / "site" / "again").symlink_to(tmp_path / "site")
    (tmp_path / "site" / "dicom").symlink_to(tmp_path / "elsewhere")
    found, findings = find_scans(tmp_path / "site")
    assert findings == []
    assert sorted(len(s.files) for s in found) == [1, 24]
