"""Measures one scan on the working grid of its preprocessing: lungs, pose of the body, scanner."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.refusal import Refusal
from pipeline.imaging.dicom_header import tags, text
from pipeline.imaging.discovery import Series
from pipeline.imaging.multiframe import read_first_header
from pipeline.imaging.nifti_reader import is_volume_file
from pipeline.imaging.vendor_tags import known_kernel, known_manufacturer
from pipeline.imaging.volume import Volume
from pipeline.preprocessing.air import air_around
from pipeline.preprocessing.field_of_view import cut_share, cut_slices
from pipeline.preprocessing.lungs import are_flat, lungs_size_mm
from pipeline.preprocessing.measures import Measures
from pipeline.preprocessing.preprocess import Prepared, orient

_BONE_ABOVE_HU = 150.0
_TRACHEA_BELOW_HU = -600.0
_TRACHEA_HALF_MM = 16.0
_HEART_HALF_MM = 80.0
_POSITIONS = ("HFS", "HFP", "HFDR", "HFDL", "FFS", "FFP", "FFDR", "FFDL")
_HEADER = tags("PatientPosition", "SliceThickness")


def measure(series: Series, volume: Volume, prepared: Prepared) -> Measures:
    """Measure one scan on the working grid of its preprocessing; only the air at the border uses the full scan."""
    position, thickness_mm = _header(series)
    lungs = prepared.lungs
    slice_mm, *in_plane = volume.spacing_mm
    kernel, sharpness = known_kernel(series.kernel)
    spine, trachea, heart = body_pose(prepared)
    upright = orient(volume)
    low, high = cut_slices(upright, len(lungs))
    at_ends = bool(lungs[: low + 1].any() or lungs[high:].any())
    return Measures(
        slice_mm=round(slice_mm, 2),
        pixel_mm=round(max(in_plane), 2),
        thickness_mm=thickness_mm,
        slices=len(volume.hu),
        lungs_ml=round(prepared.lungs_ml),
        is_cut=at_ends or cut_share(prepared.image_hu, lungs) > 0,
        air_hu=air_around(upright.hu, lungs),
        aerated_hu=round(float(np.percentile(prepared.image_hu[lungs], 10))),
        spine_behind_mm=spine,
        windpipe_above_mm2=trachea,
        heart_left=heart,
        position=position,
        manufacturer=known_manufacturer(series.manufacturer),
        kernel=kernel,
        sharpness=sharpness,
    )


def is_flat(prepared: Prepared) -> bool:
    """Whether the lungs are unusually low for their width (W_LUNGS_FLAT)."""
    return are_flat(*lungs_size_mm(prepared.lungs, prepared.spacing_mm))


def _header(series: Series) -> tuple[str, float | None]:
    """Return PatientPosition and SliceThickness of one slice."""
    first = series.files[0]
    if is_volume_file(first.name):
        return "", None
    try:
        header = read_first_header(first, _HEADER)
        position = text(header, "PatientPosition").strip().upper()
        thickness = float(text(header, "SliceThickness"))
    except (Refusal, ValueError):
        return "", None
    return position if position in _POSITIONS else "", round(thickness, 2) if 0 < thickness < 100 else None


def body_pose(prepared: Prepared) -> tuple[float | None, float, float]:
    """Locate spine, trachea and heart: `spine_behind_mm`, `windpipe_above_mm2`, `heart_left`.

    If the header is right, the axes of the grid point to the head, to the back and to the patient's left.
    """
    hu, lungs, step = prepared.image_hu, prepared.lungs, prepared.spacing_mm
    inside = np.nonzero(lungs)
    bottom, top, front, back = inside[0].min(), inside[0].max() + 1, inside[1].min(), inside[1].max() + 1
    bone = np.nonzero(hu[bottom:top] > _BONE_ABOVE_HU)
    if not bone[0].size:
        return None, 0.0, 0.0
    middle = round(float(np.median(bone[2])))

    def slab(image: NDArray[Any], low: float, high: float, half_mm: float, depth: float) -> NDArray[Any]:
        """Cut a slab: between two shares of the lungs' height, around the midline, to a share of the lungs' depth."""
        height, half = top - bottom, round(half_mm / step)
        rows = slice(front, front + max(1, round((back - front) * depth)))
        return image[
            bottom + int(height * low) : bottom + int(height * high), rows, max(0, middle - half) : middle + half + 1
        ]

    def trachea(low: float, high: float) -> float:
        area = (slab(hu, low, high, _TRACHEA_HALF_MM, 1.0) < _TRACHEA_BELOW_HU).sum(axis=(1, 2))
        return float(np.median(area)) * step**2 if area.size else 0.0

    heart = (slab(hu, 0.2, 0.5, _HEART_HALF_MM, 0.6) > -200) & ~slab(lungs, 0.2, 0.5, _HEART_HALF_MM, 0.6)
    half = heart.shape[2] // 2
    right, left = int(heart[..., :half].sum()), int(heart[..., -half:].sum())
    spine = (float(np.mean(bone[1])) - float(np.mean(inside[1]))) * step
    return round(spine, 1), trachea(0.8, 1.0) - trachea(0.0, 0.2), round((left - right) / max(left + right, 1), 3)
