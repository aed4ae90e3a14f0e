"""Finds and reads scans stored as one NIfTI or MetaImage file each, with the same rules as for DICOM series."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal, without_error_number
from pipeline.imaging import reasons
from pipeline.imaging.dates_and_ages import age_in_years
from pipeline.imaging.discovery import VOLUME_SUFFIXES, Series, fingerprint, walk
from pipeline.imaging.geometry import check_spacing, feet_to_head, headward_normal, ras_affine
from pipeline.imaging.nifti_header import (
    inspect,
    is_meta,
    meta_voxel_file,
    read_meta_header,
    require_one_geometry,
)
from pipeline.imaging.series_reader import THICK_MM, finish
from pipeline.imaging.volume import Volume, whole_hu
from pipeline.system.findings import Finding

if TYPE_CHECKING:
    import SimpleITK as sitk  # noqa: N813

# These files do not state that their values are HU. Every chest scan contains air, which has -1000 HU.
_DENSEST_AIR_HU = -500.0


def is_volume_file(name: str) -> bool:
    """Whether a file of this name holds a whole scan; hidden files do not."""
    return name.lower().endswith(VOLUME_SUFFIXES) and not name.startswith(".")


def find_volume_files(root: Path | Sequence[Path]) -> tuple[list[Series], list[Finding]]:
    """Find all volume files among files and folders (searched to any depth), and those that cannot be used.

    The file name identifies the patient. A MetaImage can state age and sex, as PatientAge (035Y) and PatientSex. Two
    files with the same name may belong to two patients: neither is used.
    Findings: E_VOLUME_FILE, E_VOLUME_ELSEWHERE, E_VOLUME_NAME.
    """
    series, findings = [], []
    for name, path in walk(root, is_volume_file, []):
        try:
            series.append(_series(name, path))
        except Refusal as refusal:
            findings.append(Finding(refusal.reason, stem(path), str(path)))
        except OSError as error:
            findings.append(Finding(reasons.VOLUME_FILE, stem(path), without_error_number(str(error))))
    files = Counter(each.patient_id for each in series)
    findings += [
        Finding(reasons.VOLUME_NAME, each.patient_id, str(each.files[0]))
        for each in series
        if files[each.patient_id] > 1
    ]
    return [each for each in series if files[each.patient_id] == 1], findings


def stem(path: Path) -> str:
    """Return the name of a volume file without its suffix; for a scan it identifies the patient."""
    suffix = max((suffix for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix)), key=len)
    return path.name[: -len(suffix)]


def _series(name: str, path: Path) -> Series:
    """Make a series from one volume file; `name` is relative to the folder that was searched."""
    header: dict[str, str] = {}
    files = [(name, path)]
    if is_meta(path):
        header, _ = read_meta_header(path)
        files.append(("voxels", meta_voxel_file(path.resolve(), header)))
    sex = header.get("PatientSex", "")
    return Series(
        files=(path,),
        patient_id=stem(path),
        issuer="",
        study_uid=name,
        series_uid=name,
        modality="",
        age_years=age_in_years(header.get("PatientAge", "")),
        sex=sex if sex in {"M", "F"} else None,
        acquired=None,
        manufacturer="",
        kernel="",
        fingerprint=fingerprint(files),
    )


def read_volume_file(path: Path) -> Volume:
    """Read a NIfTI-1 file (.nii, .nii.gz) or a MetaImage (.mha, .mhd) that holds one CT scan in HU.

    Slice 0 of the volume is nearest to the feet, row numbers increase to the back and column numbers to the patient's
    left, whatever the order in the file. HU are clipped to [-1024, 3071]; padding around the scan becomes -1024.

    Raises `Refusal`: E_VOLUME_FILE, E_NOT_ONE_VOLUME, E_VOLUME_ELSEWHERE, E_DIMENSIONS, E_ARCHIVE_RATIO, E_TRUNCATED,
    E_DECODE, E_GEOMETRY, E_SPACING, E_OBLIQUE, E_TILT, E_TOO_FEW, E_NOT_A_NUMBER, E_HU_RANGE, E_EMPTY_VOLUME.
    Flags: W_THICK, W_PADDING.
    """
    path = path.resolve()  # follow a link to the header: the voxels are beside the header itself
    try:
        hu, affine = _decode(path, inspect(path).size)
        if not is_meta(path):
            require_one_geometry(path)
        if not np.isfinite(hu).all():
            raise Refusal(reasons.NOT_A_NUMBER)
        lowest, highest = float(hu.min()), float(hu.max())
        if lowest > _DENSEST_AIR_HU:
            raise Refusal(reasons.HU_RANGE, lowest_hu=round(lowest), highest_hu=round(highest))
        is_thick = np.linalg.norm(affine[:3, 0]) > THICK_MM
        return finish(whole_hu(hu), affine, {reasons.THICK.code} if is_thick else set())
    except Refusal as refusal:
        refusal.private = f"{path} {refusal.private}"
        raise
    except OSError as error:
        raise Refusal(reasons.VOLUME_FILE, private=str(error)) from None


def _decode(path: Path, size: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the stored voxels as float32, and their affine, with axes to the head, to the back and to the left.

    Raises `Refusal`: E_VOLUME_FILE, E_DECODE, and the reasons of `_check_axes` and `_affine`.
    """
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings quote paths
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if is_meta(path) else "NiftiImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:  # `inspect` has checked the rest of a NIfTI header: only its axes can be wrong
        reason = reasons.VOLUME_FILE if is_meta(path) else reasons.GEOMETRY
        raise Refusal(reason, private=str(error)) from None
    if reader.GetSize()[:3] != size or reader.GetNumberOfComponents() != 1:
        raise Refusal(reasons.VOLUME_FILE, private="SimpleITK reads a different header")
    _check_axes(reader)
    reader.SetOutputPixelType(sitk.sitkFloat32)
    try:
        image = sitk.DICOMOrient(reader.Execute(), "LPS")
    except RuntimeError as error:
        raise Refusal(reasons.DECODE, private=str(error)) from None
    affine = _affine(image)
    return sitk.GetArrayFromImage(image), affine


def _check_axes(reader: "sitk.ImageFileReader") -> None:
    """Refuse axes that make SimpleITK fail. Raises `Refusal`: E_GEOMETRY, E_SPACING."""
    directions = np.array(reader.GetDirection())
    if not np.isfinite([*directions, *reader.GetOrigin()]).all():
        raise Refusal(reasons.GEOMETRY)
    if abs(np.linalg.det(directions.reshape(math.isqrt(directions.size), -1))) < 0.5:
        raise Refusal(reasons.GEOMETRY)
    for spacing_mm in reader.GetSpacing():
        check_spacing(spacing_mm)


def _affine(image: "sitk.Image") -> NDArray[np.float64]:
    """Return the affine of an image, after the same checks as for the slices of a DICOM series.

    Raises `Refusal`: E_GEOMETRY, E_OBLIQUE, E_TOO_FEW, E_SPACING, E_TILT.
    """
    column_mm, row_mm, slice_mm = image.GetSpacing()
    along_row, along_column, upwards = np.array(image.GetDirection()).reshape(3, 3).T
    orientation = np.concatenate([along_row, along_column])
    normal = headward_normal(orientation[None])
    positions_mm = image.GetOrigin() + np.outer(np.arange(image.GetSize()[2]), upwards * slice_mm)
    feet_to_head(positions_mm, normal)  # the order is known; this checks the positions
    return ras_affine(positions_mm, normal, orientation, np.array([[row_mm, column_mm]]))
