"""Reads a lung mask that a hospital made itself: NIfTI-1 or a DICOM segmentation."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging import reasons
from pipeline.imaging.dicom_header import read_header, tags, text
from pipeline.imaging.discovery import Series
from pipeline.imaging.lung_mask import BOTH, LEFT, RIGHT, LungMask, checked
from pipeline.imaging.nifti_header import Stored, inspect, is_meta, read_bytes
from pipeline.imaging.nifti_reader import is_volume_file
from pipeline.imaging.pydicom_silence import quiet_pydicom
from pipeline.imaging.segmentation import read_segmentation

_MAX_VOXEL_BYTES = 2**31
_NO_RATIO = 2**20  # a mask compresses to a thousandth of its size; _MAX_VOXEL_BYTES bounds it instead
_REFERENCES = tags("FrameOfReferenceUID", "SeriesInstanceUID")
_OWN = (reasons.MASK_LABELS, reasons.MASK_EMPTY, reasons.MASK_SERIES)


def read_lung_mask(path: Path, series: Series) -> LungMask:
    """Read the lung mask of one scan: NIfTI-1 (.nii, .nii.gz), or a binary DICOM segmentation.

    In NIfTI, 1 is the right and 2 the left lung; without a 2, 1 means both. A segmentation must refer to `series`.

    Raises `Refusal`: E_MASK_FILE, E_MASK_LABELS, E_MASK_EMPTY, E_MASK_SERIES. Its text names no file and no label.
    """
    try:
        if not path.is_file():  # a pipe would wait forever
            raise Refusal(reasons.MASK_FILE)
        if is_volume_file(path.name):
            return _read_nifti(path)
        return _read_segmentation(path, series)
    except Refusal as refusal:
        reason = refusal.reason if refusal.reason in _OWN else reasons.MASK_FILE
        cause = "" if refusal.reason is reason else refusal.code
        raise Refusal(reason, private=": ".join(filter(None, [str(path), cause, refusal.private]))) from None
    except OSError as error:
        raise Refusal(reasons.MASK_FILE, private=str(error)) from None


def _read_nifti(path: Path) -> LungMask:
    import nibabel as nib  # imported here because it is large, and most scans have no mask

    path = path.resolve()
    if is_meta(path):
        raise Refusal(reasons.MASK_FILE, private="a MetaImage")
    stored = inspect(path, _NO_RATIO)
    if stored.voxel_bytes > _MAX_VOXEL_BYTES:
        raise Refusal(reasons.MASK_FILE, private="too large")
    try:
        image: Any = nib.load(path)
        affine = np.asarray(image.affine, np.float64)
        slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    except OSError:
        raise
    except Exception as error:  # nibabel raises many kinds of exceptions
        raise Refusal(reasons.MASK_FILE, private=str(error)) from None
    columns, rows, slices = stored.size
    labels = np.zeros((slices, rows, columns), np.uint8)
    for out, values in zip(labels, _values(stored), strict=True):
        _put(values if (slope, intercept) == (1, 0) else values * slope + intercept, out.reshape(-1))
    has_right, has_left = ((labels == side).any() for side in (RIGHT, LEFT))
    if has_left and not has_right:
        raise Refusal(reasons.MASK_LABELS, private="there is a left lung only")
    if not has_left:
        labels *= BOTH
    return checked(labels, affine[:, [2, 1, 0, 3]])


def _values(stored: Stored) -> Iterator[NDArray[Any]]:
    """Yield the stored values slice by slice; data that follows the voxels is left out."""
    columns, rows, slices = stored.size
    chunks = read_bytes(stored, columns * rows * stored.kind.itemsize)
    yield from (np.frombuffer(chunk, stored.kind) for chunk in islice(chunks, slices))


def _put(values: NDArray[Any], out: NDArray[np.uint8]) -> None:
    """Write the labels of one slice to `out`. Raises `Refusal` E_MASK_LABELS."""
    sides = [(side, values == side) for side in (RIGHT, LEFT)]
    for side, is_side in sides:
        out[is_side] = side
    if np.count_nonzero(values) != sum(np.count_nonzero(is_side) for _, is_side in sides):
        raise Refusal(reasons.MASK_LABELS, private="other values than 0, 1 and 2")


@quiet_pydicom()
def _read_segmentation(path: Path, series: Series) -> LungMask:
    if is_volume_file(series.files[0].name):
        raise Refusal(reasons.MASK_SERIES, private="the scan is not DICOM")
    scan = read_header(series.files[0], _REFERENCES)
    labels, affine = read_segmentation(path, text(scan, "SeriesInstanceUID"), text(scan, "FrameOfReferenceUID"))
    return checked(labels, affine)
